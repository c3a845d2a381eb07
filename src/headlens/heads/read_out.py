"""How is what a head writes read by the unembedding, and what does a single token look like to a head?

    logits(written) = written diag(gain of the post-norm) C diag(gain of the final norm) W_U

with C taking the mean away before a final LayerNorm. Up to what norms divide by, and biases: see heads/circuits.py.

Axes: d_model, vocab.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import UnsupportedArchitecture
from headlens.models import Model
from headlens.models.norm import Norm, read_norm
from headlens.tracing.capture import capture


def read_out(
    model: Model, layer: int, written: Float[Tensor, "*any d_model"], ids: Int[Tensor, " vocab"] | None = None
) -> Float[Tensor, "*any vocab"]:
    """Return the direct logits of what a head of `layer` wrote, in float32, over `ids` (None: the whole vocabulary).

    Linear in `written`, so it may be given the rows of W_O, and exact up to one positive factor per place (what norms
    divide by) and what every place is given alike (biases). A soft cap on the logits is left out, since it keeps order.

    Raises
    ------
    UnsupportedArchitecture
        If the unembedding does not read the residual stream itself.
    """
    return toward_unembedding(model, layer, written) @ unembedding(model, ids).T


def toward_unembedding(
    model: Model, layer: int, written: Float[Tensor, "*any d_model"]
) -> Float[Tensor, "*any d_model"]:
    """Return what the unembedding reads of what a head of `layer` wrote: `read_out` without the last product."""
    for norm in (model.norm(layer, "post_norm"), _final_norm(model)):
        written = written.float() if norm is None else _undivided(norm)(written.float())
    return written


def unembedding(model: Model, ids: Int[Tensor, "*any"] | None = None) -> Float[Tensor, "*out d_model"]:
    """Return the unembedding's rows for `ids` (None: the whole vocabulary), in float32.

    Raises
    ------
    UnsupportedArchitecture
        If it does not read the residual stream itself.
    """
    rows = model.hf.get_output_embeddings().weight.detach()
    if rows.shape[-1] != model.d_model:
        raise UnsupportedArchitecture(
            f"The unembedding of {model.name} reads {rows.shape[-1]} dimensions and the residual stream has "
            f"{model.d_model}: something projects between them, so direct logits are not defined."
        )
    return (rows if ids is None else rows[ids.to(rows.device)]).float()


def _final_norm(model: Model) -> Norm | None:
    modules = (getattr(model.stack, name, None) for name in ("ln_f", "final_layer_norm", "norm"))
    found = next((module for module in modules if module is not None), None)
    return None if found is None else read_norm(found, model.family.norm)


def _undivided(norm: Norm) -> Norm:
    """A norm without its denominator and bias: the linear part that is the same at every place."""
    ones = torch.ones(1, device=None if norm.weight is None else norm.weight.device)
    weight = None if norm.weight is None else norm.weight.detach().float()
    return replace(norm, weight=weight, bias=None, scale=ones)


def effective_inputs(model: Model, ids: Int[Tensor, " token"]) -> Float[Tensor, "place token d_model"]:
    """Return the residual stream of single tokens: as it enters block 0, and as it leaves it.

    Each token is read alone after BOS, or quite alone by a model without BOS. The first is what heads of layer 0 read,
    the second stands for what heads of all later layers read.
    """
    ids = ids.to(model.device)[:, None]
    pairs = ids if model.bos is None else torch.cat((torch.full_like(ids, model.bos), ids), 1)
    sites = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    batches = list(capture(model, pairs, dict.fromkeys(sites, lambda x, batch: x[:, -1])))  # noqa: ARG005
    return torch.stack([torch.cat([batch[site] for batch in batches]) for site in sites])


def output_weights(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """Return W_O of every head of a layer."""
    return torch.stack([model.head(layer, head).W_O.detach() for head in range(model.n_heads)])
