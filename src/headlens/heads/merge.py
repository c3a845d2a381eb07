"""What do several tables of head scores say together? All their rows, once each, or why they cannot be one table.

Two results agree unless they state different things of one subject. What one states and the other leaves open
(a null, a key that it has not) is no contradiction, and the merged table keeps it. The subjects, in this order:

    model                    revision, dtype and hashes, by name
    model, kind              the protocol: how what was read was made, seed and corpus included
    model, kind, head        the numbers, bit for bit

The rows of a merged table are a union, so neither the order of merging nor merging twice changes anything:
merge(a, merge(b, c)) = merge(merge(c, a), b, b). Provenance keeps every model and every entry of data. Entries
that share a name and differ get a digest behind it; what a result says once for all its kinds (seed, corpus,
protocol) moves to the kinds that it tells something about, for it may differ between results.

Axes: row (one model, kind, layer and head).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.axes import HeadId
from headlens.heads.atlas import ATLAS_SCHEMA, HeadAtlas
from headlens.heads.scores import SCHEMA, HeadScores

KEYS = ("model", "kind", "layer", "head")

ABOUT = frozenset(
    ("created_at", "description", "source", "batch_size", "batch_tokens", "thresholds", "levels", "attention_maps")
)
"""Keys of an entry that change no score: two results may differ in them and still be one measurement."""

SHARED = ("corpus", "protocol")
"""Entries that a result has once for all its kinds."""

THRESHOLDS = "thresholds"
"""The entry of an atlas that says, by kind, where its levels begin."""

Entries = list[tuple[str, Any]]


def merge(*results: HeadScores) -> HeadScores:
    """Return one table of all rows of `results`, each once, sorted by model, kind, layer and head.

    The q values and levels of an atlas stay what they were among the heads of that atlas.

    Raises
    ------
    DataError
        If there is nothing to merge, or two results contradict each other; the message says of which model and
        kind, in what, and what each of them says.
    """
    if not results:
        raise DataError("There is nothing to merge: pass at least one table of head scores.")
    tables = [checked(result.table) for result in results]
    stated = [_stated(result) for result in results]
    whole = _Stated(
        _distinct(entry for one in stated for entry in one.models),
        _without_held(_distinct(entry for one in stated for entry in one.data)),
        set().union(*(one.names for one in stated)),
    )
    _check_models(whole)
    _check_protocols(whole)
    _check_thresholds(whole)
    try:
        rows = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"The tables have a column of one name and different types: {error}.") from error
    return result_of(_united(rows), _provenance(whole, [result.provenance for result in results]))


def checked(table: pa.Table) -> pa.Table:
    """Return a table of head scores with the columns of `SCHEMA`, in its types.

    Raises
    ------
    DataError
        If it has no model, layer, head, kind or score, or rows without one of the first four.
    """
    missing = [name for name in (*KEYS, "score") if name not in table.column_names]
    if missing:
        raise DataError(
            f"A table of head scores has the columns {', '.join((*KEYS, 'score'))}; "
            f"{', '.join(missing)} missing in one that has {', '.join(table.column_names)}."
        )
    unknown = [name for name in KEYS if table[name].null_count]
    if unknown:
        raise DataError(f"A table of head scores has rows without {', '.join(unknown)}: they could be of any head.")
    return result_of(table, Provenance()).table


def result_of(table: pa.Table, provenance: Provenance) -> HeadScores:
    """Return an atlas where the table has levels, else scores, with their columns and then the others by name.

    Columns that the table lacks are null.
    """
    schema = ATLAS_SCHEMA if "level" in table.column_names else SCHEMA
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    columns |= {name: table[name] for name in sorted(set(table.column_names) - set(schema.names))}
    return (HeadScores if schema is SCHEMA else HeadAtlas)(provenance, pa.table(columns))


def protocol_of(result: HeadScores, model: str, kind: str) -> dict[str, Any]:
    """Return how `kind` was measured in `model`, as far as the provenance says; empty where it does not."""
    stated = _stated(result)
    found = [entry for at, entry in _protocols(stated) if at == (model, kind)]
    said = {key: value for entry in sorted(found, key=_digest) for key, value in entry.items()}
    return {key: value for key, value in said.items() if value is not None or key not in SHARED}


# --- what results state -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stated:
    """What a provenance says, each entry so that it stands for itself."""

    models: list[dict[str, Any]]
    data: Entries
    names: set[str]
    """Of all models that it speaks of."""


def _stated(result: HeadScores) -> _Stated:
    p = result.provenance
    models = _as_saved(list(p.models))
    names = {entry["name"] for entry in models if "name" in entry} | set(result.table["model"].unique().to_pylist())
    data = [(_without_digest(name, value), value) for name, value in _as_saved(p.data).items()]
    shared = {what: [value for name, value in data if name == what] for what in SHARED}
    once = {what: values[0] if len(values) == 1 else None for what, values in shared.items()}
    seed = {} if p.seed is None else {"seed": p.seed}
    explicit = [
        (name, {**seed, **{what: once[what] for what in _telling(value)}, **value})
        if _kinds_of(name, names) and isinstance(value, dict)
        else (name, value)
        for name, value in data
    ]
    return _Stated(models, explicit, names)


def _telling(entry: dict[str, Any]) -> list[str]:
    """Return what of `SHARED` tells how an entry's scores came about: nothing more, where a digest of ids does."""
    if "hash" in entry:
        return ["corpus"] if entry.get("name") == "text" else []
    return list(SHARED)


