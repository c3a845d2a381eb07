"""Does a model know what a document lets it know? Answers predicted, and the same with their sources broken.

An answer is a span whose text follows from earlier spans, its sources (see data/world). It is right when
every token of it is the model's first choice. Two controls, each with the same answers:

    swapped     the stretch of text from the first source to the last is replaced by that of an answer of the
                same kind in another document: what is right now was known without the sources
    shuffled    all tokens up to the last source stand in random order: the words are there, their order is not

Skip-grams and counts do not depend on order, so for them only the first control must fall.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from headlens._errors import ModelError
from headlens._statistics import bootstrap_mean
from headlens.data.world import ANSWERS, Document, Span
from headlens.models import Model

MOST = 150
"""Answers of a kind that are asked for; more are drawn from."""
BATCH = 64


@dataclass(frozen=True)
class Case:
    """A sequence, and which of its tokens spell the answer."""

    ids: Int[np.ndarray, " token"]
    answer: Int[np.ndarray, " place"]


@dataclass(frozen=True)
class Accuracy:
    """Share of a kind's answers that are right, with a 95 % interval, and under the controls."""

    n: int
    right: float
    low: float
    high: float
    swapped: float
    shuffled: float


def accuracies(model: Model, documents: Sequence[Document], *, seed: int) -> dict[str, Accuracy]:
    """Return the accuracy of every kind of answer that the documents hold."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found = {}
    for kind in ANSWERS:
        answers = [(document, span) for document in documents for span in answers_of(document, kind)]
        if answers:
            found[kind] = _accuracy(model, [answers[i] for i in rng.permutation(len(answers))[:MOST]], rng)
    return found


def answers_of(document: Document, kind: str) -> Iterator[Span]:
    """Yield the spans of this kind that have sources."""
    return (span for span in document.spans if span.kind == kind and span.sources)


def _accuracy(model: Model, answers: list[tuple[Document, Span]], rng: np.random.Generator) -> Accuracy:
    tokenizer = tokenizer_of(model)
    told, swapped, shuffled = [], [], []
    for i, (document, span) in enumerate(answers):
        case = spell(tokenizer, document.text, span.start, span.end)
        if not fits(model, case):
            continue
        told.append(case)
        donor = answers[(i + 1 + rng.integers(max(1, len(answers) - 1))) % len(answers)]
        swapped.append(spell(tokenizer, *swap(document, span, *donor)))
        shuffled.append(shuffle(case, tokenizer, document, span, rng))
    right = predicted(model, told)
    (mean,), (low,), (high,) = bootstrap_mean(right[:, None].astype(float), seed=0)
    controls = (float(predicted(model, cases).mean()) for cases in (swapped, shuffled))
    return Accuracy(len(right), float(mean), float(low), float(high), *controls)


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Raises
    ------
    ModelError
        If its folder has none.
    """
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer, and a model of the zoo reads text: train it anew.")
    return model.tokenizer


def spell(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> Case:
    """Tokenise a text and find the tokens that spell `text[start:end]`."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    begins, ends = np.array(encoded["offset_mapping"]).T
    return Case(np.array(encoded["input_ids"]), np.flatnonzero((begins < end) & (ends > start)))


def fits(model: Model, case: Case) -> bool:
    """Whether the model can read up to the answer."""
    return len(case.answer) > 0 and int(case.answer[-1]) < model.n_ctx


def stretch(document: Document, span: Span) -> tuple[int, int]:
    """Where the first source of an answer begins and the last one ends."""
    sources = [document.spans[i] for i in span.sources]
    return min(s.start for s in sources), max(s.end for s in sources)


def swap(document: Document, span: Span, donor: Document, donated: Span) -> tuple[str, int, int]:
    """Put the sources of another answer in the place of this one's; return text, start and end of the answer."""
    start, end = stretch(document, span)
    other = donor.text[slice(*stretch(donor, donated))]
    longer = len(other) - (end - start)
    return document.text[:start] + other + document.text[end:], span.start + longer, span.end + longer


def shuffle(
    case: Case, tokenizer: PreTrainedTokenizerBase, document: Document, span: Span, rng: np.random.Generator
) -> Case:
    """Shuffle the tokens between `<bos>` and the end of the last source."""
    last = spell(tokenizer, document.text, *stretch(document, span)).answer[-1]
    ids = case.ids.copy()
    ids[1 : last + 1] = rng.permutation(ids[1 : last + 1])
    return Case(ids, case.answer)


def predicted(model: Model, cases: Sequence[Case]) -> Bool[np.ndarray, " case"]:
    """Whether every token of each answer is the model's first choice, given all that stands before it."""
    right = np.zeros(len(cases), bool)
    order = sorted(range(len(cases)), key=lambda i: cases[i].answer[-1])
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        longest = max(cases[i].answer[-1] for i in rows) + 1
        ids = torch.zeros(len(rows), longest, dtype=torch.long)  # what stands after an answer is never looked at
        for row, i in enumerate(rows):
            known = cases[i].ids[: cases[i].answer[-1] + 1]
            ids[row, : len(known)] = torch.from_numpy(known)
        with torch.no_grad():
            guesses = model.forward(ids).logits.argmax(-1).numpy()
        for row, i in enumerate(rows):
            places = cases[i].answer
            right[i] = (guesses[row, places - 1] == cases[i].ids[places]).all()
    return right
