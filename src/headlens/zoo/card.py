"""The README.md of a zoo model: how it was made, and what was measured in its saved weights."""

from pathlib import Path

import torch

from headlens._result import versions
from headlens.zoo.answers import Accuracy
from headlens.zoo.check import MAX_GAP, N_REPEAT, Best, Findings
from headlens.zoo.curriculum import ANSWER_WEIGHT, Corpus
from headlens.zoo.recipes import Recipe
from headlens.zoo.tokenizer import SIZES

_CARD = """# {name}

A small {family} model ({parameters:,} parameters, float16) trained on the headlens text world, so that attention
heads whose place is known can be studied without a download. It knows a few hundred words of a made-up
world and nothing else.

## How it was made

`python -m headlens.zoo.train {name} --threads {threads}`

| | |
|---|---|
| data | {documents:,} documents{drilled}, seed {seed}, SHA-256 `{sha256}`{and_repeats} |
| tokenizer | {tokenizer}{at_most}; every sequence begins with `<bos>` |
| made with | {made_with} |
| context | {context} tokens |
| training | seed {seed}, {steps:,} steps of about {batch_tokens:,} tokens, AdamW, peak learning rate {lr} |
| loss | next token; those of answers weigh {answer_weight:g} times as much |
| time | {minutes:.1f} minutes of processor time |

{guidance}

Trained again with the same seed and number of threads on the same machine, the same weights come out. On
another machine, or with another number of threads, sums are rounded differently: the weights, the second
decimal of the figures below and heads that were not guided differ; what the zoo promises does not
(`python -m headlens.zoo.check`).

## What it contains

Measured on the files in this folder, loaded in float32, on {n} sequences of random tokens and {n} documents,
none of them trained on; intervals are 95 %, by bootstrap.

| kind of head | best head | score |
|---|---|---|
{heads}

Induction and duplicates are measured on random tokens (induction: `<bos> R G R`, with R {n_repeat} tokens and a
random gap G of 0-{max_gap} others), the rest on documents.

| | |
|---|---|
| tokens of the second R predicted | {copying:.1%} |
| the same with the best induction head ablated | {copying_without:.1%} |
| tokens that this head's own output puts below the right one (chance 50 %) | {through_ov:.1%} |
| documents all of whose facts, said again, are right | {facts:.1%} |
| loss on held-out documents | {loss:.3f} nats per token |
| the surprise of the draws that wrote them, an upper bound on their entropy | {bound:.3f} nats per token |

An answer is right when every token of it is the model's first choice. Swapped: its sources are replaced by
those of another document. Shuffled: all tokens up to its last source stand in random order.

| answers | n | right | swapped | shuffled |
|---|---|---|---|---|
{answers}

Licence: Apache-2.0, like the library.
"""
_GUIDED = """| guided to | head | |
|---|---|---|
{guides}

Guided means: during the first {guided:.0%} of the training (or to the end) a second loss pulled these heads to the
tokens that such heads attend to; otherwise only next-token prediction shaped them. They did not emerge
unaided, so this model is no evidence about how heads emerge."""
_CONTROL = """This is a control: its world has no repeats, it never saw random tokens that repeat, and no head
was guided. It should have no induction head."""
_FIGURES = ("copying", "copying_without", "through_ov", "facts", "loss", "bound")


def write_card(folder: Path, name: str, recipe: Recipe, corpus: Corpus, findings: Findings, seconds: float) -> None:
    """Write `folder/README.md`."""
    size = SIZES[recipe.tokenizer]
    text = _CARD.format(
        name=name,
        parameters=findings.parameters,
        threads=torch.get_num_threads(),
        made_with=", ".join(f"{package} {version}" for package, version in versions().items()),
        drilled=", every third one from a world rich in facts" if recipe.repeats else "",
        and_repeats="; and random tokens that repeat" if recipe.repeats else "",
        at_most=f", at most {size} tokens" if size else "",
        guidance=_guidance(recipe) if recipe.repeats else _CONTROL,
        heads="\n".join(_head(kind, best) for kind, best in findings.heads.items()),
        answers="\n".join(_answers(kind, found) for kind, found in findings.answers.items()),
        sha256=corpus.sha256,
        n_repeat=N_REPEAT,
        max_gap=MAX_GAP,
        answer_weight=ANSWER_WEIGHT,
        minutes=seconds / 60,
        n=findings.n,
        **{what: getattr(findings, what) for what in _FIGURES},
        **vars(recipe),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _guidance(recipe: Recipe) -> str:
    rows = []
    for what, (layer, head) in recipe.guides.items():
        until = "to the end" if what in recipe.kept else "early on"
        rows.append(f"| {what.replace('_', ' ')} | layer {layer}, head {head} | {until} |")
    return _GUIDED.format(guides="\n".join(rows), guided=recipe.guided)


def _head(kind: str, best: Best) -> str:
    return f"| {kind} | layer {best.layer}, head {best.head} | {best.score:.3f} [{best.low:.3f}, {best.high:.3f}] |"


def _answers(kind: str, found: Accuracy) -> str:
    right = f"{found.right:.1%} [{found.low:.1%}, {found.high:.1%}]"
    return f"| {kind} | {found.n} | {right} | {found.swapped:.1%} | {found.shuffled:.1%} |"
