"""A stimulus: what belongs to its tokens is as long as they are, and its provenance tells it from others."""

import numpy as np
import pytest

from headlens._errors import DataError
from headlens.data import Stimulus, pack


def test_provenance_tells_stimuli_apart():
    first = Stimulus("x", pack([[1, 2]]), None, recipe={"seed": 1})
    assert first.provenance() == {"name": "x", "n": 1, "hash": pack([[1, 2]]).hash, "bos": None, "seed": 1}


TOKENS = pack([[1, 2, 3], [4, 5]])
NO, YES = np.zeros(5, bool), np.ones(5, bool)


def test_marks_and_answers_are_kept():
    stimulus = Stimulus("x", TOKENS, None, TOKENS, {}, {"all": YES}, {"next": np.array([6, 7])})
    assert stimulus.marks["all"].all() and stimulus.answers["next"].tolist() == [6, 7]


MISFITS = {
    "control": (lambda: Stimulus("x", TOKENS, None, pack([[1, 2], [3, 4, 5]])), "control of x must have.*same lengths"),
    "control of fewer": (lambda: Stimulus("x", TOKENS, None, pack([[1, 2, 3]])), "control of x must have"),
    "marks": (lambda: Stimulus("x", TOKENS, None, marks={"end": NO[:4]}), "marks 'end' of x must have 5.*not 4"),
    "answers": (
        lambda: Stimulus("x", TOKENS, None, answers={"io": np.arange(5)}),
        "answers 'io' of x must have 2.*not 5",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_the_tokens_is_refused(case):
    build, message = MISFITS[case]
    with pytest.raises(DataError, match=message):
        build()


def test_marks_of_one_sequence_are_its_part_of_all_marks():
    marks = {"odd": np.array([True, False, False, True, True])}
    stimulus = Stimulus("x", pack([[1, 2], [3, 4, 5]]), None, marks=marks)
    assert stimulus.marked("odd", 0).tolist() == [True, False]
    assert stimulus.marked("odd", np.int64(1)).tolist() == [False, True, True]
