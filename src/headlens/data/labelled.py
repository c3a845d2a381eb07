"""Read texts that have labels, for probes to learn: files, folders, or a Hugging Face dataset.

    .jsonl, .csv      a document a row: its text, label, and where they are named its split and its group
    folder            train, val, test: NAME.jsonl or NAME.csv; or NAME_text.txt and NAME_labels.txt, line by line, with
                      mapping.txt (number, tab, name) saying what the labels are called
    hf:NAME           all of the dataset's splits that are called so; hf:NAME:SPLIT for one

Splits are told as "train", "validation" and "test", whatever of their usual names the data use. Labels are text, truth
values or numbers; those of a .csv are numbers where all of them are. Documents of white space only are skipped, with
their labels.

Axes: document.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from headlens._errors import DataError, MissingExtra
from headlens.data.text import _HUB, _lines, _text, texts_hash

SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "development": "validation", "test": "test", "testing": "test",
}  # fmt: skip
FILES = (".jsonl", ".csv")
_MAPPING = "mapping.txt"


@dataclass(frozen=True)
class Labelled:
    """Documents with a label each."""

    texts: tuple[str, ...]
    labels: np.ndarray
    """(document,) of text, truth values or numbers."""
    splits: np.ndarray | None
    """(document,) of "train", "validation" and "test"; None where the data do not say."""
    groups: np.ndarray | None
    """(document,) of names: documents of one group belong together. None where no field of groups was named."""
    source: str
    """What was read."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hash(self) -> str:
        """Digest of texts, labels, splits and groups."""
        digest = hashlib.sha256(texts_hash(self.texts).encode())
        for part in (self.labels, self.splits, self.groups):
            digest.update(json.dumps(None if part is None else part.tolist()).encode())
        return digest.hexdigest()[:16]

    @property
    def described(self) -> dict[str, Any]:
        """What a result records: source, digests, and how many documents there are of each split and class."""
        counts = Counter(map(str, self.labels.tolist()))
        splits = None if self.splits is None else dict(sorted(Counter(self.splits.tolist()).items()))
        return {
            "source": self.source, "documents": len(self), "hash": self.hash, "texts": texts_hash(self.texts),
            "labels": dict(sorted(counts.items())) if len(counts) <= 100 else len(counts), "splits": splits,
        }  # fmt: skip

    def take(self, index: Int[np.ndarray, " some"]) -> "Labelled":
        """Return some documents, in the order asked for."""
        texts = tuple(self.texts[i] for i in index)
        splits, groups = (None if part is None else part[index] for part in (self.splits, self.groups))
        return replace(self, texts=texts, labels=self.labels[index], splits=splits, groups=groups)


class _Row(NamedTuple):
    where: str
    """Of the row, for an error to name."""
    values: Mapping[str, Any]
    split: str | None


