"""Entities: after the context's return, the entity's ends are where the marks say, whatever the gap, with BOS or not."""

import contextlib
import io
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from headlens._errors import DataError
from headlens.data import entities
from tests.data.stimuli.reading import places, same

BOS = 0
ORACLE = Path(__file__).parents[4] / "shared" / "reference" / "heads_ground_truth.py"


@st.composite
def layouts(draw):
    context, entity = draw(st.integers(1, 8)), draw(st.integers(2, 5))
    ids = range(5, 5 + 2 * context + entity + draw(st.integers(0, 20)))
    sizes = {"n": st.integers(1, 6), "max_gap": st.integers(0, 30), "seed": st.integers(0, 2**40)}
    drawn = {name: draw(strategy) for name, strategy in sizes.items()}
    return {"ids": ids, "context": context, "entity": entity, "bos": draw(st.sampled_from([None, BOS])), **drawn}


def rows(stimulus):
    marks = (places(stimulus, mark) for mark in ("start", "last", "end"))
    yield from zip(stimulus.tokens, stimulus.control, *marks, strict=True)


@given(layouts())
def test_the_context_before_the_entity_ends_the_sequence(layout):
    stimulus, context = entities(**layout), layout["context"]
    for ids, _, (start,), (last,), (end,) in rows(stimulus):
        assert end == len(ids) - 1 and last - start + 1 == layout["entity"]
        assert ids[start - context : start].tolist() == ids[end - context + 1 :].tolist()
        assert start - context == int(layout["bos"] is not None)


@given(layouts())
def test_nothing_but_the_context_comes_twice(layout):
    stimulus, context = entities(**layout), layout["context"]
    for ids, *_ in rows(stimulus):
        own = ids[int(layout["bos"] is not None) :]
        assert len(set(own.tolist())) == len(own) - context and set(own.tolist()) <= set(layout["ids"])


@given(layouts())
def test_in_the_control_nothing_comes_twice_and_the_rest_is_the_same(layout):
    stimulus, context = entities(**layout), layout["context"]
    for ids, control, *_ in rows(stimulus):
        assert len(set(control.tolist())) == len(control) == len(ids)
        assert control[:-context].tolist() == ids[:-context].tolist() and set(control.tolist()) <= {BOS, *layout["ids"]}


@given(layouts())
def test_answers_are_the_entitys_first_two_tokens(layout):
    stimulus = entities(**layout)
    for i, (ids, _, (start,), *_) in enumerate(rows(stimulus)):
        assert [stimulus.answers["first"][i], stimulus.answers["second"][i]] == ids[start : start + 2].tolist()


def test_gaps_are_random_and_every_one_occurs_alike():
    stimulus = entities(range(100), n=3000, context=3, entity=2, max_gap=9, bos=BOS, seed=0)
    gaps = Counter((stimulus.tokens.lengths - 1 - 3 - 2 - 3).tolist())
    assert sorted(gaps) == list(range(10)) and chisquare(list(gaps.values())).pvalue > 1e-4


def test_a_short_allow_list_makes_the_gap_shorter_and_the_recipe_says_so():
    stimulus = entities(range(10), n=200, context=3, entity=2, max_gap=9, bos=None, seed=0)
    assert stimulus.recipe["max_gap"] == 2 and set(stimulus.tokens.lengths.tolist()) == {8, 9, 10}


@pytest.mark.parametrize("bos", [None, BOS])
def test_the_oracles_induction_head_finds_the_start_and_not_the_end(bos):
    """The place next to the entity's start, which a reader without BOS would take, gets nothing either way."""
    if not ORACLE.exists():
        pytest.skip("the numpy oracle (../shared/reference/heads_ground_truth.py) is not here")
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = runpy.run_path(str(ORACLE))
    stimulus = entities(range(1, oracle["V"]), n=10, context=12, entity=3, max_gap=20, bos=bos, seed=3)
    for ids, control, (start,), (last,), (end,) in rows(stimulus):
        attention = oracle["run"](ids)[0]["ind"][end]
        assert attention[start] == pytest.approx(1) and attention[[start - 1, start + 1, last]] == pytest.approx(0)
        assert oracle["run"](control)[0]["ind"][end][start] < 0.1


def test_one_seed_gives_the_same_and_another_gives_others():
    first, again, other = (entities(range(50), n=5, bos=BOS, seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and first.tokens.hash != other.tokens.hash
    assert entities([*range(49, -1, -1), *range(50)], n=5, bos=BOS, seed=1).tokens.hash == first.tokens.hash
    said = first.provenance()
    assert said | {"name": "entities", "context": 10, "entity": 3, "max_gap": 20, "seed": 1, "allowed_ids": 50} == said


def test_golden():
    stimulus = entities(range(10, 110), n=4, bos=BOS, seed=0)
    assert (stimulus.tokens.hash, stimulus.control.hash) == ("7f3f7b532bd170f5", "7baa2e973df2a7f2")


REFUSED = {
    "few ids": ({"ids": range(22)}, "entities needs 23 different ids.*has 22"),
    "none": ({"n": 0}, "n of entities must be 1 or more"),
    "no context": ({"context": 0}, "context of entities must be 1 or more"),
    "one token": ({"entity": 1}, "entity of entities must be 2 or more"),
    "gap": ({"max_gap": -1}, "max_gap of entities must be 0 or more"),
    "seed": ({"seed": -1}, "seed of entities must be 0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_is_refused(case):
    changed, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        entities(**{"ids": range(50), "n": 1, "bos": None, "seed": 0, **changed})


def test_marks_hold_one_token_of_every_sequence():
    stimulus = entities(range(60), n=7, bos=BOS, seed=0)
    assert {name: int(np.sum(mark)) for name, mark in stimulus.marks.items()} == {"start": 7, "last": 7, "end": 7}
