"""Does a dictionary live where it is used? Widths that agree say nothing: 12 heads x 64 = 768 = d_model.

What head (layer, head) reads, and so what its scores can be taken apart into:

    blocks.LAYER.hook_resid_pre         before the norm, which is then applied with each row's true denominator
    blocks.LAYER-1.hook_resid_post      the same stream, under the block before
    blocks.LAYER.ln1.hook_normalized    after the norm, with gain and bias: no norm is applied again

What it writes: blocks.LAYER.attn.hook_z, of this head or of all. Anything else is refused with the reason.

TransformerLens shows other values under the same names. `fitted` gives a dictionary that reads headlens' own, by an
affine change of coordinates that is exact: with g and c the norm's gain and bias and b_V the value bias,

    before_gain          site = g x + c              vectors g d_i
    without_value_bias   site = x + b_V + c W_V      (rows of the pattern sum to 1)
    centred              site = x + mean             the mean is given back to each row; norms that keep the mean are of
                                                     models whose stream TransformerLens does not centre

Axes: d_in, d_model, head d_head.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from headlens._errors import DataError, SiteError
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.dictionaries.dictionary import Dictionary
from headlens.models import Model
from headlens.models.load import ZOO
from headlens.tracing.sites import parse_site

At = Literal["input", "z"]

_SITE = re.compile(r"blocks\.(\d+)\.(.+)")
_WHY_NOT_INPUT = {
    "attn.hook_z": "what the heads of that layer write, which is made from their scores",
    "hook_attn_out": "what attention adds to the stream, which is made from its scores",
    "hook_mlp_out": "what the MLP adds to the stream, not the stream that heads read",
    "hook_resid_mid": "the stream after attention, which is made from its scores",
    "hook_resid_post": "the stream after the block, which is made from its scores",
    "attn.hook_q": "queries, which are made from what the head reads",
    "attn.hook_k": "keys, which are made from what the head reads",
    "attn.hook_v": "values, which are made from what the head reads",
    "attn.hook_rot_q": "queries, which are made from what the head reads",
    "attn.hook_rot_k": "keys, which are made from what the head reads",
}


def check_site(dictionary: Dictionary, model: Model, layer: int, head: int, *, at: At = "input") -> str:
    """Return where the dictionary lives, if that is what the head reads (at="input") or writes (at="z").

    The answer is blocks.LAYER.hook_resid_pre, blocks.LAYER.ln1.hook_normalized or blocks.LAYER.attn.hook_z. That it
    was made for this model is judged by name; where that cannot be told, or is close, there is a warning.

    Raises
    ------
    SiteError
        If it lives elsewhere, even where widths agree; is of another width; or was made for another model.
    IndexError
        If the model has no such layer or head.
    """
    model.head(layer, head)  # refuses what is not there
    reads = f"head {head} of layer {layer} {'writes' if at == 'z' else 'reads'} {_wanted(model, layer, at)}"
    found = _SITE.fullmatch(dictionary.site or "")
    if found is None:
        said = "does not say where it was trained" if dictionary.site is None else f"lives in {dictionary.site}"
        raise SiteError(f"This dictionary {said}; {reads}.")
    of_layer, name = int(found[1]), found[2]
    if at == "z":
        _check_z(dictionary, name, of_layer, layer, head, reads)
    else:
        name = _check_input(name, of_layer, layer, reads)
    site = f"blocks.{layer}.{name}"
    parse_site(model, site)  # an architecture may have no such place
    _check_width(dictionary, model, name, site)
    _check_model(dictionary, model)
    return site


def fitted(dictionary: Dictionary, model: Model, layer: int, head: int, *, at: At = "input") -> Dictionary:
    """Return the dictionary as one of what headlens shows there, after `check_site`; its `site` is what that returns.

    Raises
    ------
    SiteError
        As `check_site`; or if the change of coordinates is not defined for this model.
    DataError
        If it was wrapped for another convention, or a gain of 0 hides a coordinate.
    """
    site = check_site(dictionary, model, layer, head, at=at)
    if dictionary.convention == "site":
        return dictionary if site == dictionary.site else dictionary.under(site)
    if not isinstance(dictionary, Autoencoder):
        raise DataError("A wrapped dictionary must read what headlens shows at its site: convert where it encodes.")
    return _converted(dictionary, model, layer, site)


# --- is it here? ------------------------------------------------------------------------------------------


def _wanted(model: Model, layer: int, at: At) -> str:
    if at == "z":
        return f"blocks.{layer}.attn.hook_z"
    before = f"blocks.{layer}.hook_resid_pre"
    return before if model.family.pre_norm is None else f"{before} or blocks.{layer}.ln1.hook_normalized"


def _check_input(name: str, of_layer: int, layer: int, reads: str) -> str:
    """Return the last part of the site's name, which is the stream's under either block."""
    if of_layer == layer and name in ("hook_resid_pre", "ln1.hook_normalized"):
        return name
    if of_layer == layer - 1 and name == "hook_resid_post":
        return "hook_resid_pre"
    if name in ("hook_resid_pre", "ln1.hook_normalized") or (name == "hook_resid_post" and of_layer < layer):
        why = "the stream of another layer"
    else:
        why = _WHY_NOT_INPUT.get(name, "which no head reads")
    raise SiteError(f"This dictionary lives in blocks.{of_layer}.{name}, {why}; even where widths agree, {reads}.")


def _check_z(dictionary: Dictionary, name: str, of_layer: int, layer: int, head: int, reads: str) -> None:
    if name != "attn.hook_z" or of_layer != layer:
        raise SiteError(f"This dictionary lives in blocks.{of_layer}.{name}; even where widths agree, {reads}.")
    if dictionary.head not in (None, head):
        raise SiteError(f"This dictionary is of the z of head {dictionary.head}; {reads}.")


def _check_width(dictionary: Dictionary, model: Model, name: str, site: str) -> None:
    if name == "attn.hook_z":
        width = model.d_head if dictionary.head is not None else model.n_heads * model.d_head
    else:
        width = model.d_model
    if dictionary.d_in != width:
        raise SiteError(
            f"This dictionary reads {dictionary.d_in} numbers a row, and {site} of {model.name} has {width}: it was "
            f"made for another model{f' ({dictionary.model})' if dictionary.model else ''}."
        )


# --- is it of this model? ---------------------------------------------------------------------------------

_SHORT = {"gpt2-small": "gpt2"}
"""What TransformerLens calls a model otherwise than the end of its hub id."""


def _check_model(dictionary: Dictionary, model: Model) -> None:
    """Judge by weights where the card has their hash, else by name.

    One that names another model is an error; a variant, or a folder of any other name, is a warning.
    """
    weights = _weights_of(dictionary, str(model.dtype).removeprefix("torch."))
    if dictionary.model is None or (weights is not None and weights == model.provenance()["weights"]):
        return
    theirs, own = _short(dictionary.model), _short(model.name)
    said = f"This dictionary was made for {dictionary.model}, and the model is {model.name}"
    if theirs == own and weights is None:
        return
    zoo = model.name.startswith(ZOO) or dictionary.model.startswith(ZOO)
    named = model.revision is not None or zoo  # a folder may bear any name
    kin = theirs.startswith(own) or own.startswith(theirs)
    if theirs != own and (zoo or (named and not kin)):
        raise SiteError(f"{said}: what it says of another model means nothing, even where widths agree.")
    differ = "whose weights are others" if weights is not None else "of another name"
    warnings.warn(f"{said}, {differ}: make sure that you mean it.", UserWarning, stacklevel=3)


def _weights_of(dictionary: Dictionary, dtype: str) -> str | None:
    """Return the hash of the model's weights that the card has, if it is of the same dtype and so can be compared."""
    ours = dictionary.card.get("headlens")
    if not isinstance(ours, Mapping):
        return None
    of = ours.get("model")
    same = not isinstance(of, Mapping) or of.get("dtype", dtype) == dtype
    return ours.get("weights") if same else None