def read_labelled(
    source: str | Path,
    *,
    field: str = "text",
    label_field: str = "label",
    split_field: str | None = None,
    group_field: str | None = None,
    split: str | None = None,
    positive: str | None = None,
    limit: int | None = None,
) -> Labelled:
    """Return labelled documents; see the module for what can be read.

    Parameters
    ----------
    split_field, group_field
        Fields that name a document's split, and the group it belongs to.
    split
        Of all documents those of this split only.
    positive
        One of several labels: they become True, it, and False, all others.
    limit
        The first documents of each split only.

    Raises
    ------
    DataError
        If there is no such data, it is empty, damaged, or has no such field; if texts and labels differ in number, a
        split is not known, or there is no document with the label that is to be `positive`.
    MissingExtra
        If a hub dataset is named and the `data` extra is not installed.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be 1 or more, or None for all of {source}, not {limit}.")
    if split is not None:
        split = _split(split, "split")
    texts, labels, splits, groups, places = [], [], [], [], []
    for part in _parts(source, label_field):
        taken: Counter[str | None] = Counter()
        for row in part:
            if limit is not None and split_field is None and taken.total() == limit:
                break  # what follows need not be read
            text = _text(_value(row, field), field, row.where)
            own = row.split if split_field is None else _split(_value(row, split_field), row.where)
            if not text.strip() or taken[own] == limit or (split is not None and own != split):
                continue
            taken[own] += 1
            texts.append(text)
            labels.append(_label(_value(row, label_field), label_field, row.where))
            places.append(row.where)
            splits.append(own)
            groups.append(None if group_field is None else str(_value(row, group_field)))
    if not texts:
        of = "" if split is None else f" of the split {split}"
        raise DataError(f"{source} holds no labelled text{of}.")
    told = np.array(splits) if all(splits) else None
    grouped = None if group_field is None else np.array(groups)
    of = str(source) if positive is None else f"{source} ({positive} or not)"
    return Labelled(tuple(texts), _array(labels, positive, source, places), told, grouped, of)


# --- rows -------------------------------------------------------------------------------------------------


def _parts(source: str | Path, label_field: str) -> Iterator[Iterator[_Row]]:
    """Yield the rows of each file or split."""
    if str(source).startswith(_HUB):
        yield from _dataset(str(source).removeprefix(_HUB), label_field)
        return
    path = Path(source)
    if path.is_dir():
        yield from _folder(path)
    elif not path.is_file():
        raise DataError(f"There is no data at {path}.")
    elif path.suffix not in FILES:
        raise DataError(f"{path} ends in '{path.suffix}', and labelled data are {', '.join(FILES)} or a folder.")
    else:
        yield _file(path, None)


def _file(path: Path, split: str | None) -> Iterator[_Row]:
    try:
        yield from (_json_rows if path.suffix == ".jsonl" else _csv_rows)(path, split)
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}.") from error


def _json_rows(path: Path, split: str | None) -> Iterator[_Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise DataError(f"{where} is a {type(values).__name__}, not an object with fields.")
        yield _Row(where, values, split)


def _csv_rows(path: Path, split: str | None) -> Iterator[_Row]:
    rows = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        for values in rows:
            there = {name: _Written(value or "") for name, value in values.items() if name is not None}
            yield _Row(f"{path} line {rows.line_num}", there, split)
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num + 1} is not CSV: {error}. Repair it, or write .jsonl.") from error


class _Written(str):
    """Text that may stand for a number: a file that has no other way to write one."""


def _folder(path: Path) -> Iterator[Iterator[_Row]]:
    found = False
    for name, split in SPLITS.items():
        for file in (path / f"{name}{suffix}" for suffix in FILES):
            if file.is_file():
                found = True
                yield _file(file, split)
        if (path / f"{name}_text.txt").is_file():
            found = True
            yield _two_files(path, name)
    if not found:
        raise DataError(f"{path} holds neither train.jsonl, train.csv nor train_text.txt (or val, or test).")


def _two_files(path: Path, name: str) -> Iterator[_Row]:
    """Texts in one file and labels in another, line by line."""
    texts, labels = path / f"{name}_text.txt", path / f"{name}_labels.txt"
    try:
        names = _mapping(path / _MAPPING)
        said = [line.strip() for _, line in _lines(labels)]
        lines = [line.removesuffix("\n").removesuffix("\r") for _, line in _lines(texts)]
    except OSError as error:
        raise DataError(f"{error.filename} could not be read: {error.strerror}.") from error
    if len(said) != len(lines):
        raise DataError(f"{texts} has {len(lines)} lines and {labels.name} has {len(said)}: they go line by line.")
    for number, (text, label) in enumerate(zip(lines, said, strict=True), 1):
        if names and label not in names:
            raise DataError(f"{labels} line {number} says '{label}', which {_MAPPING} does not name.")
        value = names[label] if names else _Written(label)
        yield _Row(f"{texts} line {number}", {"text": text, "label": value}, SPLITS[name])


def _mapping(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    names = {}
    for number, line in _lines(path):
        if line.strip():
            code, _, name = line.strip().partition("\t")
            if not name:
                raise DataError(f"{path} line {number} must be a number, a tab and a name.")
            names[code] = name.strip()
    return names


def _dataset(name: str, label_field: str) -> Iterator[Iterator[_Row]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("Hub datasets need the data extra: pip install 'headlens[data]'.") from None
    name, _, split = name.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or None, streaming=True)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise DataError(f"The dataset {name} could not be opened: {error}") from error
    parts = {split: loaded} if split else {one: rows for one, rows in loaded.items() if one in SPLITS}
    if not parts:
        raise DataError(f"The dataset {name} has the splits {', '.join(loaded)}: name one, hf:{name}:SPLIT.")
    for one, rows in parts.items():
        yield _of_hub(name, rows, label_field, SPLITS.get(one))


def _of_hub(name: str, rows: Any, label_field: str, split: str | None) -> Iterator[_Row]:
    features: Mapping[str, Any] = getattr(rows, "features", None) or {}
    called: list[str] | None = getattr(features.get(label_field), "names", None)
    for values in rows:
        label = values.get(label_field)
        if called is not None and isinstance(label, int) and 0 <= label < len(called):
            values = {**values, label_field: called[label]}
        yield _Row(f"The dataset {name}", values, split)


# --- what a row says --------------------------------------------------------------------------------------


def _value(row: _Row, field: str) -> Any:
    if field not in row.values:
        raise DataError(f"{row.where} has no field '{field}' (it has: {', '.join(row.values)}).")
    return row.values[field]


def _split(name: Any, where: str) -> str:
    if str(name).lower() not in SPLITS:
        raise DataError(f"{where}: '{name}' is no split; splits are train, validation (val, dev) and test.")
    return SPLITS[str(name).lower()]


def _label(value: Any, field: str, where: str) -> Any:
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{where} has an empty label: leave the row out.")
    if not isinstance(value, str | bool | int | float) or value != value:
        what = "NaN" if isinstance(value, float) else f"a {type(value).__name__}"
        raise DataError(f"{where} holds {what} in field '{field}', and a label is text, a truth value or a number.")
    return value


def _array(labels: list[Any], positive: str | None, source: Any, places: list[str]) -> np.ndarray:
    if positive is not None:
        chosen = np.array([str(label) == positive for label in labels])
        if not chosen.any():
            there = sorted({str(label) for label in labels})
            raise DataError(f"No document of {source} has the label '{positive}'; labels are {', '.join(there[:10])}.")
        return chosen
    if all(isinstance(label, _Written) for label in labels):
        return _numbers_or_text(labels, places)
    kinds = ["a number" if type(label) in (int, float) else _KINDS[type(label)] for label in labels]
    for label, kind, where in zip(labels, kinds, places, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{where} has {label!r} for a label, {kind}, and {places[0]} has {kinds[0]}: write them alike."
            )
    return np.array(labels)


_KINDS = {str: "text", _Written: "text", bool: "a truth value"}


def _numbers_or_text(labels: list[str], places: list[str]) -> np.ndarray:
    for number in (int, float):
        try:
            found = np.array([number(label) for label in labels])
        except (ValueError, OverflowError):
            continue
        if found.dtype == object or not np.isfinite(found).all():
            odd = 0 if found.dtype == object else int(np.flatnonzero(~np.isfinite(found))[0])
            raise DataError(f"{places[odd]} has the label {labels[odd]}, which is no class: leave such rows out.")
        return found
    return np.array([str(label) for label in labels])
