"""The two published formats of dictionaries of attention's output, z: a config and a PyTorch file beside each other.

    NAME_cfg.json   act_size, dict_size, act_name, layer, head, model_name
    NAME.pt         the state dict: W_enc, b_enc, W_dec, b_dec, perhaps scaling_factor

One reads the z of all heads of a layer, one after the other (Kissane et al., gpt2-small_L5_Hcat_z_...), the other of
one head (`head` is its number). Both are relu(( z - b_dec) W_enc + b_enc).

They were trained on models that TransformerLens had processed, where the value bias is folded into b_O: their z is
headlens' less that bias, which is what the convention without_value_bias says.

Source: Kissane et al. 2024, and the rules of 2510.18148, whose dictionaries follow it; their published loading code.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headlens._errors import DataError
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.dictionaries.dictionary import Convention
from headlens.dictionaries.files import read_config, read_pt
from headlens.dictionaries.saelens import rescaled

CONFIG_END, WEIGHTS_END = "_cfg.json", ".pt"
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def stem_of(path: Path) -> Path | None:
    """Return what the names of both files begin with, if `path` is one of them or that beginning; else None."""
    for end in (CONFIG_END, WEIGHTS_END):
        if path.name.endswith(end):
            return path.with_name(path.name.removesuffix(end))
    return path if path.with_name(path.name + CONFIG_END).is_file() else None


def read_pair(stem: Path, *, dtype: torch.dtype | None = None, convention: Convention | None = None) -> Autoencoder:
    """Return the dictionary in STEM_cfg.json and STEM.pt.

    Raises
    ------
    DataError
        If one of them is missing, damaged, does not fit the other, or holds other things than tensors.
    InvalidWeights
        If weights are NaN or infinite.
    """
    where = str(stem)
    said = read_config(stem.with_name(stem.name + CONFIG_END))
    weights = read_pt(stem.with_name(stem.name + WEIGHTS_END))
    weights = {name: value.to(dtype) for name, value in weights.items()}
    if missing := sorted(set(_NAMES) - set(weights)):
        raise DataError(f"{where}{WEIGHTS_END} lacks {', '.join(missing)}: fetch it again.")
    if odd := sorted(set(weights) - {*_NAMES, "scaling_factor"}):
        raise DataError(f"{where}{WEIGHTS_END} holds {', '.join(odd)[:100]}, which such a dictionary has not.")
    if (factor := weights.pop("scaling_factor", None)) is not None:
        weights["W_dec"] = rescaled(weights, factor, said.get("finetuning_scaling_factor") is True, where)
    sizes, shape = (said.get("act_size"), said.get("dict_size")), tuple(weights["W_enc"].shape)
    if sizes != shape:
        raise DataError(
            f"{where}{CONFIG_END} says (act_size, dict_size) is {sizes} and W_enc is {shape}: they belong to others."
        )
    return Autoencoder(
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        site=_site(said, where),
        head=_head(said, where),
        convention="without_value_bias" if convention is None else convention,
        model=said.get("model_name"),
        card=said,
    )


def _site(said: Mapping[str, Any], where: str) -> str:
    """Return the site; `act_name` may be the hook's whole name or its last part."""
    name, layer = said.get("act_name"), said.get("layer")
    if isinstance(name, str) and re.fullmatch(r"blocks\.\d+\.attn\.hook_z", name):
        return name
    if name in ("z", "hook_z", "attn.hook_z") and type(layer) is int and layer >= 0:
        return f"blocks.{layer}.attn.hook_z"
    raise DataError(
        f"{where}{CONFIG_END} has act_name {name!r:.60} and layer {layer!r:.20}: such a dictionary is of "
        "blocks.LAYER.attn.hook_z."
    )


def _head(said: Mapping[str, Any], where: str) -> int | None:
    """Return the one head that was trained on; the format of whole layers says none, or "cat"."""
    head = said.get("head")
    if head is None or head == "cat":
        return None
    if type(head) is not int or head < 0:
        raise DataError(f"{where}{CONFIG_END} has head {head!r:.20}; it must be a head's number, or cat for all.")
    return head
