"""What a zoo model is trained on: at first mostly random tokens that come again, then mostly the text world.

Batch i depends on (recipe, i) alone, so an interrupted training meets the same batches when it resumes.

Repeat rows are `<bos> R G R R' G' R' ...`, where R is 8-60 different random tokens and the gap G is 0-40
others; only tokens that can be known (those of a second R, but its first) bear loss. World rows are
documents one after another, two of the recipe's world and one of `DRILL` in turn, each opened by `<bos>`; the
tokens of answers (see zoo/answers.py) weigh `ANSWER_WEIGHT` times as much as others, because little else in the
world can be known. Rows are short at first, and start anywhere in the context, so that every position is
trained; then they grow.

Axes: batch token.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headlens.data import world
from headlens.data.world import ANSWERS, Document
from headlens.zoo.recipes import DRILL, Recipe

ANSWER_WEIGHT = 6.0
REPEAT_SHARE = (0.75, 0.15)
"""Share of repeat rows early on, and afterwards."""
EARLY = 0.15
"""Share of the training that is early."""
DRILL_SEED = 1000
"""Added to a recipe's seed for its drill."""
LENGTHS = ((0.4, 128), (0.85, 256))
"""Rows are this long until that share of the training; from then on they fill the context."""


@dataclass(frozen=True)
class Batch:
    """Rows to learn from, in order: repeats first, then the world."""

    ids: Int[Tensor, "batch token"]
    weights: Float[Tensor, "batch token"]
    """How much the loss of predicting each token counts."""
    positions: Int[Tensor, "batch token"]
    is_repeat: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Corpus:
    """World documents as one row of token ids."""

    ids: Int[np.ndarray, " token"]
    weights: Float[np.ndarray, " token"]
    bos: int
    starts: Int[np.ndarray, " document"]
    """Where each document's `<bos>` stands."""
    sha256: str
    """Of the texts."""


def reading(recipe: Recipe) -> Iterator[Document]:
    """Yield the documents that a model is trained on."""
    for i in range(recipe.documents):
        if recipe.repeats and i % 3 == 2:
            yield world.nth_document(i, seed=recipe.seed + DRILL_SEED, config=DRILL)
        else:
            yield world.nth_document(i, seed=recipe.seed, config=recipe.world)


def read(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Tokenise documents, each opened by `<bos>`."""
    ids, weights, digest = [], [], hashlib.sha256()
    for document in documents:
        encoded = tokenizer(document.text, return_offsets_mapping=True)
        ids.append(np.array(encoded["input_ids"]))
        weights.append(answer_weights(document, np.array(encoded["offset_mapping"])))
        digest.update(document.text.encode() + b"\n")
    row = np.concatenate(ids)
    bos = int(row[0])
    return Corpus(row, np.concatenate(weights), bos, np.flatnonzero(row == bos), digest.hexdigest())


def answer_weights(document: Document, offsets: Int[np.ndarray, "token 2"]) -> Float[np.ndarray, " token"]:
    """`ANSWER_WEIGHT` for the tokens of answers, 1 for all others."""
    weights = np.ones(len(offsets), np.float32)
    for span in document.spans:
        if span.kind in ANSWERS and span.sources:
            weights[(offsets[:, 0] < span.end) & (offsets[:, 1] > span.start)] = ANSWER_WEIGHT
    return weights


def plain_ids(tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " id"]:
    """Ids that random stimuli may use: all but the special ones."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)


def repeat_row(generator: np.random.Generator, plain: np.ndarray, bos: int, length: int) -> np.ndarray:
    """One repeat row, as (2, token): ids, and weights."""
    ids, known = [np.array([bos])], [np.array([False])]
    while sum(map(len, ids)) < length:
        shuffled = generator.permutation(plain)
        n, gap = generator.integers(8, 61), generator.integers(0, 41)
        ids += [shuffled[:n], shuffled[n : n + gap], shuffled[:n]]
        known += [np.zeros(n + gap, bool), np.arange(n) > 0]
    row = np.concatenate(ids)[:length]
    return np.stack([row, np.concatenate(known)[:length]])


def world_row(generator: np.random.Generator, corpus: Corpus, length: int) -> np.ndarray:
    """One world row, as (2, token): ids, and weights."""
    whole = corpus.starts[corpus.starts <= len(corpus.ids) - length]
    start = whole[generator.integers(len(whole))]
    part = slice(start, start + length)
    return np.stack([corpus.ids[part], corpus.weights[part]])


def guided(i: int, recipe: Recipe) -> list[str]:
    """What batch `i` comes with a guide for."""
    return [what for what in recipe.guides if what in recipe.kept or i < recipe.guided * recipe.steps]


def row_length(i: int, recipe: Recipe) -> int:
    """Tokens in a row of batch `i`."""
    lengths = [length for until, length in LENGTHS if i < until * recipe.steps]
    return min([*lengths, recipe.context])


def batch(i: int, recipe: Recipe, corpus: Corpus, plain: np.ndarray) -> Batch:
    """Batch `i` of a training."""
    generator = np.random.Generator(np.random.PCG64([recipe.seed, i]))
    length = row_length(i, recipe)
    n = max(2, recipe.batch_tokens // length)
    share = REPEAT_SHARE[0 if i < EARLY * recipe.steps else 1] if recipe.repeats else 0.0
    n_repeats = round(n * share)
    rows = [repeat_row(generator, plain, corpus.bos, length) for _ in range(n_repeats)]
    rows += [world_row(generator, corpus, length) for _ in range(n - n_repeats)]
    ids, weights = torch.from_numpy(np.stack(rows, axis=1)).unbind(0)
    offsets = torch.from_numpy(generator.integers(0, recipe.context - length + 1, n))
    return Batch(ids.long(), weights.float(), offsets[:, None] + torch.arange(length), torch.arange(n) < n_repeats)
