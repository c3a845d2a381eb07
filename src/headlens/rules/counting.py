"""Does a feature fire once one thing was there more often than another? By how much, and is it so when they are dealt?

With n keys that hold j, m that hold j' and T - n - m others, seen from the same query, the feature fires above t where

    n e^s u + m e^s' u' + (T - n - m) e^s0 u0 > 0            u = b + write - t, of a key of each kind

so that with u > 0 > u' it takes more than ratio = - e^s' u' / (e^s u) of j for each j'; and where others suppress it
(u0 < 0) more than  n0 = T e^s0 |u0| / (e^s u + e^s0 |u0|)  of j in T keys. s and u are medians over keys of mining
examples that hold j, with all else that they hold; s0 is what is left of
an example's mean score without rules.

Confirmed by a dose curve: in texts outside the mining part places are dealt out to n tokens that carry j, m that carry
j' and else neutral ones, as many places in every dose. A count holds if, along n, the share of texts that fire passes
1/2, at every m in order; if more of j' needs more of j; and if where it passes is near the ratio (`NEAR`). Where twice
the ratio does not make it fire, or none already does, the curve is left at that.

Axes: attract (n); suppress (m); context.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from headlens.rules.exemplars import Exemplars
from headlens.rules.language import Count, SkipGram
from headlens.rules.matches import NONE, Pairs, Sparse, key_matches
from headlens.rules.replace import Replacements
from headlens.rules.restrict import Truth

CONTEXTS = 8
MOST_N = 16
STEPS = 17
NEAR = 2.0
"""Where the curve passes is within this factor of the ratio."""
RATIOS = (1 / 8, 16)


@dataclass(frozen=True)
class KeyKind:
    """A kind of key, as one query feature sees it."""

    feature: int
    weight: float
    """e^(s - s0): attention, in units of another key's."""
    over: float
    """u: what it writes above the threshold, with the bias."""


@dataclass(frozen=True)
class Dose:
    """How a feature does at one dose."""

    n: int
    m: int
    pre: float
    fires: float
    """Share of contexts."""


@dataclass(frozen=True)
class FoundCount:
    """A count, and its dose curve."""

    count: Count
    doses: tuple[Dose, ...]
    passes: dict[int, float] = field(default_factory=dict)
    """By m, the n from which on more than half of the texts fire; infinite where they never do."""
    places: int = 0
    contexts: int = 0

    @property
    def confirmed(self) -> bool:
        """Whether it holds; see the module."""
        told = [(m, n) for m, n in sorted(self.passes.items()) if m > 0 or self.count.suppress is None]
        if not told or self.contexts < 3:
            return False
        first_m, first_n = told[0]
        wanted = self.count.ratio * max(first_m, 1)
        near = wanted / NEAR <= first_n <= wanted * NEAR + 1  # n is a whole number
        if self.count.suppress is None:
            return near and first_n > 1
        rises = all(a <= b for (_, a), (_, b) in pairwise(told))
        without = self.passes.get(0, np.inf)
        return near and rises and first_n > max(without, 1)

    def to_row(self) -> dict:
        return asdict(self.count) | {
            "doses": [asdict(dose) for dose in self.doses], "places": self.places, "contexts": self.contexts,
            "confirmed": self.confirmed,
        }  # fmt: skip


def kinds_of(
    active: Sparse,
    truth: Truth,
    pairs: Pairs,
    seeing: Bool[np.ndarray, " example"],
    level: Float[np.ndarray, " example"],
    over: float,
) -> tuple[list[KeyKind], float]:
    """Return the kinds of keys that some examples (those `seeing`) tell apart, and u0 of all other keys.

    Parameters
    ----------
    level
        Mean score of a key without what rules add: s0.
    over
        The bias less the threshold.
    """
    examples = truth.examples
    keys = key_matches(active, examples, pairs.local()[1])
    cell = keys.example.astype(np.int64) * examples.width + keys.key
    there = seeing[keys.example] & (keys.key > 0) & (examples.distance.ravel()[cell] > 0)
    other = examples.visible & (examples.distance > 0) & seeing[:, None]
    other[:, 0] = False
    above = truth.scores - level[:, None]
    rest = float(np.median((truth.writes + over)[other])) if other.any() else over
    order = np.argsort(keys.keyed[there], kind="stable")
    cell, bounds = cell[there][order], np.searchsorted(keys.keyed[there][order], np.arange(len(pairs.keys) + 1))
    kinds = []
    for j, start, stop in zip(pairs.keys, bounds, bounds[1:], strict=False):
        if stop > start:
            own = cell[start:stop]
            weight = np.exp(np.clip(np.median(above.ravel()[own]), -30, 30))
            kinds.append(KeyKind(int(j), float(weight), float(np.median(truth.writes.ravel()[own]) + over)))
    return kinds, rest


def ratio_of(attract: KeyKind, suppress: KeyKind) -> float:
    """Return how many of one it takes for each of the other."""
    return -suppress.weight * suppress.over / (attract.weight * attract.over)


def alone(attract: KeyKind, other: float, keys: int) -> float:
    """Return how many of `keys` must hold it, where others have `other` (u0) and attention 1 each."""
    return keys * -other / (attract.weight * attract.over - other)


