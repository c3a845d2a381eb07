"""Text readers: every format gives back what was written, lazily, and names the place of what is wrong."""

import csv
import json
import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headlens._errors import DataError, MissingExtra
from headlens.data import iter_texts, read_texts, texts_hash

PLAIN = st.characters(codec="utf-8")
DOCUMENTS = st.lists(st.text(PLAIN).filter(str.strip), min_size=1, max_size=6)
LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).filter(str.strip), min_size=1, max_size=6
)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def jsonl(*texts: str, field: str = "text") -> str:
    return "".join(json.dumps({field: text}) + "\n" for text in texts)


# --- what is written is read ------------------------------------------------------------------------------


@given(DOCUMENTS)
@shared_folder
def test_jsonl(tmp_path, texts):
    (tmp_path / "a.jsonl").write_text(jsonl(*texts))
    assert read_texts(tmp_path / "a.jsonl") == texts


@given(DOCUMENTS)
@shared_folder
def test_csv(tmp_path, texts):
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    assert read_texts(tmp_path / "a.csv") == texts


@given(LINES, st.sampled_from(["\n", "\r\n"]))
@shared_folder
def test_txt(tmp_path, texts, end):
    (tmp_path / "a.txt").write_bytes("".join(text + end for text in texts).encode())
    assert read_texts(str(tmp_path / "a.txt")) == texts


