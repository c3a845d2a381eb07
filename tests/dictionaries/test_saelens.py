"""SAELens folders and releases: what is read of them, and what is refused, damaged or only looks right."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headlens._errors import DataError, HeadlensError, InvalidWeights, MissingExtra
from headlens.dictionaries import load
from tests.dictionaries.make_golden import D_IN, D_SAE, unpacked

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    unpacked("standard", tmp_path / "sae")
    return tmp_path / "sae"


def _config(folder: Path, **changes) -> None:
    said = json.loads((folder / CFG).read_text())
    (folder / CFG).write_text(json.dumps(said | changes))


def _metadata(folder: Path, **changes) -> None:
    said = json.loads((folder / CFG).read_text())
    _config(folder, metadata=said["metadata"] | changes)


def _weights(folder: Path, **changes) -> None:
    held = {name: value for name, value in (load_file(folder / WEIGHTS) | changes).items() if value is not None}
    save_file(held, folder / WEIGHTS)


# --- what it says of itself ---


def test_site_model_and_card_are_kept(folder):
    sae = load(folder)
    assert (sae.site, sae.head, sae.model, sae.convention) == ("blocks.1.hook_resid_pre", None, "tiny", "site")
    assert sae.card["sae_lens_version"] == "6.54.12" and sae.inputs == ("blocks.1.hook_resid_pre",)


@pytest.mark.parametrize(
    ("metadata", "convention"),
    [
        ({}, "site"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, "centred"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, "site"),
        ({"hook_name": "blocks.1.hook_mlp_out", "model_from_pretrained_kwargs": {"center_writing_weights": True}}, "centred"),
        ({"hook_name": "blocks.1.ln1.hook_normalized"}, "before_gain"),
        ({"hook_name": "blocks.1.ln1.hook_normalized", "model_class_name": "HookedTransformer"}, "before_gain"),
        ({"hook_name": "blocks.1.ln1.hook_normalized", "model_class_name": "headlens",
          "headlens": {"convention": "site"}}, "site"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "site"),
        ({"hook_name": "blocks.1.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}},
         "without_value_bias"),
        ({"model_class_name": "AutoModelForCausalLM", "model_from_pretrained_kwargs": {"center_writing_weights": True}},
         "site"),
        ({"headlens": {"convention": "nonsense"}}, "site"),
        ({"headlens": "nonsense", "model_from_pretrained_kwargs": [1]}, "site"),
    ],
)  # fmt: skip
def test_how_the_model_was_loaded_decides_the_convention(folder, metadata, convention):
    _metadata(folder, **metadata)
    assert load(folder).convention == convention
    assert load(folder, convention="centred").convention == "centred"


@pytest.mark.parametrize(
    "name", ["model.layers.4", "transformer.h.4", "gpt_neox.layers.4", "model.language_model.layers.4"]
)
def test_a_block_of_transformers_is_known_by_what_it_puts_out(folder, name):
    _metadata(folder, hook_name=name)
    assert load(folder).site == "blocks.4.hook_resid_post"


def test_one_head_is_kept_and_sites_of_others_left_as_they_are(folder):
    _metadata(folder, hook_name="blocks.1.attn.hook_z", hook_head_index=3)
    assert load(folder).head == 3
    _metadata(folder, hook_name="blocks.1.hook_mlp_in", hook_head_index=None)
    assert load(folder).site == "blocks.1.hook_mlp_in"
    _metadata(folder, hook_name=None)
    assert load(folder).site is None and load(folder).inputs == ()


def test_how_often_features_fired_is_kept(folder):
    save_file({"sparsity": torch.arange(float(D_SAE))}, folder / "sparsity.safetensors")
    sae = load(folder)
    assert sae.log_frequency.tolist() == list(range(D_SAE)) and sae.digest == load(folder).digest
    save_file({"sparsity": torch.zeros(3)}, folder / "sparsity.safetensors")
    with pytest.raises(DataError, match="must hold `sparsity` of 10 features"):
        load(folder)


def test_precision_is_the_config_s_unless_said(folder):
    assert load(folder).dtype == torch.float32
    assert load(folder, dtype="float64").dtype == load(folder, dtype=torch.float64).W_dec.dtype == torch.float64
    assert load(folder, device="cpu").device == torch.device("cpu")
    with pytest.raises(DataError, match="dtype 'int8'; it must be one of float32"):
        load(folder, dtype="int8")


def test_a_factor_that_training_ended_with_is_part_of_the_vectors(folder):
    factor = torch.linspace(0.5, 2, D_SAE)
    plain = load(folder)
    _weights(folder, scaling_factor=factor)
    with pytest.raises(DataError, match="does not say finetuning_scaling_factor"):
        load(folder)
    _config(folder, finetuning_scaling_factor=True)
    sae, x = load(folder), torch.randn(5, D_IN)
    assert torch.equal(sae.encode(x), plain.encode(x))
    assert torch.allclose(sae.decode(sae.encode(x)), plain.decode(plain.encode(x) * factor), atol=1e-6)
    _weights(folder, scaling_factor=factor[:3])
    with pytest.raises(DataError, match="scaling_factor of .* one number a feature"):
        load(folder)


# --- what is refused ---


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("transcoder", "writes at another site than it reads"),
        ("jumprelu_skip_transcoder", "writes at another site"),
        ("temporal", "by those before it"),
        ("matching_pursuit", "one after the other"),
        ("sparse", "known are standard, topk"),
        (["standard"], "known are standard, topk"),
        (None, "known are standard"),
    ],
)
def test_other_architectures_are_refused_by_name(folder, architecture, says):
    _config(folder, architecture=architecture)
    with pytest.raises(DataError, match=says):
        load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_in": 7}, r"\(d_in, d_sae\) is \(7, 10\) and its W_enc is \(6, 10\)"),
        ({"d_sae": 10**15}, r"1000000000000000\) and its W_enc"),
        ({"d_in": -6}, "d_in = -6; it must be a whole number"),
        ({"d_in": 6.0}, "d_in = 6.0"),
        ({"d_in": True}, "d_in = True"),
        ({"d_in": None}, "d_in = None"),
        ({"d_sae": "10"}, "d_sae = '10'"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input = 'no'; it must be true or false"),
        ({"normalize_activations": "batch_norm"}, "normalize_activations = 'batch_norm'"),
        ({"normalize_activations": "covariance_whitening"}, "save_inference_model"),
        ({"normalize_activations": "expected_average_only_in"}, "activation_scale="),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
        ({"metadata": [1]}, "metadata of .* must be names and values"),
        ({"metadata": {"hook_head_index": "one"}}, "hook_head_index = 'one'"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(folder, change, says):
    _config(folder, **change)
    with pytest.raises(DataError, match=says):
        load(folder)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_a_number_above_0_and_be_asked_for(folder, scale):
    with pytest.raises(DataError, match="leave activation_scale out"):
        load(folder, activation_scale=1.0)
    _config(folder, normalize_activations="expected_average_only_in")
    with pytest.raises(DataError, match="pass activation_scale"):
        load(folder, activation_scale=scale)


@pytest.mark.parametrize("k", [0, 11, -1, 2.5, None, "3", 10**40])
def test_k_must_be_there_and_fit(tmp_path, k):
    unpacked("topk", tmp_path)
    _config(tmp_path, k=k)
    with pytest.raises(DataError, match="k = |k must be from 1 to the 10 features"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"W_dec": None}, "lacks W_dec, which a standard dictionary has"),
        ({"b_enc": None, "b_dec": None}, "lacks b_dec, b_enc"),
        ({"b_gate": torch.zeros(10)}, "holds b_gate, which a standard dictionary has not"),
        ({"W_dec": torch.zeros(6, 10)}, r"W_dec must be \(10, 6\)"),
        ({"b_dec": torch.zeros(1, 6)}, r"b_dec must be \(6,\)"),
        ({"W_enc": torch.zeros(60)}, r"W_enc is \(60,\)"),
        ({"b_enc": torch.zeros(10, dtype=torch.int64)}, "b_enc, which is no plain tensor of floating-point"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, says):
    _weights(folder, **change)
    with pytest.raises(DataError, match=says):
        load(folder)


def test_weights_that_are_nan_are_refused_by_name(folder):
    _weights(folder, W_dec=torch.full((10, 6), torch.nan))
    with pytest.raises(InvalidWeights, match="W_dec"):
        load(folder)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"There is no {name} in"):
        load(folder)


def test_the_folder_above_names_those_that_hold_one(folder):
    with pytest.raises(DataError, match="folders that do: name one of them, such as .*sae"):
        load(folder.parent)
    assert load(folder.parent, "sae").digest == load(folder).digest
    with pytest.raises(DataError, match="is no folder with a dictionary"):
        load(folder.parent, "other")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_file_cut_short_is_refused(folder, name, share):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="damaged or cut short|cannot be read"):
        load(folder)


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "null", "[" * 100000, "{'a': 1}", "\x00", "{" * 50])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / CFG).write_text(content)
    with pytest.raises(DataError, match="cannot be read|is not the config"):
        load(folder)


def test_a_header_that_promises_more_than_the_file_holds_is_refused(folder):
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(DataError, match="damaged or cut short"):
        load(folder)


def test_any_byte_that_flips_is_read_or_refused_and_never_another_error(folder):
    whole, refused = (folder / WEIGHTS).read_bytes(), 0
    for at in range(0, min(len(whole), 480), 3):
        (folder / WEIGHTS).write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            load(folder)
        except HeadlensError:
            refused += 1
    assert refused > 50


# --- releases ---


def test_a_release_without_saelens_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtra, match=r"gpt2-small-res-jb is no folder here.*pip install 'headlens\[sae\]'"):
        load("gpt2-small-res-jb", "blocks.5.hook_resid_pre")


def test_a_release_needs_the_dictionary_s_name():
    with pytest.raises(DataError, match=r"load\('gpt2-small-res-jb', 'blocks.5.hook_resid_pre'\)"):
        load("gpt2-small-res-jb")


class _Directory:
    """Stands in for SAELens and its hub: one release, of a dictionary that lies in a folder here."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, None

    def from_pretrained_with_cfg_and_sparsity(self, release, sae_id, *, device, dtype):
        self.asked = (release, sae_id, device, dtype)
        if release == "nowhere":
            raise ValueError("Release nowhere not found in pretrained SAEs directory\nand more")
        said = json.loads((self.folder / CFG).read_text())
        weights = {name: value.requires_grad_() for name, value in load_file(self.folder / WEIGHTS).items()}
        config = types.SimpleNamespace(to_dict=lambda: said)
        model = types.SimpleNamespace(cfg=config, state_dict=lambda: weights)
        return model, said, torch.zeros(D_SAE)


