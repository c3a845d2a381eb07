"""Where heads of a kind look, on sequences one can check by hand; and what patterns score there, the slow way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headlens.heads.attention import (
    Reading,
    between,
    duplicate_token,
    even_mass,
    induction,
    itself,
    masses,
    offset_profile,
    one_period_back,
    places,
    previous_token,
    sink,
    target_mass,
    weighted_totals,
)

IDS = torch.tensor([[0, 5, 7, 5, 9, 7]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
MARKS = {"a": torch.tensor([[0, 0, 0, 1, 1, 0]]).bool(), "b": torch.tensor([[0, 1, 0, 1, 0, 1]]).bool()}
AIMS = (previous_token, itself, sink, duplicate_token, induction, between("a", "b"), between(None, "b"))


def pairs(targets: torch.Tensor) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in targets[0].nonzero().tolist()]


def reading(ids: torch.Tensor, bos: int | None, mask: torch.Tensor | None = None, marks=None) -> Reading:
    return Reading(ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask, bos, marks or {})


def random_patterns(batch: int, heads: int, tokens: int, seed: int = 0) -> torch.Tensor:
    weights = torch.rand(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)).tril()
    return weights / weights.sum(-1, keepdim=True)


def test_targets_by_hand():
    with_bos, without = reading(IDS, 0, marks=MARKS), reading(IDS, None)
    assert pairs(previous_token(with_bos)) == [(2, 1), (3, 2), (4, 3), (5, 4)]
    assert pairs(previous_token(without)) == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    assert pairs(duplicate_token(with_bos)) == [(3, 1), (5, 2)]
    assert pairs(induction(with_bos)) == [(3, 2), (5, 3)]
    assert pairs(itself(with_bos)) == [(q, q) for q in range(1, 6)]
    assert pairs(sink(with_bos)) == [(q, 0) for q in range(1, 6)]
    assert pairs(one_period_back(without)) == [(3, 1), (4, 2), (5, 3)]
    assert pairs(between("a", "b")(with_bos)) == [(3, 1), (4, 1), (4, 3)]
    assert pairs(between(None, "b")(with_bos)) == [(2, 1), (3, 1), (4, 1), (4, 3), (5, 1), (5, 3)]


def test_one_period_back_is_induction_where_the_gap_is_fixed():
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))[None].repeat(1, 2)
    assert pairs(induction(reading(ids, None))) == pairs(one_period_back(reading(ids, None)))


def test_bos_is_no_repetition_and_the_query_is_no_target():
    twice = torch.tensor([[0, 0, 5, 5]])
    assert pairs(duplicate_token(reading(twice, 0))) == [(3, 2)]
    assert pairs(duplicate_token(reading(twice, None))) == [(1, 0), (3, 2)]
    assert pairs(induction(reading(twice, 0))) == []  # what followed the first 5 is the query itself


@pytest.mark.parametrize("aim", AIMS)
def test_padding_has_no_targets(aim):
    mask = MASK.clone()
    mask[0, 4:] = False
    short = {name: marks[:, :4] for name, marks in MARKS.items()}
    padded = aim(reading(IDS, 0, mask, {name: marks & mask for name, marks in MARKS.items()}))
    alone = aim(reading(IDS[:, :4], 0, marks=short))
    assert torch.equal(padded[:, :4, :4], alone)
    assert padded.sum() == alone.sum()


@pytest.mark.parametrize("aim", AIMS)
def test_targets_are_causal(aim):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (3, 30), generator=generator)
    marks = {name: torch.rand(3, 30, generator=generator) < 0.3 for name in "ab"}
    assert not aim(reading(ids, None, marks=marks)).triu(1).any()


def slowly(pattern: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw and weighted score by the definition: row by row, key by key."""
    batch, heads, n, _ = pattern.shape
    raw, weighted = torch.full((2, batch, heads), torch.nan, dtype=torch.float64)
    for b in range(batch):
        rows = [q for q in range(n) if any(targets[b, q, k] for k in range(n))]
        for h in range(heads):
            attention = [sum(float(pattern[b, h, q, k]) for k in range(n) if targets[b, q, k]) for q in rows]
            written = []
            for q in rows:
                each = [float(pattern[b, h, q, k] * sizes[b, k, h]) for k in range(n)]
                written.append(sum(each[k] for k in range(n) if targets[b, q, k]) / sum(each))
            if rows:
                raw[b, h], weighted[b, h] = sum(attention) / len(rows), sum(written) / len(rows)
    return raw, weighted


@given(st.integers(0, 2**32), st.floats(0.0, 0.4))
def test_scores_are_what_their_definition_says(seed, share):
    generator = torch.Generator().manual_seed(seed)
    pattern, sizes = random_patterns(2, 3, 6, seed), torch.rand(2, 6, 3, generator=generator) + 0.1
    targets = (torch.rand(2, 6, 6, generator=generator) < share).tril()
    raw, weighted = slowly(pattern, targets, sizes)
    at = places(targets)
    torch.testing.assert_close(target_mass(pattern, at), raw, equal_nan=True, atol=1e-6, rtol=1e-6)
    totals = weighted_totals(pattern, sizes)
    same, ours = masses(pattern, sizes, totals, at)
    torch.testing.assert_close(same, target_mass(pattern, at), equal_nan=True)
    torch.testing.assert_close(ours.isnan(), raw.isnan())
    torch.testing.assert_close(ours[~raw.isnan()], weighted[~raw.isnan()], atol=1e-5, rtol=1e-5)


def test_a_sink_that_writes_nothing_does_not_hide_where_a_head_looks():
    """99 % on a first token of a hundredth of the others' size: raw .01, weighted .50 (the note's own figures)."""
    pattern = torch.tensor([[[[1.0, 0.0], [0.99, 0.01]]]])
    sizes = torch.tensor([[[0.01], [1.0]]])
    at = places(torch.tensor([[[False, False], [False, True]]]))
    assert target_mass(pattern, at).item() == pytest.approx(0.01)
    _, weighted = masses(pattern, sizes, weighted_totals(pattern, sizes), at)
    assert weighted.item() == pytest.approx(0.5025, abs=1e-4)


@pytest.mark.parametrize("window", [None, 4])
def test_even_mass_is_what_an_even_pattern_scores(window):
    ids = torch.randint(4, (5, 20), generator=torch.Generator().manual_seed(1))
    visible = torch.ones(20, 20).tril()
    if window is not None:
        visible = visible.triu(1 - window)
    even = (visible / visible.sum(-1, keepdim=True)).expand(5, 1, 20, 20)
    for aim in (duplicate_token, previous_token, sink):
        at = places(aim(reading(ids, None)))
        torch.testing.assert_close(even_mass(at, window), target_mass(even, at)[:, 0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("n", [3, 8, 13])
def test_an_offset_profile_is_the_mean_of_each_diagonal(n, first):
    pattern = random_patterns(2, 3, n)
    profile = offset_profile(pattern, first=first)
    assert profile.shape == (2, 3, n - first)
    for d in range(n - first):
        slow = torch.stack([pattern[:, :, q, q - d] for q in range(d + first, n)]).double().mean(0)
        torch.testing.assert_close(profile[..., d], slow, atol=1e-6, rtol=1e-6)
