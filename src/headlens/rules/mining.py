"""Mine the features of a head that was observed: examples, candidates, rules, figures, absences and counts of each.

Axes: feature = output features; rule; size = how many rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from headlens._errors import DataError
from headlens.rules.agreement import Agreement, agreement
from headlens.rules.candidates import Candidates, Method, by_effect, by_magnitude, pull
from headlens.rules.counting import FoundCount, dose_curve, expected, kinds_of
from headlens.rules.distractors import FoundAbsence, confirm, raising, suspects
from headlens.rules.evaluate import Scores, best_threshold, judged, unigram
from headlens.rules.exemplars import Examples, Exemplars, attention, counts, own_scores, own_writes, sink_of, strongest
from headlens.rules.language import RuleSet, SkipGram
from headlens.rules.matches import NONE, Sparse, all_matches, key_matches
from headlens.rules.observe import HeadSeen, Observed
from headlens.rules.replace import Replacements
from headlens.rules.restrict import Truth
from headlens.rules.results import Mined, Rules, told
from headlens.rules.select import SIZES, Chosen, Field, choose

DRAWS = 200
"""Of texts, for intervals."""


@dataclass(frozen=True)
class Asked:
    """How features are mined; what `extract` was called with."""

    method: Method = "importance"
    num_bins: int = 4
    examples_per_bin: int = 25
    seed: int = 0
    draws: int = DRAWS
    suspects: int = 2


def mine(
    observed: Observed,
    head: int,
    features: Sequence[int],
    asked: Asked = Asked(),
    *,
    progress: Callable[[int], None] | None = None,
) -> Rules:
    """Find rules for output features of a head that was observed.

    Raises
    ------
    DataError
        If no feature is named, or a part of the corpus is empty.
    """
    if not len(features):
        raise DataError("features must name one output feature at least.")
    miner = Miner(observed, head, asked)
    mined = []
    for n, feature in enumerate(features, 1):
        mined.append(miner.mine(int(feature)))
        if progress is not None:
            progress(n)
    made = replace(
        observed.provenance, seed=asked.seed,
        data=observed.provenance.data | {"mining": {"layer": observed.layer, "head": head, **vars(asked)}},
    )  # fmt: skip
    return told(made, observed.active.d_sae, mined)


class Miner:
    """Mines output features of one head, one at a time."""

    def __init__(self, observed: Observed, head: int, asked: Asked) -> None:
        self.observed, self.head, self.asked = observed, head, asked
        self.seen: HeadSeen = observed.heads[head]
        self.of = self.seen.maps.head
        self.active = Sparse.of(observed.active)
        self.exemplars = Exemplars(
            observed, head, num_bins=asked.num_bins, examples_per_bin=asked.examples_per_bin, seed=asked.seed
        )
        self.n_offsets = int(observed.tokens.lengths.max())
        self.counts = counts(observed, head)
        self.replacements = Replacements(observed, head, self.active)
        self.is_mining = self.exemplars.part[self.exemplars.text_of] == 0
        for part, name in enumerate(("mining", "selecting", "test")):
            if not (self.exemplars.part == part).any():
                raise DataError(
                    f"The {name} part of the corpus is empty: {len(observed.tokens)} texts are too few, give more."
                )

    def direction(self, feature: int) -> tuple[np.ndarray, float]:
        """What the feature reads of this head, and its bias."""
        d_head = self.seen.value.shape[1]
        rows = self.seen.reader.of_head(self.head, d_head)
        return rows[:, feature].float().cpu().numpy(), float(self.seen.reader.bias[feature])

    def truth(self, examples: Examples, w: np.ndarray) -> Truth:
        """What the model did there."""
        scores = own_scores(self.seen, examples)
        return Truth(examples, scores, own_writes(self.seen, examples, w), attention(scores, examples.visible, self.of))

    def candidates(self, truth: Truth, w: np.ndarray, method: Method) -> Candidates:
        if method == "magnitude":
            return by_magnitude(self.observed, self.head, w, self.n_offsets)
        return by_effect(method, self.active, truth, self.seen.maps, w, self.n_offsets)

    def mine(self, feature: int) -> Mined:
        """Find, choose and judge rules of one output feature."""
        w, bias = self.direction(feature)
        mining, select, test = (self.exemplars.draw(feature, part) for part in ("mine", "select", "test"))
        truth = self.truth(mining, w)
        method = self.asked.method
        candidates = self.candidates(truth, w, method)
        others = self.random(candidates)
        parts = (mining, select, test)
        fields = self.fields(parts, candidates, others)
        chosen = choose(truth, fields[0], self.of, bias, greedy=method != "magnitude")
        rows = self.judge("rules", chosen, select, test)
        key_only = self.candidates(truth, w, "unigram")
        picked = choose(truth, self.fields(parts, key_only)[0], self.of, bias, greedy=True)
        rows += self.judge("key_only", picked, select, test)
        rows += self.judge("random", choose(truth, fields[1], self.of, bias, greedy=False), select, test)
        rows += self.flat_baselines(feature, select, test)
        sets = self.rule_set(feature, candidates, chosen, fields[0][0], truth, rows, bias)
        best = strongest(test, 8)
        share = coverage(fields[0][0])[chosen.order].tolist()
        absences, found_counts, agreements = self.tried(feature, candidates, sets, share, truth, rows)
        return Mined(
            feature, int(self.counts.positions[feature]), int(self.counts.texts[feature]), sets,
            [level.n for level in chosen.levels], [level.rest for level in chosen.levels], rows,
            [self.exemplar(test, i, w, sets) for i in best], (len(mining), len(select), len(test)),
            share, absences, found_counts, agreements,
        )  # fmt: skip

    def tried(
        self, feature: int, candidates: Candidates, sets: RuleSet, share: list[float], truth: Truth,
        rows: list[dict[str, Any]],
    ) -> tuple[list[FoundAbsence], list[FoundCount], list[Agreement]]:  # fmt: skip
        """Suspected distractors and counts, and the rules that raise it most, each tried by replacing tokens."""
        w, _ = self.direction(feature)
        n, seed, pairs = self.asked.suspects, self.asked.seed, candidates.pairs
        if not n or not sets.rules:
            return [], [], []
        pre = self.seen.z @ self.seen.reader.weight[:, feature].float().cpu().numpy() + sets.bias
        threshold = self.threshold(feature, rows)
        absences = [
            confirm(one, feature, self.exemplars, self.replacements, pre, seed=seed)
            for one in suspects(
                self.active, truth, self.seen, pairs, w, sets.rules, share, self.replacements, n, threshold
            )
        ]
        level = self.level(sets, truth)
        best = raising(sets.rules, share)
        queries = list(dict.fromkeys(rule.query for rule in best if rule.query != NONE))[:2] or [NONE]
        found: list[FoundCount] = []
        for query in queries:
            seeing = np.isin(truth.examples.row, self.replacements.where(query)[0])
            if not seeing.any():
                continue
            kinds, other = kinds_of(self.active, truth, pairs, seeing, level, sets.bias - threshold)
            keys = int(np.median((truth.examples.row - truth.examples.start)[seeing]))
            some = expected(kinds, other, query, sets.rules, max(keys, 2), n)
            found += [dose_curve(one, feature, self.exemplars, self.replacements, seed=seed) for one in some]
        return absences, found, agreement(best, feature, self.exemplars, self.replacements, seed=seed)

    def level(self, sets: RuleSet, truth: Truth) -> np.ndarray:
        """Mean score of each example's keys, without what rules and distance add."""
        examples = truth.examples
        left = truth.scores - sets.sums(self.active, examples)[0] - sets.rest.beta[examples.bucket]
        return (left * examples.visible).sum(1) / examples.visible.sum(1)

    def threshold(self, feature: int, rows: list[dict[str, Any]]) -> float:
        """Above what the feature fires; of topk, whose features compete, where that is told best."""
        of = self.seen.dictionary
        if of.activation == "topk":
            return next(row["threshold"] for row in rows if row["predictor"] == "full")
        return 0.0 if of.threshold is None else max(0.0, float(of.threshold[feature]))

    def fields(self, parts: Sequence[Examples], *some: Candidates) -> list[tuple[Field, ...]]:
        """Candidates over each part; several kinds of the same pairs are looked for together."""
        pairs = some[0].pairs
        every = np.unique(np.concatenate([one.order for one in some]))
        rank = np.full(len(pairs.queries) * len(pairs.keys), -1)
        rank[every] = np.arange(len(every))
        found: list[list[Field]] = [[] for _ in some]
        for examples in parts:
            keys = key_matches(self.active, examples, pairs.local()[1])
            matches = all_matches(self.active, examples, pairs, keys, rank)
            for to, one in zip(found, some, strict=True):
                to.append(Field(examples, one, keys, matches.only(one.rank[every])))
        return [tuple(one) for one in found]

    def judge(self, name: str, chosen: Chosen, select: Examples, test: Examples) -> list[dict[str, Any]]:
        rows = []
        for level, one, other in zip(chosen.levels, *chosen.predictions, strict=True):
            threshold = best_threshold(one, select)
            rows.append(row_of(name, level.n, threshold, self.scored(other, test, threshold)))
        return rows

    def scored(self, predicted: np.ndarray, test: Examples, threshold: float) -> Scores:
        return judged(predicted, test, threshold, draws=self.asked.draws, seed=self.asked.seed)

    def random(self, candidates: Candidates) -> Candidates:
        """Pairs that may be named, at random."""
        rng = np.random.Generator(np.random.PCG64(self.asked.seed))
        size = len(candidates.pairs.queries) * len(candidates.pairs.keys)
        return Candidates(candidates.pairs, rng.choice(size, min(size, SIZES[-1]), replace=False))

    def flat_baselines(self, feature: int, select: Examples, test: Examples) -> list[dict[str, Any]]:
        """The query token alone; and the model's own pre-activation, which all pairs with all else true would give."""
        read = self.seen.reader
        row = np.flatnonzero(self.is_mining)
        pre = self.seen.z[row] @ read.weight[:, feature].float().cpu().numpy() + float(read.bias[feature])
        ids = self.observed.tokens.ids
        rows = []
        for name in ("unigram", "full"):
            one, other = (
                some.pre if name == "full" else unigram(ids[row], pre, ids[some.row]) for some in (select, test)
            )
            threshold = best_threshold(one, select)
            rows.append(row_of(name, None, threshold, self.scored(other, test, threshold)))
        return rows

    def rule_set(
        self, feature: int, candidates: Candidates, chosen: Chosen, field: Field, truth: Truth,
        rows: list[dict[str, Any]], bias: float,
    ) -> RuleSet:  # fmt: skip
        """All rules that were chosen, as they are on the mining part."""
        pairs, order = candidates.pairs, chosen.order
        i, j = candidates.query[order], candidates.key[order]
        effects = mean_effects(field, truth)[order]
        rules = tuple(
            SkipGram(int(pairs.queries[a]), int(pairs.keys[b]), float(effect))
            for a, b, effect in zip(i, j, effects, strict=True)
        )
        threshold = [row["threshold"] for row in rows if row["predictor"] == "rules"][-1]
        return RuleSet(
            self.observed.layer, self.head, feature, rules, pairs.score[:, i, j], pairs.value[j], bias,
            chosen.levels[-1].rest, threshold, pairs.d_sae, self.of.window, self.of.softcap,
            sink_of(self.of),
        )  # fmt: skip

    def exemplar(self, examples: Examples, i: int, w: np.ndarray, sets: RuleSet) -> dict[str, Any]:
        """One position where the feature fires: its text so far, what each position adds, and which features it holds.

        Of features only those that a rule names.
        """
        one = examples.some(np.array([i]))
        truth = self.truth(one, w)
        start, stop = int(one.start[0]), int(one.row[0]) + 1
        ids = self.observed.tokens.ids[start:stop]
        tokenizer = self.observed.model.tokenizer
        named = [str(t) for t in ids] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids.tolist())
        adds = (truth.pattern * truth.writes)[0, : stop - start]
        is_named = np.zeros(self.observed.active.d_sae, bool)
        is_named[[i for rule in sets.rules for i in (rule.query, rule.key) if i != NONE]] = True
        tokens_hold = [self.active.features[a:b] for a, b in pairwise(self.active.offsets[start : stop + 1])]
        return {
            "text": int(one.text[0]), "position": stop - start - 1, "activation": float(one.activation[0]),
            "tokens": [_shown(tokenizer, int(t), name) for t, name in zip(ids, named, strict=True)],
            "adds": adds.tolist(),
            "holds": [np.sort(held[is_named[held]]).tolist() for held in tokens_hold],
        }  # fmt: skip


