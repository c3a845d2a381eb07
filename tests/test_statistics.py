"""The bootstrap interval covers the truth as often as it says, and is an ordinary resampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, ks_2samp

from headlens._statistics import DRAWS, LEVEL, bootstrap_mean

TABLES = arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(1, 3)), elements=st.floats(-1e3, 1e3))


def test_the_interval_covers_the_true_mean_as_often_as_its_level_says():
    n, samples, covered = 200, 500, 0
    for seed in range(4):
        values = np.random.default_rng(100 + seed).normal(3, 2, size=(n, samples))  # a column is a sample
        _, low, high = bootstrap_mean(values, seed=seed)
        covered += int(((low <= 3) & (high >= 3)).sum())
    # Percentile intervals of 200 normals cover 94.7 %; all but 1e-4 of such counts lie between these bounds.
    least, most = binom.ppf([5e-5, 1 - 5e-5], 4 * samples, 0.947)
    assert least <= covered <= most


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
def test_a_level_is_the_share_of_draws_inside(level):
    values = np.random.default_rng(0).exponential(size=(50, 1))
    _, low, high = bootstrap_mean(values, seed=1, level=level, draws=4000)
    means = explicit(values[:, 0], draws=4000, seed=2)
    assert np.mean((means >= low) & (means <= high)) == pytest.approx(level, abs=0.03)


def explicit(values: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Resample as the textbook has it: n indices with replacement, then the mean."""
    rng = np.random.default_rng(seed)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)])


def test_draws_are_distributed_as_an_explicit_resampling():
    values = np.random.default_rng(3).exponential(size=(30, 1))
    levels = np.linspace(0.05, 0.95, 40)
    means = explicit(values[:, 0], draws=4000, seed=4)
    # Every quantile of ours is an end of some interval.
    ours = np.concatenate([bootstrap_mean(values, seed=5, level=v, draws=4000)[1:] for v in levels])[:, 0]
    theirs = np.concatenate([np.quantile(means, [(1 - v) / 2, (1 + v) / 2]) for v in levels])
    assert ks_2samp(ours, theirs).statistic < 0.05
    assert np.abs(ours - theirs).max() < 0.05 * values.std()


@given(TABLES)
def test_the_mean_lies_in_its_interval_and_the_interval_within_the_values(values):
    mean, low, high = bootstrap_mean(values, seed=0, draws=200)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert np.allclose(mean, values.mean(0))
    assert (low <= high + slack).all()
    assert (values.min(0) - slack <= low).all() and (high <= values.max(0) + slack).all()


@given(TABLES, st.floats(-10, 10), st.floats(-100, 100))
@settings(max_examples=50)
def test_it_moves_and_stretches_with_the_values(values, factor, shift):
    plain = bootstrap_mean(values, seed=0, draws=50)
    moved = bootstrap_mean(factor * values + shift, seed=0, draws=50)
    expected = [factor * part + shift for part in plain]
    if factor < 0:
        expected[1:] = expected[:0:-1]
    for a, b in zip(moved, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=1e-7)


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=20)
def test_columns_are_resampled_together_and_alone_alike(seed, columns):
    values = np.random.default_rng(seed).normal(size=(12, columns, 2))
    together = bootstrap_mean(values, seed=seed)
    for column in range(columns):
        alone = bootstrap_mean(values[:, column], seed=seed)
        for a, b in zip(together, alone, strict=True):
            assert np.allclose(a[column], b)


def test_sequences_are_what_is_resampled():
    # Two columns that cancel in every sequence cancel in every draw, however wide each of them is.
    values = np.random.default_rng(0).normal(size=(20, 1))
    _, low, high = bootstrap_mean(np.concatenate([values, -values], axis=1), seed=0)
    assert low[0] == pytest.approx(-high[1]) and high[0] == pytest.approx(-low[1])


def test_one_sequence_says_nothing_about_others():
    mean, low, high = bootstrap_mean(np.array([[0.25, -4.0]]), seed=0)
    assert mean.tolist() == [0.25, -4.0] and np.isnan(low).all() and np.isnan(high).all()


def test_equal_sequences_leave_no_doubt():
    mean, low, high = bootstrap_mean(np.full((5, 2), 0.25), seed=0)
    assert mean.tolist() == low.tolist() == high.tolist() == [0.25, 0.25]


def test_a_seed_decides_everything():
    values = np.random.default_rng(0).normal(size=(20, 2))
    first, again, other = (np.stack(bootstrap_mean(values, seed=s)[1:]) for s in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_it_draws_from_nobody_elses_generator():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    bootstrap_mean(np.ones((3, 1)), seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_golden():
    values = np.array([[0.0], [0.1], [0.4], [0.9]])
    mean, low, high = bootstrap_mean(values, seed=0)
    assert (LEVEL, DRAWS) == (0.95, 1000)
    assert [float(x[0]) for x in (mean, low, high)] == pytest.approx(GOLDEN)


GOLDEN = [0.35, 0.05, 0.7]
