"""Where one can look: the sites of a model, under the names of TransformerLens.

A site is `blocks.LAYER.NAME`; `blocks.*.NAME` means every layer. Axes of what is seen there:

    hook_resid_pre         batch token d_model        residual stream that enters the block
    ln1.hook_normalized    batch token d_model        what the heads read: after the norm, gain and bias
    attn.hook_q            batch token head d_head    projected query, before QK-norm and rotation
    attn.hook_k            batch token kv_head d_head
    attn.hook_v            batch token kv_head d_head
    attn.hook_rot_q        batch token head d_head    query that meets the key: after QK-norm and rotation
    attn.hook_rot_k        batch token kv_head d_head
    attn.hook_attn_scores  batch head query key       scaled and soft-capped, *before* the mask
    attn.hook_pattern      batch head query key       after mask and softmax
    attn.hook_z            batch token head d_head    values mixed by the pattern
    hook_attn_out          batch token d_model        what attention adds to the stream (after a post-norm)
    hook_resid_mid         batch token d_model        stream between attention and MLP
    hook_mlp_out           batch token d_model        what the MLP adds to the stream (after a post-norm)
    hook_resid_post        batch token d_model        residual stream that leaves the block

GPT-J's MLP reads `ln1.hook_normalized` too, so an edit there changes both. TransformerLens shows
`hook_attn_scores` after the mask; here it is before, so that an edit cannot open the future. Grouped models
keep their key/value heads apart (no repetition). A site that an architecture does not have is refused by
name, never given empty.
"""

import re
from typing import NamedTuple

from headlens._errors import SiteError
from headlens.models import Model

BLOCK_SITES = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_out",
    "hook_resid_post",
)
ATTENTION_SITES = (
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
)
_SITE = re.compile(r"blocks\.(\d+|\*)\.(.+)")


class Site(NamedTuple):
    """One place in one block."""

    layer: int
    name: str

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.name}"


def site_names(model: Model) -> tuple[str, ...]:
    """Return the names (without `blocks.LAYER.`) of the sites that this model's blocks have."""
    return tuple(name for name in BLOCK_SITES + ATTENTION_SITES if _absent(model, name) is None)


def parse_site(model: Model, text: str) -> list[Site]:
    """Return the site(s) that `text` names, one per layer for `blocks.*.NAME`.

    Raises
    ------
    SiteError
        If the name is no site, the layer does not exist, or this architecture has no such place.
    """
    match = _SITE.fullmatch(text)
    name = match[2] if match else ""
    if match is None or name not in BLOCK_SITES + ATTENTION_SITES:
        raise SiteError(
            f"'{text}' is not a site. A site is blocks.LAYER.NAME (or blocks.*.NAME) with NAME one of: "
            f"{', '.join(site_names(model))}."
        )
    if reason := _absent(model, name):
        raise SiteError(f"{model.name} ({model.family.title}) has no {name}: {reason}.")
    layers = range(model.n_layers) if match[1] == "*" else [int(match[1])]
    if layers[0] >= model.n_layers:
        raise SiteError(f"{model.name} has no layer {layers[0]}: its layers go from 0 to {model.n_layers - 1}.")
    return [Site(layer, name) for layer in layers]


def _absent(model: Model, name: str) -> str | None:
    """Why this model has no such site; None where it has one."""
    if name == "ln1.hook_normalized" and model.family.pre_norm is None:
        return "no norm stands before its attention, which reads hook_resid_pre"
    if name.startswith("attn.hook_rot_") and model.family.rotary == "none":
        return "it has no rotary embedding; see attn.hook_q and attn.hook_k"
    if name == "hook_resid_mid" and model.parallel:
        return "its attention and MLP read the same residual stream"
    return None
