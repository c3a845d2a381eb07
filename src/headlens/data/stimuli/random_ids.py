"""Random ids, of which it is known what repeats where, because we wrote it.

    repeats      BOS  R  G  R        R: `length` distinct random ids; G: a random-length gap of other ids
      control    BOS  R  G  R'       the same layout, nothing repeated: R' fresh ids (cyclically, in a small
                                     vocabulary: never the id that stood in the same place of R)
    duplicates   BOS  random ids, of which `pairs` stand in two random places
    plain        BOS  random ids, none twice

A gap of random length is what tells a head that finds the repetition from one that looks a fixed number
of tokens back (science: such a head scores 1.0 at a fixed gap). Ids come from an allow-list, without
replacement, from one seed; sequences are ragged.

Axes: see data/tokens.py. Source: Olsson et al. 2022 (repeats); Wang et al. 2023 (duplicates).
"""

from collections.abc import Sequence

import numpy as np

from headlens._errors import DataError
from headlens.data.stimuli.stimulus import Stimulus, allow_list, check_sizes, sequence
from headlens.data.tokens import pack


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
    check_sizes("repeats", 1, n=n, length=length)
    check_sizes("repeats", 0, max_gap=max_gap)
    ids = allow_list(ids, 2 * length, "repeats")
    max_gap = min(max_gap, len(ids) - length)  # a gap holds each id once, and none of R
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, controls = [], []
    for _ in range(n):
        order = rng.permutation(ids)
        first, rest = order[:length], order[length:]
        gap = rest[: rng.integers(0, max_gap + 1)]
        fresh = np.take(rest, np.arange(len(gap), len(gap) + length), mode="wrap")
        rows.append(sequence(bos, first, gap, first))
        controls.append(sequence(bos, first, gap, fresh))
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
    check_sizes("duplicates", 1, n=n, length=length, pairs=pairs)
    ids = allow_list(ids, length, "duplicates")
    if 2 * pairs > length:
        raise DataError(f"{pairs} pairs need {2 * pairs} places; length is {length}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, controls = [], []
    for _ in range(n):
        order = rng.permutation(ids)
        row, places = order[:length].copy(), rng.permutation(length)[: 2 * pairs]
        controls.append(sequence(bos, row))
        row[places[pairs:]] = row[places[:pairs]]
        rows.append(sequence(bos, row))
    recipe = {"length": length, "pairs": pairs, "seed": seed, "allowed_ids": len(ids)}
    return Stimulus("duplicates", pack(rows), bos, pack(controls), recipe)


def plain(ids: Sequence[int] | np.ndarray, *, n: int, length: int = 50, bos: int | None, seed: int) -> Stimulus:
    """Return random sequences in which no id occurs twice.

    Raises
    ------
    DataError
        If the allow-list is shorter than `length`, or a size is out of range.
    """
    check_sizes("plain", 1, n=n, length=length)
    ids = allow_list(ids, length, "plain")
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = [sequence(bos, rng.permutation(ids)[:length]) for _ in range(n)]
    return Stimulus("plain", pack(rows), bos, None, {"length": length, "seed": seed, "allowed_ids": len(ids)})
