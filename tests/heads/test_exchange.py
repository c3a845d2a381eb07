"""Files of the seed study are read to the last bit or refused at a place, and written so that it reads them."""

import copy
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import headlens as hl
from headlens._errors import DataError, OutputError
from headlens._result import Provenance
from headlens.heads.exchange import read_concept_scores, read_legacy_maps, read_study, write_study
from headlens.heads.merge import merge
from headlens.heads.scores import SCHEMA, HeadScores
from tests.families import build

LARGE = {"org/six": (28, 16), "org/twenty": (44, 64), "org/seven": (32, 32), "org/thirteen": (40, 40)}


def classified(grid: list[list[float]], high: float = 0.7, medium: float = 0.35) -> dict[str, list[dict]]:
    """The levels as the study makes them: head by head."""
    lists: dict[str, list[dict]] = {f"{level}_induction": [] for level in ("high", "medium", "low")}
    for layer, row in enumerate(grid):
        for head, score in enumerate(row):
            level = "high" if score >= high else "medium" if score >= medium else "low"
            lists[f"{level}_induction"].append({"layer": layer, "head": head, "score": score})
    return lists


def model_result(name: str, grid: Any, **said) -> dict:
    grid = np.asarray(grid, dtype=float).tolist()
    return {
        "model_name": name,
        "model_configuration": {"num_layers": len(grid), "num_heads": len(grid[0]), "hidden_size": 64},
        "induction_scores": grid,
        "classified_heads": classified(grid),
        "analysis_params": {"num_of_samples": 2048, "seq_len": 50, "batch_size": 4},
        "attention_maps": None,
    } | said


def dataset(*results: dict, **said) -> dict:
    return {
        "metadata": {
            "created_at": "2025-07-22T18:52:07.378885",
            "description": "Some heads",
            "num_models": len(results),
            "models": [result["model_name"] for result in results],
            "total_heads": sum(len(r["induction_scores"]) * len(r["induction_scores"][0]) for r in results),
            "analysis_params": {
                "num_samples": 2048, "seq_len": 50, "batch_size": 4, "high_threshold": 0.7, "medium_threshold": 0.35,
            },
        }
        | said,
        "model_results": list(results),
    }  # fmt: skip


GRID = [[0.9217073917388916, 0.0001, 0.7], [0.35, math.nextafter(0.35, 0), 0.0]]


def older(result: dict) -> dict:
    """The same in the format of the first version."""
    kept = {key: value for key, value in result.items() if key not in ("model_configuration", "attention_maps")}
    thresholds = {"high": 0.7, "medium": 0.35}
    return kept | {"model_config": result["model_configuration"], "classification_thresholds": thresholds}


