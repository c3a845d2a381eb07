"""Measures of retrieval, detection, outliers and RSA, on answers known by hand or planted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe.outliers import outliers, tail
from headlens.universe.retrieval import Detection, Fold, detection, drawn_models, over_models, ranked, retrieval
from headlens.universe.rsa import length_rdm, mantel, overlap_rdm, rdm, rsa

FAMILIES = {f"m{i}": f"f{i}" for i in range(5)}
HEADS = [HeadId(model, layer, head) for model in FAMILIES for layer in range(3) for head in range(4)]
PLANTED = {HeadId(model, 1, 2) for model in FAMILIES}


def folds(signal: float, metric="cosine") -> list[Fold]:
    """Spaces in which heads of the kind share a direction that is `signal` long."""
    rng = np.random.default_rng(0)
    space = {head: rng.standard_normal(8) for head in HEADS}
    for head in PLANTED:
        space[head] = space[head] + signal * np.eye(8)[0]
    made = []
    for model, family in FAMILIES.items():
        old, new = [h for h in HEADS if h.model != model], [h for h in HEADS if h.model == model]
        known, joined = (np.stack([space[h] for h in part]) for part in (old, new))
        made.append(Fold(family, tuple(old), known, tuple(new), joined, metric))
    return made


def test_measures_of_one_query_by_hand():
    found = ranked(np.array([False, True, False, True, False]))
    assert found == {"recall": 0.5, "mrr": 0.5, "ap": 0.5, "prevalence": 0.4}
    assert ranked(np.array([True, False, True]), k=1)["recall"] == 1
    assert ranked(np.array([False, False, True]), k=2)["recall"] == 0
    with pytest.raises(DataError, match="at least one head of its kind"):
        ranked(np.array([False, False]))


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
def test_measures_are_shares_and_a_perfect_order_gets_one(relevant):
    found = ranked(np.array(relevant))
    assert all(0 <= value <= 1 for value in found.values())
    best = ranked(np.array(sorted(relevant, reverse=True)))
    assert best["recall"] == best["mrr"] == best["ap"] == 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_planted_kind_is_found_and_chance_is_chance(metric):
    rows = retrieval(folds(30.0, metric), PLANTED)
    assert len(rows) == 5 and all(row["recall"] == row["ap"] == 1 for row in rows)
    assert {row["prevalence"] for row in rows} == {4 / 48}
    chance = retrieval(folds(0.0, metric), PLANTED)
    assert np.mean([row["ap"] for row in chance]) < 0.35


def test_a_planted_kind_is_detected_in_families_that_were_left_out():
    found = detection(folds(30.0), PLANTED, FAMILIES)
    assert found.f1() == 1 and found.interval() == (1, 1)
    assert len(found.scores) == len(HEADS)
    assert detection(folds(0.0), PLANTED, FAMILIES).f1() < 0.5
    one = {HeadId("m0", 1, 2)}
    with pytest.raises(DataError, match="fewer than two families"):
        detection(folds(30.0), one, FAMILIES)


def said(models, rate_called, rate_right, seed):
    """Scores of a test that calls so many heads, and the share of the real ones that it finds."""
    rng = np.random.default_rng(seed)
    heads = [HeadId(model, layer, head) for model in models for layer in range(2) for head in range(5)]
    real = frozenset(head for head in heads if head.layer == 1 and head.head < 2)
    rates = {head: rate_right if head in real else rate_called for head in heads}
    return Detection({head: float(rates[head] - rng.random()) for head in heads}, real)


@given(st.integers(1, 6), st.integers(0, 99), st.integers(0, 9))
def test_a_paired_gap_of_f1_is_that_of_a_plain_loop_over_the_same_draws(n, seed, draw_seed):
    models = [f"m{i}" for i in range(n)]
    one, other = said(models, 0.2, 0.9, seed), said(models, 0.4, 0.5, seed + 100)

    def f1(test, times):
        """Of each model's heads, so many times."""
        called = right = real = 0
        for head, score in test.scores.items():
            k = int(times[models.index(head.model)])
            called += k * (score > 0)
            real += k * (head in test.positives)
            right += k * (score > 0 and head in test.positives)
        return 2 * right / (called + real)

    loop = [f1(one, times) - f1(other, times) for times in drawn_models(n, seed=draw_seed, draws=40)]
    gap, low, high = one.above(other, seed=draw_seed, draws=40)
    assert gap == pytest.approx(one.f1() - other.f1()) == pytest.approx(f1(one, [1] * n) - f1(other, [1] * n))
    assert (low, high) == pytest.approx(tuple(np.quantile(loop, [0.025, 0.975])))
    assert other.above(one, seed=draw_seed, draws=40) == pytest.approx((-gap, -high, -low))
    assert one.above(one) == (0, 0, 0)
    own = [f1(one, times) for times in drawn_models(n, seed=draw_seed, draws=40)]
    assert one.interval(seed=draw_seed, draws=40) == pytest.approx(tuple(np.quantile(own, [0.025, 0.975])))


