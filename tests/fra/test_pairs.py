"""Every fast answer about pairs is the slow and obvious one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headlens.fra import pairs
from headlens.fra.pairs import Form, all_pairs, channel, sparse_pairs, summed, top_pairs
from headlens.fra.sides import Side
from headlens.models.head import visible
from tests.fra.made import random_side

SOURCES = 7


def slow(query, key, window):
    """All pairs that are seen, one by one: (query row, key row) to value."""
    at, to = query.position.tolist(), key.position.tolist()
    return {
        (a, b): float(query.vector[a] @ key.vector[b])
        for a, b in itertools.product(range(len(at)), range(len(to)))
        if to[b] <= at[a] and (window is None or at[a] - to[b] < window)
    }


@pytest.fixture(params=[None, 1, 3])
def window(request):
    return request.param


@pytest.fixture(params=[0, 1, 2])
def two(request):
    return random_side(seed=request.param), random_side(seed=request.param + 100)


def test_all_pairs(two, window):
    found = {}
    for rows, columns, values in all_pairs(*two, window):
        for a, b in itertools.product(range(rows.start, rows.stop), range(columns.start, columns.stop)):
            found[a, b] = float(values[a - rows.start, b - columns.start])
    wanted = slow(*two, window)
    assert found.keys() == wanted.keys()
    assert max(abs(found[pair] - wanted[pair]) for pair in wanted) < 1e-12
    assert all_pairs(*two, window).flat.shape == (len(wanted),)


def test_sums(two):
    whole = summed(*two)
    for q, k in itertools.product(range(9), repeat=2):
        assert float(whole[q, k]) == pytest.approx(sum(
            float(a @ b) for a in two[0].vector[two[0].at(q)] for b in two[1].vector[two[1].at(k)]
        ), abs=1e-12)  # fmt: skip


RANKS = {"absolute": abs, "raise": lambda x: x, "lower": lambda x: -x}


@pytest.mark.parametrize("block", [4, 60, 10**7])
@pytest.mark.parametrize("by", RANKS)
@pytest.mark.parametrize("n", [1, 5, 40, 10**6])
def test_top_pairs(two, window, by, n, block, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", block)
    found = top_pairs(*two, n, by=by, window=window)
    wanted = slow(*two, window)
    first = sorted(wanted, key=lambda pair: -RANKS[by](wanted[pair]))[:n]
    assert list(zip(found.query_row.tolist(), found.key_row.tolist(), strict=True)) == first
    np.testing.assert_allclose(found.value, [wanted[pair] for pair in first], atol=1e-12)


@pytest.mark.parametrize("block", [4, 10**7])
def test_centred_and_weighed_pairs(two, window, block, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", block)
    query, key = two
    generator = torch.Generator().manual_seed(5)
    attention = torch.rand(9, 9, generator=generator, dtype=torch.float64) * visible(9, window)
    factor = torch.rand(9, 9, generator=generator, dtype=torch.float64)
    found = top_pairs(query, key, 10**6, window=window, form=Form(attention, factor))
    wanted = slow(query, key, window)
    at, to = query.position.tolist(), key.position.tolist()
    assert len(found.value) == len(wanted)
    for a, b, value in zip(*(part.tolist() for part in found), strict=True):
        same = [c for c in range(len(to)) if key.source[c] == key.source[b]]
        mean = sum(float(attention[at[a], to[c]]) * float(query.vector[a] @ key.vector[c]) for c in same)
        assert value == pytest.approx((wanted[a, b] - mean) * float(factor[at[a], to[b]]), abs=1e-12)


def test_equal_pairs_come_in_their_order():
    side = Side(torch.arange(5), torch.zeros(4, dtype=torch.int64), torch.ones(4), torch.ones(4, 2))
    found = top_pairs(side, side, 3)
    assert (found.query_row.tolist(), found.key_row.tolist()) == ([0, 1, 1], [0, 0, 1])


def test_channels(two):
    query, key = two
    for i, j in itertools.product(range(SOURCES), repeat=2):
        slowly = torch.zeros(9, 9, dtype=torch.float64)
        for a, b in itertools.product(range(len(query.source)), range(len(key.source))):
            if (query.source[a], key.source[b]) == (i, j):
                slowly[query.position[a], key.position[b]] += query.vector[a] @ key.vector[b]
        np.testing.assert_allclose(channel(query, key, i, j), slowly, atol=1e-12)


@pytest.mark.parametrize("least", [0.0, 0.5, 2.0, 1e9])
def test_sparse_pairs_and_their_rest_are_the_whole(two, window, least):
    query, key = two
    coo, rest = sparse_pairs(query, key, SOURCES, window=window, least=least)
    wanted = {pair: value for pair, value in slow(query, key, window).items() if abs(value) >= least}
    found = {}
    for *where, value in zip(*coo.indices().tolist(), coo.values().tolist(), strict=True):
        found[tuple(where)] = value
    place = {}
    for (a, b), value in wanted.items():
        place[int(query.position[a]), int(key.position[b]), int(query.source[a]), int(key.source[b])] = value
    assert found.keys() == place.keys()
    assert all(found[where] == pytest.approx(place[where], abs=1e-12) for where in place)
    again = torch.sparse_coo_tensor(coo.indices(), coo.values(), coo.shape, check_invariants=True).coalesce()
    assert coo.is_coalesced() and torch.equal(again.indices(), coo.indices())
    kept = torch.zeros(9, 9, dtype=torch.float64)
    for (q, k, _, _), value in found.items():
        kept[q, k] += value
    seen = visible(9, window)
    np.testing.assert_allclose((kept + rest)[seen], summed(query, key)[seen], atol=1e-12)
    assert torch.isnan(rest[~seen]).all()


@given(st.integers(0, 10**6), st.integers(0, 6), st.sampled_from([None, 1, 2, 5]))
def test_any_text_has_all_its_pairs(seed, most, window):
    """Positions without a source, texts without any."""
    query, key = random_side(6, seed=seed, most=most), random_side(6, seed=seed + 1, most=most)
    wanted = slow(query, key, window)
    assert len(all_pairs(query, key, window).flat) == len(wanted)
    coo, _ = sparse_pairs(query, key, SOURCES, window=window)
    assert float(coo.values().sum()) == pytest.approx(sum(wanted.values()), abs=1e-9)
    found = top_pairs(query, key, 3, window=window)
    first = sorted(map(abs, wanted.values()), reverse=True)[:3]
    np.testing.assert_allclose(found.value.abs(), first, atol=1e-12)


def test_some_rows_of_a_side():
    side = random_side(seed=3)
    for chosen in (side.source > 2, torch.tensor([0, 3]), torch.zeros(len(side.source), dtype=torch.bool)):
        some = side.only(chosen)
        assert torch.equal(some.source, side.source[chosen]) and torch.equal(some.position, side.position[chosen])
        assert some.n_tokens == side.n_tokens
