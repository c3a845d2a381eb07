"""`HeadUniverse`: every head of every model in one space; who is near whom, and how another model joins.

    distance(a, b) = 1 - cosine of t_a and t_b,   t = what an embedding asks of the decoder (g, b, c), each term in
                     units of its spread over the heads that the space was fitted on

e itself may hold directions that the decoder hardly reads; t holds what it makes of them.

A new model is run once over texts and fitted with all else frozen, so it needs a place in memory and the others do not.

Axes: head, size, place; see decoder.py. Memory: `size` numbers a head, and the decoder.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError
from headlens._result import Provenance, Result, versions
from headlens.axes import HeadId
from headlens.models import load
from headlens.universe.batches import Group, grouped
from headlens.universe.clone import Progress, Training
from headlens.universe.decoder import (
    Decoder,
    Embedded,
    Shape,
    decoded,
    fit_decoder,
    fit_embeddings,
    merged,
)
from headlens.universe.evaluate import mean_divergences
from headlens.universe.features import Basis, Features
from headlens.universe.patterns import Patterns, record_patterns

_DECODER = ("U", "V", "straight", "inner", "outer", "offset")
_BASIS = ("mean", "scale", "components")


@dataclass(frozen=True)
class HeadUniverse(Result):
    """Heads of several models as points of one space, and the decoder that makes patterns of points."""

    embedded: Embedded
    decoder: Decoder
    basis: Basis
    kl: Float[np.ndarray, " head"]
    """Nats a row, on the texts that the head was fitted on; NaN for one that attends to nothing there."""
    fitted: tuple[str, ...]
    """Models that the decoder was fitted on; the others joined later."""

    @property
    def heads(self) -> tuple[HeadId, ...]:
        return self.embedded.heads

    @property
    def embeddings(self) -> Float[np.ndarray, "head size"]:
        return self.embedded.e.numpy()

    @cached_property
    def terms(self) -> Float[np.ndarray, "head term"]:
        """What each head asks of the decoder, in units of the spread over the heads that it was fitted on."""
        terms = terms_of(self.decoder, self.embedded.e)
        old = [i for i, head in enumerate(self.heads) if head.model in self.fitted and not np.isnan(self.kl[i])]
        return in_spreads(terms, terms[old])

    def distance(self, a: HeadId | str, b: HeadId | str) -> float:
        """Return how far apart two heads are: 0 for the same place.

        Raises
        ------
        DataError
            If one of them is not in this universe, or has no place in it.
        """
        return float(distances(self.terms[[self._place(a)]], self.terms[[self._place(b)]])[0, 0])

    def neighbours(self, head: HeadId | str, k: int = 10, *, other_models: bool = False) -> pa.Table:
        """Return the `k` nearest heads, the nearest first: model, layer, head, distance.

        Raises
        ------
        DataError
            If the head is not in this universe or has no place in it, or `k` is below 1.
        """
        if k < 1:
            raise DataError(f"k must be 1 or more, not {k}.")
        at = self._place(head)
        apart = distances(self.terms[[at]], self.terms)[0]
        own = self.heads[at].model
        told = [i for i in range(len(self.heads)) if i != at and not np.isnan(self.kl[i])]
        others = [i for i in told if not (other_models and self.heads[i].model == own)]
        nearest = sorted(others, key=lambda i: (apart[i], self.heads[i]))[:k]
        rows = [self.heads[i]._asdict() | {"distance": float(apart[i])} for i in nearest]
        return pa.Table.from_pylist(rows, schema=_NEIGHBOURS)

    def add(
        self,
        source: Any,
        texts: Sequence[str] | Patterns,
        *,
        encoder: Any = None,
        documents: int | None = None,
        progress: Progress | None = None,
        **load_options: Any,
    ) -> "HeadUniverse":
        """Return this universe with the heads of one more model, fitted with everything else frozen.

        Parameters
        ----------
        source
            As for `hl.load`; ignored where patterns are given in place of texts.
        texts
            Texts to run it on, or its recorded patterns.
        encoder
            Where the encoder is, if not where the universe was fitted.
        documents
            How many texts to fit on; None for all.

        Raises
        ------
        DataError
            If the model is already here, or the encoder is another one.
        """
        features = self._features(encoder)
        if isinstance(texts, Patterns):
            return self._with(texts, features, documents, progress)
        model = load(source, **load_options)
        with tempfile.TemporaryDirectory() as folder:
            recorded = record_patterns(model, texts, Path(folder) / "patterns", progress=progress)
            return self._with(recorded, features, documents, progress)

    def to_table(self) -> pa.Table:
        """One row per head: model, layer, head, kl, joined (later than the fit), and the embedding."""
        columns = {
            "model": pa.array([head.model for head in self.heads], pa.string()),
            "layer": pa.array([head.layer for head in self.heads], pa.int32()),
            "head": pa.array([head.head for head in self.heads], pa.int32()),
            "kl": pa.array(self.kl, pa.float64()),
            "joined": pa.array([head.model not in self.fitted for head in self.heads], pa.bool_()),
            "embedding": pa.array(list(self.embeddings), pa.list_(pa.float32())),
        }
        return pa.table(columns)

    # --- inside ---

    def _place(self, head: HeadId | str) -> int:
        found = [i for i, own in enumerate(self.heads) if own == head or str(own) == head]
        if not found:
            raise DataError(f"This universe has no head {head}; it has heads such as {self.heads[0]}.")
        if np.isnan(self.kl[found[0]]):
            raise DataError(f"{head} attends to nothing on the texts that it was fitted on: it has no place here.")
        return found[0]

    def _features(self, encoder: Any) -> Features:
        made = self.provenance.data["features"]
        known = made["encoder"]
        model = load(known["name"] if encoder is None else encoder)
        if (weights := model.provenance()["weights"]) != known["weights"]:
            raise DataError(
                f"The encoder {model.name} has other weights ({weights}) than {known['name']} had when this universe "
                f"was fitted ({known['weights']}): pass that one as encoder=."
            )
        return Features(model, self.basis, made["alignment"], made["shift"])

    def _with(
        self, patterns: Patterns, features: Features, documents: int | None, progress: Progress | None
    ) -> "HeadUniverse":
        if patterns.model in self.embedded.models:
            raise DataError(f"{patterns.model} is already in this universe.")
        groups = grouped([patterns])
        read_texts(groups, features)
        own = self.provenance.data["training"]["own"]
        new = fit_embeddings(self.decoder, groups, features, own=own, documents=documents, progress=progress)
        both = merged([self.embedded, new])
        kl = dict(zip(self.heads, self.kl, strict=True)) | divergences(self.decoder, new, groups, features)
        provenance = replace(
            self.provenance, models=(*self.provenance.models, patterns.manifest["model"]), versions=versions()
        )
        return replace(self, provenance=provenance, embedded=both, kl=np.array([kl[head] for head in both.heads]))

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"decoder.{name}": getattr(self.decoder, name).numpy() for name in _DECODER}
        arrays |= {f"basis.{name}": getattr(self.basis, name) for name in _BASIS}
        arrays["basis.shifted_from"] = np.array([self.basis.shifted_from])
        arrays["own"] = self.embedded.own.numpy()
        arrays["fitted"] = np.array([model in self.fitted for model in self.embedded.models], dtype=np.uint8)
        return arrays

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "HeadUniverse":
        rows = table.to_pydict()
        heads = tuple(map(HeadId, rows["model"], rows["layer"], rows["head"]))
        models = tuple(sorted(set(rows["model"])))
        e = torch.tensor(np.array(rows["embedding"], dtype=np.float32))
        embedded = Embedded(heads, e, models, torch.from_numpy(arrays["own"]))
        decoder = Decoder(**{name: torch.from_numpy(arrays[f"decoder.{name}"]) for name in _DECODER})
        basis = Basis(*(arrays[f"basis.{name}"] for name in _BASIS), shifted_from=int(arrays["basis.shifted_from"][0]))
        fitted = tuple(model for model, old in zip(models, arrays["fitted"], strict=True) if old)
        return cls(provenance, embedded, decoder, basis, np.array(rows["kl"]), fitted)


_NEIGHBOURS = pa.schema(
    [("model", pa.string()), ("layer", pa.int32()), ("head", pa.int32()), ("distance", pa.float64())]
)


def fit_universe(
    patterns: Sequence[Patterns],
    features: Features,
    *,
    shape: Shape | None = None,
    training: Training | None = None,
    progress: Progress | None = None,
) -> HeadUniverse:
    """Embed every head of these models in one space.

    Raises
    ------
    DataError
        If the models were not recorded on the same texts, or one is given twice.
    """
    groups = grouped(patterns)
    read_texts(groups, features)
    training, shape = training or Training(epochs=4, rate=0.01, decay=0.3), shape or Shape()
    decoder, embedded = fit_decoder(groups, features, shape=shape, training=training, progress=progress)
    kl = divergences(decoder, embedded, groups, features)
    manifests = sorted((p.manifest for p in patterns), key=lambda manifest: manifest["model"]["name"])
    data = {
        "features": features.described(),
        "patterns": {key: manifests[0][key] for key in ("texts", "documents", "rows", "seed")},
        "training": training.__dict__ | shape.__dict__,
    }
    provenance = Provenance(tuple(m["model"] for m in manifests), data, training.seed, "", versions())
    kls = np.array([kl[head] for head in embedded.heads])
    return HeadUniverse(provenance, embedded, decoder, features.basis, kls, embedded.models)


def read_texts(groups: Sequence[Group], features: Features) -> None:
    """Let the encoder read the texts of these patterns, where it has not."""
    for shard in groups[0].members[0].shards():
        features.read(shard.texts)


def divergences(
    decoder: Decoder, embedded: Embedded, groups: Sequence[Group], features: Features
) -> dict[HeadId, float]:
    """Return each head's KL, in nats a row; NaN for one that attends to nothing on these texts."""
    found = {}
    for group in groups:
        mine = embedded.of(group.heads)
        found |= mean_divergences(group, features, {0: partial(decoded, decoder, mine)})[0]
    return found


def terms_of(decoder: Decoder, e: Float[Tensor, "head size"]) -> Float[np.ndarray, "head term"]:
    """Return g, b and c of every head."""
    return torch.cat(decoder.terms(e), dim=1).numpy()


def in_spreads(
    terms: Float[np.ndarray, "head term"], fitted: Float[np.ndarray, "old term"]
) -> Float[np.ndarray, "head term"]:
    """Return terms in units of their spread over the heads that the decoder was fitted on."""
    spread = fitted.std(0)
    return terms / np.where(spread > 0, spread, 1)


def distances(a: Float[np.ndarray, "query term"], b: Float[np.ndarray, "head term"]) -> Float[np.ndarray, "query head"]:
    """Return 1 - cosine of rows: 0 for the same direction, 2 for opposite ones; 1 where a row is 0."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b)]
    return 1 - unit[0] @ unit[1].T
