"""Labelled texts: the same documents however they are written; whatever is wrong is named, with its file and line."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headlens._errors import DataError, MissingExtra
from headlens.data.labelled import Labelled, read_labelled

SHARES = {"train": 5, "validation": 2, "test": 3}
HOSTILE = ("</script><script>alert(1)</script>", "a | b", "\u202eright to left", "half \ud83d of a face", "x" * 10**6)


def rows(n: int = 10) -> list[dict]:
    splits = [split for split, k in SHARES.items() for _ in range(k)]
    return [
        {"text": f"text {i}, or so", "label": "joy" if i % 3 else "fear", "split": splits[i % 10], "who": f"g{i // 2}"}
        for i in range(n)
    ]


def write_jsonl(path, some):
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def write_csv(path, some):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, some[0].keys())
        writer.writeheader()
        writer.writerows(some)
    return path


def write_folder(path, some, mapping="0\tfear\n1\tjoy\n"):
    path.mkdir()
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        own = [row for row in some if row["split"] == split]
        (path / f"{name}_text.txt").write_text("".join(row["text"] + "\n" for row in own))
        (path / f"{name}_labels.txt").write_text("".join("01"[row["label"] == "joy"] + "\n" for row in own))
    if mapping:
        (path / "mapping.txt").write_text(mapping)
    return path


def same(a: Labelled, b: Labelled) -> None:
    assert a.texts == b.texts and a.hash == b.hash
    for one, other in ((a.labels, b.labels), (a.splits, b.splits), (a.groups, b.groups)):
        np.testing.assert_array_equal(one, other)


def test_every_way_to_write_them_gives_the_same_documents(tmp_path):
    some = rows()
    jsonl = read_labelled(write_jsonl(tmp_path / "a.jsonl", some), split_field="split")
    same(jsonl, read_labelled(write_csv(tmp_path / "a.csv", some), split_field="split"))
    same(jsonl, read_labelled(write_folder(tmp_path / "a", some)))
    folder = tmp_path / "b"
    folder.mkdir()
    for name, split in (("training", "train"), ("dev", "validation"), ("test", "test")):
        write_jsonl(folder / f"{name}.jsonl", [row for row in some if row["split"] == split])
    same(jsonl, read_labelled(folder))
    assert jsonl.described["splits"] == SHARES and jsonl.described["labels"] == {"fear": 4, "joy": 6}
    assert jsonl.groups is None and read_labelled(tmp_path / "a.jsonl").splits is None


def test_labels_are_called_as_the_mapping_says_and_are_numbers_without_one(tmp_path):
    named, bare = (read_labelled(write_folder(tmp_path / name, rows(), mapping))
                   for name, mapping in (("named", "0\tfear\n1\tjoy\n"), ("bare", "")))  # fmt: skip
    np.testing.assert_array_equal(np.array(["fear", "joy"])[bare.labels], named.labels)
    assert bare.labels.dtype.kind == "i"


@pytest.mark.parametrize(
    ("written", "kind"), [("0 1 1", "i"), ("0.5 1 2", "f"), ("1 2 x", "U"), ("true false true", "U"), ("1e3 2 3", "f")]
)
def test_labels_of_a_csv_are_numbers_where_all_are(tmp_path, written, kind):
    some = [{"text": "t", "label": label} for label in written.split()]
    assert read_labelled(write_csv(tmp_path / "a.csv", some)).labels.dtype.kind == kind


@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from("ab"), st.sampled_from(["train", "dev", "test"])),
                min_size=1, max_size=12), st.integers(1, 4))  # fmt: skip
def test_white_space_is_skipped_with_its_label_and_limits_are_by_split(tmp_path_factory, documents, limit):
    path = tmp_path_factory.mktemp("h") / "a.jsonl"
    write_jsonl(path, [{"text": t, "label": y, "split": s} for t, y, s in documents])
    told = {"train": "train", "dev": "validation", "test": "test"}
    expected, taken = [], dict.fromkeys(told, 0)
    for text, label, split in documents:
        if text.strip() and taken[split] < limit:
            taken[split] += 1
            expected.append((text, label, told[split]))
    if not expected:
        with pytest.raises(DataError, match="holds no labelled text"):
            read_labelled(path, split_field="split", limit=limit)
        return
    found = read_labelled(path, split_field="split", limit=limit)
    assert list(zip(found.texts, found.labels.tolist(), found.splits.tolist(), strict=True)) == expected
    every = read_labelled(path, split_field="split")
    for split in sorted(set(every.splits.tolist())):
        own = read_labelled(path, split_field="split", split=split)
        same(own, every.take(np.flatnonzero(every.splits == split)))


def test_groups_positive_and_split_by_another_name(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows())
    found = read_labelled(path, split_field="split", group_field="who", positive="fear", split="val")
    assert found.labels.tolist() == [row["label"] == "fear" for row in rows() if row["split"] == "validation"]
    assert found.groups.tolist() == ["g2", "g3"] and "fear or not" in found.source
    with pytest.raises(DataError, match="'rage'; labels are fear, joy"):
        read_labelled(path, positive="rage")


def test_hostile_texts_and_labels_come_through_whole(tmp_path):
    some = [{"text": text, "label": label} for text in HOSTILE for label in ("a\n\x1b[31m", "</td>|")]
    found = read_labelled(write_jsonl(tmp_path / "a.jsonl", some))
    assert [(t, y) for t, y in zip(found.texts, found.labels.tolist(), strict=True)] == [
        (r["text"], r["label"]) for r in some
    ]
    assert len(found.hash) == 16  # half a character has a digest too


def test_a_change_of_anything_changes_the_hash(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows())
    options = [{}, {"split_field": "split"}, {"group_field": "who"}, {"positive": "joy"}, {"limit": 9}]
    options.append({"field": "who"})
    assert len({read_labelled(path, **one).hash for one in options}) == len(options)


# --- refusals ---------------------------------------------------------------------------------------------

LINES = {
    "no json": ('{"text": "a", "label": 1}\n{"text": \n', {}, "line 2 is not JSON"),
    "no object": ("[1]\n", {}, "line 1 is a list, not an object"),
    "no text": ('\n{"label": 1}\n', {}, r"line 2 has no field 'text' \(it has: label\)"),
    "text is no text": ('{"text": 3, "label": 1}\n', {}, "line 1 holds a int in field 'text'"),
    "no label": ('{"text": "a", "lable": 1}\n', {}, r"line 1 has no field 'label' \(it has: text, lable\)"),
    "null": ('{"text": "a", "label": null}\n', {}, "line 1 holds a NoneType in field 'label'"),
    "nan": ('{"text": "a", "label": NaN}\n', {}, "line 1 holds NaN in field 'label'"),
    "list": ('{"text": "a", "label": [1]}\n', {}, "line 1 holds a list in field 'label'"),
    "empty label": ('{"text": "a", "label": " "}\n', {}, "line 1 has an empty label"),
    "mixed": ('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', {}, "line 2 has 'x' for a label, text"),
    "split": ('{"text": "a", "label": 1, "s": "eval"}\n', {"split_field": "s"}, "line 1: 'eval' is no split"),
    "no split": ('{"text": "a", "label": 1}\n', {"split_field": "s"}, "line 1 has no field 's'"),
    "no group": ('{"text": "a", "label": 1}\n', {"group_field": "g"}, "line 1 has no field 'g'"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_refusal_names_file_and_line(tmp_path, case):
    written, options, said = LINES[case]
    (tmp_path / "a.jsonl").write_text(written)
    with pytest.raises(DataError, match=f"a.jsonl {said}"):
        read_labelled(tmp_path / "a.jsonl", **options)


TABLES = {
    "short row": ("text,label\na,1\nb\n", "line 3 has an empty label"),
    "no column": ("text,lable\na,1\n", "line 2 has no field 'label'"),
    "quote": ('text,label\na,1\n"b,2\n', "line 3 is not CSV"),
    "nan": ("text,label\na,1\nb,nan\n", "line 3 has the label nan, which is no class"),
    "bytes": (b"text,label\na,1\n\xff,2\n", "line 3 is not UTF-8"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_is_damaged_is_named_with_its_line(tmp_path, case):
    written, said = TABLES[case]
    (tmp_path / "a.csv").write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(DataError, match=f"a.csv {said}"):
        read_labelled(tmp_path / "a.csv")


def test_a_folder_that_does_not_fit_is_named(tmp_path):
    folder = write_folder(tmp_path / "a", rows())
    (folder / "val_labels.txt").write_text("1\n7\n")
    with pytest.raises(DataError, match=r"val_labels.txt line 2 says '7', which mapping.txt does not name"):
        read_labelled(folder)
    (folder / "val_labels.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"val_text.txt has 2 lines and val_labels.txt has 1"):
        read_labelled(folder)
    (folder / "val_labels.txt").unlink()
    with pytest.raises(DataError, match=r"val_labels.txt could not be read"):
        read_labelled(folder)
    (folder / "mapping.txt").write_text("0\tfear\n1 joy\n")
    with pytest.raises(DataError, match=r"mapping.txt line 2 must be a number, a tab and a name"):
        read_labelled(folder)


def test_what_is_no_data_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "empty").mkdir()
    for source, said in (("gone", "There is no data at"), ("a.txt", "ends in '.txt'"), ("empty", "holds neither")):
        with pytest.raises(DataError, match=said):
            read_labelled(tmp_path / source)
    with pytest.raises(DataError, match="limit must be 1 or more"):
        read_labelled(write_jsonl(tmp_path / "a.jsonl", rows()), limit=0)
    with pytest.raises(DataError, match="'most' is no split"):
        read_labelled(tmp_path / "a.jsonl", split="most")


def test_a_hub_dataset_is_read_by_its_splits_and_class_names(monkeypatch):
    class Part(list):
        features = SimpleNamespace(get={"label": SimpleNamespace(names=["fear", "joy"])}.get)

    parts = {
        "train": Part([{"text": "a", "label": 0}]),
        "validation": Part([{"text": "b", "label": 1}]),
        "extra": Part(),
    }
    asked = []

    def load_dataset(name, split=None, streaming=False):
        asked.append((name, split, streaming))
        return parts if split is None else parts[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = read_labelled("hf:who/what")
    assert (found.labels.tolist(), found.splits.tolist()) == (["fear", "joy"], ["train", "validation"])
    assert read_labelled("hf:who/what:validation").texts == ("b",)
    assert asked == [("who/what", None, True), ("who/what", "validation", True)]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"headlens\[data\]"):
        read_labelled("hf:who/what")
