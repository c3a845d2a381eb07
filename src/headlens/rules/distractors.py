"""Where does a rule fail, and because of what? Features that take its attention or cancel what it writes.

Predicted, for all (query, key, distractor) at once: where the rule (i, j) matches, one key more that holds feature j'

    effect = (sum_k e^score_k write_k + e^score' write') / (sum_k e^score_k + e^score')  -  the same without it

with score' and write' of the mean key and value of tokens that hold j', with all else that they hold: features of one
token often cancel. It outcompetes if most of that comes without writing anything of its own, else it cancels.

Confirmed three ways, on texts outside the mining part:

    found       the rule's positions with the distractor in view, and without
    put in      a token that carries it in place of a neutral one, less another neutral one there
    taken out   a neutral token in its place, less one in place of another neutral token

An absence holds if putting it in lowers the feature (the interval is below 0) and stops at least half of what fires;
and, where it can be taken out of enough texts, taking it out raises it.

Axes: example; rule; keyed = features that a distractor may be.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from headlens.rules.exemplars import Exemplars
from headlens.rules.language import Absence, SkipGram
from headlens.rules.matches import NONE, Pairs, Sparse, key_matches
from headlens.rules.observe import HeadSeen
from headlens.rules.replace import Difference, Replacements
from headlens.rules.restrict import Truth

CONTEXTS = 24
ENOUGH = 5
"""Contexts in which something must be seen."""
MOST_FOUND = 256
SILENCED = 0.25
MOST_RULES = 64
"""Rules that are looked at: those that raise the feature most, over all that fires."""


@dataclass(frozen=True)
class Suspect:
    """A distractor of a rule, as predicted."""

    rule: SkipGram
    key: int
    effect: float
    by_attention: float
    """The part of `effect` that it has without writing anything."""


@dataclass(frozen=True)
class FoundAbsence:
    """An absence, and what was measured of it."""

    absence: Absence
    with_it: Difference
    """Pre-activation where the rule matches and the distractor is in view, as it is found in texts."""
    without_it: Difference
    put_in: Difference
    taken_out: Difference
    fires_with: float
    """Share of contexts that fire with the distractor put in."""
    fires_without: float
    """The same with a neutral token."""

    @property
    def confirmed(self) -> bool:
        """Whether it holds; see the module."""
        lowered = self.put_in.n >= ENOUGH and self.put_in.high < 0
        stopped = self.fires_without > 0 and self.fires_with <= self.fires_without / 2
        raised = self.taken_out.n < ENOUGH or self.taken_out.low > 0
        return lowered and stopped and raised

    def to_row(self) -> dict:
        return asdict(self.absence) | {
            **{name: asdict(getattr(self, name)) for name in ("with_it", "without_it", "put_in", "taken_out")},
            "fires_with": self.fires_with, "fires_without": self.fires_without, "confirmed": self.confirmed,
        }  # fmt: skip


def one_key_more(
    truth: Truth, seen: HeadSeen, keys: Int[np.ndarray, " keyed"], w: Float[np.ndarray, " d_head"]
) -> tuple[Float[np.ndarray, "example keyed"], Float[np.ndarray, "example keyed"]]:
    """Return what one key that holds each feature would change at each example; and by its attention alone."""
    examples = truth.examples
    other = examples.visible & (examples.distance > 0)
    other[:, 0] = False
    top = np.where(examples.visible, truth.scores, -np.inf).max(1)
    weight = np.where(examples.visible, np.exp(truth.scores - top[:, None]), 0.0)
    write = (truth.writes * other).sum(1) / np.maximum(other.sum(1), 1)
    new = np.exp(np.clip(_scores(truth, seen, keys) - top[:, None], -50, 50))
    total, mass = weight.sum(1, keepdims=True), (weight * truth.writes).sum(1, keepdims=True)
    before = mass / total
    silent = (mass + new * write[:, None]) / (total + new) - before
    return (mass + new * (seen.maps.whole_value[keys] @ w)) / (total + new) - before, silent


def _scores(truth: Truth, seen: HeadSeen, keys: Int[np.ndarray, " keyed"]) -> Float[np.ndarray, "example keyed"]:
    """The scores of such keys, half way back."""
    examples, rotary = truth.examples, seen.maps.head.rotary
    query, key = seen.query[examples.row], seen.maps.whole_key[keys]
    if rotary is None:
        return (query @ key.T).astype(np.float64)
    found = np.empty((len(examples), len(keys)))
    at = (examples.row - examples.start + 1) // 2
    for position in np.unique(at):
        turned = rotary(torch.from_numpy(key), int(position)).numpy()
        found[at == position] = query[at == position] @ turned.T
    return found


def raising(rules: Sequence[SkipGram], coverage: Sequence[float]) -> list[SkipGram]:
    """Return rules that raise the feature, those first that do so most over all that fires."""
    some = [(rule.effect * share, rule) for rule, share in zip(rules, coverage, strict=True) if rule.effect > 0]
    return [rule for _, rule in sorted(some, key=lambda row: -row[0])]


def suspects(
    active: Sparse,
    truth: Truth,
    seen: HeadSeen,
    pairs: Pairs,
    w: Float[np.ndarray, " d_head"],
    rules: Sequence[SkipGram],
    coverage: Sequence[float],
    replacements: Replacements,
    n: int,
    threshold: float,
) -> list[Suspect]:
    """Return the n triples that are predicted to cost most where the rule matches, one for each distractor.

    What counts is the sum over positions that fire, that the rule matches and that do not hold the distractor already.
    Only such as are predicted to silence a quarter of these, at least.
    """
    best = raising(rules, coverage)[:MOST_RULES]
    if not best:
        return []
    examples, weight = truth.examples, truth.examples.balanced
    effect, silent = one_key_more(truth, seen, pairs.keys, w)
    held = key_matches(active, examples, pairs.local()[1])
    free = np.ones(effect.shape, bool)
    free[held.example, held.keyed] = False
    met = np.stack([_met(truth, replacements, rule) for rule in best]).astype(float)
    count, some = met @ free, (met * weight) @ free
    total = (met * weight) @ (effect * free)
    stopped = met @ ((examples.pre[:, None] + effect <= threshold) & free) / np.maximum(count, 1)
    total[(stopped < SILENCED) | (count < ENOUGH)] = 0
    total[[[int(j) == rule.key for j in pairs.keys] for rule in best]] = 0
    found = []
    for j in np.argsort(total.min(0), kind="stable")[:n]:
        common = total[:, j] <= total[:, j].min() / 10  # of rules that it costs much, the one it costs most each time
        r = int(np.argmin(np.where(common, total[:, j] / np.maximum(some[:, j], 1e-30), 0)))
        if total[r, j] < 0:
            alone = ((met[r] * weight) @ (silent[:, j] * free[:, j])) / some[r, j]
            found.append(Suspect(best[r], int(pairs.keys[j]), float(total[r, j] / some[r, j]), float(alone)))
    return found


def _met(truth: Truth, replacements: Replacements, rule: SkipGram) -> Bool[np.ndarray, " example"]:
    """Examples that fire where a rule matches."""
    matches = np.zeros(len(replacements.ids), bool)
    matches[replacements.rows_where(rule.query, rule.key)] = True
    return matches[truth.examples.row] & truth.examples.fires


def confirm(
    suspect: Suspect,
    feature: int,
    exemplars: Exemplars,
    replacements: Replacements,
    pre: Float[np.ndarray, " token"],
    *,
    seed: int,
) -> FoundAbsence:
    """Look for a suspected distractor's doing in texts outside the mining part, and replace tokens there."""
    rule, key = suspect.rule, suspect.key
    rng = np.random.Generator(np.random.PCG64([seed, feature, key]))
    rows = replacements.rows_where(rule.query, rule.key)
    rows = rows[exemplars.part[exemplars.text_of[rows]] > 0]
    there = replacements.first_seen(key)[exemplars.text_of[rows]] <= rows
    neutral = replacements.neutral([rule.query, rule.key, key])
    put_in, fires_with, fires_without = _put_in(
        feature, key, _firing(exemplars, feature, rows[~there]), neutral, replacements, rng, seed
    )
    taken_out = _taken_out(feature, key, rows[there], neutral, replacements, rng, seed)
    outcompetes = suspect.by_attention < suspect.effect / 2
    absence = Absence(rule, SkipGram(rule.query, key, suspect.effect), bool(outcompetes))
    drawn = (rng.permutation(some)[:MOST_FOUND] for some in (rows[there], rows[~there]))
    with_it, without_it = (Difference.of(pre[some], seed=seed) for some in drawn)
    return FoundAbsence(absence, with_it, without_it, put_in, taken_out, fires_with, fires_without)


