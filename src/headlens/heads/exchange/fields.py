"""JSON that other people wrote: read field by field, and refused with the place of what is wrong."""

import hashlib
import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.heads.scores import SCHEMA

TYPES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}

Grid = Float[np.ndarray, "layer head"]


def head_id(name: str, layer: Any, head: Any) -> HeadId:
    return HeadId(name, int(layer), int(head))


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """Return the object that a file holds, and a digest of the file."""
    try:
        content = path.read_bytes()
        value = json.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"There is no file at {path}.") from None
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold an object, and holds {called(value)}.")
    return value, hashlib.sha256(content).hexdigest()[:16]


_REQUIRED = object()


def get(holder: Any, key: str, wanted: type, where: str, otherwise: Any = _REQUIRED) -> Any:
    """Return `holder[key]`, if it is of the wanted type; `otherwise`, if given, where it is null or not there."""
    if not isinstance(holder, dict):
        raise DataError(f"{where} must be an object, and is {called(holder)}.")
    if otherwise is not _REQUIRED and holder.get(key) is None:
        return otherwise
    if key not in holder:
        raise DataError(f"{where} has no '{key}' (it has: {', '.join(holder)}).")
    value = holder[key]
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise DataError(f"{where}: '{key}' must be {TYPES[wanted]}, and is {called(value)}.")
    return value


def called(value: Any) -> str:
    return "nothing" if value is None else TYPES.get(type(value), f"a {type(value).__name__}")


def array(values: Sequence[Any], dtype: Any, where: str) -> np.ndarray:
    try:
        return np.array(values, dtype=dtype)
    except OverflowError:
        raise DataError(f"{where} holds a number that is too large.") from None


def head_list(
    heads: list[Any], head_key: str, where: str
) -> tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"], Float[np.ndarray, " entry"]]:
    """Return layers, heads and scores of a list of heads, if each has all three, as numbers."""
    wanted = {"layer": int, head_key: int, "score": float}
    try:
        columns = list(zip(*map(itemgetter(*wanted), heads), strict=True)) or [(), (), ()]
        sound = all(set(map(type, c)) <= {int, type_} for c, type_ in zip(columns, wanted.values(), strict=True))
    except (KeyError, TypeError, IndexError):
        sound, columns = False, []
    if not sound:  # only then one by one, to find the place
        columns = [[get(x, key, type_, f"{where}[{i}]") for i, x in enumerate(heads)] for key, type_ in wanted.items()]
    layer, head, score = columns
    return array(layer, np.int32, where), array(head, np.int32, where), array(score, np.float64, where)


def rows(model: str, kind: str, scores: Grid, n: int | None) -> pa.Table:
    layers, heads = np.indices(scores.shape)
    table = listed(model, kind, layers.ravel(), heads.ravel(), scores.ravel())
    return table.append_column("n", pa.array([n] * len(table), pa.int64()))


def listed(
    model: str,
    kind: str,
    layer: Int[np.ndarray, " entry"],
    head: Int[np.ndarray, " entry"],
    score: Float[np.ndarray, " entry"],
) -> pa.Table:
    columns = {
        "model": pa.repeat(pa.scalar(model, pa.string()), len(score)),
        "layer": pa.array(layer, pa.int32()),
        "head": pa.array(head, pa.int32()),
        "kind": pa.repeat(pa.scalar(kind, pa.string()), len(score)),
        "score": pa.array(score, pa.float64()),
    }
    return pa.table(columns)


def in_order(tables: list[pa.Table]) -> pa.Table:
    empty = pa.schema([SCHEMA.field(name) for name in ("model", "layer", "head", "kind", "score")]).empty_table()
    order = [(name, "ascending") for name in ("model", "kind", "layer", "head")]
    return pa.concat_tables([empty, *tables], promote_options="default").sort_by(order)
