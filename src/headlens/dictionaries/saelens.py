"""Dictionaries in SAELens' format, read without it: a folder of cfg.json and sae_weights.safetensors.

    architecture            read as                   of the weights beside W_enc, W_dec, b_dec
    standard                relu                      b_enc
    topk, abstopk           topk, abstopk             b_enc
    jumprelu                jumprelu                  b_enc, threshold (log_threshold in old checkpoints)
    batchtopk, matryoshka   jumprelu                  b_enc, topk_threshold: the one that its training has learned
    gated                   gated                     b_gate, r_mag, b_mag

Configs of before version 6 name things otherwise (hook_point, activation_fn_str, normalize_activations as a bool) and
say less; both are read. Activations and reconstructions are SAELens' own to the last bit.

    normalize_activations   expected_average_only_in: x times one number before training. SAELens folds it into the
                            weights before it saves; where it has not, the number stands in its directory of
                            releases or nowhere, so it must be given. With it, W_enc s, W_dec / s, b_dec / s.

TransformerLens' hook_normalized is before the norm's gain and bias, headlens' after: what the config says of how the
model was loaded decides the dictionary's `convention`.

Source: SAELens 6.54 (saes/, loading/pretrained_sae_loaders.py); TransformerLens 3.9 (components/layer_norm.py).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from headlens._errors import DataError, MissingExtra
from headlens.dictionaries.autoencoder import Activation, Autoencoder, RowNorm
from headlens.dictionaries.dictionary import Convention
from headlens.dictionaries.files import dtype_of, read_config, read_safetensors

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"

_RULES: dict[str, tuple[Activation, tuple[str, ...]]] = {
    "standard": ("relu", ("b_enc",)),
    "topk": ("topk", ("b_enc",)),
    "abstopk": ("abstopk", ("b_enc",)),
    "jumprelu": ("jumprelu", ("b_enc", "threshold")),
    "batchtopk": ("jumprelu", ("b_enc", "threshold")),
    "matryoshka_batchtopk": ("jumprelu", ("b_enc", "threshold")),
    "gated": ("gated", ("b_gate", "r_mag", "b_mag")),
}
_TRANSCODER = "a transcoder writes at another site than it reads, so it does not take apart what it reads"
_REFUSED = {
    "transcoder": _TRANSCODER,
    "skip_transcoder": _TRANSCODER,
    "jumprelu_transcoder": _TRANSCODER,
    "jumprelu_skip_transcoder": _TRANSCODER,
    "temporal": "a temporal dictionary explains a token by those before it, not by features of its own row",
    "matching_pursuit": "its features are chosen one after the other, each for what is left; wrap it "
    "(headlens.dictionaries.wrapped)",
}
_NORMS: dict[str, RowNorm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_PROCESSED = ("gpt2-small-hook-z-kk",)
"""Releases trained on a model that TransformerLens had processed, though SAELens' directory does not say so."""


def read_folder(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    activation_scale: float | None = None,
    convention: Convention | None = None,
) -> Autoencoder:
    """Return the dictionary that a SAELens folder holds.

    Raises
    ------
    DataError
        If a file is missing, damaged or does not fit the other, or the architecture is none that can be read.
    InvalidWeights
        If weights are NaN or infinite.
    """
    if not (path / CONFIG).is_file() and (inner := _inner(path)):
        raise DataError(f"{path} holds no {CONFIG}, but folders that do: name one of them, such as {inner}.")
    said = read_config(path / CONFIG)
    weights = read_safetensors(path / WEIGHTS)
    made = build(said, weights, str(path), dtype=dtype, activation_scale=activation_scale, convention=convention)
    if not (path / SPARSITY).is_file():
        return made
    kept = read_safetensors(path / SPARSITY).get("sparsity")
    if kept is None or tuple(kept.shape) != (made.d_sae,):
        raise DataError(
            f"{path / SPARSITY} must hold `sparsity` of {made.d_sae} features: delete it, or fetch it again."
        )
    return replace(made, log_frequency=kept.to(made.dtype))