@pytest.fixture
def write(tmp_path):
    def write(content: Any, name: str = "study.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), encoding="utf-8")
        return path

    return write


def grid_of(scores: HeadScores, name: str, kind: str = "fixed_gap_induction", column: str = "score") -> dict:
    rows = scores.table.to_pylist()
    return {(r["layer"], r["head"]): r[column] for r in rows if (r["model"], r["kind"]) == (name, kind)}


# --- reading a study --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["current", "older", "one model's file"])
def test_every_head_is_a_row_with_its_own_score(write, version):
    result = model_result("org/a", GRID)
    content = {"current": dataset(result), "older": dataset(older(result)), "one model's file": result}[version]
    scores = read_study(write(content))
    assert grid_of(scores, "org/a") == {(i, j): GRID[i][j] for i in range(2) for j in range(3)}
    assert scores.table.schema.equals(SCHEMA)
    assert scores.table["n"].to_pylist() == [2048] * 6
    unknown = set(SCHEMA.names) - {"model", "layer", "head", "kind", "score", "n"}
    assert all(scores.table[name].null_count == 6 for name in unknown)
    entry = scores.provenance.data["org/a: fixed_gap_induction"]
    assert entry["levels"] == ["hlh", "mll"]
    assert entry["analysis_params"] == {"num_of_samples": 2048, "seq_len": 50, "batch_size": 4}
    known = version != "one model's file"
    assert entry["thresholds"] == ({"high": 0.7, "medium": 0.35} if known else {"high": None, "medium": None})
    assert scores.provenance.models == ({"name": "org/a", "n_layers": 2, "n_heads": 3, "d_model": 64},)
    assert scores.provenance.seed is None


def test_metadata_is_kept_whole_with_what_it_was_read_from(write):
    content = dataset(model_result("org/a", GRID), source_files=["a.json", "b.json"], total_heads=12)
    path = write(content)
    kept = read_study(path).provenance.data["study"]
    assert kept.pop("source")["file"] == path.name
    assert kept == content["metadata"]
    assert read_study(write(json.dumps(content))).provenance.data["study"]["source"]["hash"]


def test_large_studies_keep_every_score_in_its_place(write):
    rng = np.random.default_rng(0)
    grids = {name: rng.beta(0.2, 1, shape).astype(np.float32).astype(float) for name, shape in LARGE.items()}
    scores = read_study(write(dataset(*(model_result(name, grid) for name, grid in grids.items()))))
    assert len(scores.table) == 5888
    order = [("model", "ascending"), ("kind", "ascending"), ("layer", "ascending"), ("head", "ascending")]
    assert scores.table.equals(scores.table.sort_by(order))
    for name, grid in grids.items():
        assert grid_of(scores, name) == {(int(i), int(j)): grid[i, j] for i, j in np.ndindex(*grid.shape)}


def test_a_models_own_number_of_samples_goes_before_the_data_sets(write):
    own = model_result("org/a", GRID, analysis_params={"num_of_samples": 7})
    shared = model_result("org/b", GRID, analysis_params={})
    scores = read_study(write(dataset(own, shared)))
    assert set(grid_of(scores, "org/a", column="n").values()) == {7}
    assert set(grid_of(scores, "org/b", column="n").values()) == {2048}
    unknown = read_study(write(dataset(shared, analysis_params={})))
    assert set(grid_of(unknown, "org/b", column="n").values()) == {None}


def test_a_models_own_thresholds_go_before_the_data_sets(write):
    for params in (
        {"analysis_params": {"high_threshold": 0.9, "medium_threshold": 0.5}},
        {"classification_thresholds": {"high": 0.9, "medium": 0.5}},
    ):
        result = model_result("org/a", GRID, classified_heads=classified(GRID, 0.9, 0.5), **params)
        entry = read_study(write(dataset(result))).provenance.data["org/a: fixed_gap_induction"]
        assert entry["levels"] == ["hlm", "lll"]
        assert entry["thresholds"] == {"high": 0.9, "medium": 0.5}


def test_attention_maps_are_left_out_and_said_to_be(write):
    maps = {"layer_0_head_0": {"data": [[[1.0]]], "shape": [1, 1, 1]}}
    with_maps = read_study(write(dataset(model_result("org/a", GRID, attention_maps=maps))))
    without = read_study(write(dataset(model_result("org/a", GRID))))
    assert with_maps.table.equals(without.table)
    assert with_maps.provenance.data["org/a: fixed_gap_induction"]["attention_maps"] == "left out, of 1 heads"
    assert "attention_maps" not in without.provenance.data["org/a: fixed_gap_induction"]


def test_it_saves_and_loads_as_any_result(write, tmp_path):
    scores = read_study(write(dataset(model_result("org/a", GRID))))
    loaded = type(scores).load(scores.save(tmp_path / "saved"))
    assert loaded.table.equals(scores.table)
    assert loaded.provenance == scores.provenance


def changed(change) -> dict:
    """A sound data set of two models, of which `change` is told the second."""
    content = copy.deepcopy(dataset(model_result("org/a", GRID), model_result("org/b", GRID)))
    replaced = change(content, content["model_results"][1])
    return content if replaced is None else replaced


def edit(*path, to: Any):
    def change(content: dict, result: dict) -> None:
        holder: Any = result
        for step in path[:-1]:
            holder = holder[step]
        if to is ...:
            del holder[path[-1]]
        else:
            holder[path[-1]] = to

    return change


def metadata(name: str, to: Any):
    def change(content: dict, result: dict) -> None:
        content["metadata"][name] = to

    return change


def swap(content: dict, result: dict) -> None:
    lists = result["classified_heads"]
    lists["low_induction"].append(lists["high_induction"].pop(0))


HIGH, LOW = ("classified_heads", "high_induction"), ("classified_heads", "low_induction")
FIRST = {"layer": 0, "head": 0, "score": GRID[0][0]}
WRONG = {
    "a list": (lambda *_: [], "must hold an object, and holds a list"),
    "no metadata": (lambda c, _: {"model_results": c["model_results"]}, "has no 'metadata'"),
    "no results": (lambda c, _: {"metadata": {}}, "has no 'model_results'"),
    "no result": (lambda c, _: {"metadata": {}, "model_results": []}, "is empty"),
    "a result of text": (lambda c, _: {"metadata": {}, "model_results": ["a"]}, r"model_results\[0\] must be an object"),
    "a model twice": (edit("model_name", to="org/a"), "has org/a 2 times"),
    "a model left out": (metadata("models", ["org/a", "org/b", "org/c"]), "metadata.models is .*org/c"),
    "models that are no list": (metadata("models", 2), "metadata.models is 2"),
    "parameters that are none": (metadata("analysis_params", [1]), "metadata: 'analysis_params' must be an object"),
    "no name": (edit("model_name", to=...), r"model_results\[1\] has no 'model_name'"),
    "a name that is none": (edit("model_name", to=3), "'model_name' must be text, and is a whole number"),
    "no configuration": (edit("model_configuration", to=...), "no 'model_configuration'"),
    "no number of layers": (edit("model_configuration", "num_layers", to=...), "no 'num_layers'"),
    "layers that are true": (edit("model_configuration", "num_layers", to=True), "'num_layers' must be a whole number"),
    "half a head": (edit("model_configuration", "num_heads", to=2.5), "'num_heads' must be a whole number, and is a number"),
    "no head": (edit("model_configuration", "num_heads", to=0), "2 layers with 0 heads has no score"),
    "no scores": (edit("induction_scores", to=...), "no 'induction_scores'"),
    "null scores": (edit("induction_scores", to=None), "'induction_scores' must be a list, and is nothing"),
    "a layer too few": (edit("induction_scores", to=GRID[:1]), "has 1 layers and the configuration 2"),
    "a layer too many there": (edit("induction_scores", to=[*GRID, GRID[0]]), "has 3 layers and the configuration 2"),
    "a head too many in a layer": (edit("induction_scores", 1, to=[0.1] * 4), r"induction_scores\[1\] has 4 heads"),
    "a ragged layer": (edit("induction_scores", 1, to=[0.1, 0.2]), r"induction_scores\[1\] has 2 heads and the configuration 3"),
    "a layer that is none": (edit("induction_scores", 1, to=0.5), r"induction_scores\[1\] has a number"),
    "NaN": (edit("induction_scores", 1, 2, to=math.nan), r"induction_scores\[1\]\[2\] is nan"),
    "infinity": (edit("induction_scores", 1, 2, to=-math.inf), r"induction_scores\[1\]\[2\] is -inf"),
    "a score of text": (edit("induction_scores", 0, 1, to="0.5"), r"induction_scores\[0\]\[1\] must be a number and is text"),
    "a score that is true": (edit("induction_scores", 0, 1, to=True), r"\[0\]\[1\] must be a number and is a bool"),
    "a null score": (edit("induction_scores", 0, 1, to=None), r"\[0\]\[1\] must be a number and is nothing"),
    "a score too large": (edit("induction_scores", 0, 1, to=10**400), "a number that is too large"),
    "no parameters": (edit("analysis_params", to=...), "no 'analysis_params'"),
    "samples of text": (edit("analysis_params", "num_of_samples", to="many"), "number of samples must be .* not 'many'"),
    "no samples": (edit("analysis_params", "num_of_samples", to=0), "number of samples must be 1 or more, not 0"),
    "a threshold of text": (edit("analysis_params", "high_threshold", to="0.7"), "thresholds must be finite numbers"),
    "a threshold of NaN": (edit("analysis_params", "high_threshold", to=math.nan), "thresholds must be finite numbers"),
    "a threshold too large": (edit("analysis_params", "high_threshold", to=10**400), "thresholds must be finite numbers"),
    "a width that is none": (edit("model_configuration", "hidden_size", to="64"), "'hidden_size' must be a whole number"),
    "no levels": (edit("classified_heads", to=...), "no 'classified_heads'"),
    "a level too few": (edit("classified_heads", "medium_induction", to=...), "no 'medium_induction'"),
    "a level that is none": (edit("classified_heads", "medium_induction", to={}), "'medium_induction' must be a list"),
    "a layer too many": (edit(*HIGH, 0, "layer", to=2), "names org/b:L2H0, which is outside 2 × 3 heads"),
    "a head too many": (edit(*HIGH, 0, "head", to=3), "names org/b:L0H3, which is outside"),
    "a negative layer": (edit(*HIGH, 0, "layer", to=-1), "names org/b:L-1H0, which is outside"),
    "a negative head": (edit(*HIGH, 0, "head", to=-1), "names org/b:L0H-1, which is outside"),
    "a layer of text": (edit(*HIGH, 1, "layer", to="0"), r"high_induction\[1\]: 'layer' must be a whole number, and is text"),
    "a head that is true": (edit(*HIGH, 1, "head", to=True), r"high_induction\[1\]: 'head' must be .* is a bool"),
    "half a layer": (edit(*HIGH, 1, "layer", to=0.0), r"high_induction\[1\]: 'layer' must be a whole number, and is a number"),
    "a head without score": (edit(*LOW, 1, "score", to=...), r"low_induction\[1\] has no 'score'"),
    "a null for a head": (edit(*LOW, 1, to=None), r"low_induction\[1\] must be an object, and is nothing"),
    "a layer beyond all": (edit(*LOW, 1, "layer", to=10**30), "a number that is too large"),
    "a head left out": (edit(*LOW, 1, to=...), "org/b:L1H1 is not in any level"),
    "a head twice": (edit(*LOW, 1, to=FIRST), "org/b:L0H0 is listed 2 times"),
    "another score": (edit(*HIGH, 0, "score", to=0.92), "org/b:L0H0 scores 0.92, and 0.9217073917388916 in the scores"),
    "another level": (swap, "org/b:L0H0 scores 0.9217073917388916 and is called low; by the thresholds 0.7 and 0.35 it is high"),
    "other thresholds": (metadata("analysis_params", {"high_threshold": 0.95, "medium_threshold": 0.35}), "org/a:L0H0 .* it is medium"),
    "levels out of order": (lambda c, r: (metadata("analysis_params", {})(c, r), swap(c, r))[0], "org/b:L0H0 .* it is high"),
    "a kind that is none": (edit("kind", to=1), "'kind' must be text"),
    "a seed that is none": (edit("seed", to="x"), "'seed' must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_its_place(write, name):
    change, said = WRONG[name]
    path = write(changed(change))
    with pytest.raises(DataError, match=said) as raised:
        read_study(path)
    assert str(path) in str(raised.value)


def test_the_data_set_that_is_changed_is_sound(write):
    assert len(read_study(write(changed(lambda *_: None))).table) == 12


@pytest.mark.parametrize("reader", [read_study, lambda path: read_concept_scores(path, model="m")])
def test_files_that_are_no_json_are_refused(write, tmp_path, reader):
    whole = json.dumps(dataset(model_result("org/a", GRID)))
    for content in ("", whole[:-1], "[" * 100_000, "1" * 5000):
        with pytest.raises(DataError, match="study.json"):
            reader(write(content))
    (tmp_path / "study.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="is not JSON"):
        reader(tmp_path / "study.json")
    with pytest.raises(DataError, match="There is no file at .*none.json"):
        reader(tmp_path / "none.json")
    with pytest.raises(DataError, match="could not be read: Is a directory"):
        reader(tmp_path)


# --- writing a study --------------------------------------------------------------------------------------


class StudySchema(pydantic.BaseModel):
    """What the study's own class declares of one model."""

    model_config = pydantic.ConfigDict(strict=True, protected_namespaces=())

    model_name: str
    model_configuration: dict[str, int]
    induction_scores: list[list[float]]
    classified_heads: dict[str, list[dict[str, Any]]]
    analysis_params: dict[str, Any]
    attention_maps: dict[str, Any] | None = None


def table_of(grids: dict[str, np.ndarray], kind: str = "induction", n: int | None = 8) -> pa.Table:
    rows = [
        {"model": name, "layer": int(i), "head": int(j), "kind": kind, "score": float(grid[i, j]), "n": n}
        for name, grid in grids.items()
        for i, j in np.ndindex(*grid.shape)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


grids = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=4),
    elements=st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.7, 0.35, -0.0, 5e-324, 1 / 3]),
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), grids, min_size=1, max_size=3),
    st.tuples(st.floats(-1, 2), st.floats(-1, 2)).map(sorted),
    st.sampled_from([None, 1, 2048]),
)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path_factory, grids, thresholds, n):
    scores = HeadScores(Provenance(), table_of(grids, n=n).sort_by([("model", "ascending")]))
    medium, high = thresholds
    path = write_study(scores, tmp_path_factory.getbasetemp() / "round.json", high=high, medium=medium)
    found = read_study(path)
    order = [(name, "ascending") for name in ("model", "layer", "head")]
    expected = scores.table.sort_by(order)
    assert found.table["score"].to_numpy().tobytes() == expected["score"].to_numpy().tobytes()
    assert found.table.equals(expected)