def _without_held(data: Entries) -> Entries:
    """Leave out what of `SHARED` an entry holds: there it says what it is of."""
    held = [(what, value[what]) for _, value in data if isinstance(value, dict) for what in SHARED if what in value]
    return [entry for entry in data if entry not in held]


def _kinds_of(name: str, models: set[str]) -> tuple[str, list[str]] | None:
    """Return model and kinds where an entry's name has the form 'MODEL: KIND, KIND', else None."""
    owners = [model for model in models if name.startswith(f"{model}: ")]
    owner = max(owners, key=len, default="")
    kinds = name.removeprefix(f"{owner}: ").split(", ")
    return (owner, kinds) if owners and all(map(str.isidentifier, kinds)) else None  # "MODEL: not measured" is none


def _protocols(stated: _Stated) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield (model, kind) and the entry that says how it was measured."""
    for name, entry in stated.data:
        if (found := _kinds_of(name, stated.names)) and isinstance(entry, dict):
            model, kinds = found
            yield from (((model, kind), entry) for kind in kinds)


def _as_saved(value: Any) -> Any:
    return json.loads(json.dumps(value))  # a tuple is a list, as it is after saving and loading


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _without_digest(name: str, value: Any) -> str:
    found = re.fullmatch(r"(.*) \(([0-9a-f]{8})\)", name, re.DOTALL)
    return found[1] if found and found[2] == _digest(value) else name


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return the values, each once, in an order that does not depend on theirs."""
    by_text = {json.dumps(value, sort_keys=True): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def _provenance(whole: _Stated, merged: list[Provenance]) -> Provenance:
    seeds = {p.seed for p in merged}
    commands = {line for p in merged for line in p.command.splitlines()}
    versions: dict[str, set[str]] = {}
    for p in merged:
        for name, version in p.versions.items():
            versions.setdefault(name, set()).update(version.split(", "))
    return Provenance(
        models=tuple(whole.models),
        data=_named(whole.data),
        seed=seeds.pop() if len(seeds) == 1 else None,
        command="\n".join(sorted(commands)),
        versions={name: ", ".join(sorted(found)) for name, found in sorted(versions.items())},
    )


def _named(data: Entries) -> dict[str, Any]:
    """Return entries by name; those that share one, with their digest behind it."""
    groups = itertools.groupby(sorted(data, key=lambda entry: entry[0]), key=lambda entry: entry[0])
    named: dict[str, Any] = {}
    for name, group in groups:
        values = [value for _, value in group]
        if name == THRESHOLDS:  # of kinds, and those of one kind agree
            values = [dict(sorted(itertools.chain(*(bounds.items() for bounds in values))))]
        named |= {name if len(values) == 1 else f"{name} ({_digest(value)})": value for value in values}
    return named


# --- contradictions ---------------------------------------------------------------------------------------


def _check_models(whole: _Stated) -> None:
    for one, other in itertools.combinations(whole.models, 2):
        if one.get("name") != other.get("name"):
            continue
        if found := _differences(one, other):
            raise DataError(
                f"{one.get('name')} is not the same model in all tables: {found}. "
                "Merge tables of one model only, or give the models names of their own."
            )


def _check_protocols(whole: _Stated) -> None:
    by_subject: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for subject, entry in _protocols(whole):
        by_subject.setdefault(subject, []).append(entry)
    for (model, kind), entries in by_subject.items():
        for one, other in itertools.combinations(entries, 2):
            if found := _differences(one, other):
                raise DataError(
                    f"{kind} of {_with_revision(model, whole)}: {found}. "
                    "Scores that were measured differently cannot stand in one column: measure again alike."
                )


def _check_thresholds(whole: _Stated) -> None:
    """Levels of one kind, drawn at two places, would stand in one column."""
    bounds = [entry for name, entry in whole.data if name == THRESHOLDS]
    for one, other in itertools.combinations(bounds, 2):
        if found := _differences(one, other):
            raise DataError(
                f"The thresholds of levels differ: {found}. Merge the scores, and label what comes out with "
                "hl.heads.label."
            )


def _with_revision(model: str, whole: _Stated) -> str:
    known = [entry["revision"] for entry in whole.models if entry.get("name") == model and entry.get("revision")]
    return f"{model} (revision {known[0]})" if known else model


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return in words where two entries contradict each other, or nothing."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    differing = [name for name in first if name in second and first[name] != second[name]]
    telling = [name for name in differing if name.split(".")[-1] != "hash"]  # a digest differs because something does
    return ", ".join(f"{name} is {first[name]} in one and {second[name]} in the other" for name in telling or differing)


def _leaves(entry: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if name in ABOUT or (name == "revision" and value is None):  # a model from a folder has no revision to know
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


# --- rows -------------------------------------------------------------------------------------------------


def _united(table: pa.Table) -> pa.Table:
    """Return the rows sorted, each (model, kind, layer, head) once."""
    table = table.sort_by([(name, "ascending") for name in KEYS])
    if not len(table):
        return table
    keys = [_codes(table[name]) for name in KEYS]
    starts = np.flatnonzero(np.any([np.diff(key, prepend=-1) != 0 for key in keys], axis=0))
    if len(starts) == len(table):
        return table
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(table)))
    taken = {name: table[name].take(_known(table, name, starts, group)) for name in table.column_names}
    return pa.table(taken)


def _known(
    table: pa.Table, name: str, starts: Int[np.ndarray, " unique"], group: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " unique"]:
    """Return the row that says what `name` is in each group: the first that is not null, where one is."""
    codes = _codes(table[name])
    stated = codes >= 0
    row = np.arange(len(codes))
    first = np.minimum.reduceat(np.where(stated, row, len(codes)), starts)
    first = np.where(first < len(codes), first, starts)
    contrary = stated & (codes != codes[first][group])
    if contrary.any():
        _refuse(table, name, int(first[group][contrary][0]), contrary)
    return first


def _refuse(table: pa.Table, name: str, one: int, contrary: Bool[np.ndarray, " row"]) -> None:
    first, second = (table.slice(i, 1).to_pylist()[0] for i in (one, int(np.flatnonzero(contrary)[0])))
    head = HeadId(first["model"], first["layer"], first["head"])
    raise DataError(
        f"{first['kind']} of {head}: {name} is {first[name]} in one and {second[name]} in the other, though nothing "
        "says that they were measured differently. Keep the table you trust, or measure again."
    )


def _codes(column: pa.ChunkedArray) -> Int[np.ndarray, " row"]:
    """Return a number per value, the same for equal ones (NaN equals NaN), -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
