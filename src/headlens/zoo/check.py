"""Does a zoo model contain what it should? `python -m headlens.zoo.check [NAME|FOLDER...]` measures and says.

    heads        hl.heads.score: random tokens that repeat at random gaps, held-out documents for the rest
    copying      share of the second R (but its first token) that the model predicts in `<bos> R G R`
    through OV   there, how far up the best induction head's own output, read by the unembedding, puts the token
                 that comes next: share of all other ordinary tokens that it puts below (chance 0.5)
    without      copying once that head is ablated (its output put to zero)
    answers      see zoo/answers.py
    facts        share of held-out documents all of whose facts, said again, are right
    loss         nats per token of held-out documents, beside the mean surprise of the draws that wrote them:
                 an upper bound on the entropy of the text, so what a reader who knew the grammar would reach

Every model must pass `BARS`; a control must fail the one for induction; and across the zoo there must be the
things that `zoo_failures` looks for.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from headlens import zoo
from headlens.data import stimuli, world
from headlens.data.world import ANSWERS
from headlens.heads import score
from headlens.heads.read_out import read_out
from headlens.models import Model, load
from headlens.tracing import ablate, capture, edit
from headlens.zoo.answers import Accuracy, accuracies, answers_of, fits, predicted, spell, tokenizer_of
from headlens.zoo.curriculum import plain_ids
from headlens.zoo.recipes import RECIPES

BARS = {"previous_token": 0.8, "induction": 0.9, "copying": 0.9, "through OV": 0.9, "facts": 0.95}
"""What a model must reach."""
CONTROL_BAR = 0.1
"""What the best induction score of a control must stay below."""
HELD_OUT = 1_000_003
"""World seed of the documents that no model is trained on."""
WIDTH = 200
"""Columns of the printed tables: a row per model is worth more than one that fits."""
N_REPEAT, MAX_GAP = 50, 40
N = 400


@dataclass(frozen=True)
class Best:
    """The head with the highest score of a kind."""

    score: float
    low: float
    high: float
    layer: int
    head: int


@dataclass(frozen=True)
class Findings:
    """What was measured in one model."""

    n: int
    """Random stimuli, and held-out documents."""
    parameters: int
    heads: Mapping[str, Best]
    """Kind of head -> the best of the model."""
    copying: float
    through_ov: float
    copying_without: float
    answers: Mapping[str, Accuracy]
    facts: float
    loss: float
    bound: float

    @property
    def failures(self) -> list[str]:
        """What a model of the zoo should contain and this one does not."""
        found = {kind: best.score for kind, best in self.heads.items()}
        found |= {"copying": self.copying, "through OV": self.through_ov, "facts": self.facts}
        return [f"{what} {found[what]:.3f} is below {bar}" for what, bar in BARS.items() if not found[what] >= bar]

    @property
    def control_failures(self) -> list[str]:
        """What a control should lack and this one has."""
        found = self.heads["induction"].score
        return [f"induction {found:.3f} is not below {CONTROL_BAR}"] if not found < CONTROL_BAR else []


def check(folder: str | Path, *, n: int = N, seed: int = HELD_OUT) -> Findings:
    """Measure the model saved in `folder` on `n` random stimuli and `n` held-out documents."""
    model = load(str(folder))
    documents = list(world.documents(n, seed=seed))
    heads = best_heads(model, [document.text for document in documents], n, seed)
    repeats = stimuli.repeats(
        plain_ids(tokenizer_of(model)), n=n, length=N_REPEAT, max_gap=MAX_GAP, bos=model.bos, seed=seed
    )  # fmt: skip
    head = heads["induction"]
    with edit(model, [ablate(f"blocks.{head.layer}.attn.hook_z", head=head.head)]):
        without = copying(model, repeats)
    loss, bound = loss_and_bound(model, documents)
    return Findings(
        n=n,
        parameters=model.hf.num_parameters(),
        heads=heads,
        copying=copying(model, repeats),
        through_ov=through_ov(model, head.layer, head.head, repeats),
        copying_without=without,
        answers=accuracies(model, documents, seed=seed),
        facts=facts_right(model, documents),
        loss=loss,
        bound=bound,
    )


def best_heads(model: Model, texts: list[str], n: int, seed: int) -> dict[str, Best]:
    """Kind of head -> the best head of the model."""
    rows = score(model, corpus=texts, num_samples=n, max_tokens=model.n_ctx, seed=seed).to_table().to_pylist()
    best: dict[str, Best] = {}
    for row in sorted(rows, key=lambda row: row["score"]):
        best[row["kind"]] = Best(row["score"], row["low"], row["high"], row["layer"], row["head"])
    return best


def second_half(ids: np.ndarray) -> np.ndarray:
    """Places of the second R of `<bos> R G R`, but its last token, whose follower is not known."""
    return np.arange(len(ids) - N_REPEAT, len(ids) - 1)


def copying(model: Model, repeats: stimuli.Stimulus) -> float:
    """Share of the second R, but its first token, that the model predicts."""
    right = []
    for ids in repeats.tokens:
        with torch.no_grad():
            guesses = model.forward(torch.from_numpy(np.asarray(ids))[None]).logits[0].argmax(-1).numpy()
        places = second_half(ids)
        right.append((guesses[places] == ids[places + 1]).mean())
    return float(np.mean(right))


def through_ov(model: Model, layer: int, head: int, repeats: stimuli.Stimulus) -> float:
    """Share of ordinary tokens that the head's output alone puts below the one that comes next in the second R.

    Norms between the head and the unembedding scale its output by a positive number, which no ranking sees;
    what remains of them is their gain and, in a LayerNorm, the mean that it takes away.
    """
    site, plain = f"blocks.{layer}.attn.hook_z", torch.from_numpy(plain_ids(tokenizer_of(model)))
    circuit, below = model.head(layer, head), []
    with torch.no_grad():
        for ids in repeats.tokens:
            (batch,) = capture(model, [np.asarray(ids).tolist()], [site])
            places = second_half(ids)
            logits = read_out(model, layer, circuit.output(batch[site][0, places, head]))
            comes = logits[torch.arange(len(places)), torch.from_numpy(ids[places + 1])]
            below.append((logits[:, plain] < comes[:, None]).sum(1).double().mean().item() / (len(plain) - 1))
    return float(np.mean(below))


def facts_right(model: Model, documents: list[world.Document]) -> float:
    """Share of the documents with facts said again in which every one of them is right."""
    cases, owners = [], []
    for i, document in enumerate(documents):
        for span in answers_of(document, "fact"):
            case = spell(tokenizer_of(model), document.text, span.start, span.end)
            if fits(model, case):
                cases.append(case)
                owners.append(i)
    right, owners = predicted(model, cases), np.array(owners)
    return float(np.mean([right[owners == i].all() for i in np.unique(owners)]))


def loss_and_bound(model: Model, documents: list[world.Document]) -> tuple[float, float]:
    """Nats per token of documents that fit into the context, and of the draws that wrote them."""
    tokenizer = tokenizer_of(model)
    lost = drawn = n = 0.0
    for document in documents:
        ids = torch.tensor([tokenizer(document.text, verbose=False)["input_ids"]])
        if ids.shape[1] > model.n_ctx:
            continue
        with torch.no_grad():
            logits = model.forward(ids).logits[0, :-1]
        lost += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        drawn += document.nats
        n += ids.shape[1] - 1
    return lost / n, drawn / n


def zoo_failures(zoo_findings: Mapping[str, Findings]) -> list[str]:
    """What at least one model of the zoo should contain and none does."""
    every = list(zoo_findings.values())
    wanted = {
        "a duplicate-token head (> 0.5)": [f.heads["duplicate_token"].score > 0.5 for f in every],
        "a sink head (> 0.5)": [f.heads["sink"].score > 0.5 for f in every],
        "indirect objects (>= 90 %)": [_learnt(f, "indirect object") for f in every],
        "concepts that return, 0.3 above their shuffled control": [
            "consequence" in f.answers and f.answers["consequence"].low > f.answers["consequence"].shuffled + 0.3
            for f in every
        ],
        "skip-grams (>= 90 %)": [_learnt(f, "language") for f in every],
        "absences (>= 90 %)": [_learnt(f, "absence") for f in every],
        "counts (>= 90 %)": [_learnt(f, "majority") and _learnt(f, "tally") for f in every],
    }
    return [f"no model has {what}" for what, models in wanted.items() if not any(models)]


def _learnt(findings: Findings, kind: str, bar: float = 0.9) -> bool:
    found = findings.answers.get(kind)
    return found is not None and found.right >= bar and found.swapped < found.low - 0.2


Rows = list[list[str]]


def heads_rows(zoo_findings: Mapping[str, Findings]) -> Rows:
    """What heads there are and what they do, a row per model under a row of titles."""
    kinds = list(next(iter(zoo_findings.values())).heads)
    rows = [["model", *kinds, "copying", "without", "through OV", "facts", "loss (bound)"]]
    for name, f in zoo_findings.items():
        best = [f"{f.heads[kind].score:.2f} L{f.heads[kind].layer}H{f.heads[kind].head}" for kind in kinds]
        shares = [f"{share:.3f}" for share in (f.copying, f.copying_without, f.through_ov, f.facts)]
        rows.append([name, *best, *shares, f"{f.loss:.2f} ({f.bound:.2f})"])
    return rows


def answers_rows(zoo_findings: Mapping[str, Findings]) -> Rows:
    """Share of answers right, and (swapped, shuffled), a row per kind of answer under a row of titles."""
    kinds = [kind for kind in ANSWERS if any(kind in f.answers for f in zoo_findings.values())]
    shown = [[kind, *(_shown(f.answers.get(kind)) for f in zoo_findings.values())] for kind in kinds]
    return [["answers", *zoo_findings], *shown]


def _shown(found: Accuracy | None) -> str:
    return "" if found is None else f"{found.right:.2f} ({found.swapped:.2f}, {found.shuffled:.2f})"


def rich_table(rows: Rows) -> Table:
    """The rows for a terminal."""
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    return table


def markdown(rows: Rows) -> str:
    """The rows for a page of docs/."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n"