def read_release(
    release: str,
    sae_id: str,
    *,
    dtype: torch.dtype | None = None,
    activation_scale: float | None = None,
    convention: Convention | None = None,
) -> Autoencoder:
    """Fetch a published dictionary by the names of SAELens' directory, through SAELens.

    Raises
    ------
    MissingExtra
        If SAELens is not installed.
    DataError
        If there is no such release or dictionary, it could not be fetched, or it cannot be read.
    """
    try:
        import sae_lens  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(
            f"{release} is no folder here, and published releases need the sae extra: pip install 'headlens[sae]'."
        ) from None
    try:
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        fetched = sae_lens.SAE.from_pretrained_with_cfg_and_sparsity(release, sae_id, device="cpu", dtype=name)
        model, sparsity = fetched[0], fetched[2]
    except Exception as error:  # whatever its loaders, one per publisher, can raise
        reason = (str(error).strip().split("\n")[0] or type(error).__name__)[:300]
        raise DataError(f"SAELens could not load {sae_id} of {release}: {reason}") from error
    said = {**model.cfg.to_dict(), "release": release, "sae_id": sae_id}
    if convention is None and release in _PROCESSED:
        convention = "without_value_bias"
    weights = {key: value.detach() for key, value in model.state_dict().items()}
    made = build(
        said, weights, f"{release}, {sae_id}", dtype=dtype, activation_scale=activation_scale, convention=convention
    )
    if sparsity is None or tuple(sparsity.shape) != (made.d_sae,):
        return made
    return replace(made, log_frequency=sparsity.to(made.dtype))


def build(
    said: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    where: str,
    *,
    dtype: torch.dtype | None = None,
    activation_scale: float | None = None,
    convention: Convention | None = None,
) -> Autoencoder:
    """Return the dictionary that a SAELens config describes, with these weights; `where` is for messages."""
    said = _flat(said, where)
    architecture = _architecture(said, where)
    activation, own = _RULES[architecture]
    dtype = dtype_of(said.get("dtype", "float32"), where) if dtype is None else dtype
    weights = _renamed({name: value.to(dtype) for name, value in weights.items()}, architecture, said, where)
    _check_names(weights, ("W_enc", "W_dec", "b_dec", *own), architecture, where)
    _check_sizes(said, weights, where)
    norm, weights = _normalised(said, weights, activation_scale, where)
    b_enc = weights["b_gate" if activation == "gated" else "b_enc"]
    site = _site(said.get("hook_name"))
    return Autoencoder(
        W_enc=weights["W_enc"],
        b_enc=b_enc,
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        activation=activation,
        k=_whole(said, "k", where) if activation in ("topk", "abstopk") else None,
        threshold=weights.get("threshold"),
        r_mag=weights.get("r_mag"),
        b_mag=weights.get("b_mag"),
        takes_b_dec_off=_flag(said, "apply_b_dec_to_input", True, where),
        scaled_by_decoder=_flag(said, "rescale_acts_by_decoder_norm", False, where),
        norm=norm,
        site=site,
        head=_whole(said, "hook_head_index", where) if said.get("hook_head_index") is not None else None,
        convention=convention_of(said, site) if convention is None else convention,
        model=said.get("model_name"),
        card=said,
    )


def convention_of(said: Mapping[str, Any], site: str | None) -> Convention:
    """Return how the value that was trained on differs from headlens' at that site, by how the model was loaded."""
    ours = said.get("headlens")
    if isinstance(ours, Mapping) and ours.get("convention") in get_args(Convention):
        return ours["convention"]
    loaded_by = said.get("model_class_name") or "HookedTransformer"
    if site is None or loaded_by == "AutoModelForCausalLM":
        return "site"
    options = said.get("model_from_pretrained_kwargs")
    options = options if isinstance(options, Mapping) else {}
    if site.endswith("hook_normalized"):
        return "before_gain"
    if site.endswith("hook_z"):
        return "without_value_bias" if options.get("fold_value_biases") else "site"
    return "centred" if options.get("center_writing_weights") else "site"


# --- configs ----------------------------------------------------------------------------------------------


