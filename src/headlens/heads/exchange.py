"""How do head scores come from and go to other people's files?

    read_study              JSON of the seed study (attendome): one induction score per head, levels by threshold
    write_study             the same, with what the study does not record: seed, revision, dtype, BOS, tokenizer
    read_concept_scores     JSON of its attention to entities: two scores per head
    read_legacy_maps        its pickles of attention maps, or of distances between them

The study measures induction on R R, `seq_len` random ids twice:

    fixed_gap_induction = mean over samples and q >= seq_len of A[q, q - seq_len + 1]

without a gap, so that a head that looks a fixed number of tokens back scores 1 as well (heads/measure.py draws
the gap), unseeded, and without BOS. Hence a kind of its own: it is not what this package calls induction.

    metadata           created_at, description, num_models, models, total_heads, analysis_params
    model_results[]    model_name, model_configuration {num_layers, num_heads, hidden_size},
                       induction_scores[layer][head], analysis_params, attention_maps (null),
                       classified_heads {high_, medium_, low_induction: [{layer, head, score}]}
    older files        model_config for model_configuration; classification_thresholds {high, medium}

A file is read whole or refused, with the place of what is wrong.

Axes: layer, head; entry (of lists of heads). Source: github.com/loftusa/attendome.
"""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from headlens import _unpickle
from headlens._errors import DataError
from headlens._files import whole_file
from headlens._result import Provenance
from headlens.axes import HeadId
from headlens.heads.merge import checked, protocol_of, result_of
from headlens.heads.scores import SCHEMA, HeadScores

STUDY_KIND = "fixed_gap_induction"
CONCEPT_KINDS = {"next_tok_attn": "entity_next_attention", "end_tok_attn": "entity_end_attention"}
LEVELS = ("high", "medium", "low")

_IDENTITY = {
    "revision": "revision",
    "family": "family",
    "dtype": "dtype",
    "bos": "bos",
    "config_hash": "config",
    "weights_hash": "weights",
    "tokenizer_hash": "tokenizer",
}
"""What `write_study` adds of a model, by its key in `Model.provenance()`."""
_SHAPE = {"num_layers": "n_layers", "num_heads": "n_heads", "hidden_size": "d_model"}
_OF_THE_STUDY = ("analysis_params", "thresholds", "levels", "attention_maps")
_TYPES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}

Grid = Float[np.ndarray, "layer head"]


# --- the seed study: reading ------------------------------------------------------------------------------


def read_study(path: str | Path) -> HeadScores:
    """Return the scores of a data set of the seed study, or of one model's file of it; either version.

    Rows are of kind "fixed_gap_induction" (or of the kind that `write_study` wrote). Interval and null are
    unknown and null; n is the number of samples where it is given. Everything else that the file says is in
    `provenance.data`: under "study" its metadata, and per model the analysis parameters, the thresholds, and the
    levels, a letter per head (h, m, l) and a text per layer.

    Attention maps, where a file has any, are left out, and the model's entry says so: run
    `hl.heads.attention_patterns` for maps. `total_heads` is kept and not checked, since the study's own merging
    counts a model twice that is in both files.

    Raises
    ------
    DataError
        If the file cannot be read, misses something, holds something of another type or a number that is not
        finite, has scores that do not fill its grid, names a model twice, or classifies a head that is not there,
        twice, not at all, or against its score and thresholds.
    """
    path = Path(path)
    dataset, digest = _json(path)
    if "model_results" not in dataset and "induction_scores" in dataset:  # the file of one model
        dataset = {"metadata": {}, "model_results": [dataset]}
    metadata = _get(dataset, "metadata", dict, f"{path}")
    shared = _get(metadata, "analysis_params", dict, f"{path}: metadata", {})
    results = _get(dataset, "model_results", list, f"{path}")
    models = [_study_model(result, shared, f"{path}: model_results[{i}]") for i, result in enumerate(results)]
    _check_names([model.name for model in models], metadata, path)
    ours = _get(metadata, "headlens", dict, f"{path}: metadata", {})
    data: dict[str, Any] = {f"{model.name}: {model.kind}": model.entry for model in models}
    data["study"] = {**metadata, "source": {"file": path.name, "hash": digest}}
    seeds = {model.seed for model in models}
    described = tuple(model.described for model in models)
    seed = seeds.pop() if len(seeds) == 1 else None
    command = _get(ours, "command", str, f"{path}: metadata.headlens", "")
    made_with = _get(ours, "versions", dict, f"{path}: metadata.headlens", {})
    provenance = Provenance(described, data, seed, command, made_with)
    return result_of(_sorted([_rows(m.name, m.kind, m.scores, m.n) for m in models]), provenance)