def expected(
    kinds: Sequence[KeyKind], other: float, query: int, rules: Sequence[SkipGram], keys: int, n: int
) -> list[Count]:
    """Return the n counts that weights and typical activations speak for most."""
    attract = [kind for kind in kinds if kind.over > 0 and kind.weight * kind.over > 0]
    raising = {rule.key for rule in rules if rule.effect > 0 and rule.query in (query, NONE)}
    attract = sorted((k for k in attract if k.feature in raising), key=lambda k: -k.weight * k.over)[:4]
    suppress = sorted((k for k in kinds if k.over < min(other, 0)), key=lambda k: k.weight * k.over)[:4]
    found = []
    for one in attract:
        size = one.weight * one.over
        for two in suppress:
            if one.feature != two.feature and RATIOS[0] <= (ratio := ratio_of(one, two)) <= RATIOS[1]:
                count = Count(query, one.feature, two.feature, ratio)
                found.append((size - two.weight * two.over, count))
        if other < 0 and 1 <= (least := alone(one, other, keys)) <= min(MOST_N, keys / 2):
            found.append((size, Count(query, one.feature, None, least)))
    return [count for _, count in sorted(found, key=lambda row: -row[0])[:n]]


def dose_curve(
    count: Count, feature: int, exemplars: Exemplars, replacements: Replacements, *, seed: int
) -> FoundCount:
    """Deal doses out in texts outside the mining part, and see where the feature begins to fire."""
    rng = np.random.Generator(np.random.PCG64([seed, feature, count.attract]))
    looked_for = [replacements.carrier(one) for one in (count.attract, count.suppress) if one is not None]
    carriers = [token for token in looked_for if token is not None]
    named = [one for one in (count.query, count.attract, count.suppress) if one is not None]
    neutral = replacements.neutral([one for one in named if one != NONE])
    rows = _contexts(count, exemplars, replacements, rng)
    if None in looked_for or not len(neutral) or not len(rows) or len(set(carriers)) < len(carriers):
        return FoundCount(count, ())
    doses = _doses(count)
    places = max(n + m for n, m in doses)
    lengths = rows - replacements.start_of[rows]
    if (lengths > places).sum() < 3:  # texts are short: as many doses as there is room for
        places = int(np.sort(lengths)[-3:].min() - 1) if len(lengths) >= 3 else 0
        doses = [(n, m) for n, m in doses if n + m <= places]
    rows = rows[lengths > places][:CONTEXTS]
    if not doses or not len(rows):
        return FoundCount(count, ())
    dealing = _Dealing.at(rows, places, carriers, neutral, replacements, rng)
    m = sorted({m for _, m in doses})[-1 if count.suppress is None else 1]
    ends = [min(n for n, _ in doses), max(n for n, other in doses if other == m)]
    _, fires = dealing.read([(n, m) for n in ends], feature)
    if fires[0] > 0.5 or fires[1] <= 0.5:
        return FoundCount(count, ())
    pre, fires = dealing.read(doses, feature)
    told = tuple(Dose(n, m, float(p), float(f)) for (n, m), p, f in zip(doses, pre, fires, strict=True))
    passes = {m: _passes([dose for dose in told if dose.m == m]) for m in sorted({m for _, m in doses})}
    return FoundCount(count, told, passes, places, len(rows))


@dataclass(frozen=True)
class _Dealing:
    """Texts whose places can be dealt out."""

    bases: list[Int[np.ndarray, "_"]]
    """Neutral tokens at all places."""
    places: list[Int[np.ndarray, "_"]]
    carriers: list[int]
    replacements: Replacements

    @classmethod
    def at(
        cls, rows: np.ndarray, n_places: int, carriers: list[int], neutral: np.ndarray, replacements: Replacements,
        rng: np.random.Generator,
    ) -> "_Dealing":  # fmt: skip
        bases, places = [], []
        for row in rows:
            base = replacements.context(int(row))
            at = 1 + rng.permutation(len(base) - 2)[:n_places]
            base[at] = replacements.ids[rng.choice(neutral, len(at))]
            bases.append(base)
            places.append(at)
        return cls(bases, places, carriers, replacements)

    def read(self, doses: Sequence[tuple[int, int]], feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean pre-activation of each dose, and the share of texts that fire."""
        contexts = []
        for base, at in zip(self.bases, self.places, strict=True):
            for n, m in doses:
                context = base.copy()
                context[at[:n]] = self.carriers[0]
                context[at[n : n + m]] = self.carriers[-1]
                contexts.append(context)
        pre, activation = self.replacements.read(contexts, feature)
        shape = (len(self.bases), len(doses))
        return pre.reshape(shape).mean(0), (activation > 0).reshape(shape).mean(0)


def _contexts(
    count: Count, exemplars: Exemplars, replacements: Replacements, rng: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Positions outside the mining part at which the query feature is active; those with the attracted one first."""
    rows = replacements.rows_where(count.query, count.attract)
    rows = rows[(exemplars.part[exemplars.text_of[rows]] > 0) & (rows > replacements.start_of[rows] + 2)]
    chosen = rng.permutation(rows)[: 8 * CONTEXTS]
    return chosen[np.argsort(-(chosen - replacements.start_of[chosen]), kind="stable")]


def _doses(count: Count) -> list[tuple[int, int]]:
    """n from 0 to twice where it should pass, in `STEPS` or so, for some m."""
    if count.suppress is None:
        return [(n, 0) for n in _steps(count.ratio)]
    most = 2 if count.ratio >= 1 else int(np.ceil(2 / count.ratio))
    most = min(most, MOST_N)
    return [(n, m) for m in sorted({0, (most + 1) // 2, most}) for n in _steps(count.ratio * max(m, 1))]


def _steps(passes: float) -> list[int]:
    most = min(MOST_N, int(np.ceil(2 * passes)) + 1)
    return sorted({round(n) for n in np.linspace(0, most, STEPS)})


def _passes(doses: list[Dose]) -> float:
    """The first n from which on more than half fire, to the end; it fires at no smaller one."""
    fires = np.array([dose.fires > 0.5 for dose in sorted(doses, key=lambda dose: dose.n)])
    if not fires.any() or not fires[int(np.argmax(fires)) :].all():
        return np.inf
    return float(sorted(dose.n for dose in doses)[int(np.argmax(fires))])