def _short(name: str) -> str:
    if name.startswith(ZOO):
        return name  # a zoo model shares its last word with no other
    last = name.rstrip("/").split("/")[-1].lower()
    return _SHORT.get(last, last)


# --- from what was trained on to what the site shows ------------------------------------------------------


def _converted(dictionary: Autoencoder, model: Model, layer: int, site: str) -> Autoencoder:
    def own(value: Tensor) -> Tensor:  # the model's own may change, and ask for gradients
        return value.detach().clone().to(dictionary.device, dictionary.dtype)

    made = replace(dictionary, site=site, convention="site")
    match dictionary.convention:
        case "centred":
            return replace(made, takes_mean_off=model.family.norm == "layer")
        case "before_gain":
            norm = model.norm(layer, "pre_norm")
            assert norm is not None and norm.weight is not None  # check_site has parsed the site
            gain = norm.weight + 1 if norm.kind == "rms_one_plus" else norm.weight
            return replace(made, gain=own(gain), shift=None if norm.bias is None else own(norm.bias))
        case _:
            heads = range(model.n_heads) if dictionary.head is None else [dictionary.head]
            return replace(made, shift=own(torch.cat([_value_bias(model, layer, head) for head in heads])))


def _value_bias(model: Model, layer: int, head: int) -> Tensor:
    """Return what a head's values hold whatever it reads."""
    of = model.head(layer, head)
    if of.sink is not None:
        raise SiteError(f"Patterns of {model.name} do not sum to 1 (sinks), so no value bias can be told apart from z.")
    found = torch.zeros_like(of.W_V[0]) if of.b_V is None else of.b_V
    norm_bias = None if of.key_norm is None else of.key_norm.bias
    return found if norm_bias is None else found + norm_bias @ of.W_V
