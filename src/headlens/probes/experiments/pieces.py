"""Do what an experiment file says, in pieces that survive whatever happens.

A piece is one site of one model on one data set, or the texts of a data set without any model. Its result is written
whole, so that a second run finds it there and does the others; a run that is killed loses the piece in work, and of a
store that is being written one shard. A result that was made with other options than the file now has is refused: what
is to be tried besides belongs in a set of its own, which `compare` puts beside the others.

    RUNS/stores/MODEL/DATA-HASH                     activations, as `capture_to` writes them; may go when all is done.
                                                    The hash is of the model's options and the data
    RUNS/results/SET/DATA/MODEL/SITE                a `Sweep`
    RUNS/results/SET/DATA/texts                     a `Sweep` of what needs no model
    RUNS/controls/CONTROL/SET/DATA/MODEL/SITE       a `Sweep` of the same probes on labels of nothing

Models are loaded one after the other, and only where a piece is missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headlens._errors import ConfigError, DataError, ResultError, StoreError
from headlens.data.labelled import Labelled, read_labelled
from headlens.data.text import texts_hash
from headlens.models import Model, load
from headlens.probes.experiments.controls import with_labels_of_nothing
from headlens.probes.experiments.experiment import Experiment, ModelTable, SweepTable, meant
from headlens.probes.experiments.text_sweep import beside, sweep_direction, sweep_texts
from headlens.probes.sweep import Sweep, sweep
from headlens.store import ActivationStore, capture_to
from headlens.tracing.sites import parse_site

Tell = Callable[[str, int, int], None]
STORES, RESULTS, CONTROLS, TEXTS = "stores", "results", "controls", "texts"
EVERYTHING = "all"
"""Name of the one set of a file that has no [sets]."""


class Piece(NamedTuple):
    """Where a result belongs."""

    set: str
    data: str
    model: str | None
    """None: of the texts alone."""
    site: str
    control: str | None = None
    """Which labels of nothing; None: the data's own."""

    @property
    def folder(self) -> Path:
        root = (RESULTS,) if self.control is None else (CONTROLS, self.control)
        return Path(*root, self.set, self.data, *((TEXTS,) if self.model is None else (self.model, self.site)))

    def __str__(self) -> str:
        return "/".join(self.folder.parts[1:])


def run(
    experiment: Experiment,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    device: str = "cpu",
    command: str = "",
    progress: Tell | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Piece]:
    """Do every piece that is not in the folder `out` yet, and return all that are asked for.

    Parameters
    ----------
    only
        Names of sets, models and data sets: what goes by another name is left out. Of each sort that is not named, all.
    note
        Called with a sentence on whatever was done already.

    Raises
    ------
    ConfigError
        If `only` names nothing of this experiment.
    ResultError
        If a result is there that was made with other options or of other data.
    """
    return _Work(experiment, Path(out), device, command, progress or _ignore, note or _ignore).finish(
        _chosen(experiment, only)
    )


def read_pieces(out: str | Path) -> dict[Piece, Sweep]:
    """Return every finished piece of a folder that `run` wrote.

    Raises
    ------
    ResultError
        If there is none, or one is damaged.
    """
    found = {}
    for manifest in sorted(Path(out).glob(f"{RESULTS}/**/manifest.json")) + sorted(
        Path(out).glob(f"{CONTROLS}/**/manifest.json")
    ):
        root, *parts = manifest.parent.relative_to(out).parts
        if any(part.startswith(".") for part in parts):
            continue  # of a run that was killed while it wrote
        control = parts.pop(0) if root == CONTROLS else None
        set_, data, *rest = parts
        piece = Piece(set_, data, None, "") if rest == [TEXTS] else Piece(set_, data, rest[0], rest[1], control)
        found[piece] = Sweep.load(manifest.parent)
    if not found:
        raise ResultError(f"{out} holds no finished piece of an experiment: run headlens probe sweep first.")
    return found


def _ignore(*_: Any) -> None:
    pass


# --- what is to be done -----------------------------------------------------------------------------------


class _Set(NamedTuple):
    models: tuple[str, ...]
    data: tuple[str, ...]
    sweep: SweepTable


