"""Where do rules match, and what do they add up to? All rules and all examples at once, as sparse arrays.

A rule pairs a feature i of the query (or none in particular) with a feature j of a key. Where both are active it adds

    score   f_i(q) f_j(k) < R_t query_i, key_j >        t = q - k; without rotation the same at every distance
    value   f_j(k) value_j . w                          once a key, however many rules name j

`Pairs` are the features that rules may name, and what each pair is worth; `matched` lists every match.

Axes: example, key; query = features i that may be named, 0 for none in particular; keyed = features j; offset; match.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from headlens.dictionaries.dictionary import Active
from headlens.models.head import Head
from headlens.rules.exemplars import Examples
from headlens.rules.observe import HeadMaps

MOST_FEATURES = 512
TABLE = 1 << 24
"""Numbers of a table (offset, query, keyed)."""
NONE = -1
"""Written as the number of no query feature in particular."""
Some = TypeVar("Some", "KeyMatches", "Matches")


@dataclass(frozen=True)
class Sparse:
    """Activations of all tokens, as arrays."""

    offsets: Int[np.ndarray, " bound"]
    features: Int[np.ndarray, " entry"]
    values: Float[np.ndarray, " entry"]
    rows: Int[np.ndarray, " entry"]

    @classmethod
    def of(cls, active: Active) -> "Sparse":
        return cls(*(one.cpu().numpy() for one in (active.offsets, active.features, active.values, active.rows)))


@dataclass(frozen=True)
class Pairs:
    """Features that rules may name, and what a unit of each pair adds."""

    queries: Int[np.ndarray, " query"]
    """Numbers in the input dictionary; the first is NONE."""
    keys: Int[np.ndarray, " keyed"]
    score: Float[np.ndarray, "offset query keyed"]
    """One offset where the head does not rotate."""
    value: Float[np.ndarray, " keyed"]
    d_sae: int

    @property
    def n_offsets(self) -> int:
        return len(self.score)

    def local(self) -> tuple[Int[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]]:
        """Each feature's place among queries and keys; -1 where it has none."""
        query, key = np.full(self.d_sae, -1, np.int32), np.full(self.d_sae, -1, np.int32)
        query[self.queries[1:]] = np.arange(1, len(self.queries))
        key[self.keys] = np.arange(len(self.keys))
        return query, key


def make_pairs(
    maps: HeadMaps,
    w: Float[np.ndarray, " d_head"],
    queries: Int[np.ndarray, " some"],
    keys: Int[np.ndarray, " other"],
    n_offsets: int,
) -> Pairs:
    """Return what every pair of some query and key features is worth for an output feature that reads `w`."""
    q, k = np.concatenate([maps.constant[None], maps.query[queries]]), maps.key[keys]
    rotary = maps.head.rotary
    if rotary is None:
        table = (q @ k.T)[None]
    else:
        turned = torch.from_numpy(q)
        still = rotary(torch.from_numpy(k), 0).numpy()  # some rotations scale, at position 0 too
        table = np.stack([rotary(turned, t).numpy() @ still.T for t in range(n_offsets)])
    named = np.concatenate([[NONE], queries]).astype(np.int64)
    return Pairs(named, keys.astype(np.int64), table.astype(np.float32), maps.value[keys] @ w, len(maps.query))


@dataclass(frozen=True)
class KeyMatches:
    """Every place where a feature that rules may name is active at a key that an example sees."""

    example: Int[np.ndarray, " match"]
    key: Int[np.ndarray, " match"]
    """Its place among the example's keys."""
    keyed: Int[np.ndarray, " match"]
    activation: Float[np.ndarray, " match"]

    def only(self, named: Bool[np.ndarray, " keyed"]) -> "KeyMatches":
        """Return the matches of some key features."""
        return _where(self, named[self.keyed])


@dataclass(frozen=True)
class Matches:
    """Every place where a pair of features meets."""

    pair: Int[np.ndarray, " match"]
    """Number of the pair, or of the rule."""
    cell: Int[np.ndarray, " match"]
    """example * width + key."""
    score: Float[np.ndarray, " match"]
    write: Float[np.ndarray, " match"]
    """What the key feature writes there."""

    def only(self, rank: Int[np.ndarray, " pair"]) -> "Matches":
        """Return the matches of some pairs, numbered by `rank`; those below 0 are left out."""
        ranked = rank[self.pair]
        return _where(replace(self, pair=ranked), ranked >= 0)