def _flat(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return options and metadata side by side, under the names of version 6."""
    metadata = said.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise DataError(f"The metadata of {where} must be names and values, not a {type(metadata).__name__}.")
    found = {_OLD_NAMES.get(str(name), str(name)): value for name, value in said.items() if name != "metadata"}
    for name, value in metadata.items():
        found.setdefault(_OLD_NAMES.get(str(name), str(name)), value)
    return found


def _architecture(said: Mapping[str, Any], where: str) -> str:
    found = said.get("architecture", "standard")
    function = said.get("activation_fn", "relu")
    if not isinstance(found, str):
        raise DataError(f"{where} has the architecture {found!r:.40}; known are {', '.join(_RULES)}.")
    if found in _REFUSED:
        raise DataError(f"{where} is a {found}: {_REFUSED[found]}.")
    if found not in _RULES:
        raise DataError(f"{where} has the architecture {found!r:.40}; known are {', '.join(_RULES)}.")
    if function == "topk":
        return "topk"  # before version 6, a standard one with another activation function
    if function != "relu":
        raise DataError(f"{where} has the activation function {function!r:.40}; relu and topk are read.")
    return found


def _check_names(weights: Mapping[str, Tensor], wanted: tuple[str, ...], architecture: str, where: str) -> None:
    if missing := sorted(set(wanted) - set(weights)):
        raise DataError(f"{where} lacks {', '.join(missing)}, which a {architecture} dictionary has: fetch it again.")
    if odd := sorted(set(weights) - set(wanted)):
        raise DataError(f"{where} holds {', '.join(odd)[:100]}, which a {architecture} dictionary has not.")


def _check_sizes(said: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    shape = tuple(weights["W_enc"].shape)
    config = (_whole(said, "d_in", where), _whole(said, "d_sae", where))
    if shape != config:
        raise DataError(f"{where} says (d_in, d_sae) is {config} and its W_enc is {shape}: they belong to others.")


def _whole(said: Mapping[str, Any], name: str, where: str) -> int:
    value = said.get(name)
    if name == "k" and value is None:
        options = said.get("activation_fn_kwargs")
        value = options.get("k") if isinstance(options, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{where} has {name} = {value!r:.40}; it must be a whole number of at least 0.")
    return value


def _flag(said: Mapping[str, Any], name: str, default: bool, where: str) -> bool:
    value = said.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"{where} has {name} = {value!r:.40}; it must be true or false.")
    return value


# --- weights ----------------------------------------------------------------------------------------------


def _renamed(weights: dict[str, Tensor], architecture: str, said: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the weights under the names of a saved dictionary, where a checkpoint or an old file has others."""
    if architecture == "jumprelu" and "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if "topk_threshold" in weights and "b_enc" in weights:
        weights["threshold"] = torch.ones_like(weights["b_enc"]) * weights.pop("topk_threshold").item()
    if (factor := weights.pop("scaling_factor", None)) is not None:
        weights["W_dec"] = rescaled(weights, factor, _flag(said, "finetuning_scaling_factor", False, where), where)
    return weights


def rescaled(weights: Mapping[str, Tensor], factor: Tensor, used: bool, where: str) -> Tensor:
    """Return W_dec with what each feature was scaled by after training, if it was.

    Raises
    ------
    DataError
        If there is a factor that the config does not speak of: whether it was used cannot be told.
    """
    if torch.allclose(factor, torch.ones_like(factor)):
        return weights["W_dec"]
    if not used:
        raise DataError(
            f"{where} holds a scaling_factor that is not 1, and its config does not say finetuning_scaling_factor: "
            "whether features are scaled cannot be told. Write true or false into the config, or take it out."
        )
    if "W_dec" not in weights or tuple(factor.shape) != tuple(weights["W_dec"].shape[:1]):
        raise DataError(f"{where} has a scaling_factor of {tuple(factor.shape)}; it must be one number a feature.")
    return factor[:, None] * weights["W_dec"]


def _normalised(
    said: Mapping[str, Any], weights: dict[str, Tensor], scale: float | None, where: str
) -> tuple[RowNorm, dict[str, Tensor]]:
    """Return the norm that stays, and the weights with the one that does not."""
    kind = said.get("normalize_activations") or "none"
    kind = "expected_average_only_in" if kind is True else kind
    if kind in _NORMS:
        if scale is not None:
            raise DataError(f"{where} does not scale activations by a number: leave activation_scale out.")
        return _NORMS[kind], weights
    if kind != "expected_average_only_in":
        raise DataError(
            f"{where} has normalize_activations = {kind!r:.40}, which is not in its weights: save it with SAELens' "
            "save_inference_model, which folds it in."
        )
    if scale is None or not 0 < scale < float("inf"):
        raise DataError(
            f"{where} was trained on activations times one number, which its files do not hold: pass "
            "activation_scale=..., sqrt(d_in) over the mean length of an activation (1 if the weights have it already)."
        )
    fold: dict[str, Callable[[Tensor], Tensor]] = {
        "W_enc": lambda w: w * scale, "W_dec": lambda w: w / scale, "b_dec": lambda w: w / scale,
    }  # fmt: skip
    if _flag(said, "rescale_acts_by_decoder_norm", False, where) and "threshold" in weights:
        fold["threshold"] = lambda w: w / scale  # it is compared with activations times the length of their vector
    return "none", {name: fold[name](value) if name in fold else value for name, value in weights.items()}


# --- where it was trained ---------------------------------------------------------------------------------

_HF_BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)")


def _site(name: Any) -> str | None:
    """Return a hook's name as headlens says it; a transformers block is known by what it puts out."""
    if not isinstance(name, str):
        return None
    block = _HF_BLOCK.fullmatch(name)
    return name if block is None else f"blocks.{block[1]}.hook_resid_post"


def _inner(path: Path) -> Path | None:
    """Return one folder below that holds a dictionary."""
    return next((one.parent for one in sorted(path.glob(f"*/{CONFIG}"))), None) if path.is_dir() else None
