"""Answers: found in the tokens, right only where every token is, and without their sources under the controls."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens.data import world
from headlens.models import Model, load
from headlens.zoo import answers
from headlens.zoo.answers import Case, answers_of, shuffle, spell, stretch, swap
from headlens.zoo.tokenizer import train_tokenizer
from tests.families import build

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=["word", "bpe-600", "characters"])
def tokenizer(request):
    return train_tokenizer(request.param, [document.text for document in world.documents(300, seed=5)])


def every_answer(seed: int, n: int = 3):
    return [(d, span) for d in world.documents(n, seed=seed) for kind in world.ANSWERS for span in answers_of(d, kind)]


def test_every_kind_of_answer_is_one_that_the_world_writes():
    assert {span.kind for _, span in every_answer(0, 300)} == set(world.ANSWERS)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_the_tokens_of_an_answer_spell_it(tokenizer, seed):
    for document, span in every_answer(seed):
        case = spell(tokenizer, document.text, span.start, span.end)
        said = tokenizer.decode(case.ids[case.answer])
        assert said.removeprefix(" ") == document.text[span.start : span.end]


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_swapping_takes_the_sources_of_another_and_leaves_the_answer(seed):
    found = every_answer(seed)
    for (document, span), (donor, donated) in zip(found, found[1:] + found[:1], strict=True):
        text, start, end = swap(document, span, donor, donated)
        assert text[start:end] == document.text[span.start : span.end]
        first, last = stretch(document, span)
        assert text.startswith(document.text[:first] + donor.text[slice(*stretch(donor, donated))])
        assert text.endswith(document.text[last:])


def test_shuffling_moves_what_stands_up_to_the_last_source_and_nothing_else(tokenizer):
    rng = np.random.Generator(np.random.PCG64(1))
    for document, span in every_answer(2, 20):
        case = spell(tokenizer, document.text, span.start, span.end)
        shuffled = shuffle(case, tokenizer, document, span, rng)
        last = spell(tokenizer, document.text, *stretch(document, span)).answer[-1]
        assert last < case.answer[0]
        assert sorted(case.ids) == sorted(shuffled.ids)
        assert (case.ids[last + 1 :] == shuffled.ids[last + 1 :]).all()
        assert case.ids[0] == shuffled.ids[0]
        assert last < 10 or (case.ids != shuffled.ids).any()


def reading(cases: list[Case], wrong: set[tuple[int, int]]):
    """The forward pass of a reader that knows what comes next in every case, but at (case, place)."""
    rows = {tuple(case.ids[: case.answer[-1]].tolist()): i for i, case in enumerate(cases)}

    def forward(_model, ids):
        guesses = torch.zeros(*ids.shape, 100)
        for row in range(len(ids)):
            (which,) = [i for known, i in rows.items() if tuple(ids[row, : len(known)].tolist()) == known]
            for place in range(1, cases[which].answer[-1] + 1):
                token = cases[which].ids[place] + ((which, place) in wrong)
                guesses[row, place - 1, token] = 1.0
        return SimpleNamespace(logits=guesses)

    return forward


def test_an_answer_is_right_when_its_every_token_is_the_first_choice(monkeypatch):
    cases = [Case(np.array([1, 10 + i, 2, 3, 4, 5, 6]), np.array([3, 4])) for i in range(70)]
    monkeypatch.setattr(Model, "forward", reading(cases, {(0, 3), (1, 4), (2, 2), (3, 5)}))
    right = answers.predicted(load(build("gpt2")), cases)
    assert right.tolist() == [False, False] + [True] * 68
