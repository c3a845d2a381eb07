"""The two formats of dictionaries of attention's output: one pair of files per layer, and one per head."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from headlens._errors import DataError, InvalidWeights
from headlens.dictionaries import load

LAYER = "gpt2-small_L5_Hcat_z_lr1.00e-03_l11.00e+00_ds20_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9"
HEAD = "gpt2-small_L1_H3_z_lr1.20e-03_l11.00e+00_ds20_nt2000000000_bs4096_sl64_c1"


def _weights(d_in: int, d_sae: int = 20) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(d_in)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _pair(folder: Path, name: str, weights, **said) -> Path:
    (folder / f"{name}_cfg.json").write_text(json.dumps(said))
    torch.save(weights, folder / f"{name}.pt")
    return folder / name


@pytest.fixture
def layer(tmp_path) -> Path:
    return _pair(
        tmp_path, LAYER, _weights(12), act_size=12, dict_size=20, act_name="blocks.5.attn.hook_z", layer=5,
        model_name="gpt2-small", enc_dtype="fp32", l1_coeff=1.0, seed=49,
    )  # fmt: skip


@pytest.fixture
def head(tmp_path) -> Path:
    return _pair(
        tmp_path, HEAD, _weights(4), act_size=4, dict_size=20, act_name="blocks.1.attn.hook_z", layer=1, head=3,
        model_name="gpt2-small",
    )  # fmt: skip


def test_a_layer_s_dictionary_encodes_as_its_makers_do(layer):
    sae, W = load(layer), _weights(12)
    z = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = z.flatten(-2)
    features = torch.relu((flat - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
    assert torch.equal(sae.encode(z), features) and torch.equal(sae.encode(flat), features)
    assert torch.equal(sae.decode(features), features @ W["W_dec"] + W["b_dec"])
    assert (sae.site, sae.head, sae.model) == ("blocks.5.attn.hook_z", None, "gpt2-small")
    assert sae.convention == "without_value_bias" and sae.card["l1_coeff"] == 1.0


def test_a_head_s_dictionary_knows_its_head(head):
    sae = load(head)
    assert (sae.site, sae.head, sae.d_in) == ("blocks.1.attn.hook_z", 3, 4)
    assert load(head, convention="site").convention == "site"
    assert load(head, dtype="float64").dtype == torch.float64


def test_either_file_or_what_both_begin_with_names_the_pair(layer):
    names = [layer, f"{layer}.pt", f"{layer}_cfg.json", str(layer)]
    assert len({load(name).digest for name in names}) == 1


@pytest.mark.parametrize("name", ["z", "hook_z", "attn.hook_z"])
@pytest.mark.parametrize("of", [None, "cat"])
def test_the_hook_may_be_named_by_its_last_part(tmp_path, name, of):
    said = {"act_size": 4, "dict_size": 20, "act_name": name, "layer": 2} | ({} if of is None else {"head": of})
    sae = load(_pair(tmp_path, "x", _weights(4), **said))
    assert (sae.site, sae.head) == ("blocks.2.attn.hook_z", None)


def test_a_scaling_factor_is_part_of_the_vectors_where_it_was_used(tmp_path):
    factor = torch.linspace(0.5, 2, 20)
    said = {"act_size": 4, "dict_size": 20, "act_name": "z", "layer": 2, "head": 0}
    plain = load(_pair(tmp_path, "plain", _weights(4), **said))
    ones = load(_pair(tmp_path, "ones", _weights(4) | {"scaling_factor": torch.ones(20)}, **said))
    assert torch.equal(plain.W_dec, ones.W_dec)
    used = _pair(tmp_path, "used", _weights(4) | {"scaling_factor": factor}, finetuning_scaling_factor=True, **said)
    assert torch.equal(load(used).W_dec, factor[:, None] * plain.W_dec)
    with pytest.raises(DataError, match="does not say finetuning_scaling_factor"):
        load(_pair(tmp_path, "unsaid", _weights(4) | {"scaling_factor": factor}, **said))


def test_parameters_and_ordered_state_dicts_are_read(tmp_path):
    module = torch.nn.Module()
    for name, value in _weights(4).items():
        module.register_parameter(name, torch.nn.Parameter(value))
    said = {"act_size": 4, "dict_size": 20, "act_name": "z", "layer": 2}
    assert not load(_pair(tmp_path, "x", module.state_dict(), **said)).W_enc.requires_grad
    (tmp_path / "old_cfg.json").write_text(json.dumps(said))
    torch.save(module.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load(tmp_path / "old").digest == load(tmp_path / "x").digest


class _Writes:
    """A pickle that, loaded as one, would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
