"""The README.md of a zoo model: how it was made, and what was measured in its saved weights."""

from pathlib import Path

import torch

from headlens._result import versions
from headlens.zoo.check import MAX_GAP, N_REPEAT, Findings
from headlens.zoo.curriculum import Corpus
from headlens.zoo.guide import GUIDED
from headlens.zoo.recipes import Recipe

_CARD = """# {name}

A small {family} model ({parameters:,} parameters, float16) trained on the headlens text world, so that attention
heads whose place is known can be studied without a download. It knows a few hundred words of a made-up
world and nothing else.

## How it was made

`python -m headlens.zoo.train {name} --threads {threads}`

| | |
|---|---|
| data | {documents:,} documents, seed {seed}, SHA-256 `{sha256}`; and random tokens that repeat |
| tokenizer | {tokenizer}, at most {vocabulary} tokens; every sequence begins with `<bos>` |
| made with | {made_with} |
| context | {context} tokens |
| training | seed {seed}, {steps} steps of about {batch_tokens} tokens, AdamW, peak learning rate {lr} |
| guided to the previous token | layer {previous[0]}, head {previous[1]} |
| guided to induction | layer {induction[0]}, head {induction[1]} |

Guided means: during the first {guided:.0%} of the training a second loss pulled these two heads to the
tokens that such heads attend to; afterwards only next-token prediction shaped them. They did not emerge
unaided, so this model is no evidence about how heads emerge.

## What it contains

Measured on the files in this folder, loaded in float32, on {n} sequences of random tokens and {n} documents,
none of them trained on.

| kind | best head | score |
|---|---|---|
{rows}

Induction is measured on `<bos> R G R`, with R {n_repeat} random tokens and a random gap G of 0-{max_gap} others.

| | |
|---|---|
| tokens of the second R predicted | {copying:.1%} |
| in-context facts predicted, held-out documents | {facts:.1%} |
| loss on held-out documents | {world_loss:.3f} nats per token |

Licence: Apache-2.0, like the library.
"""


def write_card(folder: Path, name: str, recipe: Recipe, corpus: Corpus, findings: Findings) -> None:
    """Write `folder/README.md`."""
    best = ((kind, *findings.best(kind)) for kind in findings.heads)
    text = _CARD.format(
        name=name,
        parameters=findings.parameters,
        threads=torch.get_num_threads(),
        made_with=", ".join(f"{package} {version}" for package, version in versions().items()),
        rows="\n".join(f"| {kind} | layer {layer}, head {head} | {score:.3f} |" for kind, score, layer, head in best),
        sha256=corpus.sha256,
        guided=GUIDED,
        n_repeat=N_REPEAT,
        max_gap=MAX_GAP,
        n=findings.n,
        copying=findings.copying,
        facts=findings.facts,
        world_loss=findings.world_loss,
        **vars(recipe),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
