"""What did a layer's heads read and write over a corpus? One pass, kept sparse, from which all rules are mined.

For every token: the features of the layer's input that are active, each head's query, key and value (before any
soft-cap score[q, k] = query . key), z as its dictionary reads it, and which output features fire. So the model is run
once, whatever the number of heads, features and rules.

What a unit of a feature adds to a query, key or value has a norm's denominator in it, which differs between tokens.
Rules are to run on activations alone, so each feature gets its mean over the tokens of the corpus where it is active:

    query_i = mean(n_q) scale (G d_i) W_Q g        and so for keys and values; rotation comes later, by distance

Memory: tokens x (8 active input features + 12 d_head a head) bytes or so; 5,000 texts of 64 tokens of a zoo model,
all six heads of a layer: 650 MB; one head: 140 MB.

Axes: token = all tokens of all texts; feature = of the input; d_head; bound = texts + 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens.data.tokens import Tokens
from headlens.dictionaries import Autoencoder, Dictionary
from headlens.dictionaries.dictionary import Active, Split
from headlens.dictionaries.sites import fitted
from headlens.fra.resolve import ready, stacked
from headlens.fra.sides import PartMap
from headlens.fra.weights import unrotated
from headlens.models import Head, Model
from headlens.rules.circuit import Reader, reader
from headlens.tracing.capture import as_tokens, capture


@dataclass(frozen=True)
class HeadMaps:
    """What a unit of each input feature adds to a head's queries, keys and values, before rotation."""

    head: Head
    query: Float[np.ndarray, "feature d_head"]
    key: Float[np.ndarray, "feature d_head"]
    value: Float[np.ndarray, "feature d_head"]
    constant: Float[np.ndarray, " d_head"]
    """The mean query of no feature: the biases of dictionary, norm and projection."""
    whole_key: Float[np.ndarray, "feature d_head"]
    """The mean key, before rotation, of tokens that hold a feature, with all else that they hold; weighted by how much
    they hold. The first token of a text is left out."""
    whole_value: Float[np.ndarray, "feature d_head"]


@dataclass(frozen=True)
class HeadSeen:
    """What one head did over the corpus."""

    maps: HeadMaps
    query: Float[np.ndarray, "token d_head"]
    """Whole and rotated, scale included."""
    key: Float[np.ndarray, "token d_head"]
    value: Float[np.ndarray, "token d_head"]
    z: Float[np.ndarray, "token d_in"]
    """As its dictionary reads it: this head's, or all heads' one after the other."""
    fires: Active
    """Output features, as the dictionary of z encodes them."""
    dictionary: Autoencoder
    reader: Reader


@dataclass(frozen=True)
class Observed:
    """A corpus, as one layer's heads read and wrote it."""

    model: Model
    layer: int
    tokens: Tokens
    active: Active
    """How many times each input feature's vector every token holds."""
    vectors: Float[Tensor, "feature d_model"]
    """Of the input features."""
    heads: Mapping[int, HeadSeen]
    provenance: Provenance

    @property
    def text_of(self) -> Int[np.ndarray, " token"]:
        """The text that each token stands in."""
        return np.repeat(np.arange(len(self.tokens)), self.tokens.lengths)

    @property
    def position(self) -> Int[np.ndarray, " token"]:
        return np.arange(len(self.tokens.ids)) - np.repeat(self.tokens.offsets[:-1], self.tokens.lengths)


