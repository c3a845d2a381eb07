"""Prompts made to order, as token ids: what repeats where is known, because we wrote it.

    repeats      BOS  R  G  R        R: `length` distinct random ids; G: a random-length gap of other ids
      control    BOS  R  G  R'       the same layout, nothing repeated: R' fresh ids (cyclically, in a small
                                     vocabulary: never the id that stood in the same place of R)
    duplicates   BOS  random ids, of which `pairs` stand in two random places
    plain        BOS  random ids, none twice
    passages     BOS  the beginning of a text

A gap of random length is what tells a head that finds the repetition from one that looks a fixed number
of tokens back (science: such a head scores 1.0 at a fixed gap). Ids come from an allow-list, without
replacement, from one seed; sequences are ragged.

Axes: see data/tokens.py. Source: Olsson et al. 2022 (repeats); Wang et al. 2023 (duplicates).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack, tokenize


@dataclass(frozen=True)
class Stimulus:
    """Sequences to read, the control that goes with them, and how both were made."""

    name: str
    tokens: Tokens
    bos: int | None
    """Id that every sequence begins with, or None."""
    control: Tokens | None = None
    """Same lengths, with the regularity taken out."""
    recipe: dict[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """Return what a result records of this stimulus."""
        return {"name": self.name, "n": len(self.tokens), "hash": self.tokens.hash, **self.recipe}


def repeats(
    ids: Sequence[int] | np.ndarray,
    *,
    n: int,
    length: int = 50,
    max_gap: int = 40,
    bos: int | None,
    seed: int,
) -> Stimulus:
    """Return random sequences that occur twice, with a gap of 0 to `max_gap` random ids between.

    Raises
    ------
    DataError
        If the allow-list has fewer than twice `length` ids, or a size is out of range.
    """
    _check_sizes("repeats", 1, n=n, length=length)
    _check_sizes("repeats", 0, max_gap=max_gap)
    ids = _allow_list(ids, 2 * length, "repeats")
    max_gap = min(max_gap, len(ids) - length)  # a gap holds each id once, and none of R
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, controls = [], []
    for _ in range(n):
        order = rng.permutation(ids)
        first, rest = order[:length], order[length:]
        gap = rest[: rng.integers(0, max_gap + 1)]
        fresh = np.take(rest, np.arange(len(gap), len(gap) + length), mode="wrap")
        rows.append(_sequence(bos, first, gap, first))
        controls.append(_sequence(bos, first, gap, fresh))
    recipe = {"length": length, "max_gap": max_gap, "seed": seed, "allowed_ids": len(ids)}
    return Stimulus("repeats", pack(rows), bos, pack(controls), recipe)


def duplicates(
    ids: Sequence[int] | np.ndarray, *, n: int, length: int = 50, pairs: int = 5, bos: int | None, seed: int
) -> Stimulus:
    """Return random sequences in which `pairs` ids occur twice, at places that nothing predicts.

    Raises
    ------
    DataError
        If the allow-list is shorter than `length`, or `length` than two places per pair.
    """
    _check_sizes("duplicates", 1, n=n, length=length, pairs=pairs)
    ids = _allow_list(ids, length, "duplicates")
    if 2 * pairs > length:
        raise DataError(f"{pairs} pairs need {2 * pairs} places; length is {length}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, controls = [], []
    for _ in range(n):
        order = rng.permutation(ids)
        row, places = order[:length].copy(), rng.permutation(length)[: 2 * pairs]
        controls.append(_sequence(bos, row))
        row[places[pairs:]] = row[places[:pairs]]
        rows.append(_sequence(bos, row))
    recipe = {"length": length, "pairs": pairs, "seed": seed, "allowed_ids": len(ids)}
    return Stimulus("duplicates", pack(rows), bos, pack(controls), recipe)


def plain(ids: Sequence[int] | np.ndarray, *, n: int, length: int = 50, bos: int | None, seed: int) -> Stimulus:
    """Return random sequences in which no id occurs twice.

    Raises
    ------
    DataError
        If the allow-list is shorter than `length`, or a size is out of range.
    """
    _check_sizes("plain", 1, n=n, length=length)
    ids = _allow_list(ids, length, "plain")
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = [_sequence(bos, rng.permutation(ids)[:length]) for _ in range(n)]
    return Stimulus("plain", pack(rows), bos, None, {"length": length, "seed": seed, "allowed_ids": len(ids)})


def passages(texts: Sequence[str], tokenizer: Any, *, bos: int | None, max_tokens: int) -> Stimulus:
    """Return the beginnings of texts, one sequence each; texts of fewer than 4 tokens are left out.

    Raises
    ------
    DataError
        If no text is long enough.
    """
    tokens = tokenize(texts, tokenizer, bos=bos, max_tokens=max_tokens)
    kept = np.flatnonzero(tokens.lengths >= 4)
    if not len(kept):
        raise DataError(f"No text has four tokens or more when it is cut at {max_tokens}: use longer ones.")
    rows = pack([tokens[i] for i in kept.tolist()])
    return Stimulus("text", rows, bos, None, {"max_tokens": max_tokens})


def _check_sizes(name: str, least: int, **sizes: int) -> None:
    for size, value in sizes.items():
        if value < least:
            raise DataError(f"{size} of {name} must be {least} or more, not {value}.")


def _allow_list(ids: Sequence[int] | np.ndarray, needed: int, name: str) -> Int[np.ndarray, " id"]:
    unique = np.unique(np.asarray(ids, dtype=np.int64))
    if len(unique) < needed:
        raise DataError(f"{name} needs {needed} different ids and the allow-list has {len(unique)}: make it shorter.")
    return unique


def _sequence(bos: int | None, *parts: np.ndarray) -> Int[np.ndarray, " token"]:
    start = [] if bos is None else [np.array([bos])]
    return np.concatenate([*start, *parts])