def test_a_release_is_fetched_through_saelens(folder, monkeypatch):
    hub = _Directory(folder)
    monkeypatch.setitem(sys.modules, "sae_lens", types.SimpleNamespace(SAE=hub))
    sae = load("some-release", "blocks.1.hook_resid_pre", dtype="float64")
    assert hub.asked == ("some-release", "blocks.1.hook_resid_pre", "cpu", "float64")
    x = torch.randn(4, D_IN, dtype=torch.float64)
    assert torch.equal(sae.encode(x), load(folder, dtype="float64").encode(x)) and not sae.W_enc.requires_grad
    assert (sae.card["release"], sae.card["sae_id"]) == ("some-release", "blocks.1.hook_resid_pre")
    assert sae.log_frequency.tolist() == [0.0] * D_SAE
    _metadata(folder, hook_name="blocks.1.attn.hook_z")
    assert load("gpt2-small-hook-z-kk", "blocks.1.hook_z").convention == "without_value_bias"
    with pytest.raises(
        DataError, match="could not load x of nowhere: Release nowhere not found in pretrained SAEs directory$"
    ):
        load("nowhere", "x")


@pytest.mark.filterwarnings("ignore")
def test_saelens_own_directory_refuses_what_it_does_not_know():
    pytest.importorskip("sae_lens")
    with pytest.raises(DataError, match="SAELens could not load x of no-such-release"):
        load("no-such-release", "x")