@pytest.fixture(scope="module")
def measured():
    return hl.heads.score(
        [hl.load(build("gpt2")), hl.load(build("llama"))], ["induction", "duplicate_token"], num_samples=6, seq_len=8, seed=3
    )  # fmt: skip


def test_the_studys_own_reader_reads_it(measured, tmp_path):
    content = json.loads(write_study(measured, tmp_path / "it.json", high=0.2, medium=0.1).read_text())
    names = sorted({row["model"] for row in measured.table.to_pylist()})
    assert set(content) == {"metadata", "model_results"}
    assert {"created_at", "description", "num_models", "models", "total_heads", "analysis_params"} <= set(
        content["metadata"]
    )
    assert content["metadata"]["models"] == names
    assert content["metadata"]["num_models"] == len(names)
    assert content["metadata"]["analysis_params"] == {
        "num_samples": 6, "seq_len": 8, "batch_size": None, "high_threshold": 0.2, "medium_threshold": 0.1,
    }  # fmt: skip
    total = 0
    for result in content["model_results"]:
        read = StudySchema(**result)
        layers, heads = (read.model_configuration[name] for name in ("num_layers", "num_heads"))
        assert np.array(read.induction_scores).shape == (layers, heads)
        assert read.classified_heads == classified(read.induction_scores, 0.2, 0.1)
        assert list(read.classified_heads) == ["high_induction", "medium_induction", "low_induction"]
        total += layers * heads
    assert content["metadata"]["total_heads"] == total


