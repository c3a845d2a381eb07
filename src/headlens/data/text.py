"""Read texts: jsonl, csv, txt, a directory of them, or a Hugging Face dataset, one document at a time.

    .jsonl      one JSON object a line, its `field`          .csv   a row each, its `field` column
    .txt        one document a line                          folder every such file in it, sorted by name;
    hf:NAME     a dataset of the hub (or a local script-free        there a .txt file is one document
                folder), its `field`; hf:NAME:SPLIT for a split other than train

Documents are yielded as they are read, so `limit` bounds time and memory; a `Corpus` reads them anew whenever it is
gone through, and so never holds them. White space at the ends is kept; documents of white space only are skipped.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from headlens._errors import DataError, MissingExtra

READERS = (".jsonl", ".csv", ".txt")
_HUB = "hf:"


@dataclass(frozen=True)
class Corpus:
    """Documents that are read anew whenever they are gone through.

    Going through them raises `DataError` where `read_texts` does.
    """

    source: str | Path | Sequence[str]
    """What `iter_texts` reads, or a list of texts."""
    field: str = "text"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit must be 1 or more, or None for all of {self.source}, not {self.limit}.")

    def __iter__(self) -> Iterator[str]:
        source, n = self.source, 0
        documents = iter_texts(source, field=self.field) if isinstance(source, (str, Path)) else source
        for n, text in enumerate(islice(documents, self.limit), 1):  # noqa: B007
            yield text
        if not n:
            raise DataError(f"{self._name} holds no text: every document in it is empty.")

    @property
    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, (str, Path)) else "a list of texts"

    @cached_property
    def described(self) -> dict[str, Any]:
        """What a result records: where the documents came from, how many there are, and their digest."""
        count, digest = 0, hashlib.sha256()
        for count, text in enumerate(self, 1):  # noqa: B007
            _digest_text(digest, text)
        return {"source": self._name, "documents": count, "hash": digest.hexdigest()[:16]}


def read_texts(source: str | Path, *, field: str = "text", limit: int | None = None) -> list[str]:
    """Return the first `limit` documents of a corpus.

    Raises
    ------
    DataError
        If there is no such corpus, it is empty, damaged, or has no such field; or if `limit` is below 1.
    MissingExtra
        If a hub dataset is named and the `data` extra is not installed.
    """
    return list(Corpus(source, field, limit))


def iter_texts(source: str | Path, *, field: str = "text") -> Iterator[str]:
    """Yield the documents of a corpus; see the module for what can be read."""
    if str(source).startswith(_HUB):
        documents = _dataset(str(source).removeprefix(_HUB), field)
    else:
        documents = _path(Path(source), field)
    return (text for text in documents if text.strip())


def texts_hash(texts: Iterable[str]) -> str:
    """Return a digest of texts and the boundaries between them."""
    digest = hashlib.sha256()
    for text in texts:
        _digest_text(digest, text)
    return digest.hexdigest()[:16]


def _digest_text(digest: Any, text: str) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    digest.update(len(encoded).to_bytes(8, "little") + encoded)


def _path(path: Path, field: str) -> Iterator[str]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in READERS and p.is_file())
        if not files:
            raise DataError(f"{path} holds no {', '.join(READERS)} file.")
        for file in files:
            yield from [_whole(file)] if file.suffix == ".txt" else _file(file, field)
    elif path.is_file():
        yield from _file(path, field)
    else:
        raise DataError(f"There is no corpus at {path}.")


def _file(path: Path, field: str) -> Iterator[str]:
    try:
        match path.suffix:
            case ".jsonl":
                yield from _jsonl(path, field)
            case ".csv":
                yield from _csv(path, field)
            case ".txt":
                yield from (line.removesuffix("\n").removesuffix("\r") for _, line in _lines(path))
            case other:
                raise DataError(f"{path} ends in '{other}', and a corpus is one of {', '.join(READERS)} or a folder.")
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}.") from error


def _whole(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends; decoded one by one, so that an error names its line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} line {number} is not UTF-8 text: save it as UTF-8.") from error


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict) or field not in row:
            there = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise DataError(f"{path} line {number} has no field '{field}' (it has: {there}).")
        yield _text(row[field], field, f"{path} line {number}")


def _csv(path: Path, field: str) -> Iterator[str]:
    rows = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        if field not in (rows.fieldnames or ()):
            raise DataError(f"{path} has no column '{field}' (it has: {', '.join(rows.fieldnames or ())}).")
        for row in rows:
            yield row[field] or ""
    except csv.Error as error:  # a quote that is never closed; a field beyond the csv module's limit
        raise DataError(f"{path} line {rows.line_num + 1} is not CSV: {error}. Repair it, or write .jsonl.") from error


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} holds a {type(value).__name__} in field '{field}', not text.")
    return value


def _dataset(name: str, field: str) -> Iterator[str]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("Hub datasets need the data extra: pip install 'headlens[data]'.") from None
    name, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise DataError(f"The dataset {name} could not be opened: {error}") from error
    for row in rows:
        if field not in row:
            raise DataError(f"The dataset {name} has no field '{field}' (it has: {', '.join(row)}).")
        yield _text(row[field], field, f"The dataset {name}")
