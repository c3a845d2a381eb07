"""What is one output feature of a head made of? Its pre-activation, written out over keys and what each key holds.

A dictionary of the head's z has, for each feature, a row w and a bias b. With the head's complete scores (fra/sides.py)
and values, and norms frozen at what they really were,

    pre[q] = b + sum_k A[q, k] sum_j v_j(k) . w  +  others[q]         A = softmax of sum_i sum_j FA[q, k, i, j]

j runs over the features active at k, the input dictionary's bias and error, the norm's bias and the projection's.
`others` is what other heads add, where the dictionary reads all heads of a layer; else 0. It is the dictionary's own
pre-activation of the model's own z, or `circuit` refuses.

Axes: token; row = one source at one position; feature = output features asked for; d_head; d_in = what z's dictionary
reads. Unit: the dictionary's pre-activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError, NotAffineError
from headlens.dictionaries import Autoencoder, Dictionary
from headlens.dictionaries.dictionary import Split
from headlens.dictionaries.sites import fitted
from headlens.fra.resolve import BOUND, ready, stacked
from headlens.fra.sides import PartMap, Side, sides
from headlens.models import Head
from headlens.tracing.capture import as_tokens, capture


@dataclass(frozen=True)
class Reader:
    """The affine part of a dictionary's encoder: pre = x weight + bias."""

    weight: Float[Tensor, "d_in d_sae"]
    bias: Float[Tensor, " d_sae"]

    def __call__(self, x: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any d_sae"]:
        return x @ self.weight + self.bias

    def of_head(self, head: int, d_head: int) -> Float[Tensor, "d_head d_sae"]:
        """Return the rows that read one head, where the dictionary reads one or all."""
        if len(self.weight) == d_head:
            return self.weight
        return self.weight[head * d_head : (head + 1) * d_head]


def reader(dictionary: Dictionary) -> Reader:
    """Return what stands before the dictionary's rule for which features stay.

    Raises
    ------
    NotAffineError
        If its pre-activation is not one affine map: gated, rows that are normed one by one, a wrapped module; or if
        features fire with either sign.
    """
    if not isinstance(dictionary, Autoencoder):
        raise NotAffineError("Rules need the encoder's weights: pass an Autoencoder, not a wrapped module.")
    if dictionary.activation in ("gated", "abstopk") or dictionary.norm != "none":
        why = {
            "gated": "is gated, and so decides by one map and measures by another",
            "abstopk": "fires with either sign",
        }.get(dictionary.activation, "norms each row by itself before it encodes")
        raise NotAffineError(
            f"The dictionary of z {why}: its features are no sum over keys. Train one with relu, topk or jumprelu."
        )
    W = dictionary.W_enc
    bias = dictionary.b_enc - dictionary.b_dec @ W if dictionary.takes_b_dec_off else dictionary.b_enc
    W = W if dictionary.gain is None else W / dictionary.gain[:, None]
    bias = bias if dictionary.shift is None else bias - dictionary.shift @ W
    W = W - W.mean(0) if dictionary.takes_mean_off else W
    if dictionary.scaled_by_decoder:
        lengths = dictionary.W_dec.norm(dim=-1)
        W, bias = W * lengths, bias * lengths
    return Reader(W, bias)


def values(head: Head, x: Float[Tensor, "token d_model"], parts: Split, *, normalized: bool = False) -> Side:
    """Return the parts of a head's values; rows are those of its keys, before any norm of keys or rotation."""
    frozen = head.freeze_norms(x, x)
    norm = None if normalized else frozen.key_norm
    return PartMap(norm, frozen.W_V, frozen.b_V, None, replace(frozen, rotary=None), 1.0).side(parts)


@dataclass(frozen=True)
class Circuit:
    """Some output features of one head over one text, to the last part."""

    layer: int
    head: int
    features: tuple[int, ...]
    query: Side
    key: Side
    value: Side
    pattern: Float[Tensor, "token token"]
    """Attention, from the sums of all pairs."""
    weight: Float[Tensor, "d_head feature"]
    bias: Float[Tensor, " feature"]
    others: Float[Tensor, "token feature"]
    """What other heads add; 0 where the dictionary reads this head alone."""
    own: Float[Tensor, "token feature"]
    """The dictionary's pre-activation of the model's z."""

    def writes(self) -> Float[Tensor, "row feature"]:
        """Return what each part of each value writes to the features where it is attended to fully."""
        return self.value.vector @ self.weight

    def pre(self) -> Float[Tensor, "token feature"]:
        """Return the sum of all parts."""
        return self.bias + self.pattern @ (self.value.sums() @ self.weight) + self.others

    def by_key(self, query: int) -> Float[Tensor, "token feature"]:
        """Return what each key adds at a query: direct feature attribution by source position."""
        return self.pattern[query, :, None] * (self.value.sums() @ self.weight)

    def error(self) -> float:
        """How far the sums are from the dictionary's own pre-activations, as a share of the largest."""
        return float((self.pre() - self.own).abs().max() / self.own.abs().max().clamp(min=1e-30))


@torch.no_grad()
def circuit(
    source: Any,
    dictionary: Dictionary,
    z_dictionary: Dictionary,
    tokens: Sequence[int],
    layer: int,
    head: int,
    features: Sequence[int] | None = None,
    **load_options: Any,
) -> Circuit:
    """Take output features of a head apart over one text.

    Parameters
    ----------
    dictionary
        Of what the head reads: blocks.LAYER.hook_resid_pre or blocks.LAYER.ln1.hook_normalized.
    z_dictionary
        Of blocks.LAYER.attn.hook_z, this head's or that of all heads.
    tokens
        Ids of one text, BOS included where the model has one.
    features
        Of z's dictionary; None: all.

    Raises
    ------
    SiteError
        If a dictionary does not live where the head reads, or writes.
    NotAffineError
        If the pre-activations of z's dictionary are not affine.
    DataError
        If the model is in half precision, or the sums miss the dictionary's own pre-activations.
    """
    model = ready(source, **load_options)
    dictionary = fitted(dictionary, model, layer, head).to(device=model.device)
    z_dictionary = fitted(z_dictionary, model, layer, head, at="z").to(device=model.device)
    chosen = tuple(range(z_dictionary.d_sae)) if features is None else tuple(features)
    read = reader(z_dictionary)
    stream, at_z = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.attn.hook_z"
    (batch,) = capture(model, as_tokens([tokens]), list({stream, at_z, *dictionary.inputs}))
    parts = dictionary.split(stacked([batch[site][0] for site in dictionary.inputs]))
    x, of = batch[stream][0].to(parts.error.dtype), model.head(layer, head)
    normalized = str(dictionary.site).endswith("hook_normalized")
    query, key = sides(of, x, parts, normalized=normalized)
    scores = of.cap(query.sums() @ key.sums().T)
    z = batch[at_z][0].to(parts.error.dtype)
    weight = read.weight[:, chosen].to(z.dtype)
    whole = z[:, head] if len(weight) == model.d_head else z.flatten(-2)
    own = whole @ weight + read.bias[list(chosen)].to(z.dtype)
    mine = read.of_head(head, model.d_head)[:, chosen].to(z.dtype)
    others = torch.zeros_like(own) if len(weight) == model.d_head else whole @ weight - z[:, head] @ mine
    found = Circuit(
        layer, head, chosen, query, key, values(of, x, parts, normalized=normalized),
        of.pattern(scores, of.visible(len(x))), mine, read.bias[list(chosen)].to(z.dtype), others, own,
    )  # fmt: skip
    bound = BOUND[model.dtype]
    if not (error := found.error()) <= bound:
        raise DataError(
            f"The parts miss the features that layer {layer}, head {head} writes by {error:.2g} of the largest (at "
            f"most {bound:.0e} in {model.dtype}): load the model with dtype float64."
        )
    return found