@dataclass(frozen=True)
class _StudyModel:
    """One entry of `model_results`, checked."""

    name: str
    kind: str
    scores: Grid
    n: int | None
    seed: int | None
    described: dict[str, Any]
    entry: dict[str, Any]


def _study_model(result: Any, shared: dict[str, Any], where: str) -> _StudyModel:
    name = _get(result, "model_name", str, where)
    older = "model_configuration" not in result and "model_config" in result
    config = _get(result, "model_config" if older else "model_configuration", dict, where)
    layers, heads = (_get(config, key, int, where) for key in ("num_layers", "num_heads"))
    scores = _grid(_get(result, "induction_scores", list, where), layers, heads, where)
    own = _get(result, "analysis_params", dict, where)
    high, medium = _thresholds(result, {**shared, **own}, where)
    entry = {
        **_get(result, "stimulus", dict, where, {"name": "repeats at a fixed gap"}),
        "analysis_params": own,
        "thresholds": {"high": high, "medium": medium},
        "levels": _levels(result, name, scores, high, medium, where),
    }
    if (maps := result.get("attention_maps")) is not None:
        entry["attention_maps"] = f"left out, of {len(maps)} heads" if isinstance(maps, dict) else "left out"
    described = {"name": name} | {
        ours: _get(config, theirs, int, where) for theirs, ours in _SHAPE.items() if theirs in config
    }
    described |= {ours: result[theirs] for theirs, ours in _IDENTITY.items() if result.get(theirs) is not None}
    if result.get("bos_policy") is not None:  # with a policy, no BOS is a statement
        described["bos"] = result.get("bos")
    kind, seed = _get(result, "kind", str, where, STUDY_KIND), _get(result, "seed", int, where, None)
    return _StudyModel(name, kind, scores, _samples(own, shared, where), seed, described, entry)


def _grid(rows: list[Any], layers: int, heads: int, where: str) -> Grid:
    """Return the scores as an array, if they fill it with finite numbers."""
    if layers < 1 or heads < 1:
        raise DataError(f"{where}: a model of {layers} layers with {heads} heads has no score.")
    where = f"{where}.induction_scores"
    if len(rows) != layers:
        raise DataError(f"{where} has {len(rows)} layers and the configuration {layers}: something is missing.")
    for layer, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != heads:
            has = f"{len(row)} heads" if isinstance(row, list) else _called(row)
            raise DataError(f"{where}[{layer}] has {has} and the configuration {heads}: something is missing.")
    for layer, row in enumerate(rows):
        if wrong := set(map(type, row)) - {int, float}:
            head = next(i for i, score in enumerate(row) if type(score) in wrong)
            raise DataError(f"{where}[{layer}][{head}] must be a number and is {_called(row[head])}.")
    scores = _array(rows, np.float64, where)
    if len(lost := np.argwhere(~np.isfinite(scores))):
        layer, head = lost[0]
        raise DataError(f"{where}[{layer}][{head}] is {scores[layer, head]}: a score is a finite number.")
    return scores


