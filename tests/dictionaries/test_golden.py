"""Files that SAELens wrote, and its own answers to the same rows: kept ones everywhere, itself where it is installed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from headlens.dictionaries import load
from tests.dictionaries.make_golden import D_IN, D_SAE, KINDS, SCALE, answers, rows, theirs, unpacked

CLOSE = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""Another processor may round the last bit otherwise than the one that wrote the answers."""


def _scale(name: str) -> float | None:
    return SCALE if name.endswith("_scaled") else None


@pytest.mark.parametrize("name", KINDS)
def test_kept_answers_are_answered_again(name, tmp_path):
    kept = unpacked(name, tmp_path)
    sae = load(tmp_path, activation_scale=_scale(name))
    features = sae.encode(kept["rows"])
    assert (sae.d_in, sae.d_sae, sae.dtype) == (D_IN, D_SAE, kept["features"].dtype)
    atol = CLOSE[features.dtype]
    assert torch.allclose(features, kept["features"], rtol=0, atol=atol)
    assert torch.allclose(sae.decode(features, like=kept["rows"]), kept["reconstruction"], rtol=0, atol=4 * atol)
    assert bool((features != 0).any()) and bool((features == 0).any())


def test_every_kind_tells_on_itself(tmp_path):
    """No two kinds give the same answers by chance: each option changes something."""
    kept = {name: unpacked(name, tmp_path / name) for name in KINDS}
    same = {
        (a, b)
        for a in KINDS
        for b in KINDS
        if a < b and kept[a]["features"].shape == kept[b]["features"].shape
        if torch.equal(kept[a]["features"].double(), kept[b]["features"].double())
        if torch.equal(kept[a]["reconstruction"].flatten().double(), kept[b]["reconstruction"].flatten().double())
    }
    alike = [
        {"standard", "old", "old_activations_not_normalised", "standard_scaling_factor_of_1", "standard_hook_z",
         "old_hook_z"},
        {"standard_scaled", "old_scaled"}, {"topk", "old_topk"}, {"gated", "old_gated", "gated_hook_z"},
        {"standard_bfloat16", "standard_config_of_another_dtype"},
    ]  # fmt: skip
    assert all(any({a, b} <= group for group in alike) for a, b in same)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_saelens_itself_agrees_to_the_last_bit(name, tmp_path):
    pytest.importorskip("sae_lens")
    KINDS[name](tmp_path)
    found, sae = answers(tmp_path, name), load(tmp_path, activation_scale=_scale(name))
    features = sae.encode(rows(name))
    assert torch.equal(features, found["features"])
    assert torch.equal(sae.decode(features, like=rows(name)), found["reconstruction"])
    assert torch.equal(features, sae.encode(rows(name)))  # nothing was left behind by the first call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_agrees_at_the_size_of_a_real_dictionary(architecture, dtype, tmp_path):
    pytest.importorskip("sae_lens")
    from tests.dictionaries.make_golden import _saved

    _saved(architecture, tmp_path, d_in=96, d_sae=768, dtype=dtype, **({"k": 20} if architecture == "topk" else {}))
    x = torch.randn(3, 50, 96, generator=torch.Generator().manual_seed(0))
    sae, other = load(tmp_path), theirs(tmp_path)
    assert torch.equal(sae.encode(x), other.encode(x))
    assert torch.equal(sae.decode(sae.encode(x)), other.decode(other.encode(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk", "jumprelu", "topk"])
def test_a_checkpoint_of_training_reads_as_what_saelens_would_save_of_it(architecture, tmp_path):
    pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_training_class

    options = {
        "matryoshka_batchtopk": {"k": 2.5, "matryoshka_widths": [4, D_SAE]},
        "batchtopk": {"k": 2.5},
        "topk": {"k": 3},
    }
    kind, config = get_sae_training_class(architecture)
    model = kind(config(d_in=D_IN, d_sae=D_SAE, **options.get(architecture, {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) - 0.3)
        if hasattr(model, "threshold"):
            model.threshold.abs_()
        if hasattr(model, "topk_threshold"):
            model.topk_threshold.fill_(0.4)
    model.save_model(tmp_path / "checkpoint")
    model.save_inference_model(tmp_path / "saved")
    checkpoint, saved = load(tmp_path / "checkpoint"), load(tmp_path / "saved")
    x = rows("")
    assert torch.allclose(checkpoint.encode(x), saved.encode(x), atol=1e-5)
    assert torch.allclose(checkpoint.reconstruct(x), saved.reconstruct(x), atol=1e-5)
    assert bool((saved.encode(x) != 0).any())


def test_running_the_scale_equals_folding_it(tmp_path):
    kept = unpacked("jumprelu_scaled", tmp_path)
    x = kept["rows"]
    folded, plain = load(tmp_path, activation_scale=SCALE), load(tmp_path, activation_scale=1.0)
    assert torch.allclose(folded.encode(x), plain.encode(SCALE * x), atol=1e-5)
    assert torch.allclose(folded.reconstruct(x), plain.reconstruct(SCALE * x) / SCALE, atol=1e-5)
    assert not torch.allclose(folded.encode(x), plain.encode(x), atol=0.1)


def test_running_the_scale_equals_folding_it_where_features_count_by_their_vectors(tmp_path):
    """As in a checkpoint of BatchTopK: the threshold is compared with what the fold makes smaller."""
    x = unpacked("jumprelu_scaled", tmp_path)["rows"]
    said = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(said | {"rescale_acts_by_decoder_norm": True}))
    folded, plain = load(tmp_path, activation_scale=SCALE), load(tmp_path, activation_scale=1.0)
    assert torch.allclose(folded.encode(x) * SCALE, plain.encode(SCALE * x), atol=1e-5)
    assert torch.allclose(folded.reconstruct(x), plain.reconstruct(SCALE * x) / SCALE, atol=1e-5)


def test_old_checkpoints_hold_the_logarithm_of_the_threshold(tmp_path):
    x = unpacked("jumprelu", tmp_path)["rows"]
    features = load(tmp_path).encode(x)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights | {"log_threshold": weights.pop("threshold").log()}, tmp_path / "sae_weights.safetensors")
    assert torch.allclose(load(tmp_path).encode(x), features, atol=1e-6)