def test_a_gap_that_every_model_has_excludes_0_and_is_surer_than_unpaired_intervals():
    models = [f"m{i}" for i in range(8)]
    hard = said(models, 0.3, 0.7, 1)
    extra = {h for h in hard.scores if h.layer == 0 and h.head < 2}  # both go wrong together; one in two places more
    worse = Detection(hard.scores | dict.fromkeys(extra, 1.0), hard.positives)
    gap, low, high = hard.above(worse)
    assert 0 < low <= gap <= high
    assert high - low < np.ptp(hard.interval()) + np.ptp(worse.interval())
    with pytest.raises(DataError, match="the same folds and positives"):
        hard.above(Detection(hard.scores, frozenset()))
    with pytest.raises(DataError, match="the same folds and positives"):
        hard.above(Detection({h: s for h, s in hard.scores.items() if h not in extra}, hard.positives))


@given(st.integers(1, 9), st.integers(0, 99))
def test_every_draw_takes_as_many_models_as_there_are(n, seed):
    counts = drawn_models(n, seed=seed, draws=30)
    assert counts.shape == (30, n) and (counts.sum(1) == n).all() and (counts >= 0).all()


def test_intervals_resample_whole_models():
    values = {head: float(head.model == "m0") for head in HEADS}
    mean, low, high = over_models(values)
    assert mean == pytest.approx(0.2) and low == 0 and high >= 0.4
    assert np.isnan(over_models({HEADS[0]: 1.0})[1])


def test_the_two_sorts_of_outliers_are_told_apart():
    rng = np.random.default_rng(1)
    position = dict.fromkeys(HEADS, 1.0)
    cloned = {head: 0.3 + 0.02 * rng.standard_normal() for head in HEADS}
    embedded = {head: kl + 0.05 + 0.01 * rng.standard_normal() for head, kl in cloned.items()}
    cloned[HEADS[3]], embedded[HEADS[3]] = 0.95, 1.0
    embedded[HEADS[7]] = 0.9
    position[HEADS[9]] = 0.01
    rows = {HeadId(r["model"], r["layer"], r["head"]): r for r in outliers(position, cloned, embedded)}
    assert [head for head in HEADS if rows[head]["is_unclonable"]] == [HEADS[3]]
    assert [head for head in HEADS if rows[head]["is_uncompressible"]] == [HEADS[7]]
    assert rows[HEADS[9]]["unclonable"] is None
    assert (tail(np.ones(5)) == 1).all() and len(tail(np.zeros(0))) == 0


def test_nothing_is_an_outlier_of_normal_values():
    calls = [tail(np.random.default_rng(seed).standard_normal(150)).min() <= 0.05 for seed in range(40)]
    assert np.mean(calls) <= 0.25  # the robust spread is itself an estimate


def test_rsa_is_spearman_and_partial_rsa_is_of_what_is_left():
    rng = np.random.default_rng(2)
    a, b, c = (rdm(rng.standard_normal((12, 40))) for _ in range(3))
    assert rsa(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    x, y, z = map(stats.rankdata, (a + c, b + c, c))
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert rsa(a + c, b + c, [c]) == pytest.approx(expected)
    with pytest.raises(DataError, match="same texts"):
        rsa(a, b[:-1])


def test_a_mantel_test_counts_the_permutations_that_rsa_says_are_as_large():
    rng = np.random.default_rng(5)
    a, b, c = rng.standard_normal((9, 20)), rng.standard_normal((9, 20)), rdm(rng.standard_normal((9, 20)))
    even = np.ones_like(c)  # what does not vary explains nothing
    found, p = mantel(rdm(a), rdm(b), without=[c, even], permutations=50, seed=4)
    orders = np.random.Generator(np.random.PCG64(4))
    drawn = [rsa(rdm(a[orders.permutation(9)]), rdm(b), [c]) for _ in range(50)]
    assert found == pytest.approx(rsa(rdm(a), rdm(b), [c]))
    assert p == (1 + sum(rho >= found - 1e-9 for rho in drawn)) / 51


def test_a_mantel_test_finds_what_is_shared_and_is_even_where_nothing_is():
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((14, 30))
    one, two = (rdm(shared + 0.3 * rng.standard_normal((14, 30))) for _ in range(2))
    assert mantel(one, two, permutations=99)[1] == 0.01
    ps = [
        mantel(rdm(rng.standard_normal((10, 20))), rdm(rng.standard_normal((10, 20))), permutations=19, seed=s)[1]
        for s in range(60)
    ]
    assert 0.3 < np.mean(ps) < 0.75 and np.mean(np.array(ps) <= 0.05) < 0.15


def test_rdms_of_texts_hold_length_and_shared_words():
    texts = ["a b c", "a b", "d"]
    assert length_rdm(texts).tolist() == [1, 2, 1]
    assert overlap_rdm(texts).tolist() == pytest.approx([1 / 3, 1, 1])
    assert rdm(np.array([[1.0, 2, 3], [3.0, 2, 1], [1.0, 1, 1]])).tolist() == pytest.approx([2, 1, 1])
