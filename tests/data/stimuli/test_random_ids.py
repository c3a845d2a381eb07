"""Random ids: what repeats where is exactly what was promised, at random gaps, and nothing else repeats."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from headlens._errors import DataError
from headlens.data import Stimulus, duplicates, plain, repeats

ALLOWED = range(10, 110)
BOS = 0

sizes = {"n": st.integers(1, 8), "bos": st.sampled_from([None, BOS]), "seed": st.integers(0, 2**40)}


@st.composite
def layouts(draw):
    """Arguments for repeats of any size, down to the smallest vocabulary allowed."""
    length = draw(st.integers(1, 12))
    ids = range(5, 5 + 2 * length + draw(st.integers(0, 20)))
    arguments = {name: draw(strategy) for name, strategy in sizes.items()}
    return {"ids": ids, "length": length, "max_gap": draw(st.integers(0, 30)), **arguments}


def rows(stimulus: Stimulus, length: int):
    """Yield (start, gap, sequence, control) of each sequence; R begins at start, its repetition after the gap."""
    start = int(stimulus.bos is not None)
    for sequence, control in zip(stimulus.tokens, stimulus.control, strict=True):
        yield start, len(sequence) - 2 * length - start, sequence, control


@given(layouts())
def test_the_second_part_is_the_first(layout):
    stimulus, length, max_gap, ids = repeats(**layout), layout["length"], layout["max_gap"], layout["ids"]
    for start, gap, sequence, _ in rows(stimulus, length):
        assert 0 <= gap <= max_gap
        first, second = sequence[start : start + length], sequence[start + length + gap :]
        assert first.tolist() == second.tolist()
        assert sequence[:start].tolist() == [BOS] * start
        assert set(sequence[start:].tolist()) <= set(ids)


@given(layouts())
def test_nothing_else_repeats(layout):
    stimulus, length = repeats(**layout), layout["length"]
    for start, gap, sequence, _ in rows(stimulus, length):
        assert len(set(sequence[start : start + length + gap].tolist())) == length + gap


@given(layouts())
def test_the_control_has_the_same_layout_and_no_repetition_of_the_first_part(layout):
    stimulus, length, ids = repeats(**layout), layout["length"], layout["ids"]
    for start, gap, sequence, control in rows(stimulus, length):
        same = start + length + gap
        assert control[:same].tolist() == sequence[:same].tolist() and len(control) == len(sequence)
        first, second = control[start : start + length], control[same:]
        assert not set(first.tolist()) & set(second.tolist()) and len(set(second.tolist())) == length
        assert set(second.tolist()) <= set(ids)


def test_with_ids_enough_the_control_repeats_nothing():
    stimulus = repeats(ALLOWED, n=50, length=30, max_gap=40, bos=BOS, seed=0)
    assert all(len(set(control.tolist())) == len(control) for control in stimulus.control)


@pytest.mark.parametrize(("n_ids", "widest"), [(100, 9), (13, 8)])
def test_gaps_are_random_and_every_one_occurs_alike(n_ids, widest):
    # Of 13 ids, a gap can hold the 8 that are not in R, and the recipe says so.
    stimulus = repeats(range(n_ids), n=3000, length=5, max_gap=9, bos=None, seed=1)
    gaps = Counter(gap for _, gap, _, _ in rows(stimulus, 5))
    assert sorted(gaps) == list(range(widest + 1)) and stimulus.recipe["max_gap"] == widest
    assert chisquare(list(gaps.values())).pvalue > 1e-4


def test_without_a_gap_the_parts_touch():
    stimulus = repeats(ALLOWED, n=5, length=7, max_gap=0, bos=BOS, seed=0)
    assert stimulus.tokens.lengths.tolist() == [15] * 5


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10), sizes["bos"], sizes["seed"])
def test_exactly_the_pairs_occur_twice(n, pairs, more, bos, seed):
    length = 2 * pairs + more
    stimulus = duplicates(range(5, 5 + length), n=n, length=length, pairs=pairs, bos=bos, seed=seed)
    start = int(bos is not None)
    for sequence, control in zip(stimulus.tokens, stimulus.control, strict=True):
        counts = Counter(Counter(sequence[start:].tolist()).values())
        assert counts == Counter({2: pairs, 1: length - 2 * pairs}) and len(sequence) == start + length
        # The control is the same sequence before one place of each pair was overwritten: each id once.
        assert (sequence != control).sum() == pairs and len(set(control.tolist())) == start + length
        assert set(control[start:].tolist()) == set(range(5, 5 + length))


def test_pairs_stand_at_places_that_nothing_predicts():
    stimulus = duplicates(ALLOWED, n=2000, length=10, pairs=1, bos=None, seed=0)
    places = Counter()
    for row in stimulus.tokens:
        (twice,) = (i for i, count in Counter(row.tolist()).items() if count == 2)
        places[tuple(np.flatnonzero(row == twice).tolist())] += 1
    assert len(places) == 45  # every pair of the ten places
    assert chisquare(list(places.values())).pvalue > 1e-4


@given(st.integers(1, 20), st.integers(0, 10), sizes["n"], sizes["bos"], sizes["seed"])
def test_plain_repeats_nothing(length, more, n, bos, seed):
    stimulus = plain(range(5, 5 + length + more), n=n, length=length, bos=bos, seed=seed)
    assert len(stimulus.tokens) == n and stimulus.control is None
    for row in stimulus.tokens:
        start = int(bos is not None)
        assert len(row) == start + length == len(set(row.tolist())) and row[:start].tolist() == [BOS] * start
        assert set(row[start:].tolist()) <= set(range(5, 5 + length + more))


def make(name: str, seed: int, ids=ALLOWED) -> Stimulus:
    options = {"repeats": {"max_gap": 5}, "duplicates": {"pairs": 3}, "plain": {}}[name]
    function = {"repeats": repeats, "duplicates": duplicates, "plain": plain}[name]
    return function(ids, n=4, length=10, bos=BOS, seed=seed, **options)


@pytest.mark.parametrize("name", ["repeats", "duplicates", "plain"])
class TestSeed:
    def test_decides_everything(self, name):
        first, again, other = make(name, 1), make(name, 1), make(name, 2)
        assert first.provenance() == again.provenance() and first.tokens.hash != other.tokens.hash
        if first.control is not None:
            assert first.control.hash == again.control.hash

    def test_the_order_and_number_of_times_ids_are_allowed_does_not_matter(self, name):
        shuffled = [*reversed(ALLOWED), *ALLOWED]
        assert make(name, 1, shuffled).tokens.hash == make(name, 1).tokens.hash

    def test_draws_from_nobody_elses_generator(self, name):
        np.random.seed(0)
        before = np.random.get_state()[1].copy()
        make(name, 1)
        assert (np.random.get_state()[1] == before).all()

    def test_golden(self, name):
        assert make(name, 0).tokens.hash == GOLDEN[name]

    def test_provenance_says_how_it_was_made(self, name):
        said = make(name, 7).provenance()
        assert said | {"name": name, "n": 4, "length": 10, "seed": 7, "allowed_ids": 100} == said


GOLDEN = {"repeats": "b8c9defdc20e74af", "duplicates": "8fb18ec1994334db", "plain": "e53eded185d16590"}


REFUSED = {
    "few ids": (lambda: repeats(range(9), n=1, length=5, bos=None, seed=0), "needs 10 different ids.*has 9"),
    "same ids": (lambda: plain([1] * 9, n=1, length=2, bos=None, seed=0), "needs 2 different ids.*has 1"),
    "few for duplicates": (lambda: duplicates(range(9), n=1, length=10, bos=None, seed=0), "needs 10 different ids"),
    "crowded": (lambda: duplicates(ALLOWED, n=1, length=9, pairs=5, bos=None, seed=0), "5 pairs need 10 places"),
    "no pair": (lambda: duplicates(ALLOWED, n=1, length=9, pairs=0, bos=None, seed=0), "pairs of duplicates must be 1"),
    "none": (lambda: repeats(ALLOWED, n=0, bos=None, seed=0), "n of repeats must be 1 or more, not 0"),
    "negative": (lambda: plain(ALLOWED, n=-1, bos=None, seed=0), "n of plain must be 1 or more, not -1"),
    "no length": (lambda: repeats(ALLOWED, n=1, length=0, bos=None, seed=0), "length of repeats must be 1 or more"),
    "backwards": (lambda: plain(ALLOWED, n=1, length=-3, bos=None, seed=0), "length of plain must be 1 or more"),
    "gap": (
        lambda: repeats(ALLOWED, n=1, max_gap=-1, bos=None, seed=0),
        "max_gap of repeats must be 0 or more, not -1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        build()
