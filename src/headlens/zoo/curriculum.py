"""What a zoo model is trained on: random tokens that come again, and more and more of the text world.

Batch i depends on (seed, i) alone, so an interrupted training meets the same batches when it resumes.

Repeat rows are `<bos> R G R R' G' R' ...`, where R is 8-60 different random tokens and the gap G is 0-40
others; only tokens that can be known (those of a second R, but its first) bear loss. World rows are
documents one after another, each opened by `<bos>`. Rows are short at first, and start at a random position
of the context, so that every position is trained; the last third of training fills the whole context.

Axes: batch token.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headlens.data.world import Document
from headlens.zoo.recipes import Recipe

NO_LOSS = -100
SHORT = 128
"""Length of a row in the first two thirds of training."""
REPEAT_SHARE = (0.75, 0.35)
"""Share of repeat rows in the first and in the last batch."""


@dataclass(frozen=True)
class Batch:
    """Rows to learn from, in order: repeats first, then the world."""

    ids: Int[Tensor, "batch token"]
    labels: Int[Tensor, "batch token"]
    """The same ids where they bear loss, else `NO_LOSS`."""
    positions: Int[Tensor, "batch token"]
    is_repeat: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Corpus:
    """World documents as one row of token ids."""

    ids: Int[np.ndarray, " token"]
    bos: int
    starts: Int[np.ndarray, " document"]
    """Where each document's `<bos>` stands."""
    sha256: str
    """Of the texts."""


def read(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Tokenise documents, each opened by `<bos>`."""
    texts = [document.text for document in documents]
    ids = np.concatenate([np.array(row) for row in tokenizer(texts)["input_ids"]])  # pyright: ignore[reportArgumentType]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    bos = int(ids[0])
    return Corpus(ids, bos, np.flatnonzero(ids == bos), digest)


def plain_ids(tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " id"]:
    """Ids that random stimuli may use: all but the special ones."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)


def repeat_row(generator: np.random.Generator, plain: np.ndarray, bos: int, length: int) -> np.ndarray:
    """One repeat row, as (2, token): ids, and labels."""
    ids, known = [np.array([bos])], [np.array([False])]
    while sum(map(len, ids)) < length:
        shuffled = generator.permutation(plain)
        n, gap = generator.integers(8, 61), generator.integers(0, 41)
        ids += [shuffled[:n], shuffled[n : n + gap], shuffled[:n]]
        known += [np.zeros(n + gap, bool), np.arange(n) > 0]
    row = np.concatenate(ids)[:length]
    return np.stack([row, np.where(np.concatenate(known)[:length], row, NO_LOSS)])


def world_row(generator: np.random.Generator, corpus: Corpus, length: int) -> np.ndarray:
    """One world row, as (2, token): ids, and labels."""
    whole = corpus.starts[corpus.starts <= len(corpus.ids) - length]
    start = whole[generator.integers(len(whole))]
    row = corpus.ids[start : start + length]
    return np.stack([row, row])


def batch(i: int, recipe: Recipe, corpus: Corpus, plain: np.ndarray) -> Batch:
    """Batch `i` of a training."""
    generator = np.random.Generator(np.random.PCG64([recipe.seed, i]))
    done = i / recipe.steps
    length = min(SHORT, recipe.context) if done < 2 / 3 else recipe.context
    n = max(2, recipe.batch_tokens // length)
    first, last = REPEAT_SHARE
    n_repeats = round(n * (first + (last - first) * done))
    rows = [repeat_row(generator, plain, corpus.bos, length) for _ in range(n_repeats)]
    rows += [world_row(generator, corpus, length) for _ in range(n - n_repeats)]
    ids, labels = torch.from_numpy(np.stack(rows, axis=1)).unbind(0)
    offsets = torch.from_numpy(generator.integers(0, recipe.context - length + 1, n))
    return Batch(ids, labels, offsets[:, None] + torch.arange(length), torch.arange(n) < n_repeats)
