"""Read labels of features that somebody wrote, from a file or from Neuronpedia.

    .json              {"12": "text", ...}, or a list of objects
    .jsonl             one object a line
    .csv               a row each, .parquet .arrow .feather too
    neuronpedia:M/D    Neuronpedia's export of dictionary D of model M, such as neuronpedia:gpt2-small/5-res-jb

An object or row has its number under `feature` or `index`, and its text under `label` or `description`, as in files of
Neuronpedia. .json and .jsonl may be compressed (.gz). Nothing is fetched unless asked for by name, and nothing is kept.
"""

import csv
import gzip
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headlens._errors import DataError

NEURONPEDIA = "neuronpedia:"
EXPORTS = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
KINDS = ".json, .jsonl (either may end in .gz), .csv, .parquet, .arrow or .feather"
LARGEST = 1 << 30
"""Bytes that a file may unpack to."""


def described(source: str | Path) -> dict[int, str]:
    """Return the label of each feature; of several the first.

    Raises
    ------
    DataError
        If it is not there, cannot be read or fetched, or holds no label.
    """
    if isinstance(source, str) and source.startswith(NEURONPEDIA):
        rows, where = _fetched(source.removeprefix(NEURONPEDIA)), source
    else:
        rows, where = _rows(Path(source)), str(source)
    found: dict[int, str] = {}
    for n, row in enumerate(rows, 1):
        feature, label = _feature(row, where, n), _first_of(row, ("label", "description"), where, n)
        if label is not None and not isinstance(label, str):
            raise DataError(f"Label {n} of {where} is {str(label)[:40]!r}; it must be a text.")
        if label and label.strip():
            found.setdefault(feature, label.strip().encode("utf-8", "replace").decode())
    if not found:
        raise DataError(f"{where} holds no label.")
    return found


def _feature(row: Mapping[str, Any], where: str, n: int) -> int:
    number = _first_of(row, ("feature", "index"), where, n)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, str) and number.strip().isascii() and number.strip().isdigit():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
        raise DataError(f"Label {n} of {where} is of feature {str(number)[:40]!r}; that must be a number, 0 or above.")
    return number


def _first_of(row: Mapping[str, Any], names: tuple[str, ...], where: str, n: int) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise DataError(f"Label {n} of {where} has no {' or '.join(names)} (it has: {', '.join(map(str, row))[:200]}).")


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError(f"There are no labels at {path}: name a file, or neuronpedia:MODEL/DICTIONARY.")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        if kind in (".parquet", ".arrow", ".feather") and path.suffix != ".gz":
            return iter(_table(path, kind))
        if kind not in (".json", ".jsonl", ".csv"):
            raise DataError(f"{path} ends in {path.suffix!r}, and labels are in {KINDS}.")
        return _parsed(_text(path), kind, str(path))
    except DataError:
        raise
    except Exception as error:  # whatever a reader of damaged bytes can raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as labels: {reason[:200]}.") from error


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8-sig")
    with gzip.open(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DataError(f"{path} unpacks to more than {LARGEST >> 30} GiB: that is no file of labels.")
    return content.decode("utf-8-sig")


def _parsed(text: str, kind: str, where: str) -> Iterator[Mapping[str, Any]]:
    if kind == ".csv":
        return iter(list(csv.DictReader(io.StringIO(text))))
    if kind == ".jsonl":
        return _objects([json.loads(line) for line in text.splitlines() if line.strip()], where)
    value = json.loads(text)
    if isinstance(value, dict):
        return iter([{"feature": feature, "label": label} for feature, label in value.items()])
    return _objects(value, where)


def _objects(value: Any, where: str) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f'{where} must hold {{"12": "text", ...}}, or objects with feature and label.')
    return iter(value)


def _table(path: Path, kind: str) -> list[dict[str, Any]]:
    import pyarrow.feather
    import pyarrow.parquet

    read = pyarrow.parquet.read_table if kind == ".parquet" else pyarrow.feather.read_table
    table = read(path)
    return table.select(
        [n for n in table.column_names if n in ("feature", "index", "label", "description")]
    ).to_pylist()


# --- Neuronpedia ------------------------------------------------------------------------------------------


def _fetched(name: str) -> Iterable[Mapping[str, Any]]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise DataError(
            f"{NEURONPEDIA}{name} must be neuronpedia:MODEL/DICTIONARY, such as neuronpedia:gpt2-small/5-res-jb."
        )
    prefix = f"v1/{name}/explanations/"
    files = _listed(prefix)
    if not files:
        raise DataError(
            f"Neuronpedia exports no explanations of {name}: its names are at {EXPORTS}/index.html?prefix=v1/."
        )
    for file in files:
        try:
            text = gzip.decompress(_get(f"{EXPORTS}/{urllib.parse.quote(file)}")).decode()
            yield from _parsed(text, ".jsonl", file)
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file} of Neuronpedia cannot be read ({error}): try again.") from error


def _listed(prefix: str) -> list[str]:
    """Files of the export under a prefix, a thousand an answer."""
    files: list[str] = []
    while True:
        asked = {"list-type": "2", "prefix": prefix} | ({"start-after": files[-1]} if files else {})
        answer = _get(f"{EXPORTS}/?{urllib.parse.urlencode(asked)}").decode("utf-8", "replace")
        more = re.findall(r"<Key>([^<]+)</Key>", answer)
        files += more
        if not more or "<IsTruncated>true<" not in answer:
            return sorted(file for file in files if file.endswith(".jsonl.gz"))


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # the address is ours: https
            return answer.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"Neuronpedia could not be reached ({reason}): on a machine that can, save the export of its explanations "
            "and name that file."
        ) from error