def _where(matches: Some, kept: Bool[np.ndarray, " match"]) -> Some:
    """The matches that are kept."""
    return replace(matches, **{one.name: getattr(matches, one.name)[kept] for one in fields(matches)})


def key_matches(active: Sparse, examples: Examples, local: Int[np.ndarray, " d_sae"]) -> KeyMatches:
    """Find active features among the keys that each example sees."""
    offsets, features = active.offsets, active.features
    first = examples.start
    if examples.window is not None:
        first = np.maximum(first, examples.row - examples.window + 1)
    begin, n = offsets[first], offsets[examples.row + 1] - offsets[first]
    example = np.repeat(np.arange(len(examples), dtype=np.int32), n)
    entry = _ranges(begin, n)
    keyed = local[features[entry]]
    kept = keyed >= 0
    example, entry = example[kept], entry[kept]
    at = active.rows[entry] - examples.start[example]
    return KeyMatches(example, at, keyed[kept], active.values[entry].astype(np.float32))


def matched(
    active: Sparse,
    examples: Examples,
    pairs: Pairs,
    keys: KeyMatches,
    queries: Bool[np.ndarray, " query"] | None = None,
) -> Iterator[Matches]:
    """Yield every match of every pair (of some queries), the queries of all examples slot by slot."""
    local, _ = pairs.local()
    if queries is not None:
        local = np.where((local >= 0) & queries[local], local, -1).astype(np.int32)
    slots, weights = _slots(active, examples, local)
    cell = keys.example.astype(np.int64) * examples.width + keys.key
    distance = examples.distance.ravel()[cell] if pairs.n_offsets > 1 else np.zeros(1, np.int64)
    write = (pairs.value[keys.keyed] * keys.activation).astype(np.float32)
    n_keys, table = len(pairs.keys), pairs.score.reshape(pairs.n_offsets, -1)
    for query, weight in zip(slots.T, weights.T, strict=True):
        of_match = query[keys.example]
        kept = np.flatnonzero(of_match >= 0)
        pair = of_match[kept].astype(np.int64) * n_keys + keys.keyed[kept]
        unit = table[distance[kept], pair] if pairs.n_offsets > 1 else table[0, pair]
        yield Matches(pair, cell[kept], unit * weight[keys.example[kept]] * keys.activation[kept], write[kept])


def all_matches(
    active: Sparse, examples: Examples, pairs: Pairs, keys: KeyMatches, rank: Int[np.ndarray, " pair"]
) -> Matches:
    """Return the matches of the pairs that `rank` numbers from 0; the others have -1."""
    named = rank.reshape(len(pairs.queries), -1) >= 0
    keys, queries = keys.only(np.any(named, axis=0)), np.asarray(named.any(1))
    some = [one.only(rank) for one in matched(active, examples, pairs, keys, queries)]
    columns = zip(*((one.pair, one.cell, one.score, one.write) for one in some), strict=True)
    return Matches(*(np.concatenate(column) for column in columns))


def _slots(
    active: Sparse, examples: Examples, local: Int[np.ndarray, " d_sae"]
) -> tuple[Int[np.ndarray, "example slot"], Float[np.ndarray, "example slot"]]:
    """The query features of each example side by side, -1 where there are fewer; slot 0 is none in particular."""
    offsets, features = active.offsets, active.features
    begin, n = offsets[examples.row], offsets[examples.row + 1] - offsets[examples.row]
    example, entry = np.repeat(np.arange(len(examples)), n), _ranges(begin, n)
    query = local[features[entry]]
    kept = query >= 0
    example, entry, query = example[kept], entry[kept], query[kept]
    slot = np.arange(len(example)) - np.searchsorted(example, example) + 1
    slots = np.full((len(examples), int(slot.max(initial=0)) + 1), -1, np.int32)
    weights = np.zeros(slots.shape, np.float32)
    slots[:, 0], weights[:, 0] = 0, 1
    slots[example, slot], weights[example, slot] = query, active.values[entry]
    return slots, weights


def _ranges(begin: Int[np.ndarray, " some"], n: Int[np.ndarray, " some"]) -> Int[np.ndarray, " entry"]:
    """begin[0], begin[0] + 1, ... n[0] of them, and so on."""
    ends = n.cumsum()
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(begin - (ends - n), n)


def feature_uses(head: Head, n_offsets: int) -> int:
    """How many features a side may have, so that the table of pairs stays within `TABLE`."""
    offsets = 1 if head.rotary is None else n_offsets
    return min(MOST_FEATURES, int((TABLE / offsets) ** 0.5))