def mean_effects(field: Field, truth: Truth) -> np.ndarray:
    """Return the mean of what each candidate adds, to first order, at the examples where it matches."""
    found, n = field.matches, len(field.examples)
    adds = pull(truth).ravel()[found.cell] * found.score + truth.pattern.ravel()[found.cell] * found.write
    met = np.unique(found.pair.astype(np.int64) * n + found.cell // field.examples.width) // n
    size = len(field.candidates.order)
    return np.bincount(found.pair, adds, size) / np.maximum(np.bincount(met, minlength=size), 1)


def coverage(field: Field) -> np.ndarray:
    """Return at what share of all that fires each candidate matches."""
    found, n, examples = field.matches, len(field.examples), field.examples
    met = np.unique(found.pair.astype(np.int64) * n + found.cell // examples.width)
    fires = examples.weight * examples.fires
    return np.bincount(met // n, fires[met % n], len(field.candidates.order)) / max(fires.sum(), 1e-30)


def _shown(tokenizer: Any, token: int, name: str) -> str:
    return name if tokenizer is None else tokenizer.decode([token]) or name


def row_of(name: str, n: int | None, threshold: float, scores: Scores) -> dict[str, Any]:
    """One row of the curve."""
    told: dict[str, Any] = {"predictor": name, "rules": n, "threshold": threshold}
    for metric, value in scores.value.items():
        told |= {metric: value, f"{metric}_low": scores.low[metric], f"{metric}_high": scores.high[metric]}
    return told