def _chosen(experiment: Experiment, only: Sequence[str]) -> dict[str, _Set]:
    every = {"models": list(experiment.models), "data": list(experiment.data)}
    sets = {
        name: {"models": own.models or every["models"], "data": own.data or every["data"], "sweep": own.sweep}
        for name, own in experiment.sets.items()
    } or {EVERYTHING: {**every, "sweep": {}}}
    kinds = {"sets": list(sets), **every}
    for name in only:
        if not any(name in names for names in kinds.values()):
            there = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
            like = meant(name, [one for names in kinds.values() for one in names])
            raise ConfigError(f"This experiment has nothing called '{name}'{like}: it has {there}.")
    wanted = {kind: [name for name in names if name in only] or names for kind, names in kinds.items()}
    found = {}
    for name in wanted["sets"]:
        models, data = (tuple(one for one in sets[name][kind] if one in wanted[kind]) for kind in ("models", "data"))
        options = {**experiment.sweep.model_dump(), **sets[name]["sweep"]}
        found[name] = _Set(models, data, SweepTable.model_validate(options))
    if not any(one.models and one.data for one in found.values()):
        raise ConfigError(f"No set has both a model and a data set of those named: {', '.join(only)}.")
    return found


class _Work:
    """One run of an experiment."""

    def __init__(
        self, experiment: Experiment, out: Path, device: str, command: str, progress: Tell, note: Callable[[str], None]
    ) -> None:
        self.experiment, self.out, self.device, self.command = experiment, out, device, command
        self.progress, self.note = progress, note
        self._model: tuple[str, Model] | None = None
        self._there = 0
        self._nothing: dict[tuple[str, str, int], np.ndarray | None] = {}
        self._said: dict[tuple[str, int | None, int], Sweep] = {}

    def finish(self, sets: Mapping[str, _Set]) -> list[Piece]:
        data = {name for one in sets.values() for name in one.data}
        labelled = {name: _read(self.experiment, name) for name in self.experiment.data if name in data}
        pieces = []
        for set_, one in sets.items():
            for name in one.data:
                pieces.append(Piece(set_, name, None, ""))
                self._once(pieces[-1], one.sweep, labelled[name], lambda s, d, name=name: self._texts(name, s, d))
        for name in self.experiment.models:
            for source, documents in labelled.items():
                own = {s: one for s, one in sets.items() if name in one.models and source in one.data}
                pieces += self._at_sites(own, name, source, documents) if own else []
        if self._there:
            self.note(f"{self._there} of {len(pieces)} pieces were there already")
        return pieces

    def _at_sites(self, sets: Mapping[str, _Set], model: str, source: str, data: Labelled) -> Iterator[Piece]:
        """Do every site of one model on one data set."""
        folder = self._folder(model, source, data)
        sites = _sites_there(folder) or self._sites(model)
        pieces = {
            piece: one.sweep
            for set_, one in sets.items()
            for site in sites
            for piece in (Piece(set_, source, model, site, control) for control in (None, *one.sweep.controls))
            if piece.control is None or self._labels(piece, one.sweep, data) is not None
        }
        missing = [piece for piece, own in pieces.items() if not self._is_there(piece, own, data)]
        store = self._store(folder, model, data) if missing else None
        for done, (piece, options) in enumerate(pieces.items(), 1):
            self._once(piece, options, data, lambda s, d, piece=piece: self._sweep(store, piece, s, d))
            self.progress(f"{model} on {source}", done, len(pieces))
            yield piece

    def _labels(self, piece: Piece, options: SweepTable, data: Labelled) -> np.ndarray | None:
        """Labels of a piece; None where the data have no such control."""
        if piece.control is None:
            return data.labels
        key = (piece.data, piece.control, options.seed)
        if key not in self._nothing:
            try:
                self._nothing[key] = with_labels_of_nothing(data, piece.control, seed=options.seed)
            except DataError as error:
                self._nothing[key] = None
                self.note(f"{piece.data} has no {piece.control}: {error}")
        return self._nothing[key]

    def _texts(self, source: str, options: SweepTable, data: Labelled) -> Sweep:
        key = (source, options.folds, options.seed)  # all that it depends on: sets mostly agree
        if key not in self._said:
            self._said[key] = sweep_texts(data, **_of_texts(options, data))
        return self._said[key]

    def _sweep(self, store: Any, piece: Piece, options: SweepTable, data: Labelled) -> Sweep:
        given = {**options.model_dump(exclude={"folds", "controls"}), **_rounds(options, data)}
        labels = self._labels(piece, options, data)
        if piece.control is not None:
            given["seeds"] = options.seeds[:1]
        found = sweep(store, labels, sites=[piece.site], groups=data.groups, device=self.device, **given)
        if piece.control is None:
            rows = store.rows(piece.site)
            found = beside(found, [sweep_direction(rows, data, piece.site, **_of_texts(options, data))])
        return replace(found, provenance=replace(found.provenance, models=(store.manifest.settings.model,)))

    def _once(
        self, piece: Piece, options: SweepTable, data: Labelled, make: Callable[[SweepTable, Labelled], Sweep]
    ) -> None:
        """Make a piece that is not there."""
        if self._is_there(piece, options, data):
            self._there += 1
            return
        found = make(options, data)
        told = {**found.provenance.data, "asked": self._asked(piece, options, data), "documents": data.described}
        made = replace(found, provenance=replace(found.provenance, data=told, command=self.command))
        made.save(self.out / piece.folder)

    def _asked(self, piece: Piece, options: SweepTable, data: Labelled) -> dict[str, Any]:
        """All that a piece depends on."""
        asked = {**options.model_dump(exclude={"controls"}), "data": data.hash}
        if piece.model is None:
            return {name: asked[name] for name in ("folds", "seed", "data")}
        captured = {"sites", "layers", "batch_tokens", "shard_mb"}
        return asked | self.experiment.models[piece.model].model_dump(exclude=captured)

    def _is_there(self, piece: Piece, options: SweepTable, data: Labelled) -> bool:
        """Whether a piece is done; raise where it was made otherwise."""
        folder = self.out / piece.folder
        if not folder.exists():
            return False
        asked, there = self._asked(piece, options, data), Sweep.load(folder).provenance.data["asked"]
        if other := [name for name in asked if there.get(name) != asked[name]]:
            name = other[0]
            raise ResultError(
                f"{folder} was made with {name} {there.get(name)}, and this experiment has {asked[name]}: put what "
                "is new in a set of its own, name another folder, or remove that one."
            )
        return True

    # --- stores ---

    def _folder(self, name: str, source: str, data: Labelled) -> Path:
        """Where a store lies: another one for other sites, options or texts."""
        asked = json.dumps([self.experiment.models[name].model_dump(), texts_hash(data.texts)], sort_keys=True)
        return self.out / STORES / name / f"{source}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    def _store(self, folder: Path, name: str, data: Labelled) -> ActivationStore:
        table, done = self.experiment.models[name], 0
        model = self._loaded(name)

        def tell(more: int) -> None:
            nonlocal done
            done += more
            self.progress(f"capture {name} on {folder.name}", done, len(data))

        return capture_to(
            folder, model, list(data.texts), self._sites(name), dtype=table.store_dtype,
            max_tokens=table.max_tokens, template_tokens=table.template_tokens, batch_tokens=table.batch_tokens,
            shard_bytes=table.shard_mb << 20, resume=(folder / "manifest.json").exists(), progress=tell, note=self.note,
        )  # fmt: skip

    def _sites(self, name: str) -> tuple[str, ...]:
        table, model = self.experiment.models[name], self._loaded(name)
        return tuple(str(site) for text in _expanded(table, model) for site in parse_site(model, text))

    def _loaded(self, name: str) -> Model:
        if self._model is None or self._model[0] != name:
            table = self.experiment.models[name]
            self._model = None  # two need not fit
            self._model = (name, load(table.model, device=self.device, dtype=table.dtype, revision=table.revision))
        return self._model[1]


