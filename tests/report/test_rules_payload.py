"""What a page says of rules is what was mined: which match where, in which order, and what is left out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import ResultError
from headlens.report import rules_payload, write_report
from headlens.report.page import FRA_VIEW, RULES_VIEW, embedded_json
from headlens.report.payload import traits
from headlens.rules.language import NONE
from tests.report.shown_fra import make_fra, make_labels
from tests.report.shown_rules import EMPTY, LABELS, ORDER, RULES, make_row, make_rules


def shown(*results):
    return json.loads(embedded_json("all", traits(list(results))))


def test_a_page_lists_rules_by_what_they_do_over_all_that_fires():
    values = shown(make_rules(), make_labels(LABELS))
    content = values["rules_0_0"]
    assert [row[4] for row in content["rules"]] == ORDER
    assert content["rules"][0] == [7, 1, 3.9, 0.8, 0]
    assert content["labels"] == {str(i): label for i, label in LABELS.items()}
    (result,) = values["rules"]
    assert (result["layer"], result["head"], result["texts"], result["labelled"]) == (1, 2, 1500, True)
    first, second = result["features"]
    assert (first["rules"], first["absences"], first["counts"], first["strongest"]) == (5, 1, 1, "French city")
    assert first["ap"] == pytest.approx(0.5 + 0.02 * 8 + 0.03) and first["full"] == pytest.approx(1.02)
    assert (second["rules"], second["strongest"], second["absences"]) == (0, None, 0)


def test_tokens_are_marked_by_the_rules_that_match_them():
    """The query holds 7 and 3; rule 3 asks for 9, which it does not, and rule 2 for nothing in particular."""
    (exemplar,) = shown(make_rules())["rules_0_0"]["exemplars"]
    assert [[ORDER[place] for place in places] for places in exemplar["marks"]] == [[], [0, 2], [1], [2], []]
    assert exemplar["adds"] == [0.0, 2.5, -1.5, 0.1, None]


features = st.integers(0, 5)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.integers(-1, 5), features, st.floats(-9, 9), st.floats(0, 1)), unique_by=lambda r: r[:2], max_size=20),
    st.lists(st.lists(features, unique=True), min_size=1, max_size=6),
    st.integers(1, 25),
)  # fmt: skip
def test_marks_are_all_matches_of_what_is_listed(rules, holds, most):
    row = make_row(tokens=("a",) * 5) | {
        "rules": [dict(zip(("query", "key", "effect"), r, strict=False)) for r in rules]
    }
    row["coverage"] = [r[3] for r in rules]
    row["exemplars"] = [
        row["exemplars"][0] | {"tokens": ["a"] * len(holds), "adds": [0.0] * len(holds), "holds": holds}
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules_payload, "LISTED", most)
        content = shown(make_rules([row]))["rules_0_0"]
    assert len(content["rules"]) + content["left_out"] == len(rules)
    weights = [abs(effect) * share for _, _, effect, share, _ in content["rules"]]
    assert weights == sorted(weights, reverse=True)
    listed = {place for *_, place in content["rules"]}
    assert all(
        abs(r[2]) * r[3] <= min(weights, default=0) + 1e-5 for i, r in enumerate(rules) if i not in listed
    )  # fmt: skip
    for own, marked in zip(holds, content["exemplars"][0]["marks"], strict=True):
        expected = [
            i for i, (query, key, *_) in enumerate(content["rules"])
            if key in own and (query == NONE or query in holds[-1])
        ]  # fmt: skip
        assert marked == expected


def test_numbers_that_cannot_be_told_are_null():
    content = shown(make_rules())["rules_0_0"]
    assert content["absences"][0]["measured"]["taken_out"] == [0, None, None, None]
    assert content["agreement"][0]["without_query"] is None
    assert content["agreement"][0]["right"] == [0.875, 0.375, 1.375]
    unigram = next(row for row in content["curve"] if row["predictor"] == "unigram")
    assert unigram["rules"] is None and unigram["ap"][1:] == [None, None]
    assert content["counts"][0]["doses"][5] == [5, 0, 5.0, 1.0]


def test_labels_of_another_dictionary_are_not_used_and_long_ones_are_cut():
    values = shown(make_rules(), make_labels({1: "dogs"}, digest="f" * 16), make_labels({2: "x" * 999}))
    assert values["rules_0_0"]["labels"] == {"2": "x" * rules_payload.LONGEST_LABEL}
    assert values["fra"] == [] and not shown(make_rules())["rules"][0]["labelled"]
    with pytest.raises(ResultError, match="FeatureLabels are shown beside"):
        traits([make_labels({1: "alone"})])


def test_a_page_of_rules_says_what_it_holds(tmp_path):
    page = write_report([make_rules(), make_labels(LABELS)], tmp_path / "one.html").read_text()
    assert f'id="view-{RULES_VIEW}"' in page and f'id="view-{FRA_VIEW}"' not in page
    assert "<h1>What makes the features of layer 1, head 2 of zoo:gpt2-small fire</h1>" in page
    assert "2 features · 5 rules · 1 absence · 1 count · 1,500 texts" in page
    both = write_report([make_fra(), make_rules(), make_rules()], tmp_path / "both.html").read_text()
    assert both.index(f'id="view-{FRA_VIEW}"') < both.index(f'id="view-{RULES_VIEW}"')
    assert [one["name"][-3:] for one in shown(make_rules(), make_rules())["rules"]] == ["all", "(2)"]
    assert page == write_report([make_rules(), make_labels(LABELS)], tmp_path / "again.html").read_text()


def test_what_was_mined_by_hand_of_nothing_is_shown_too():
    values = shown(make_rules([make_row(**EMPTY)]))
    assert values["rules_0_0"]["rules"] == [] and len(RULES) == 5
    assert values["rules"][0]["features"][0]["ap"] == pytest.approx(0.13)
