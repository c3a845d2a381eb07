"""What is called an absence or a count: each condition alone decides; and a distractor's predicted effect is exact."""

import numpy as np
import pytest
import torch
from scipy import special

import headlens as hl
from headlens.rules import observe
from headlens.rules.counting import Dose, FoundCount
from headlens.rules.distractors import ENOUGH, FoundAbsence, one_key_more
from headlens.rules.language import Absence, Count, SkipGram
from headlens.rules.mining import Asked, Miner
from headlens.rules.replace import Difference
from tests.families import build
from tests.fra.made import dictionary

RULE, DISTRACTOR = SkipGram(0, 1, 2.0), SkipGram(0, 2, -1.0)
SEEN = Difference(20, 1.0, 0.5, 1.5)


def absence(*, put_in=(20, -1.0, -1.5, -0.5), taken_out=(20, 1.0, 0.5, 1.5), fires=(0.2, 0.5)):
    return FoundAbsence(
        Absence(RULE, DISTRACTOR, True), SEEN, SEEN, Difference(*put_in), Difference(*taken_out), *fires
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"put_in": (20, -1.0, -2.5, 0.1)}, False),  # it may not lower the feature
        ({"put_in": (20, 1.0, 0.5, 1.5)}, False),
        ({"put_in": (ENOUGH - 1, -1.0, -1.5, -0.5)}, False),
        ({"put_in": (0, np.nan, np.nan, np.nan)}, False),
        ({"fires": (0.25, 0.5)}, True),
        ({"fires": (0.3, 0.5)}, False),  # stops less than half of what fires
        ({"fires": (0.0, 0.0)}, False),  # nothing fired that could be stopped
        ({"taken_out": (20, 0.1, -0.5, 0.7)}, False),
        ({"taken_out": (ENOUGH, 0.1, -0.5, 0.7)}, False),
        ({"taken_out": (ENOUGH - 1, 0.1, -0.5, 0.7)}, True),  # too few texts to say
    ],
)
def test_an_absence_lowers_and_stops_and_where_it_is_taken_out_it_raises(changed, holds):
    found = absence(**changed)
    assert found.confirmed is holds and found.to_row()["confirmed"] is holds


def count(passes, *, ratio=2.0, suppress=2, contexts=8):
    return FoundCount(Count(0, 1, suppress, ratio), (Dose(1, 1, 0.5, 1.0),), passes, 16, contexts)


@pytest.mark.parametrize(
    ("passes", "changed", "holds"),
    [
        ({0: 1.0, 1: 2.0, 2: 4.0}, {}, True),
        ({0: 1.0, 1: 5.0, 2: 7.0}, {}, True),  # within twice the ratio, and a whole number
        ({0: 1.0, 1: 5.1, 2: 7.0}, {}, False),
        ({0: 1.0, 1: 3.0, 2: 7.0}, {"ratio": 8.0}, False),  # passes long before the ratio
        ({0: 1.0, 1: 4.0, 2: 3.0}, {}, False),  # more of what suppresses needs less
        ({0: 1.0, 1: np.inf, 2: np.inf}, {}, False),  # it never fires
        ({0: 1.0, 1: 2.0, 2: np.inf}, {}, True),  # only not among so many
        ({0: 1.0, 1: np.inf, 2: 4.0}, {}, False),
        ({0: 1.0, 2: 8.0, 4: 16.0}, {"ratio": 4.0}, True),  # for each of two: 4 x 2
        ({0: 1.0, 4: 2.0}, {}, False),  # near the ratio for one, far from it for each of four
        ({0: 2.0, 1: 2.0, 2: 4.0}, {}, False),  # no more than without what suppresses
        ({0: 0.0, 1: 1.0}, {"ratio": 1.0}, False),  # one is enough: nothing is counted
        ({0: 1.0, 1: 2.0, 2: 4.0}, {"contexts": 2}, False),
        ({}, {}, False),
        ({0: 4.0}, {"suppress": None, "ratio": 3.0}, True),
        ({0: 1.0}, {"suppress": None, "ratio": 1.0}, False),
        ({0: 9.0}, {"suppress": None, "ratio": 3.0}, False),
        ({0: np.inf}, {"suppress": None, "ratio": 3.0}, False),
    ],
)
def test_a_count_passes_near_its_ratio_and_later_the_more_suppresses(passes, changed, holds):
    found = count(passes, **changed)
    assert found.confirmed is holds and found.to_row()["confirmed"] is holds


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_key_more_is_a_softmax_with_one_entry_more(family):
    model = hl.load(build(family))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=30)
    z = dictionary(model.d_head, "blocks.1.attn.hook_z", n=5, seed=3, head=2)
    rng = np.random.default_rng(0)
    texts = [[1, *rng.integers(4, 60, rng.integers(6, 20)).tolist()] for _ in range(40)]
    miner = Miner(observe(model, own, {2: z}, texts, 1), 2, Asked(num_bins=2, examples_per_bin=4))
    examples, (w, _) = miner.exemplars.draw(0, "mine"), miner.direction(0)
    truth, maps = miner.truth(examples, w), miner.seen.maps
    keys = np.array([3, 11])
    effect, silent = one_key_more(truth, miner.seen, keys, w)
    for e in range(len(examples)):
        there = np.flatnonzero(examples.visible[e])
        q = len(there) - 1
        usual = truth.writes[e, 1:q].mean() if q > 1 else 0.0  # of all but the first key and its own
        for c, j in enumerate(keys):
            key = maps.whole_key[j]
            if maps.head.rotary is not None:
                key = maps.head.rotary(torch.from_numpy(key), (q + 1) // 2).numpy()  # half way back
            scores = np.append(truth.scores[e, there], miner.seen.query[examples.row[e]] @ key)
            before, after = special.softmax(scores[:-1]), special.softmax(scores)
            was = before @ truth.writes[e, there]
            for found, write in ((effect, maps.whole_value[j] @ w), (silent, usual)):
                more = after @ np.append(truth.writes[e, there], write) - was
                assert found[e, c] == pytest.approx(more, abs=1e-5), (e, j)
