"""Writes golden/: dictionaries of every kind as SAELens saves them, and what SAELens makes of the same rows.

Run it where the sae extra is installed, from the repository:  python -m tests.dictionaries.make_golden

    configs.json            cfg.json of every kind                       tensors.safetensors     KIND/weights/NAME,
                                                                         KIND/rows, KIND/features, KIND/reconstruction

Weights are random and few; `unpacked` makes of one kind the folder that SAELens wrote.
"""

import json
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
D_IN, D_SAE, N_HEADS, SCALE = 6, 10, 2, 1.7
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
RESID = {"hook_name": "blocks.1.hook_resid_pre", "hook_head_index": None, "model_name": "tiny"}
Z = {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": None, "model_name": "tiny"}


def rows(like: str) -> Tensor:
    """Rows to encode; the last is all zeros, except where SAELens would divide by its length."""
    x = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(1)) * 1.5
    x[-1] = 0.1 if "norm" in like else 0
    return x.unflatten(-1, (N_HEADS, -1)) if "hook_z" in like else x


def _saved(architecture: str, folder: Path, *, training: bool = False, **options: Any) -> None:
    """Write a dictionary of random weights through SAELens' own classes."""
    import sae_lens
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_training_class(architecture) if training else get_sae_class(architecture)
    assert sae_lens.__version__
    options = {"d_in": D_IN, "d_sae": D_SAE, "metadata": SAEMetadata(**RESID)} | options
    model: Any = kind(config(**options))
    generator = torch.Generator().manual_seed(len(architecture))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            value = torch.randn(parameter.shape, generator=generator) / math.sqrt(D_IN)
            parameter.copy_(value.abs() if "threshold" in name else value)
        if training and hasattr(model, "topk_threshold"):
            model.topk_threshold.fill_(0.3)
    (model.save_inference_model if training else model.save_model)(folder)