def test_folder_reads_every_file_by_name_and_a_txt_as_one_document(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("two\nlines\n")
    (tmp_path / "a.jsonl").write_text(jsonl("first", "second"))
    (tmp_path / "z.csv").write_text("text\nlast\n")
    (tmp_path / "notes.md").write_text("not this")
    assert read_texts(tmp_path) == ["first", "second", "two\nlines\n", "last"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in (("a.jsonl", jsonl("x")), ("b.csv", "text\nx\n"), ("c.txt", "x\n")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read_texts(tmp_path / name) == ["x"]
    assert read_texts(tmp_path) == ["x", "x", "x\n"]


def test_blank_documents_are_skipped_and_the_ends_of_others_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(" a ", "", " \t\n") + "\n  \n" + jsonl("b\n"))
    (tmp_path / "a.csv").write_text('text,n\n" a ",1\n,2\n"  ",3\n"b\n",4\n')
    (tmp_path / "a.txt").write_text(" a \n\n   \nb\n")
    assert read_texts(tmp_path / "a.jsonl") == read_texts(tmp_path / "a.csv") == [" a ", "b\n"]
    assert read_texts(tmp_path / "a.txt") == [" a ", "b"]


def test_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1, "story": "x"}\n')
    (tmp_path / "a.csv").write_text("text,story\n1,x\n")
    assert read_texts(tmp_path / "a.jsonl", field="story") == read_texts(tmp_path / "a.csv", field="story") == ["x"]


def test_a_short_row_of_a_csv_is_blank(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,x\n2\n3,y\n")
    assert read_texts(tmp_path / "a.csv") == ["x", "y"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
def test_nothing_after_the_limit_is_read(tmp_path, suffix):
    start = {"jsonl": jsonl("a", "", "b"), "csv": "text\na\n\nb\n", "txt": "a\n\nb\n"}[suffix].encode()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(start + b"\xff{damaged\n")
    assert read_texts(path, limit=2) == ["a", "b"]
    with pytest.raises(DataError, match="line 4|line 5"):
        read_texts(path)


def test_documents_come_as_they_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl("a", "b") + "{\n")
    documents = iter_texts(tmp_path / "a.jsonl")
    assert [next(documents), next(documents)] == ["a", "b"]
    with pytest.raises(DataError):
        next(documents)


# --- what is wrong is named -------------------------------------------------------------------------------

WRONG = {
    "no json": ("a.jsonl", jsonl("x") + "{bad\n", r"a\.jsonl line 2 is not JSON"),
    "cut json": ("a.jsonl", jsonl("x") + '\n{"text": "y', r"a\.jsonl line 3 is not JSON"),
    "deep json": ("a.jsonl", "[" * 100_000, r"a\.jsonl line 1 is not JSON"),
    "a list": ("a.jsonl", "[1]\n", r"a\.jsonl line 1 has no field 'text' \(it has: a list\)"),
    "a number": ("a.jsonl", "5\n", r"a\.jsonl line 1 has no field 'text' \(it has: a int\)"),
    "a string": ("a.jsonl", '"a text"\n', r"a\.jsonl line 1 has no field 'text' \(it has: a str\)"),
    "no field": ("a.jsonl", '{"x": 1, "y": 2}\n', r"a\.jsonl line 1 has no field 'text' \(it has: x, y\)"),
    "null": ("a.jsonl", jsonl("x") + '{"text": null}\n', r"a\.jsonl line 2 holds a NoneType in field 'text', not text"),
    "number": ("a.jsonl", '{"text": 3}\n', r"a\.jsonl line 1 holds a int in field 'text', not text"),
    "no column": ("a.csv", "x,y\n1,2\n", r"a\.csv has no column 'text' \(it has: x, y\)"),
    "no header": ("a.csv", "", r"a\.csv has no column 'text'"),
    "open quote": ("a.csv", 'text\nx\n"never closed\nand on\n', r"a\.csv line 3 is not CSV: unexpected end of data"),
    "long field": ("a.csv", "text\n" + "x" * 200_000, r"a\.csv line 2 is not CSV: field larger.*write \.jsonl"),
    "latin-1 jsonl": ("a.jsonl", jsonl("x").encode() + b'{"text": "caf\xe9"}\n', r"a\.jsonl line 2 is not UTF-8 text"),
    "latin-1 csv": ("a.csv", b"text\nx\ncaf\xe9\n", r"a\.csv line 3 is not UTF-8 text"),
    "latin-1 txt": ("a.txt", b"x\n" * 9000 + b"caf\xe9\n", r"a\.txt line 9001 is not UTF-8 text"),
    "utf-16": ("a.txt", "text".encode("utf-16"), r"a\.txt line 1 is not UTF-8 text"),
    "empty": ("a.jsonl", "", r"a\.jsonl holds no text: every document in it is empty"),
    "blank": ("a.txt", "\n \n\t\n", r"a\.txt holds no text"),
    "suffix": ("a.pdf", "x", r"a\.pdf ends in '\.pdf', and a corpus is one of \.jsonl, \.csv, \.txt or a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_error_names_file_line_and_field(tmp_path, case):
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_corpus(tmp_path):
    with pytest.raises(DataError, match="There is no corpus at"):
        read_texts(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.csv, \.txt file"):
        read_texts(tmp_path)


def test_a_damaged_txt_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text \(byte 3\)"):
        read_texts(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    for corpus in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=f"{name} could not be read: Permission denied"):
            read_texts(corpus)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_nothing_is_refused(tmp_path, limit):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=f"limit must be 1 or more.*not {limit}"):
        read_texts(tmp_path / "a.txt", limit=limit)


# --- datasets of the hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the datasets package, which records what it was asked for."""
    package = ModuleType("datasets")
    package.asked = []
    package.rows = [{"text": "a"}, {"text": " "}, {"text": "b"}]

    def load_dataset(name, *, split, streaming):
        package.asked.append((name, split, streaming))
        if name == "missing":
            raise FileNotFoundError("Dataset 'missing' doesn't exist")
        return iter(package.rows)

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    return package


def test_a_dataset_is_streamed(hub):
    assert read_texts("hf:org/name") == ["a", "b"]
    assert hub.asked == [("org/name", "train", True)]


def test_a_split_is_named_after_a_colon(hub):
    read_texts("hf:org/name:test")
    assert hub.asked == [("org/name", "test", True)]


def test_a_dataset_without_the_field_says_what_it_has(hub):
    with pytest.raises(DataError, match=r"org/name has no field 'story' \(it has: text\)"):
        read_texts("hf:org/name", field="story")


def test_a_dataset_of_numbers_is_refused(hub):
    hub.rows = [{"text": 1}]
    with pytest.raises(DataError, match="org/name holds a int in field 'text', not text"):
        read_texts("hf:org/name")


def test_a_dataset_that_cannot_be_opened_says_why(hub):
    with pytest.raises(DataError, match="The dataset missing could not be opened: Dataset 'missing' doesn't exist"):
        read_texts("hf:missing")


def test_without_the_extra_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headlens\[data\]'"):
        read_texts("hf:org/name")


# --- hash -------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_hashes_are_equal_exactly_where_texts_are(first, second):
    assert texts_hash(first) == texts_hash(list(first))
    assert (texts_hash(first) == texts_hash(second)) == (first == second)


def test_the_hash_sees_where_texts_end():
    cuts = [["ab"], ["a", "b"], ["ab", ""], ["", "ab"], [""], ["\ud800"], ["\ud801"]]
    assert len({texts_hash(texts) for texts in cuts}) == len(cuts)
    assert texts_hash(["Tim", "Größe"]) == "538818d3c40fd4af"
