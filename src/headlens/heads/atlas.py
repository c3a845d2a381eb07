"""`hl.heads.atlas`: what every head of every model is, as one table that can be filtered, compared and looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.heads.kinds import KINDS
from headlens.heads.labels import LEVELS, Thresholds, labelled, thresholds
from headlens.heads.measure import known_kinds, score
from headlens.heads.scores import SCHEMA, HeadScores

ATLAS_SCHEMA = pa.schema([*SCHEMA, ("q", pa.float64()), ("level", pa.string())])


@dataclass(frozen=True)
class HeadAtlas(HeadScores):
    """Scores of every head of some models, with the kinds that each head is of."""

    table: pa.Table
    """Columns as in `ATLAS_SCHEMA`: those of `HeadScores`, the false-discovery rate `q`, and the `level` of the head in
    this kind (high, medium, low; null where it was not decided)."""

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "HeadAtlas":  # noqa: ARG003
        return cls(provenance, table.cast(ATLAS_SCHEMA))

    def heads(self, kind: str, *, least: str = "medium", model: str | None = None) -> pa.Table:
        """Return the rows of the heads that are of a kind, the strongest first.

        Raises
        ------
        DataError
            If there is no such kind in this atlas, or no such level.
        """
        if kind not in self.kinds or least not in LEVELS:
            raise DataError(f"This atlas has the kinds {', '.join(self.kinds)}, and levels are {', '.join(LEVELS)}.")
        chosen = (pc.field("kind") == kind) & pc.field("level").isin(LEVELS[LEVELS.index(least) :])
        if model is not None:
            chosen &= pc.field("model") == model
        return self.table.filter(chosen).sort_by([("score", "descending")])

    def of(self, model: str) -> "HeadAtlas":
        """Return the part of one model.

        Raises
        ------
        DataError
            If this atlas does not have it.
        """
        if model not in self.models:
            raise DataError(f"This atlas has no model '{model}'; it has {', '.join(self.models)}.")
        provenance = self.provenance
        data = {
            what: made
            for what, made in provenance.data.items()
            if not any(what.startswith(f"{other}: ") for other in self.models if other != model)
        }
        described = tuple(entry for entry in provenance.models if entry.get("name") == model)
        table = self.table.filter(pc.field("model") == model)
        return HeadAtlas(replace(provenance, models=described, data=data), table)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that were measured, in the order of `KINDS`."""
        found = set(self.table["kind"].to_pylist())
        return tuple(name for name in KINDS if name in found) + tuple(sorted(found - set(KINDS)))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.table["model"].to_pylist()))


def atlas(
    models: Any, kinds: Sequence[str] | None = None, *, changed: Thresholds | None = None, **options: Any
) -> HeadAtlas:
    """Measure every head of one or more models, and say of which kinds it is.

    Parameters
    ----------
    models, options
        As for `hl.heads.score`, which this calls.
    kinds
        Names from `hl.heads.KINDS`; those that they need are measured as well. None for all that can be.
    changed
        Kind -> (medium, high), where the thresholds of `KINDS` are not wanted.

    Raises
    ------
    DataError, ModelError
        As for `hl.heads.score`; and if a threshold is of no kind, or they do not rise.
    """
    thresholds(changed)
    asked = None if kinds is None else known_kinds(kinds)
    if asked is not None:
        asked += [needed for name in asked for needed in KINDS[name].needs if needed not in asked]
    return label(score(models, asked, **options), changed)


def label(scores: HeadScores, changed: Thresholds | None = None) -> HeadAtlas:
    """Return an atlas of scores that were measured before."""
    measured, every = set(scores.table["kind"].to_pylist()), thresholds(changed)
    bounds = {name: list(every[name]) for name in KINDS if name in measured}  # lists, as they come back from disk
    provenance = replace(scores.provenance, data=scores.provenance.data | {"thresholds": bounds})
    table = scores.table.select(SCHEMA.names)
    return HeadAtlas(provenance, labelled(table, changed))