def test_a_hostile_file_is_refused_and_nothing_in_it_is_run(layer, kind):
    mark = layer.parent / "written"
    hostile = {**_weights(12), "hook": _Writes(mark)}
    if kind == "bare":
        Path(f"{layer}.pt").write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, f"{layer}.pt", _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(DataError, match="nothing in it was run"):
        load(layer)
    assert not mark.exists()
    torch.load(f"{layer}.pt", weights_only=False) if kind != "bare" else pickle.loads(Path(f"{layer}.pt").read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(3)], "holds a list and no tensors by name"),
        (torch.zeros(3), "holds a Tensor and no tensors by name"),
        ({"W_enc": 3.0}, "W_enc, which is no plain tensor"),
        ({"W_enc": torch.zeros(12, 20, dtype=torch.int8)}, "W_enc, which is no plain tensor"),
        ({"W_enc": torch.eye(3).to_sparse()}, "W_enc, which is no plain tensor"),
        ({5: torch.zeros(3)}, "5, which is no plain tensor"),
        ({"W_enc": torch.zeros(12, 20)}, "lacks W_dec, b_dec, b_enc"),
        (_weights(12) | {"extra": torch.zeros(3)}, "holds extra, which such a dictionary has not"),
        (_weights(11), r"\(act_size, dict_size\) is \(12, 20\) and W_enc is \(11, 20\)"),
        (_weights(12) | {"b_dec": torch.zeros(13)}, r"b_dec must be \(12,\)"),
    ],
)
def test_other_things_than_the_four_tensors_are_refused_by_name(layer, content, says):
    torch.save(content, f"{layer}.pt")
    with pytest.raises(DataError, match=says):
        load(layer)


def test_nan_is_refused_by_name(layer):
    torch.save(_weights(12) | {"b_enc": torch.full((20,), torch.nan)}, f"{layer}.pt")
    with pytest.raises(InvalidWeights, match="b_enc"):
        load(layer)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"act_name": "blocks.5.hook_resid_pre"}, "blocks.LAYER.attn.hook_z"),
        ({"act_name": "z", "layer": -1}, "layer -1"),
        ({"act_name": "z", "layer": "5"}, "layer '5'"),
        ({"act_name": None}, "act_name None"),
        ({"head": "first"}, "head 'first'"),
        ({"head": -1}, "head -1"),
        ({"act_size": 10**12}, "act_size, dict_size"),
        ({"dict_size": None}, "act_size, dict_size"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(layer, change, says):
    said = json.loads(Path(f"{layer}_cfg.json").read_text())
    Path(f"{layer}_cfg.json").write_text(json.dumps(said | change))
    with pytest.raises(DataError, match=says):
        load(layer)


@pytest.mark.parametrize("end", [".pt", "_cfg.json"])
def test_a_missing_or_cut_file_is_named(layer, end):
    whole = Path(f"{layer}{end}").read_bytes()
    Path(f"{layer}{end}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged|cannot be read"):
        load(f"{layer}.pt")
    Path(f"{layer}{end}").unlink()
    with pytest.raises(DataError, match="There is no"):
        load(f"{layer}.pt")


def test_a_pair_is_not_scaled(layer):
    with pytest.raises(DataError, match="leave activation_scale out"):
        load(layer, activation_scale=2.0)
