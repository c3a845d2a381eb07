"""Head scores as the seed study's JSON (read_study.py), with what the study does not record of a model and its seed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headlens._errors import DataError
from headlens._files import whole_file
from headlens._result import Provenance
from headlens.axes import HeadId
from headlens.heads.exchange.fields import Grid, head_id
from headlens.heads.exchange.read_study import IDENTITY, LEVELS, SHAPE, classify
from headlens.heads.merge import checked, protocol_of
from headlens.heads.scores import HeadScores

_OF_THE_STUDY = ("analysis_params", "thresholds", "levels", "attention_maps")


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
    level = classify(grid, high, medium).ravel()
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
        **{theirs: described.get(ours) for theirs, ours in IDENTITY.items()},
        "bos_policy": _bos_policy(entry, described),
        "stimulus": {key: value for key, value in entry.items() if key not in _OF_THE_STUDY},
    }


def _described(provenance: Provenance, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what the provenance says of a model, and its shape; where entries differ, only what all of them say.

    Tables of several origins may be merged: a revision that one of them states is not that of the others' scores.
    """
    entries = [entry for entry in provenance.models if entry.get("name") == name]
    shape = {key: entry[key] for entry in entries for key in SHAPE.values() if key in entry}
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
            at = head_id(name, *np.argwhere(wrong)[0])
            raise DataError(f"{kind} of {at} is {what}, and the study's files hold one score for every head.")
    return grid


def _bos_policy(entry: dict[str, Any], described: dict[str, Any]) -> str | None:
    """Return whether sequences began with BOS: what the stimulus says, else what the model's entry says."""
    said = entry if "bos" in entry else described
    return None if "bos" not in said else "none" if said["bos"] is None else "prepended"


def _common(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None