def _thresholds(result: Any, params: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    """Return the thresholds that the file gives for this model, None where it gives none."""
    given = _get(result, "classification_thresholds", dict, where, {})
    high, medium = (given.get(level, params.get(f"{level}_threshold")) for level in ("high", "medium"))
    for threshold in (high, medium):
        if threshold is not None and (type(threshold) not in (int, float) or not abs(threshold) <= sys.float_info.max):
            raise DataError(f"{where}: the thresholds must be finite numbers, and one is {threshold!r:.40}.")
    return high, medium


def _levels(result: Any, name: str, scores: Grid, high: float | None, medium: float | None, where: str) -> list[str]:
    """Return a letter per head, one text per layer, if the lists of heads say what scores and thresholds say.

    Without thresholds any two would do: the lowest scores that are called high and medium are taken then.
    """
    found = _listed_levels(result, name, scores, f"{where}.classified_heads")
    least = [scores[found == level].min(initial=math.inf) for level in (0, 1)]
    bounds = [least[level] if given is None else given for level, given in enumerate((high, medium))]
    expected = _classify(scores, *bounds)
    if len(differing := np.argwhere(found != expected)):
        at = tuple(differing[0])
        raise DataError(
            f"{where}.classified_heads: {_head(name, *at)} scores {scores[at]} and is called {LEVELS[found[at]]}; by "
            f"the thresholds {bounds[0]} and {bounds[1]} it is {LEVELS[expected[at]]}. One of the two was changed."
        )
    return ["".join(LEVELS[level][0] for level in row) for row in found]


def _listed_levels(result: Any, name: str, scores: Grid, where: str) -> Int[np.ndarray, "layer head"]:
    """Return the level of each head, as an index of `LEVELS`, if each is listed once and with its score."""
    lists = _get(result, "classified_heads", dict, where.rpartition(".")[0])
    parts = [_head_list(_get(lists, f"{x}_induction", list, where), "head", f"{where}.{x}_induction") for x in LEVELS]
    layer, head, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    outside = (layer < 0) | (layer >= scores.shape[0]) | (head < 0) | (head >= scores.shape[1])
    if outside.any():
        at = np.flatnonzero(outside)[0]
        grid = f"{scores.shape[0]} × {scores.shape[1]}"
        raise DataError(f"{where} names {_head(name, layer[at], head[at])}, which is outside {grid} heads.")
    times = np.zeros(scores.shape, dtype=int)
    np.add.at(times, (layer, head), 1)
    if len(wrong := np.argwhere(times != 1)):
        at = tuple(wrong[0])
        how = "is not in any level" if times[at] == 0 else f"is listed {times[at]} times"
        raise DataError(f"{where}: {_head(name, *at)} {how}, and each head has one.")
    if len(wrong := np.flatnonzero(scores[layer, head] != score)):
        at = layer[wrong[0]], head[wrong[0]]
        raise DataError(f"{where}: {_head(name, *at)} scores {score[wrong[0]]}, and {scores[at]} in the scores.")
    level = np.empty(scores.shape, dtype=int)
    level[layer, head] = np.repeat(np.arange(3), [len(score) for _, _, score in parts])
    return level


def _classify(scores: Grid, high: float, medium: float) -> Int[np.ndarray, "layer head"]:
    """Return the level of each score, as an index of `LEVELS`."""
    return np.where(scores >= high, 0, np.where(scores >= medium, 1, 2))


def _samples(own: dict[str, Any], shared: dict[str, Any], where: str) -> int | None:
    """Return the number of samples; the model's own parameters call it num_of_samples, the data set's num_samples."""
    n = own.get("num_of_samples", own.get("num_samples", shared.get("num_samples")))
    if n is not None and (type(n) is not int or n < 1):
        raise DataError(f"{where}.analysis_params: the number of samples must be 1 or more, not {n!r:.40}.")
    return n


def _check_names(names: list[str], metadata: dict[str, Any], path: Path) -> None:
    if not names:
        raise DataError(f"{path}: model_results is empty: there is no score in it.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: model_results has {twice[0]} {names.count(twice[0])} times: which one is meant?")
    listed = metadata.get("models", names)
    if not isinstance(listed, list) or sorted(map(str, listed)) != sorted(names):
        raise DataError(f"{path}: metadata.models is {listed!r:.80}, and model_results are of {', '.join(names)}.")


def _head(name: str, layer: Any, head: Any) -> HeadId:
    return HeadId(name, int(layer), int(head))


# --- the seed study: writing ------------------------------------------------------------------------------


def write_study(
    scores: HeadScores, path: str | Path, *, kind: str = "induction", high: float = 0.7, medium: float = 0.35
) -> Path:
    """Write the scores of one kind as a data set of the seed study, whole or not at all, and return its path.

    Its keys are those of the study, so that the study's own loader reads it. Each model has besides `kind`, `seed`,
    `revision`, `family`, `dtype`, `bos`, `bos_policy` ("prepended", "none"), `tokenizer_hash`, `weights_hash`,
    `config_hash` and `stimulus`, as far as the provenance says and null where it does not; `created_at` is empty,
    so that the same scores give the same bytes. Models without scores of this kind are left out. `read_study`
    gives the scores back bit for bit.

    Raises
    ------
    DataError
        If there is no score of this kind, or one is missing, twice there or not finite, or the thresholds are not
        two finite numbers, the higher one first.
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    if not (math.isfinite(high) and medium <= high and math.isfinite(medium)):
        raise DataError(f"The thresholds must be finite numbers with high >= medium, not {high} and {medium}.")
    table = checked(scores.table)
    kinds = table["kind"].unique().to_pylist()
    table = table.filter(pc.field("kind") == kind)
    names = table["model"].unique().to_pylist()
    if not names:
        raise DataError(f"There is no score of {kind} to write; the kinds there are: {', '.join(kinds) or 'none'}.")
    results = [_study_result(scores, table, name, kind, float(high), float(medium)) for name in names]
    params = {name: _common([r["analysis_params"][name] for r in results]) for name in ("seq_len", "batch_size")}
    samples = _common([result["analysis_params"]["num_of_samples"] for result in results])
    bounds = {"high_threshold": float(high), "medium_threshold": float(medium)}
    p = scores.provenance
    metadata = {
        "created_at": "",
        "description": f"{kind} scores of {len(names)} models, written by headlens",
        "num_models": len(names),
        "models": names,
        "total_heads": len(table),
        "analysis_params": {"num_samples": samples, **params, **bounds},
        "headlens": {"command": p.command, "versions": p.versions},
    }
    dataset = {"metadata": metadata, "model_results": results}
    with whole_file(path) as file:
        file.write_text(json.dumps(dataset, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _study_result(scores: HeadScores, table: pa.Table, name: str, kind: str, high: float, medium: float) -> dict:
    rows = table.filter(pc.field("model") == name)
    described, shape = _described(scores.provenance, name)
    grid = _filled(rows, name, kind, shape)
    level = _classify(grid, high, medium).ravel()
    layer, head = (index.ravel().tolist() for index in np.indices(grid.shape))
    heads = [
        {"layer": at, "head": of, "score": score}
        for at, of, score in zip(layer, head, grid.ravel().tolist(), strict=True)
    ]
    n = rows["n"].unique().to_pylist()
    entry = protocol_of(scores, name, kind)
    params = entry.get("analysis_params", {})
    return {
        "model_name": name,
        "model_configuration": {
            "num_layers": grid.shape[0],
            "num_heads": grid.shape[1],
            **({"hidden_size": shape["d_model"]} if "d_model" in shape else {}),  # the study's schema has no null here
        },
        "induction_scores": grid.tolist(),
        "classified_heads": {
            f"{what}_induction": [heads[at] for at in np.flatnonzero(level == i)] for i, what in enumerate(LEVELS)
        },
        "analysis_params": {
            "num_of_samples": n[0] if len(n) == 1 else None,
            "seq_len": params.get("seq_len", entry.get("length")),
            "batch_size": params.get("batch_size"),
        },
        "attention_maps": None,
        "kind": kind,
        "seed": entry.get("seed", scores.provenance.seed),
        **{theirs: described.get(ours) for theirs, ours in _IDENTITY.items()},
        "bos_policy": _bos_policy(entry, described),
        "stimulus": {key: value for key, value in entry.items() if key not in _OF_THE_STUDY},
    }


def _described(provenance: Provenance, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what the provenance says of a model, and its shape; where entries differ, only what all of them say.

    Tables of several origins may be merged: a revision that one of them states is not that of the others' scores.
    """
    entries = [entry for entry in provenance.models if entry.get("name") == name]
    shape = {key: entry[key] for entry in entries for key in _SHAPE.values() if key in entry}
    shared = {key: value for key, value in (entries or [{}])[0].items() if all(e.get(key) == value for e in entries)}
    return shared, shape


def _filled(rows: pa.Table, name: str, kind: str, shape: dict[str, int]) -> Grid:
    """Return the scores of one model as a grid, if there is one finite number for each head."""
    layer, head = (rows[column].to_numpy().astype(np.int64) for column in ("layer", "head"))
    layers: int = shape["n_layers"] if "n_layers" in shape else int(layer.max()) + 1
    heads: int = shape["n_heads"] if "n_heads" in shape else int(head.max()) + 1
    if (outside := (layer < 0) | (layer >= layers) | (head < 0) | (head >= heads)).any():
        i = np.flatnonzero(outside)[0]
        raise DataError(
            f"{kind} of {HeadId(name, int(layer[i]), int(head[i]))} is outside the model's {layers} × {heads} heads."
        )
    times = np.bincount(layer * heads + head, minlength=layers * heads).reshape(layers, heads)
    grid = np.full((layers, heads), np.nan)
    grid[layer, head] = rows["score"].cast(pa.float64()).to_numpy()
    for wrong, what in ((times > 1, "there twice"), (times == 0, "missing"), (~np.isfinite(grid), "no finite number")):
        if wrong.any():
            at = _head(name, *np.argwhere(wrong)[0])
            raise DataError(f"{kind} of {at} is {what}, and the study's files hold one score for every head.")
    return grid


def _bos_policy(entry: dict[str, Any], described: dict[str, Any]) -> str | None:
    """Return whether sequences began with BOS: what the stimulus says, else what the model's entry says."""
    said = entry if "bos" in entry else described
    return None if "bos" not in said else "none" if said["bos"] is None else "prepended"


def _common(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


# --- scores of attention to entities ----------------------------------------------------------------------


def read_concept_scores(path: str | Path, *, model: str) -> HeadScores:
    """Return a file of the study's attention to entities, which does not say of which model it is.

    Per head two scores, both of the last query, which repeats what preceded an entity of several tokens, and both
    weighted by the norms of the values: "entity_next_attention" of the entity's first token (what comes next) and
    "entity_end_attention" of its last one.

    Beware of models without BOS. compute_attention_scores.py took every sequence to begin with one. Those of Qwen do
    not, and its indices are off by one there: "next" is then the entity's second token, and "end" the token after
    the entity. Nothing in a file says which version of the script wrote it; do not compare a Qwen model's scores
    with others' unless you know.

    Interval, null and n are unknown and null.

    Raises
    ------
    DataError
        If the file cannot be read, misses a list, lists a head twice or in one list only, or holds something of
        another type or a number that is not finite.
    """
    path = Path(path)
    content, digest = _json(path)
    tables, seen = [], {}
    for theirs, kind in CONCEPT_KINDS.items():
        where = f"{path}: {theirs}"
        layer, head, score = _head_list(_get(content, theirs, list, f"{path}"), "head_idx", where)
        if not len(score):
            raise DataError(f"{where} is empty: it should hold every head of {model}.")
        for wrong, what in ((layer < 0) | (head < 0), "has a negative index"), (~np.isfinite(score), "is not finite"):
            if wrong.any():
                raise DataError(f"{where}[{np.flatnonzero(wrong)[0]}] {what}.")
        heads, times = np.unique(np.stack([layer, head]), axis=1, return_counts=True)
        if (times > 1).any():
            at = _head(model, *heads[:, times > 1][:, 0])
            raise DataError(f"{where} lists {at} {times.max()} times.")
        seen[theirs] = set(map(tuple, heads.T.tolist()))
        tables.append(_listed(model, kind, layer, head, score))
    first, second = seen.values()
    if alone := sorted(first ^ second):
        raise DataError(f"{path} has {_head(model, *alone[0])} in one of {' and '.join(seen)} only.")
    entry = {
        "name": "entities in text",
        "weighting": "norms of the values",
        "source": {"file": path.name, "hash": digest},
    }
    data = {f"{model}: {', '.join(CONCEPT_KINDS.values())}": entry}
    return result_of(_sorted(tables), Provenance(({"name": model},), data))


# --- pickles ----------------------------------------------------------------------------------------------


def read_legacy_maps(path: str | Path) -> dict[tuple[int, int], np.ndarray]:
    """Return the arrays of one of the study's pickles by (layer, head); nothing in it is run.

    Either maps, (n, T * T) per head: n texts, one flattened T by T pattern each, rows of padding included; or
    distances between texts, a vector of n (n - 1) / 2 per head. Arrays are read-only, and their values are not
    checked. The study cut texts by each model's tokenizer, so maps of two models may be of different texts.

    Raises
    ------
    DataError
        If the file is no pickle of a dict per layer of arrays per head (objects, as `--format pickle` writes them, are
        refused by name), or the arrays are of neither shape, or not alike for all heads.
    """
    path = Path(path)
    layers = _unpickle.load(path)
    if not isinstance(layers, dict) or not layers or not all(isinstance(heads, dict) for heads in layers.values()):
        raise DataError(f"{path} must hold a dict of layers, and in each a dict of heads; it holds {_called(layers)}.")
    maps = {(layer, head): array for layer, heads in layers.items() for head, array in heads.items()}
    if not maps:
        raise DataError(f"{path} holds layers without heads.")
    shape = None
    for (layer, head), array in maps.items():
        where = f"{path}, layer {layer!r:.20}, head {head!r:.20}"
        if type(layer) is not int or type(head) is not int or layer < 0 or head < 0:
            raise DataError(f"{where}: layers and heads are whole numbers from 0.")
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else _called(array)
            raise DataError(f"{where} holds {what}, and not an array of floating-point numbers.")
        shape = array.shape if shape is None else shape
        if array.shape != shape:
            raise DataError(f"{where} has shape {array.shape}, and the first head {shape}: all must be alike.")
    _check_map_shape(shape or (), path)
    return maps


def _check_map_shape(shape: tuple[int, ...], path: Path) -> None:
    match shape:
        case (n, size):
            if not n or not size or math.isqrt(size) ** 2 != size:
                raise DataError(f"{path}: heads have shape {shape}, and maps are (texts, T * T) for a T of 1 or more.")
        case (size,):
            n = (1 + math.isqrt(1 + 8 * size)) // 2
            if not size or n * (n - 1) // 2 != size:
                raise DataError(
                    f"{path}: heads have {size} distances, which is n (n - 1) / 2 for no n. The study's --compute_rdm "
                    "writes n / 2 of them, of the texts two by two, under the same name: compute them from maps."
                )
        case _:
            raise DataError(f"{path}: heads have shape {shape}, which is neither (texts, T * T) nor (pairs,).")


# --- what all of them need --------------------------------------------------------------------------------


def _json(path: Path) -> tuple[dict[str, Any], str]:
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
        raise DataError(f"{path} must hold an object, and holds {_called(value)}.")
    return value, hashlib.sha256(content).hexdigest()[:16]


_REQUIRED = object()


def _get(holder: Any, key: str, wanted: type, where: str, otherwise: Any = _REQUIRED) -> Any:
    """Return `holder[key]`, if it is of the wanted type; `otherwise`, if given, where it is null or not there."""
    if not isinstance(holder, dict):
        raise DataError(f"{where} must be an object, and is {_called(holder)}.")
    if otherwise is not _REQUIRED and holder.get(key) is None:
        return otherwise
    if key not in holder:
        raise DataError(f"{where} has no '{key}' (it has: {', '.join(holder)}).")
    value = holder[key]
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise DataError(f"{where}: '{key}' must be {_TYPES[wanted]}, and is {_called(value)}.")
    return value


def _called(value: Any) -> str:
    return "nothing" if value is None else _TYPES.get(type(value), f"a {type(value).__name__}")


def _array(values: Sequence[Any], dtype: Any, where: str) -> np.ndarray:
    try:
        return np.array(values, dtype=dtype)
    except OverflowError:
        raise DataError(f"{where} holds a number that is too large.") from None


def _head_list(
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
        columns = [[_get(x, key, type_, f"{where}[{i}]") for i, x in enumerate(heads)] for key, type_ in wanted.items()]
    layer, head, score = columns
    return _array(layer, np.int32, where), _array(head, np.int32, where), _array(score, np.float64, where)


def _rows(model: str, kind: str, scores: Grid, n: int | None) -> pa.Table:
    layers, heads = np.indices(scores.shape)
    table = _listed(model, kind, layers.ravel(), heads.ravel(), scores.ravel())
    return table.append_column("n", pa.array([n] * len(table), pa.int64()))


def _listed(
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


def _sorted(tables: list[pa.Table]) -> pa.Table:
    empty = pa.schema([SCHEMA.field(name) for name in ("model", "layer", "head", "kind", "score")]).empty_table()
    order = [(name, "ascending") for name in ("model", "kind", "layer", "head")]
    return pa.concat_tables([empty, *tables], promote_options="default").sort_by(order)