def _read(experiment: Experiment, name: str) -> Labelled:
    options = experiment.data[name].model_dump()
    return read_labelled(options.pop("source"), **options)


def _rounds(options: SweepTable, data: Labelled) -> dict[str, Any]:
    """Which documents train, choose and judge."""
    given = data.splits is not None and {"train", "test"} <= set(data.splits.tolist())
    return {"split": data.splits} if options.folds is None and given else {"folds": options.folds or 5}


def _of_texts(options: SweepTable, data: Labelled) -> dict[str, Any]:
    return {"seed": options.seed, **_rounds(options, data)}


def _expanded(table: ModelTable, model: Model) -> list[str]:
    if table.layers is None:
        return table.sites
    n = model.n_layers
    if wrong := [layer for layer in table.layers if not -n <= layer < n]:
        raise ConfigError(f"{table.model} has layers 0 to {n - 1}, and the experiment names layer {wrong[0]}.")
    layers = sorted({layer % n for layer in table.layers})
    return [
        one for site in table.sites for one in ([site.replace("*", str(k)) for k in layers] if "*" in site else [site])
    ]


def _sites_there(folder: Path) -> tuple[str, ...]:
    """Sites of a store that is finished."""
    try:
        return ActivationStore(folder).sites
    except StoreError:
        return ()
