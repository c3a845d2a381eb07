"""A label asks for size and for significance, and for the kinds that a kind needs."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control

from headlens._errors import DataError
from headlens.heads.kinds import KINDS
from headlens.heads.labels import RATE, labelled, thresholds
from headlens.heads.scores import SCHEMA


def row(kind: str, score: float, *, null: float = 0.0, p: float = 1e-9, model: str = "m", head: int = 0) -> dict:
    return {
        "model": model, "layer": 0, "head": head, "kind": kind, "score": score, "low": score, "high": score,
        "null": null, "n": 9, "weighted": None, "p": p, "detail": None,
    }  # fmt: skip


def levels(*rows: dict, **changed: tuple[float, float]) -> list[str | None]:
    return labelled(pa.Table.from_pylist(list(rows), schema=SCHEMA), changed)["level"].to_pylist()


def test_levels_begin_at_their_thresholds_and_count_from_the_null():
    assert levels(*(row("self", s) for s in (0.34, 0.35, 0.69, 0.7))) == ["low", "medium", "medium", "high"]
    assert levels(row("self", 0.75, null=0.3)) == ["medium"]
    assert levels(row("self", 0.0, null=-0.9)) == ["low"]  # nothing there, whatever the null did
    assert levels(row("self", 0.75, null=-0.9)) == ["high"]
    assert levels(row("self", 0.5), self=(0.5, 0.6)) == ["medium"]


def test_a_large_score_that_may_be_chance_is_no_label():
    assert levels(row("self", 0.9, p=RATE + 0.01)) == ["low"]
    assert levels(row("self", 0.9, p=float("nan"))) == ["low"]
    assert levels(row("self", 0.9, p=RATE - 0.01)) == ["high"]


def test_discoveries_are_counted_over_all_heads_and_kinds_of_a_model_and_not_over_other_models():
    many = [row(kind, 0.9, p=0.03, head=head) for kind in ("self", "sink") for head in range(10)]
    assert set(levels(*many)) == {"high"}
    few = [row("self", 0.9, p=0.03), *(row("sink", 0.0, p=0.9, head=head) for head in range(20))]
    assert levels(*few)[0] == "low"
    other = [{**one, "model": "another"} for one in few[1:]]
    assert levels(few[0], *other)[0] == "high"


def test_q_is_benjamini_and_hochberg():
    p = np.random.default_rng(0).uniform(size=30) ** 2
    table = labelled(pa.Table.from_pylist([row("self", 0.1, p=one, head=i) for i, one in enumerate(p)], schema=SCHEMA))
    np.testing.assert_allclose(table["q"].to_numpy(), false_discovery_control(p))


@pytest.mark.parametrize(
    ("copying", "expected"),
    [(0.9, "high"), (0.4, "high"), (0.1, "low"), (-0.9, "low"), (None, None)],
)
def test_an_induction_head_must_copy(copying, expected):
    rows = [row("induction", 0.95)]
    if copying is not None:
        rows += [row("copying_logits", copying), row("copying_logits", 0.99, head=1)]  # another head's does not help
    assert levels(*rows)[0] == expected


def test_a_kind_of_others_has_no_level():
    assert levels(row("somebody's kind", 0.9)) == [None]


def test_what_a_kind_needs_is_a_kind_that_needs_nothing_more():
    for kind in KINDS.values():
        assert all(not KINDS[needed].needs for needed in kind.needs)


def test_thresholds_must_rise_and_be_of_a_kind():
    with pytest.raises(DataError, match="medium is 0.8 and high is 0.7"):
        thresholds({"induction": (0.8, 0.7)})
    with pytest.raises(DataError, match="'attention' is no kind"):
        thresholds({"attention": (0.1, 0.2)})
