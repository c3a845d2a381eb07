"""The map and its neighbours are those of the universe, whatever the order of heads; the study's rows find their heads."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import ResultError
from headlens.axes import HeadId
from headlens.report import universe_payload, write_report
from headlens.report.page import STUDY_VIEW, UNIVERSE_VIEW, VIEWS, embedded_json
from headlens.report.payload import traits
from headlens.report.saved import read_results
from headlens.report.universe_payload import by_neighbours, projected
from headlens.universe.tables import LEFT_BY
from tests.report.shown_results import make_atlas
from tests.report.shown_rules import make_rules
from tests.report.shown_universe import FAMILIES, INDUCTION, MODELS, heads_of, make_study, make_texts, make_universe


def shown(*results):
    return json.loads(embedded_json("all", traits(list(results))))


def ids(values):
    own, names = values["universe"]["heads"], [one["model"] for one in values["universe"]["models"]]
    return [HeadId(names[m], *rest) for m, *rest in zip(own["model"], own["layer"], own["head"], strict=True)]


def test_neighbours_are_those_that_the_universe_tells():
    universe = make_universe()
    values = shown(universe)
    heads = ids(values)
    assert heads == heads_of()
    for head, near in zip(heads, values["universe"]["neighbours"], strict=True):
        rows = universe.neighbours(head, universe_payload.NEAREST, other_models=True).to_pylist()
        assert [heads[i] for i, _ in near] == [HeadId(r["model"], r["layer"], r["head"]) for r in rows]
        assert [d for _, d in near] == pytest.approx([row["distance"] for row in rows], abs=1e-4)
    for head in INDUCTION:
        near = values["universe"]["neighbours"][heads.index(HeadId(*head))][:2]
        assert {tuple(heads[i]) for i, _ in near} == INDUCTION - {head}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(2, 30), st.integers(1, 8))
def test_the_components_keep_distances_as_far_as_two_directions_can(seed, n, size):
    terms = np.random.default_rng(seed).normal(size=(n, size))
    xy, shares = projected(terms)
    unit = terms / np.linalg.norm(terms, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    values = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
    wanted = np.pad(values, (0, 2))[:2]
    assert (xy**2).sum(0) == pytest.approx(wanted, abs=1e-9)
    assert shares == pytest.approx(wanted / max(values.sum(), 1e-30), abs=1e-9)
    apart, own = (((x[:, None] - x[None]) ** 2).sum(-1) for x in (xy, unit))
    assert (apart <= own + 1e-9).all(), "a projection brings nothing further apart"
    if size <= 2:
        assert apart == pytest.approx(own, abs=1e-9)
    largest = xy[np.abs(xy).argmax(0), [0, 1]]
    assert (largest >= 0).all(), "signs do not depend on the machine"
    if size >= 3 and n >= 4:  # of few, two may be largest
        assert projected(terms[::-1])[0][::-1] == pytest.approx(xy, abs=1e-7)


def test_heads_of_one_kind_lie_together_on_the_map_by_neighbours():
    rng = np.random.default_rng(0)
    centres = np.eye(12)[:4]
    terms = np.concatenate([c + 0.05 * rng.normal(size=(12, 12)) for c in centres])
    at = by_neighbours(terms)
    own = np.repeat(np.arange(4), 12)
    apart = ((at[:, None] - at[None]) ** 2).sum(-1) + np.diag(np.full(48, np.inf))
    assert (own[apart.argmin(1)] == own).all()
    assert at == pytest.approx(by_neighbours(terms))


def test_the_same_universe_gives_the_same_page_whatever_the_order_of_its_heads(tmp_path):
    turned = make_universe(order=list(range(15, -1, -1)))
    one, other = (write_report(u, tmp_path / name) for u, name in ((make_universe(), "a"), (turned, "b")))
    first, second = shown(make_universe())["universe"], shown(turned)["universe"]
    assert first["heads"] == second["heads"]
    for near, same in zip(first["neighbours"], second["neighbours"], strict=True):
        assert [i for i, _ in near] == [i for i, _ in same]
    # Not the other map: what order changes in a last digit, its many steps make more of.
    own, same = first["maps"]["components"], second["maps"]["components"]
    assert np.array([own["x"], own["y"]]) == pytest.approx(np.array([same["x"], same["y"]]), abs=2e-4)
    assert write_report(make_universe(), tmp_path / "c").read_bytes() == one.read_bytes()
    assert other.stat().st_size == pytest.approx(one.stat().st_size, rel=0.01)


def test_maps_fill_a_square_and_have_one_unit():
    maps = shown(make_universe())["universe"]["maps"]
    assert list(maps) == ["components", "neighbours"]
    for one in maps.values():
        x, y = np.array(one["x"]), np.array(one["y"])
        assert min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
        assert max(np.ptp(x), np.ptp(y)) == pytest.approx(1, abs=1e-3)
    few = shown(make_universe(heads_of({"zoo:gpt2-small": (1, 3), "zoo:llama-small": (1, 2)})))
    assert list(few["universe"]["maps"]) == ["components"], "of few heads there is nothing to keep together"
    single = shown(make_universe(heads_of({"zoo:gpt2-small": (1, 1)})))["universe"]
    assert single["maps"]["components"]["x"] == [0.5] and single["neighbours"] == [[]]


def test_models_say_where_their_patterns_are_and_whether_they_joined():
    patterns = [make_texts(name)[0] for name in ("zoo:llama-small", "zoo:gpt2-small")]
    values = shown(make_universe(fitted=("zoo:gpt2-small",)), *patterns)
    told = {one["model"]: one for one in values["universe"]["models"]}
    assert {name: one["family"] for name, one in told.items()} == FAMILIES
    assert [one["joined"] for one in values["universe"]["models"]] == [True, False, True]
    for name in ("zoo:llama-small", "zoo:gpt2-small"):
        assert values["heads"][told[name]["at"]]["model"] == name
    assert told["org/<b>other</b>"]["at"] is None
    assert {name: (one["layers"], one["heads"]) for name, one in told.items()} == MODELS


def test_what_a_study_says_of_a_head_is_put_to_that_head():
    study = make_study()
    values = shown(make_universe(), study)
    heads, kinds = ids(values), [one["kind"] for one in values["universe"]["kinds"]]
    assert kinds == ["induction", "my_kind"]
    own = values["universe"]["heads"]["kinds"]
    assert {tuple(h) for h, k in zip(heads, own, strict=True) if 0 in k} == INDUCTION
    told, rows = values["study"], study["queries"].to_pylist()
    for query, row in zip(told["queries"], rows, strict=True):
        assert heads[query["head"]] == HeadId(row["model"], row["layer"], row["head"])
        assert [(heads[i], right) for i, _, right in query["nearest"]] == [
            (HeadId(n["model"], n["layer"], n["head"]), n["relevant"]) for n in row["nearest"]
        ]
    first = told["spaces"][0]
    assert first["recall"] == pytest.approx([0.9, 0.8, 0.95]) and first["gain"] == [None] * 3 and first["kind"] == 0
    assert (told["judged"], told["flagged"]) == (13, 1)
    assert [row[0] for row in told["outliers"]] == [i for i in range(15, -1, -1) if i % 5 != 4]
    *scores, left = told["outliers"][0]
    assert scores == pytest.approx([15, 0.5, 1.05, 0.0, True, 0.2, 0.99, False])
    assert told["less"] == list(LEFT_BY.values()) and left == pytest.approx([1.15, 1.25, 1.35, 1.45])
    assert told["spaces"][1]["f1_gain"] == pytest.approx([0.2, 0.1, 0.25]) and first["f1_gain"] == [None] * 3
    assert [(row["documents"], row["method"], row["gap"][0]) for row in told["few"]] == [
        (n, *rest) for n in (1, 16) for rest in (("phase 2", None), ("clone", -0.2))
    ]
    assert told["medians"] == {"unclonable": pytest.approx(0.65), "uncompressible": pytest.approx(0.2)}


def test_a_study_alone_has_no_map_and_a_universe_alone_no_study(tmp_path):
    study = write_report(make_study(), tmp_path / "s.html").read_text()
    assert f'id="view-{STUDY_VIEW}"' in study and f'id="view-{UNIVERSE_VIEW}"' not in study
    universe = write_report([make_universe(), make_texts("zoo:gpt2-small")[0]], tmp_path / "u.html").read_text()
    found = [name for name in (UNIVERSE_VIEW, STUDY_VIEW, *VIEWS) if f'id="view-{name}"' in universe]
    assert found == [UNIVERSE_VIEW, "provenance"], "patterns are there for the map; grids without scores say nothing"
    assert "<h1>Attention heads of 3 models, side by side</h1>" in universe
    assert "3 models · 3 families · 16 heads" in universe
    both = write_report([make_universe(), make_atlas()], tmp_path / "b.html").read_text()
    assert both.index(f'id="view-{UNIVERSE_VIEW}"') < both.index('id="view-head_grid"')


def test_labels_come_from_an_atlas_where_there_is_no_study():
    values = shown(make_universe(), make_atlas())
    kinds = [one["kind"] for one in values["universe"]["kinds"]]
    own = dict(zip(ids(values), values["universe"]["heads"]["kinds"], strict=True))
    assert "induction" in kinds and kinds.index("induction") in own[HeadId("zoo:llama-small", 1, 1)]


def test_a_page_has_some_of_very_many_heads(monkeypatch):
    monkeypatch.setattr(universe_payload, "MOST_HEADS", 7)
    values = shown(make_universe(), make_study())
    assert len(ids(values)) == 6 and values["universe"]["left_out"] == 10
    n = len(ids(values))
    assert all(i < n for near in values["universe"]["neighbours"] for i, _ in near)
    assert all(query["head"] < n for query in values["study"]["queries"])


def test_two_universes_are_refused():
    with pytest.raises(ResultError, match="one HeadUniverse, and 2"):
        traits([make_universe(), make_universe()])


def test_saved_results_are_read_back_by_folder(tmp_path):
    make_universe().save(tmp_path / "u")
    make_rules().save(tmp_path / "rules" / "result")
    make_study().save(tmp_path / "s")
    assert [type(one).__name__ for one in read_results(tmp_path / "u")] == ["HeadUniverse"]
    assert [type(one).__name__ for one in read_results(tmp_path / "rules")] == ["Rules"]
    assert [type(one).__name__ for one in read_results(tmp_path)] == ["UniverseStudy", "HeadUniverse"]
    assert shown(*read_results(tmp_path / "u")) == shown(make_universe())
    with pytest.raises(ResultError, match="holds no headlens result"):
        read_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="holds no saved result"):
        read_results(tmp_path / "empty")
    manifest = tmp_path / "s" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"UniverseStudy"', '"Tally"'))
    with pytest.raises(ResultError, match="holds a Tally, which no page shows"):
        read_results(tmp_path / "s")
