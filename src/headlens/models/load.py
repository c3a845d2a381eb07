"""`hl.load`: one way to name a model, whether it is a folder, a hub id, a zoo model or an object.

Everything that would give wrong numbers later is refused here, with a reason: an architecture outside
the table, weights that are missing, or not finite.
"""

import re
from pathlib import Path
from typing import Any

import torch

from headlens._errors import InvalidWeights, ModelError, ModelNotFound, UnsupportedArchitecture
from headlens.models.families import FAMILIES, Family, family_of
from headlens.models.model import Model

ZOO = "zoo:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    tokenizer: Any | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a causal language model (or a BERT-like encoder, for capture only).

    Parameters
    ----------
    source
        A folder, a hub id ("gpt2", "Qwen/Qwen3-4B"), "zoo:NAME", a transformers model, or a `Model`.
    device
        Where to put it; None leaves a model object where it is and puts a loaded one on the CPU.
    dtype
        Precision of the weights: float32 unless said otherwise, "auto" for the checkpoint's. A model object
        keeps its own.
    revision
        Branch, tag or commit; for hub ids only.
    tokenizer
        For a model object: its tokenizer, where text is to be read.

    Raises
    ------
    ModelNotFound
        If nothing is at `source`.
    UnsupportedArchitecture
        If headlens does not know the architecture; nothing is guessed.
    InvalidWeights
        If weights are missing from the checkpoint, or are NaN or infinite.
    """
    if not isinstance(source, (str, Path)) and (dtype is not None or revision is not None):
        raise ModelError(
            "dtype and revision say how weights are read, and this model is already there: leave them out."
        )
    if isinstance(source, Model):
        if device is not None:
            source.hf.to(device)
        return source
    if isinstance(source, (str, Path)):
        model = _from_name(str(source), dtype or "float32", revision, trust_remote_code)
    else:
        model = _from_object(source, tokenizer)
    if device is not None:
        model.hf.to(device)
    model.hf.eval()
    _check_finite(model)
    _check_blocks(model)
    return model


def _from_object(hf: Any, tokenizer: Any | None) -> Model:
    if not hasattr(hf, "config") or not hasattr(hf, "base_model"):
        raise ModelError(f"hl.load takes a path, a name or a transformers model, not a {type(hf).__name__}.")
    family = family_of(hf.base_model.config)
    return Model(hf, tokenizer, family, hf.config._name_or_path or type(hf).__name__, None)


def _from_name(name: str, dtype: str | torch.dtype, revision: str | None, trust: bool) -> Model:
    location, options = _locate(name, revision)
    if revision is not None and options.get("local_files_only"):
        raise ModelError(f"{name} is a folder and has no revision '{revision}': leave the revision out.")
    options["trust_remote_code"] = trust
    config = _config(name, location, options)
    family = family_of(config)
    hf = _weights(name, location, family, config, _dtype(dtype), options)
    resolved = getattr(hf.config, "_commit_hash", None) or revision
    return Model(hf, _tokenizer(location, options), family, name, resolved)


def _locate(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return where transformers should look, and whether it may use the network to do so."""
    if name.startswith(ZOO):
        from headlens import zoo

        return str(zoo.path(name.removeprefix(ZOO))), {"local_files_only": True}
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelNotFound(f"{name} holds no config.json: a model is a folder that save_pretrained wrote.")
        return name, {"local_files_only": True}
    if Path(name).exists():
        raise ModelNotFound(f"{name} is a file; a model is a folder that save_pretrained wrote (config.json in it).")
    if name in _zoo_names():
        raise ModelNotFound(f"There is no folder {name}; the model that ships with headlens is {ZOO}{name}.")
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFound(f"There is no folder {name}. Name a model folder, a hub id or {ZOO}NAME.")
    return name, {"revision": revision} if revision else {}


def _zoo_names() -> tuple[str, ...]:
    from headlens import zoo

    return zoo.names()


def _config(name: str, location: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, **options)
    except ValueError as error:
        if "model type" in str(error) or "model_type" in str(error):
            raise UnsupportedArchitecture(
                f"{name} is of an architecture that this version of transformers does not know. "
                f"headlens knows: {', '.join(FAMILIES)}."
            ) from error
        raise ModelNotFound(f"{name} has no readable config.json: {_first_line(error)}") from error
    except OSError as error:
        if options.get("local_files_only"):
            raise ModelNotFound(f"{name} holds no model: {_first_line(error)}") from error
        raise ModelNotFound(
            f"{name} is no folder here and could not be fetched from the hub: {_first_line(error)}"
        ) from error


def _dtype(dtype: str | torch.dtype) -> Any:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype must be float32, float64, float16, bfloat16 or auto, not '{dtype}'.")
    return found


def _weights(name: str, location: str, family: Family, config: Any, dtype: Any, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if family.causal else AutoModel
    if dtype == torch.float64 and hasattr(config, "num_local_experts"):
        options = options | {"experts_implementation": "eager"}  # the grouped kernel has no float64
    try:
        loaded: Any = auto.from_pretrained(
            location, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"The weights of {name} could not be read: {_first_line(error)}") from error
    hf, info = loaded
    missing = sorted(k for k in info["missing_keys"] if not _pooler(k)) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise InvalidWeights(
            f"{name} lacks weights that its config promises ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); transformers would fill them with random numbers."
        )
    return hf


def _pooler(key: str) -> bool:
    # An encoder's pooler reads the last block and is read by no site: checkpoints often lack it.
    return "pooler" in key


def _tokenizer(location: str, options: dict[str, Any]) -> Any | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
    except (OSError, ValueError, KeyError):
        return None  # a model without a tokenizer reads token ids; text is refused where it is given
    # Where a folder has no tokenizer files, transformers makes up one of special tokens only, with ids of its own.
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return tokenizer if words else None


def _check_finite(model: Model) -> None:
    for key, weight in model.hf.named_parameters():
        total = weight.detach().sum(dtype=torch.promote_types(weight.dtype, torch.float32))
        # The sum is one cheap pass; only where it overflows or is NaN does every entry count.
        if not torch.isfinite(total) and not bool(torch.isfinite(weight).all()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise InvalidWeights(
                f"{model.name} has NaN or infinite values in {key}: its file is damaged, its training diverged, or "
                f"its numbers do not fit {dtype}. Use another checkpoint or a wider dtype."
            )


def _check_blocks(model: Model) -> None:
    try:
        model.projections(0)
        model.norm(0, "pre_norm")
        model.norm(0, "post_norm")
    except (AttributeError, IndexError) as error:
        raise UnsupportedArchitecture(
            f"{model.name} calls itself {model.config.model_type} but is not built like one ({error}). Its row in "
            "headlens/models/families.py would give wrong numbers."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