def _edited(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    said, weights = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(said, weights)
    (folder / CONFIG).write_text(json.dumps(said))
    save_file(weights, folder / WEIGHTS)


def _old(folder: Path, like: str = "standard", **said: Any) -> None:
    """Write a config of before version 6, which says things otherwise and less."""

    def change(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        config.clear()
        config |= {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "model_name": "tiny",
                   "hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1, "hook_point_head_index": None,
                   "dataset_path": "x", "context_size": 8} | said  # fmt: skip

    _saved(like, folder, **({"k": 3} if like == "topk" else {}))
    _edited(folder, change)


def _both(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], **options: Any) -> None:
    _saved("standard", folder, **options)
    _edited(folder, change)


def _ones(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    weights["scaling_factor"] = torch.ones(D_SAE)


def _other_dtype(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    config["dtype"] = "bfloat16"


def _metadata(**said: Any) -> Any:
    from sae_lens.saes.sae import SAEMetadata

    return SAEMetadata(**said)


KINDS: dict[str, Callable[[Path], None]] = {
    "standard": lambda at: _saved("standard", at),
    "standard_b_dec_kept": lambda at: _saved("standard", at, apply_b_dec_to_input=False),
    "standard_layer_norm": lambda at: _saved("standard", at, normalize_activations="layer_norm"),
    "standard_rescale_norm": lambda at: _saved("standard", at, normalize_activations="constant_norm_rescale"),
    "standard_hook_z": lambda at: _saved("standard", at, reshape_activations="hook_z", metadata=_metadata(**Z)),
    "standard_bfloat16": lambda at: _saved("standard", at, dtype="bfloat16"),
    "standard_float16": lambda at: _saved("standard", at, dtype="float16"),
    "standard_float64": lambda at: _saved("standard", at, dtype="float64"),
    "standard_config_of_another_dtype": lambda at: _both(at, _other_dtype),
    "standard_scaling_factor_of_1": lambda at: _both(at, _ones),
    "standard_scaled": lambda at: _saved("standard", at, normalize_activations="expected_average_only_in"),
    "topk": lambda at: _saved("topk", at, k=3),
    "topk_by_decoder": lambda at: _saved("topk", at, k=3, rescale_acts_by_decoder_norm=True),
    "topk_by_decoder_layer_norm": lambda at: _saved(
        "topk", at, k=3, rescale_acts_by_decoder_norm=True, normalize_activations="layer_norm", apply_b_dec_to_input=False
    ),
    "topk_by_decoder_bfloat16": lambda at: _saved("topk", at, k=3, rescale_acts_by_decoder_norm=True, dtype="bfloat16"),
    "topk_all": lambda at: _saved("topk", at, k=D_SAE),
    "topk_trained": lambda at: _saved("topk", at, k=3, training=True),
    "abstopk": lambda at: _saved("abstopk", at, k=3),
    "abstopk_by_decoder": lambda at: _saved("abstopk", at, k=3, rescale_acts_by_decoder_norm=True),
    "jumprelu": lambda at: _saved("jumprelu", at),
    "jumprelu_bfloat16": lambda at: _saved("jumprelu", at, dtype="bfloat16"),
    "jumprelu_rescale_norm": lambda at: _saved("jumprelu", at, normalize_activations="constant_norm_rescale"),
    "jumprelu_scaled": lambda at: _saved("jumprelu", at, normalize_activations="expected_average_only_in"),
    "batchtopk_trained": lambda at: _saved("batchtopk", at, k=2.5, training=True),
    "matryoshka_trained": lambda at: _saved("matryoshka_batchtopk", at, k=2.5, matryoshka_widths=[4, D_SAE], training=True),
    "gated": lambda at: _saved("gated", at),
    "gated_b_dec_kept": lambda at: _saved("gated", at, apply_b_dec_to_input=False),
    "gated_bfloat16": lambda at: _saved("gated", at, dtype="bfloat16"),
    "gated_hook_z": lambda at: _saved("gated", at, reshape_activations="hook_z", metadata=_metadata(**Z)),
    "old": lambda at: _old(at),
    "old_activations_not_normalised": lambda at: _old(at, normalize_activations=False),
    "old_layer_norm": lambda at: _old(at, normalize_activations="layer_norm", apply_b_dec_to_input=False),
    "old_topk": lambda at: _old(
        at, "topk", architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 3},
        sae_lens_training_version="4.0.0",
    ),
    "old_hook_z": lambda at: _old(at, hook_point="blocks.1.attn.hook_z", activation_fn_str="relu"),
    "old_gated": lambda at: _old(at, "gated", architecture="gated", sae_lens_version="5.11.0"),
    "old_scaled": lambda at: _old(at, normalize_activations=True),
}  # fmt: skip


def theirs(folder: Path) -> Any:
    """Return the dictionary as SAELens reads it; what was trained on scaled activations is folded by SCALE."""
    from sae_lens import SAE

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SAE.load_from_disk(folder)
    if model.cfg.normalize_activations == "expected_average_only_in":
        model.fold_activation_norm_scaling_factor(SCALE)
    return model.requires_grad_(False)


def answers(folder: Path, name: str) -> dict[str, Tensor]:
    """Return rows, features and reconstruction, as SAELens has them."""
    model, x = theirs(folder), rows(name)
    features = model.encode(x)
    found = {"rows": x, "features": features, "reconstruction": model.decode(features)}
    return {key: value.contiguous().clone() for key, value in found.items()}


def main() -> None:
    configs, tensors = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in KINDS.items():
            folder = Path(temporary) / name
            make(folder)
            configs[name] = json.loads((folder / CONFIG).read_text())
            tensors |= {f"{name}/weights/{key}": value for key, value in load_file(folder / WEIGHTS).items()}
            tensors |= {f"{name}/{key}": value for key, value in answers(folder, name).items()}
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
    save_file(tensors, GOLDEN / "tensors.safetensors")


def unpacked(name: str, folder: Path) -> dict[str, Tensor]:
    """Write the folder of one kind again, and return its rows and SAELens' answers."""
    folder.mkdir(parents=True, exist_ok=True)
    said = json.loads((GOLDEN / "configs.json").read_text())[name]
    (folder / CONFIG).write_text(json.dumps(said))
    held = load_file(GOLDEN / "tensors.safetensors")
    begin = f"{name}/weights/"
    save_file(
        {key.removeprefix(begin): value for key, value in held.items() if key.startswith(begin)}, folder / WEIGHTS
    )
    return {key: held[f"{name}/{key}"] for key in ("rows", "features", "reconstruction")}


if __name__ == "__main__":
    main()