def failures_of(name: str, findings: Findings) -> list[str]:
    """What is wrong with a model, given what it was made for."""
    return findings.failures if RECIPES[name].repeats else findings.control_failures


def main(arguments: list[str] | None = None) -> int:
    """Measure models and print what they contain; 1 if one of them, or the zoo, lacks something."""
    parser = argparse.ArgumentParser(prog="python -m headlens.zoo.check", description="Measure models of the zoo.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all that ship, where none is named")
    parser.add_argument("--folder", type=Path, default=None, help="where the models lie; else those that ship")
    parser.add_argument("--n", type=int, default=N, help=f"stimuli and documents ({N})")
    parser.add_argument("--seed", type=int, default=HELD_OUT, help=f"of stimuli and documents ({HELD_OUT})")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables to this file as well")
    options = parser.parse_args(arguments)
    console = Console()
    names = options.names or list(zoo.names())
    found = {}
    for name in names:
        with console.status(f"measuring {name}"):
            folder = zoo.path(name) if options.folder is None else options.folder / name
            found[name] = check(folder, n=options.n, seed=options.seed)
    tables = [heads_rows(found), answers_rows(found)]
    for rows in tables:
        console.print(rich_table(rows), width=WIDTH, crop=False)
    if options.markdown is not None:
        options.markdown.write_text("\n".join(map(markdown, tables)), encoding="utf-8")
    wrong = [f"{name}: {what}" for name in found for what in failures_of(name, found[name])]
    if not options.names:
        wrong += zoo_failures({name: f for name, f in found.items() if RECIPES[name].repeats})
    for what in wrong:
        console.print(what, markup=False, style="red")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
