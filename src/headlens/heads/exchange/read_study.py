"""The seed study's JSON: one induction score per head, and levels by threshold.

The study measures induction on R R, `seq_len` random ids twice:

    fixed_gap_induction = mean over samples and q >= seq_len of A[q, q - seq_len + 1]

without a gap, so that a head that looks a fixed number of tokens back scores 1 as well (heads/measure.py draws
the gap), unseeded, and without BOS. Hence a kind of its own: it is not what this package calls induction.

    metadata           created_at, description, num_models, models, total_heads, analysis_params
    model_results[]    model_name, model_configuration {num_layers, num_heads, hidden_size},
                       induction_scores[layer][head], analysis_params, attention_maps (null),
                       classified_heads {high_, medium_, low_induction: [{layer, head, score}]}
    older files        model_config for model_configuration; classification_thresholds {high, medium}

Axes: layer, head. Source: github.com/loftusa/attendome.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.heads.exchange.fields import Grid, array, called, get, head_id, head_list, in_order, read_object, rows
from headlens.heads.merge import result_of
from headlens.heads.scores import HeadScores

STUDY_KIND = "fixed_gap_induction"
LEVELS = ("high", "medium", "low")

IDENTITY = {
    "revision": "revision",
    "family": "family",
    "dtype": "dtype",
    "bos": "bos",
    "config_hash": "config",
    "weights_hash": "weights",
    "tokenizer_hash": "tokenizer",
}
"""What `write_study` adds of a model, by its key in `Model.provenance()`."""
SHAPE = {"num_layers": "n_layers", "num_heads": "n_heads", "hidden_size": "d_model"}


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
    dataset, digest = read_object(path)
    if "model_results" not in dataset and "induction_scores" in dataset:  # the file of one model
        dataset = {"metadata": {}, "model_results": [dataset]}
    metadata = get(dataset, "metadata", dict, f"{path}")
    shared = get(metadata, "analysis_params", dict, f"{path}: metadata", {})
    results = get(dataset, "model_results", list, f"{path}")
    models = [_study_model(result, shared, f"{path}: model_results[{i}]") for i, result in enumerate(results)]
    _check_names([model.name for model in models], metadata, path)
    ours = get(metadata, "headlens", dict, f"{path}: metadata", {})
    data: dict[str, Any] = {f"{model.name}: {model.kind}": model.entry for model in models}
    data["study"] = {**metadata, "source": {"file": path.name, "hash": digest}}
    seeds = {model.seed for model in models}
    described = tuple(model.described for model in models)
    seed = seeds.pop() if len(seeds) == 1 else None
    command = get(ours, "command", str, f"{path}: metadata.headlens", "")
    made_with = get(ours, "versions", dict, f"{path}: metadata.headlens", {})
    provenance = Provenance(described, data, seed, command, made_with)
    return result_of(in_order([rows(m.name, m.kind, m.scores, m.n) for m in models]), provenance)


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
    name = get(result, "model_name", str, where)
    older = "model_configuration" not in result and "model_config" in result
    config = get(result, "model_config" if older else "model_configuration", dict, where)
    layers, heads = (get(config, key, int, where) for key in ("num_layers", "num_heads"))
    scores = _grid(get(result, "induction_scores", list, where), layers, heads, where)
    own = get(result, "analysis_params", dict, where)
    high, medium = _thresholds(result, {**shared, **own}, where)
    entry = {
        **get(result, "stimulus", dict, where, {"name": "repeats at a fixed gap"}),
        "analysis_params": own,
        "thresholds": {"high": high, "medium": medium},
        "levels": _levels(result, name, scores, high, medium, where),
    }
    if (maps := result.get("attention_maps")) is not None:
        entry["attention_maps"] = f"left out, of {len(maps)} heads" if isinstance(maps, dict) else "left out"
    described = {"name": name} | {
        ours: get(config, theirs, int, where) for theirs, ours in SHAPE.items() if theirs in config
    }
    described |= {ours: result[theirs] for theirs, ours in IDENTITY.items() if result.get(theirs) is not None}
    if result.get("bos_policy") is not None:  # with a policy, no BOS is a statement
        described["bos"] = result.get("bos")
    kind, seed = get(result, "kind", str, where, STUDY_KIND), get(result, "seed", int, where, None)
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
            has = f"{len(row)} heads" if isinstance(row, list) else called(row)
            raise DataError(f"{where}[{layer}] has {has} and the configuration {heads}: something is missing.")
    for layer, row in enumerate(rows):
        if wrong := set(map(type, row)) - {int, float}:
            head = next(i for i, score in enumerate(row) if type(score) in wrong)
            raise DataError(f"{where}[{layer}][{head}] must be a number and is {called(row[head])}.")
    scores = array(rows, np.float64, where)
    if len(lost := np.argwhere(~np.isfinite(scores))):
        layer, head = lost[0]
        raise DataError(f"{where}[{layer}][{head}] is {scores[layer, head]}: a score is a finite number.")
    return scores


def _thresholds(result: Any, params: dict[str, Any], where: str) -> tuple[float | None, float | None]:
    """Return the thresholds that the file gives for this model, None where it gives none."""
    given = get(result, "classification_thresholds", dict, where, {})
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
    expected = classify(scores, *bounds)
    if len(differing := np.argwhere(found != expected)):
        at = tuple(differing[0])
        raise DataError(
            f"{where}.classified_heads: {head_id(name, *at)} scores {scores[at]} and is called {LEVELS[found[at]]}; by "
            f"the thresholds {bounds[0]} and {bounds[1]} it is {LEVELS[expected[at]]}. One of the two was changed."
        )
    return ["".join(LEVELS[level][0] for level in row) for row in found]


def _listed_levels(result: Any, name: str, scores: Grid, where: str) -> Int[np.ndarray, "layer head"]:
    """Return the level of each head, as an index of `LEVELS`, if each is listed once and with its score."""
    lists = get(result, "classified_heads", dict, where.rpartition(".")[0])
    parts = [head_list(get(lists, f"{x}_induction", list, where), "head", f"{where}.{x}_induction") for x in LEVELS]
    layer, head, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    outside = (layer < 0) | (layer >= scores.shape[0]) | (head < 0) | (head >= scores.shape[1])
    if outside.any():
        at = np.flatnonzero(outside)[0]
        grid = f"{scores.shape[0]} × {scores.shape[1]}"
        raise DataError(f"{where} names {head_id(name, layer[at], head[at])}, which is outside {grid} heads.")
    times = np.zeros(scores.shape, dtype=int)
    np.add.at(times, (layer, head), 1)
    if len(wrong := np.argwhere(times != 1)):
        at = tuple(wrong[0])
        how = "is not in any level" if times[at] == 0 else f"is listed {times[at]} times"
        raise DataError(f"{where}: {head_id(name, *at)} {how}, and each head has one.")
    if len(wrong := np.flatnonzero(scores[layer, head] != score)):
        at = layer[wrong[0]], head[wrong[0]]
        raise DataError(f"{where}: {head_id(name, *at)} scores {score[wrong[0]]}, and {scores[at]} in the scores.")
    level = np.empty(scores.shape, dtype=int)
    level[layer, head] = np.repeat(np.arange(3), [len(score) for _, _, score in parts])
    return level


def classify(scores: Grid, high: float, medium: float) -> Int[np.ndarray, "layer head"]:
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
