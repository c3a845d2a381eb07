"""Results come back as they were saved, say what they are, and never destroy what they did not write."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from headlens._errors import OutputError, ResultError
from headlens._result import Provenance, Result, check_result_target, versions
from tests.test_files import full_disk


@dataclass(frozen=True)
class Answer(Result):
    """A table, and arrays by name."""

    table: pa.Table
    arrays: dict[str, np.ndarray]

    def to_table(self) -> pa.Table:
        return self.table

    def _arrays(self) -> dict[str, np.ndarray]:
        return self.arrays

    @classmethod
    def _restore(cls, provenance, table, arrays):
        return cls(provenance, table.select(["name", "value"]), arrays)


class Other(Answer):
    """The same, under another name."""


class Newer(Answer):
    """The same, in another format."""

    format: ClassVar[int] = 2


Newer.__name__ = "Answer"

TEXT = st.text(max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PROVENANCE = st.fixed_dictionaries(
    {
        "models": st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=2).map(tuple),
        "data": st.dictionaries(TEXT, JSON, max_size=3),
        "seed": st.none() | st.integers(0, 2**63),
        "command": TEXT,
        "versions": st.dictionaries(TEXT, TEXT, max_size=3),
    }
)
ROWS = st.lists(st.tuples(st.none() | st.text(st.characters(codec="utf-8")), st.none() | st.floats()), max_size=5)
ARRAYS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.sampled_from([np.uint8, np.int64, np.float16, np.float32]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(max_dims=3, max_side=3))
    ),
    max_size=3,
)


def table(rows=(("a", 1.0),)) -> pa.Table:
    names, values = zip(*rows, strict=True) if rows else ((), ())
    return pa.table({"name": pa.array(names, pa.string()), "value": pa.array(values, pa.float64())})


@pytest.fixture
def answer() -> Answer:
    provenance = Provenance(({"name": "m"},), {"d": {"n": 1}}, 3, "headlens x", versions())
    return Answer(provenance, table(), {"weights": np.arange(6.0).reshape(2, 3)})


def bits(array: np.ndarray) -> tuple:
    return array.dtype, array.shape, array.tobytes()


@given(PROVENANCE, ROWS, ARRAYS, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_saved_is_loaded(tmp_path, provenance, rows, arrays, transposed):
    provenance = Provenance(**provenance)
    arrays = {name: a.T if transposed else a for name, a in arrays.items()}
    path = Answer(provenance, table(rows), arrays).save(tmp_path / "it")
    loaded = Answer.load(path)
    assert loaded.provenance == provenance
    assert str(loaded.table.to_pylist()) == str(table(rows).to_pylist())  # as text, since nan is not nan
    assert {k: bits(v) for k, v in loaded.arrays.items()} == {k: bits(v) for k, v in arrays.items()}


def test_a_command_line_may_hold_bytes_that_are_no_text(tmp_path):
    path = Answer(Provenance(command="headlens \udcff"), table(), {}).save(tmp_path / "it")
    assert Answer.load(path).provenance.command == "headlens \udcff"


def test_the_same_result_is_the_same_bytes(answer, tmp_path):
    for name in ("a", "b"):
        answer.save(tmp_path / name)
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]


def test_a_folder_holds_a_manifest_that_people_can_read(answer, tmp_path):
    folder = answer.save(str(tmp_path / "it"))
    assert sorted(p.name for p in folder.iterdir()) == ["arrays.safetensors", "manifest.json", "table.parquet"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["type"], manifest["format"]) == ("Answer", 1)
    assert manifest["provenance"]["seed"] == 3 and manifest["provenance"]["command"] == "headlens x"


def test_saving_again_replaces_all_of_the_old_result(answer, tmp_path):
    answer.save(tmp_path / "it")
    Answer(Provenance(seed=4), table(), {}).save(tmp_path / "it")
    assert Answer.load(tmp_path / "it").provenance.seed == 4 and Answer.load(tmp_path / "it").arrays == {}
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


def test_a_full_disk_leaves_the_old_result(answer, tmp_path):
    answer.save(tmp_path / "it")
    big = {"weights": np.random.default_rng(0).normal(size=20_000)}
    for other in (Answer(Provenance(), table(), big), Answer(Provenance(command="x" * 10_000), table(), {})):
        with pytest.raises(OutputError, match="it could not be written") as caught, full_disk(5_000):
            other.save(tmp_path / "it")
        assert "\n" not in str(caught.value)
    rows = [(str(i), float(i)) for i in np.random.default_rng(0).normal(size=3_000)]
    with pytest.raises(OutputError, match="it could not be written") as caught, full_disk(5_000):
        Answer(Provenance(), table(rows), {}).save(tmp_path / "it")
    assert "\n" not in str(caught.value)
    assert Answer.load(tmp_path / "it").provenance == answer.provenance
    assert [p.name for p in tmp_path.iterdir()] == ["it"]


# --- what is there already is not destroyed ---------------------------------------------------------------


def foreign(path, kind: str) -> None:
    """Make something at `path` that no result wrote."""
    if kind == "a file":
        path.write_text("mine")
        return
    path.mkdir()
    files = {
        "a folder": {"thesis.tex": "mine"},
        "a model": {"config.json": "{}", "model.safetensors": ""},
        "a web app": {"manifest.json": '{"name": "app", "icons": []}', "index.html": "mine"},
        "a broken manifest": {"manifest.json": "{", "index.html": "mine"},
        "a result and more": {
            "manifest.json": '{"type": "Answer", "format": 1, "provenance": {}}', "thesis.tex": "mine",
        },
    }[kind]  # fmt: skip
    for name, content in files.items():
        (path / name).write_text(content)


FOREIGN = ["a file", "a folder", "a model", "a web app", "a broken manifest", "a result and more"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_no_result_wrote_is_not_overwritten(answer, tmp_path, kind):
    path = tmp_path / "it"
    foreign(path, kind)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ResultError, match="name another folder"):
        answer.save(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_and_an_older_result_may_be_replaced(answer, tmp_path):
    (tmp_path / "empty").mkdir()
    answer.save(tmp_path / "empty")
    Other(*vars(answer).values()).save(tmp_path / "empty")
    assert Other.load(tmp_path / "empty").provenance == answer.provenance
    assert check_result_target(tmp_path / "empty") is None and check_result_target(tmp_path / "new") is None


# --- what cannot be read says why -------------------------------------------------------------------------


def test_another_type_names_the_class_to_call(answer, tmp_path):
    Other(*vars(answer).values()).save(tmp_path / "it")
    with pytest.raises(ResultError, match=r"it holds a Other, not a Answer. Call Other.load instead"):
        Answer.load(tmp_path / "it")


def test_another_format_is_refused(answer, tmp_path):
    Newer(*vars(answer).values()).save(tmp_path / "it")
    with pytest.raises(ResultError, match="has format 2 and this version reads 1: make it again"):
        Answer.load(tmp_path / "it")


def damage(folder, how: str) -> None:
    """Change one file of a saved result."""
    file, change = {
        "no manifest": ("manifest.json", None),
        "cut manifest": ("manifest.json", lambda content: content[: len(content) // 2]),
        "manifest is a list": ("manifest.json", lambda _: b"[]"),
        "manifest without type": ("manifest.json", lambda content: content.replace(b'"type"', b'"kind"')),
        "manifest not UTF-8": ("manifest.json", lambda _: b'{"type": "\xff"}'),
        "provenance of others": ("manifest.json", lambda content: content.replace(b'"seed"', b'"seeds"')),
        "provenance is null": ("manifest.json", lambda _: b'{"type": "Answer", "format": 1, "provenance": null}'),
        "no table": ("table.parquet", None),
        "cut table": ("table.parquet", lambda content: content[:-20]),
        "table is text": ("table.parquet", lambda _: b"name,value\n"),
        "cut arrays": ("arrays.safetensors", lambda content: content[:-8]),
        "arrays are text": ("arrays.safetensors", lambda _: b"hello"),
    }[how]
    path = folder / file
    if change is None:
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(change(content))
        assert path.read_bytes() != content


DAMAGES = ["no manifest", "cut manifest", "manifest is a list", "manifest without type", "manifest not UTF-8",
           "provenance of others", "provenance is null", "no table", "cut table", "table is text", "cut arrays",
           "arrays are text"]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_in_one_line(answer, tmp_path, how):
    folder = answer.save(tmp_path / "it")
    damage(folder, how)
    with pytest.raises(ResultError, match="/it") as caught:
        Answer.load(folder)
    assert "\n" not in str(caught.value)


def test_a_table_of_other_columns_is_damage(answer, tmp_path):
    folder = Answer(answer.provenance, table().drop_columns(["value"]), {}).save(tmp_path / "it")
    with pytest.raises(ResultError, match="it is damaged .*value"):
        Answer.load(folder)


def test_a_reason_of_many_lines_becomes_one(answer, tmp_path, monkeypatch):
    def restore(*_):
        raise ValueError("first\nsecond")

    folder = answer.save(tmp_path / "it")
    monkeypatch.setattr(Answer, "_restore", restore)
    with pytest.raises(ResultError, match=r"it is damaged \(first\): make it again"):
        Answer.load(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(ResultError, match=r"nothing holds no headlens result: there is no manifest.json in it"):
        Answer.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultError, match="file"):
        Answer.load(tmp_path / "file")


# --- what a result says of itself -------------------------------------------------------------------------


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert list(found) == ["python", "headlens", "torch", "transformers", "tokenizers", "numpy"]
    assert found["numpy"] == np.__version__


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr("headlens._result._VERSIONED", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"


def test_without_pandas_a_frame_is_the_table(answer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    assert answer.to_frame() is answer.table


def test_answers_are_frozen(answer):
    with pytest.raises(AttributeError):
        answer.provenance = Provenance()