@torch.no_grad()
def observe(
    source: Any,
    dictionary: Dictionary,
    z_dictionaries: Mapping[int, Dictionary],
    tokens: Any,
    layer: int,
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
    **load_options: Any,
) -> Observed:
    """Read a corpus once, for some heads of a layer.

    Parameters
    ----------
    dictionary
        Of what the heads read: blocks.LAYER.hook_resid_pre or blocks.LAYER.ln1.hook_normalized.
    z_dictionaries
        By head, of its z or of that of all heads.
    tokens
        Texts as token ids, BOS included where the model has one.
    progress
        Called with the number of texts that are done.

    Raises
    ------
    SiteError
        If a dictionary does not live where these heads read, or write.
    NotAffineError
        If the pre-activations of a z dictionary are not affine.
    DataError
        If there is no head, no text, one is too long, or the model is in half precision.
    """
    model = ready(source, **load_options)
    if not z_dictionaries:
        raise DataError("z_dictionaries must name one head at least: {head: dictionary of its z}.")
    packed = as_tokens(tokens)
    of_z = {head: _of_z(one, model, layer, head) for head, one in z_dictionaries.items()}
    dictionary = fitted(dictionary, model, layer, next(iter(of_z))).to(device=model.device)
    gathered = _Gathered(model, dictionary, of_z, layer)
    stream, at_z = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_z"
    for batch in capture(
        model, packed, list({stream, at_z, *dictionary.inputs}), batch_tokens=batch_tokens, progress=progress
    ):
        gathered.add(batch[stream], batch[at_z], [batch[site] for site in dictionary.inputs], batch.mask)
    data = {"texts": {"n": len(packed), "n_tokens": len(packed.ids), "hash": packed.hash}}
    data |= {"dictionary": {"site": dictionary.site, "digest": dictionary.digest}}
    data |= {"z": {str(head): {"site": one.site, "digest": one.digest} for head, one in of_z.items()}}
    made = Provenance((model.provenance(),), data, None, "", versions())
    active, heads = gathered.finished()
    return Observed(model, layer, packed, active, dictionary.vectors, heads, made)


def _of_z(dictionary: Dictionary, model: Model, layer: int, head: int) -> Autoencoder:
    found = fitted(dictionary, model, layer, head, at="z").to(device=model.device)
    reader(found)  # refuses what has no affine part
    assert isinstance(found, Autoencoder)
    return found


