"""Phase 1 on heads set by hand: recovered where the encoder's states hold what is needed, and not where they do not.

The encoder is the construction `sink`, whose heads write next to nothing: its states are the words and positions alone.
"""

import numpy as np
import pytest

from headlens.universe.batches import Group, grouped
from headlens.universe.clone import Training, divergence, fit_clones
from headlens.universe.features import fit_features
from headlens.universe.patterns import record_patterns
from headlens.zoo.constructed.vocabulary import WORDS
from tests.universe.made import construction, repeats

KINDS = ("previous_token", "induction", "duplicate_token", "sink")


TRAIN, TEST = repeats(WORDS, 400, seed=1), repeats(WORDS, 24, seed=2)


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> list[Group]:
    """Training and held-out texts."""
    folder, names = tmp_path_factory.mktemp("patterns"), ("induction", "duplicate_token", "sink")
    recorded = [
        [record_patterns(construction(name)[0], given, folder / name / part) for name in names]
        for part, given in (("train", TRAIN), ("test", TEST))
    ]
    return [group for part in recorded for group in grouped(part)]


def found(groups: list[Group], *, shift: bool) -> tuple[dict[str, float], dict[str, float]]:
    """KL of the clone and of position only, by kind, on held-out texts."""
    features = fit_features(construction("sink")[0], TRAIN[:100], n_features=256, shift=shift)
    features.read([*TRAIN, *TEST])
    group, held_out = groups
    training = Training(epochs=10, rate=0.05, decay=0.3)
    fits = [fit_clones(group, features, rank=rank, training=training) for rank in (16, 0)]
    batches = list(held_out.batches(features))
    rows = sum(float(batch.real.sum()) for batch in batches)
    kinds = [construction(h.model.removeprefix("constructed/"))[1].heads[h[1:]] for h in group.heads]
    kls = [sum(divergence(b.target, fit.log_patterns(b)).sum((1, 2)) for b in batches) / rows for fit in fits]
    own, position = (dict(zip(kinds, np.asarray(kl).tolist(), strict=True)) for kl in kls)
    return own, position


@pytest.mark.slow
def test_heads_are_recovered_where_the_states_hold_what_they_look_for(groups):
    own, _ = found(groups, shift=True)
    assert all(own[kind] < 0.05 for kind in KINDS), own


@pytest.mark.slow
def test_without_the_token_before_the_induction_head_is_not_and_its_skill_says_so(groups):
    own, position = found(groups, shift=False)
    assert own["induction"] > 0.3
    assert 1 - own["induction"] / position["induction"] < 0.5
    assert all(own[kind] < 0.05 for kind in KINDS if kind != "induction"), own