def test_what_the_study_does_not_record_is_added(measured, tmp_path):
    content = json.loads(write_study(measured, tmp_path / "it.json").read_text())
    for result in content["model_results"]:
        described = next(m for m in measured.provenance.models if m["name"] == result["model_name"])
        assert result["seed"] == 3
        assert result["kind"] == "induction"
        assert result["bos_policy"] == ("none" if described["bos"] is None else "prepended")
        for theirs, ours in {
            "revision": "revision", "dtype": "dtype", "bos": "bos", "weights_hash": "weights",
            "config_hash": "config", "tokenizer_hash": "tokenizer", "family": "family",
        }.items():  # fmt: skip
            assert result[theirs] == described[ours], theirs
        assert result["stimulus"]["hash"]
    assert any(result["bos"] is not None for result in content["model_results"])


def test_read_back_it_is_the_same_measurement(measured, tmp_path):
    """Models, protocol, seed and versions survive, so that merging with the original adds nothing and parts nothing."""
    found = read_study(write_study(measured, tmp_path / "it.json"))
    assert found.provenance.seed == 3
    assert found.provenance.versions == measured.provenance.versions
    assert set(found.table["kind"].to_pylist()) == {"induction"}
    assert merge(measured, found).table.equals(
        measured.table.sort_by([(c, "ascending") for c in ("model", "kind", "layer", "head")])
    )
    for one, other in zip(found.provenance.models, measured.provenance.models, strict=True):
        assert {key: one[key] for key in one if key in other} == {key: other[key] for key in one if key in other}
        assert one["bos"] == other["bos"]
    other_seed = hl.heads.score(hl.load(build("gpt2")), ["induction"], num_samples=6, seq_len=8, seed=4)
    with pytest.raises(DataError, match="seed is"):
        merge(other_seed, found)