class _Gathered:
    """Batches on their way into one `Observed`."""

    def __init__(self, model: Model, dictionary: Dictionary, of_z: dict[int, Autoencoder], layer: int) -> None:
        self.model, self.dictionary, self.of_z = model, dictionary, of_z
        self.normalized = str(dictionary.site).endswith("hook_normalized")
        self.heads = {head: model.head(layer, head) for head in of_z}
        self.active: list[Active] = []
        self.seen: dict[int, list[tuple[Tensor, ...]]] = {head: [] for head in of_z}
        self.fires: dict[int, list[Active]] = {head: [] for head in of_z}
        shape = (len(of_z), 3, dictionary.d_sae)
        self.inverse = torch.zeros(shape, dtype=torch.float64)
        self.count = torch.zeros(dictionary.d_sae, dtype=torch.float64)
        self.constant: dict[int, Tensor] = {}
        wide = next(iter(self.heads.values())).W_K.shape[1]
        self.whole = torch.zeros(len(of_z), 2, dictionary.d_sae, wide, dtype=torch.float64)
        self.held = torch.zeros(dictionary.d_sae, dtype=torch.float64)

    def add(self, stream: Tensor, z: Tensor, inputs: Sequence[Tensor], mask: Bool[Tensor, "batch token"]) -> None:
        parts = self.dictionary.split(stacked([one[mask] for one in inputs]))
        self.active.append(parts.weighted)
        x = stream.to(parts.error.dtype)
        flat = x[mask]
        self.count += torch.bincount(parts.active.features, minlength=len(self.count)).cpu()
        later = mask.clone()
        later[:, 0] = False
        counted, features = later[mask][parts.active.rows].cpu(), parts.active.features.cpu()
        held = torch.where(counted, parts.weights.abs().cpu().double(), 0.0)
        self.held.index_add_(0, features, held)
        for i, (head, of) in enumerate(self.heads.items()):
            at = torch.arange(x.shape[1], device=x.device)
            own = (of.query(x, at) * of.scale, of.key(x, at), of.value(x))
            read = z[:, :, head] if self.of_z[head].head is not None else z.flatten(-2)
            rows = read[mask].to(parts.error.dtype)
            self.seen[head].append((*(one[mask] for one in own), rows))
            self.fires[head].append(self.of_z[head].encode_sparse(rows))
            for side, one in enumerate((of.key(flat, None), own[2][mask])):
                per_entry = one[parts.active.rows].double().cpu() * held[:, None]
                self.whole[i, side].index_add_(0, features, per_entry)
            frozen = replace(of.freeze_norms(flat, flat), rotary=None)
            for side, inverse in enumerate(_inverses(frozen, flat, self.normalized)):
                per_entry = inverse[parts.active.rows].double().cpu()
                self.inverse[i, side].index_add_(0, parts.active.features.cpu(), per_entry)
            if head not in self.constant:  # biases are the same everywhere, but for denominators: one batch is enough
                self.constant[head] = _constant_query(frozen, parts, self.normalized)

    def finished(self) -> tuple[Active, dict[int, HeadSeen]]:
        heads = {}
        for i, (head, of) in enumerate(self.heads.items()):
            query, key, value, z = (
                torch.cat(part).float().cpu().numpy() for part in zip(*self.seen[head], strict=True)
            )
            maps = self._maps(of, self.inverse[i] / self.count.clamp(min=1), self.constant[head], self.whole[i])
            heads[head] = HeadSeen(
                maps, query, key, value, z, _joined(self.fires[head]), self.of_z[head], reader(self.of_z[head])
            )
        return _joined(self.active), heads

    def _maps(
        self,
        of: Head,
        inverse: Float[Tensor, "side feature"],
        constant: Tensor,
        whole: Float[Tensor, "two feature d_head"],
    ) -> HeadMaps:
        vectors = self.dictionary.vectors.to(constant.dtype)
        query, key = unrotated(of, vectors, normalized=self.normalized)
        norm = None if self.normalized else of.key_norm
        value = PartMap(norm, of.W_V, None, None, replace(of, rotary=None), 1.0).through(vectors)
        made = (
            (one.double() * inverse[side].to(one.device)[:, None]).float().cpu().numpy()
            for side, one in enumerate((query, key, value))
        )
        unit_query, unit_key, unit_value = made
        key_sum, value_sum = (whole / self.held.clamp(min=1e-30)[:, None]).float().numpy()
        return HeadMaps(
            of, unit_query, unit_key, unit_value, constant.float().cpu().numpy(), key_sum, value_sum
        )  # fmt: skip


def _inverses(frozen: Head, x: Tensor, normalized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """1 / the denominators of all norms between a source and the query, key and value of each row."""
    one = x.new_ones(len(x))

    def of(norm: Any) -> Tensor:
        return one if norm is None or norm.scale is None else norm.scale[..., 0]

    query, key = (one, one) if normalized else (of(frozen.query_norm), of(frozen.key_norm))
    qk = (one if norm is None else of(norm.norm) for norm in (frozen.query_qk_norm, frozen.key_qk_norm))
    q, k = qk
    return query * q, key * k, key


def _constant_query(frozen: Head, parts: Split, normalized: bool) -> Float[Tensor, " d_head"]:
    norm = None if normalized else frozen.query_norm
    side = PartMap(norm, frozen.W_Q, frozen.b_Q, frozen.query_qk_norm, frozen, frozen.scale).side(parts)
    n_features = len(parts.vectors)
    chosen = (side.source >= n_features) & (side.source != n_features + 1)  # all but features and the error
    return side.vector[chosen].sum(0) / side.n_tokens


def _joined(some: Sequence[Active]) -> Active:
    counts = torch.cat([one.offsets.diff() for one in some]).cpu()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    features, values = (torch.cat([getattr(one, name) for one in some]).cpu() for name in ("features", "values"))
    return Active(offsets, features, values, some[0].d_sae)