def _firing(exemplars: Exemplars, feature: int, rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " fire"]:
    return np.intersect1d(rows, exemplars.fires_at(feature)[0])


def _put_in(
    feature: int, key: int, rows: np.ndarray, neutral: np.ndarray, replacements: Replacements,
    rng: np.random.Generator, seed: int,
) -> tuple[Difference, float, float]:  # fmt: skip
    """The carrier in place of a neutral token, less another neutral token there."""
    carrier = replacements.carrier(key)
    with_it, control = [], []
    for row in rng.permutation(rows)[: CONTEXTS if carrier is not None else 0]:
        places = _neutral_places(replacements, int(row), neutral)
        if not len(places):
            continue
        place = rng.choice(places)
        for to, token in ((with_it, carrier), (control, replacements.ids[rng.choice(neutral)])):
            context = replacements.context(int(row))
            context[place] = token
            to.append(context)
    pre, activation = replacements.read(with_it + control, feature)
    n = len(with_it)
    fires = [float((some > 0).mean()) if n else np.nan for some in (activation[:n], activation[n:])]
    return Difference.of(pre[:n] - pre[n:], seed=seed), fires[0], fires[1]


def _taken_out(
    feature: int, key: int, rows: np.ndarray, neutral: np.ndarray, replacements: Replacements,
    rng: np.random.Generator, seed: int,
) -> Difference:  # fmt: skip
    """A neutral token in place of each that carries the distractor, less one in place of as many neutral ones."""
    holding = np.zeros(len(replacements.ids), bool)
    holding[replacements.where(key)[0]] = True
    without, control = [], []
    for row in rng.permutation(rows)[:CONTEXTS]:
        start = replacements.start_of[row]
        places = np.flatnonzero(holding[start:row])
        places = places[places > 0]
        others = _neutral_places(replacements, int(row), neutral)
        if not len(places) or len(others) < len(places):
            continue
        tokens = replacements.ids[rng.choice(neutral, len(places))]
        for to, at in ((without, places), (control, rng.choice(others, len(places), replace=False))):
            context = replacements.context(int(row))
            context[at] = tokens
            to.append(context)
    pre, _ = replacements.read(without + control, feature)
    return Difference.of(pre[: len(without)] - pre[len(without) :], seed=seed)


def _neutral_places(
    replacements: Replacements, row: int, neutral: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " place"]:
    """Places of a context, before its last token, that hold a neutral token."""
    start = int(replacements.start_of[row])
    low, high = np.searchsorted(neutral, [start, row])
    return neutral[low:high] - start


__all__ = ["NONE", "FoundAbsence", "Suspect", "confirm", "one_key_more", "suspects"]