def test_a_study_read_and_written_says_the_same(write, tmp_path):
    first = read_study(write(dataset(model_result("org/a", GRID), model_result("org/b", GRID))))
    path = write_study(first, tmp_path / "again.json", kind="fixed_gap_induction")
    assert all(
        r["stimulus"] == {"name": "repeats at a fixed gap"} for r in json.loads(path.read_text())["model_results"]
    )
    second = read_study(path)
    assert second.table.equals(first.table)
    assert second.provenance.models == first.provenance.models
    for name in ("org/a: fixed_gap_induction", "org/b: fixed_gap_induction"):
        assert second.provenance.data[name] == first.provenance.data[name]
    assert merge(first, second).table.equals(first.table)


def test_the_same_scores_give_the_same_bytes(measured, tmp_path):
    paths = [write_study(measured, tmp_path / name) for name in ("a.json", "b.json")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_what_is_not_known_of_a_model_is_not_taken_from_its_namesake(tmp_path):
    """Of two tables of one name, one with a revision, the file says none: whose scores these are is not known."""
    table = table_of({"m": np.full((1, 2), 0.5)})
    models = ({"name": "m", "revision": "abc", "dtype": "float16"}, {"name": "m", "dtype": "float16", "d_model": 4})
    for order in (models, models[::-1]):
        content = json.loads(write_study(HeadScores(Provenance(order), table), tmp_path / "it.json").read_text())
        (result,) = content["model_results"]
        assert (result["revision"], result["dtype"]) == (None, "float16")
        assert result["model_configuration"] == {"num_layers": 1, "num_heads": 2, "hidden_size": 4}


def test_a_stimulus_without_bos_goes_before_the_models_own(tmp_path):
    table = table_of({"m": np.full((1, 2), 0.5)})
    for said, policy in (({}, "prepended"), ({"bos": None}, "none"), ({"bos": 7}, "prepended")):
        p = Provenance(({"name": "m", "bos": 7},), {"m: induction": {"name": "repeats", **said}})
        result = json.loads(write_study(HeadScores(p, table), tmp_path / "it.json").read_text())["model_results"][0]
        assert (result["bos"], result["bos_policy"]) == (7, policy)
    result = json.loads(write_study(HeadScores(Provenance(), table), tmp_path / "it.json").read_text())[
        "model_results"
    ][0]
    assert (result["bos"], result["bos_policy"]) == (None, None)


def test_no_bos_is_read_back_as_none_and_an_unknown_one_as_unknown(tmp_path):
    table = pa.concat_tables([table_of({name: np.full((1, 2), 0.5)}) for name in "ab"])
    scores = HeadScores(Provenance(({"name": "a", "bos": None}, {"name": "b"})), table)
    known, unknown = read_study(write_study(scores, tmp_path / "it.json")).provenance.models
    assert known["bos"] is None
    assert "bos" not in unknown


def test_models_of_two_seeds_keep_each_its_own(tmp_path):
    table = pa.concat_tables([table_of({name: np.full((1, 2), 0.5)}) for name in "ab"])
    data = {f"{name}: induction": {"name": "repeats", "seed": seed} for name, seed in (("a", 1), ("b", 2))}
    path = write_study(HeadScores(Provenance((), data), table), tmp_path / "it.json")
    assert [result["seed"] for result in json.loads(path.read_text())["model_results"]] == [1, 2]
    found = read_study(path).provenance
    assert found.seed is None
    assert [found.data[f"{name}: induction"]["seed"] for name in "ab"] == [1, 2]


def test_numbers_of_samples_that_differ_are_not_one_number(tmp_path):
    tables = [table_of({name: np.full((1, 2), 0.5)}, n=n) for name, n in (("a", 8), ("b", 9))]
    mixed = pa.concat_tables([tables[0].slice(0, 1), table_of({"a": np.full((1, 2), 0.5)}, n=7).slice(1)])
    for table, own, shared in (
        (pa.concat_tables(tables), [8, 9], None),
        (tables[1], [9], 9),
        (mixed, [None], None),
    ):
        content = json.loads(write_study(HeadScores(Provenance(), table), tmp_path / "it.json").read_text())
        assert [result["analysis_params"]["num_of_samples"] for result in content["model_results"]] == own
        assert content["metadata"]["analysis_params"]["num_samples"] == shared


def test_only_models_with_this_kind_are_written(tmp_path):
    tables = [table_of({"a": np.full((1, 2), 0.5)}), table_of({"b": np.full((2, 1), 0.5)}, kind="self")]
    scores = HeadScores(Provenance(), pa.concat_tables(tables))
    found = read_study(write_study(scores, tmp_path / "it.json", kind="self"))
    assert set(found.table["model"].to_pylist()) == {"b"}


def without(table: pa.Table, layer: int, head: int) -> pa.Table:
    rows = [row for row in table.to_pylist() if (row["layer"], row["head"]) != (layer, head)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


FULL = table_of({"m": np.full((2, 2), 0.5)})
UNWRITABLE = {
    "another kind": (FULL, {"kind": "sink"}, "no score of sink to write; the kinds there are: induction"),
    "nothing": (SCHEMA.empty_table(), {}, "no score of induction to write; the kinds there are: none"),
    "a head left out": (without(FULL, 0, 1), {}, "induction of m:L0H1 is missing"),
    "the last head left out": (without(FULL, 1, 1), {}, "induction of m:L1H1 is missing"),
    "a head twice": (pa.concat_tables([FULL, FULL.slice(3)]), {}, "induction of m:L1H1 is there twice"),
    "NaN": (table_of({"m": np.array([[0.5, np.nan]])}), {}, "induction of m:L0H1 is no finite number"),
    "infinity": (table_of({"m": np.array([[0.5, np.inf]])}), {}, "induction of m:L0H1 is no finite number"),
    "null": (FULL.set_column(4, "score", pa.array([0.1, None, 0.2, 0.3])), {}, "induction of m:L0H1 is no finite number"),
    "no score at all": (FULL.drop_columns(["score"]), {}, "score missing"),
    "thresholds reversed": (FULL, {"high": 0.3, "medium": 0.5}, "high >= medium, not 0.3 and 0.5"),
    "a threshold of NaN": (FULL, {"high": math.nan}, "finite numbers"),
    "a threshold beyond all": (FULL, {"high": math.inf}, "finite numbers"),
    "an infinite threshold": (FULL, {"medium": -math.inf}, "finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path, name):
    table, arguments, said = UNWRITABLE[name]
    (tmp_path / "it.json").write_text("old")
    with pytest.raises(DataError, match=said):
        write_study(HeadScores(Provenance(), table), tmp_path / "it.json", **arguments)
    assert os.listdir(tmp_path) == ["it.json"]  # noqa: PTH208
    assert (tmp_path / "it.json").read_text() == "old"


def test_a_grid_that_a_model_exceeds_or_does_not_fill_is_refused(tmp_path):
    for layers, said in ((1, "m:L1H0 is outside the model's 1 × 2 heads"), (3, "m:L2H0 is missing")):
        p = Provenance(({"name": "m", "n_layers": layers, "n_heads": 2},))
        with pytest.raises(DataError, match=said):
            write_study(HeadScores(p, FULL), tmp_path / "it.json")


def test_it_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_study(HeadScores(Provenance(), FULL), tmp_path / "folder")


# --- attention to entities --------------------------------------------------------------------------------


def concept(next_: dict, end: dict) -> dict:
    return {
        name: [{"layer": layer, "head_idx": head, "score": score} for (layer, head), score in heads.items()]
        for name, heads in (("next_tok_attn", next_), ("end_tok_attn", end))
    }


NEXT, END = {(0, 0): 0.25, (0, 1): 0.0, (1, 0): 1.5}, {(1, 0): 0.125, (0, 0): 0.5, (0, 1): 1}


def test_both_scores_of_every_head_are_read(write):
    scores = read_concept_scores(write(concept(NEXT, END)), model="org/a")
    assert grid_of(scores, "org/a", "entity_next_attention") == NEXT
    assert grid_of(scores, "org/a", "entity_end_attention") == END
    assert scores.table.schema.equals(SCHEMA)
    assert scores.table["n"].null_count == 6
    assert set(scores.table["kind"].to_pylist()) == {"entity_next_attention", "entity_end_attention"}
    (name,) = scores.provenance.data
    assert name == "org/a: entity_next_attention, entity_end_attention"
    assert scores.provenance.models == ({"name": "org/a"},)
    again = read_concept_scores(write(json.dumps(concept(NEXT, END)), "other.json"), model="org/a")
    assert merge(scores, again).table.equals(scores.table)  # the same scores in other bytes


def damaged(name: str, i: int, key: str | None, to: Any) -> dict:
    content = concept(NEXT, END)
    if key is None:
        content[name][i] = to
    else:
        content[name][i][key] = to
    return content


WRONG_CONCEPTS = {
    "no next": ({"end_tok_attn": []}, "has no 'next_tok_attn'"),
    "no list": ({"next_tok_attn": {}, "end_tok_attn": []}, "'next_tok_attn' must be a list"),
    "nothing": (concept({}, {}), "next_tok_attn is empty"),
    "NaN": (damaged("end_tok_attn", 1, "score", math.nan), r"end_tok_attn\[1\] is not finite"),
    "text": (damaged("end_tok_attn", 1, "score", "1"), r"end_tok_attn\[1\]: 'score' must be a number, and is text"),
    "half a head": (damaged("next_tok_attn", 2, "head_idx", 0.5), r"next_tok_attn\[2\]: 'head_idx' must be a whole number"),
    "a head that is true": (damaged("next_tok_attn", 2, "head_idx", True), r"\[2\]: 'head_idx' must be a whole number"),
    "a head called head": (damaged("next_tok_attn", 0, None, {"layer": 0, "head": 0, "score": 1}), r"\[0\] has no 'head_idx'"),
    "a negative layer": (damaged("next_tok_attn", 2, "layer", -1), r"next_tok_attn\[2\] has a negative index"),
    "a layer beyond all": (damaged("next_tok_attn", 2, "layer", 2**31), "too large"),
    "a head twice": (damaged("next_tok_attn", 2, "layer", 0), "next_tok_attn lists m:L0H0 2 times"),
    "a head in the other only": (concept(NEXT, END | {(7, 8): 1.0}), "m:L7H8 in one of next_tok_attn and end_tok_attn only"),
    "a head in one only": (concept(NEXT | {(7, 8): 1.0}, END), "m:L7H8 in one of next_tok_attn and end_tok_attn only"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CONCEPTS)
def test_wrong_scores_of_entities_are_refused(write, name):
    content, said = WRONG_CONCEPTS[name]
    with pytest.raises(DataError, match=f"study.json.*{said}"):
        read_concept_scores(write(content), model="m")


# --- pickles ----------------------------------------------------------------------------------------------


def pickled(folder, content: Any):
    (folder / "maps.pkl").write_bytes(pickle.dumps(content))
    return folder / "maps.pkl"


@pytest.mark.parametrize("shape", [(3, 16), (1, 1), (10,), (1,)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maps_and_distances_are_read_by_head(tmp_path, shape, dtype):
    rng = np.random.default_rng(0)
    content = {layer: {head: rng.random(shape).astype(dtype) for head in (0, 3)} for layer in (2, 0)}
    found = read_legacy_maps(pickled(tmp_path, content))
    assert set(found) == {(0, 0), (0, 3), (2, 0), (2, 3)}
    for (layer, head), array in found.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, content[layer][head])


ONE = np.zeros((2, 4), "f4")


class AnalysisResults:
    pass


WRONG_MAPS = {
    "a list": ([ONE], "must hold a dict of layers"),
    "no layers": ({}, "must hold a dict of layers"),
    "no dicts of heads": ({0: [ONE]}, "in each a dict of heads"),
    "no heads": ({0: {}}, "layers without heads"),
    "a layer of text": ({"0": {0: ONE}}, "layers and heads are whole numbers"),
    "a head of text": ({0: {"0": ONE}}, "layers and heads are whole numbers"),
    "a layer that is true": ({True: {0: ONE}}, "layers and heads are whole numbers"),
    "a negative head": ({0: {-1: ONE}}, "layers and heads are whole numbers"),
    "a list for an array": ({0: {0: [[0.0]]}}, "holds a list, and not an array"),
    "whole numbers": ({0: {0: np.zeros((2, 4), int)}}, "an array of int64, and not"),
    "other texts": ({0: {0: ONE, 1: np.zeros((3, 4), "f4")}}, r"layer 0, head 1 has shape \(3, 4\), and the first head \(2, 4\)"),
    "another length": ({0: {0: ONE}, 1: {0: np.zeros((2, 9), "f4")}}, "layer 1, head 0 has shape"),
    "no square": ({0: {0: np.zeros((2, 5), "f4")}}, r"maps are \(texts, T \* T\)"),
    "no texts": ({0: {0: np.zeros((0, 4), "f4")}}, r"maps are \(texts, T \* T\)"),
    "no tokens": ({0: {0: np.zeros((2, 0), "f4")}}, r"maps are \(texts, T \* T\)"),
    "distances two by two": ({0: {0: np.zeros(50, "f4")}}, r"50 distances, which is n \(n - 1\) / 2 for no n"),
    "no distances": ({0: {0: np.zeros(0, "f4")}}, "0 distances"),
    "a stack": ({0: {0: np.zeros((2, 2, 2), "f4")}}, "neither"),
    "a number": ({0: {0: np.array(1, "f4")}}, "neither"),
    "objects": ({"metadata": {}, "model_results": [AnalysisResults()]}, "holds .*AnalysisResults.* Nothing in it was run"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MAPS)
def test_wrong_pickles_are_refused(tmp_path, name):
    content, said = WRONG_MAPS[name]
    with pytest.raises(DataError, match=f"maps.pkl.*{said}"):
        read_legacy_maps(pickled(tmp_path, content))


@given(n=st.integers(2, 2000))
def test_all_numbers_of_pairs_are_numbers_of_distances(n):
    from headlens.heads.exchange.legacy import _check_map_shape

    pairs = n * (n - 1) // 2
    _check_map_shape((pairs,), Path("it.pkl"))
    if n > 2:
        for other in (pairs - 1, pairs + 1):
            if other not in (1, 3):
                with pytest.raises(DataError):
                    _check_map_shape((other,), Path("it.pkl"))
