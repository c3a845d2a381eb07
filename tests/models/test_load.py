"""What is loaded is what was named, and whatever would give wrong numbers is refused by name."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import headlens as hl
from headlens._errors import InvalidWeights, ModelError, ModelNotFound, UnsupportedArchitecture
from headlens.models import FAMILIES
from tests.families import CONFIGS, ENCODERS, build

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
OUTSIDE = {
    "bloom": lambda: tf.BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=50),
    "falcon": lambda: tf.FalconConfig(**SMALL),
    "mpt": lambda: tf.MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=50),
    "mamba": lambda: tf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50),
    "jamba": lambda: tf.JambaConfig(**SMALL, num_key_value_heads=2, use_mamba_kernels=False),
}


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def test_every_family_has_a_tiny_model():
    tested = {(CONFIGS | ENCODERS)[name]().model_type for name in CONFIGS | ENCODERS}
    assert tested == set(FAMILIES)


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_table_is_refused_by_name(name, tmp_path):
    config = OUTSIDE[name]()
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=f"'{name}'.*families.py"):
        hl.load(tmp_path)
    with torch.device("meta"):
        hf = tf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedArchitecture, match=f"'{name}'"):
        hl.load(hf)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("gpt2", {"add_cross_attention": True}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("opt", {"do_layer_norm_before": False}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
    ],
)
def test_options_outside_a_row_are_refused(name, option, tmp_path):
    config = CONFIGS[name]()
    config.update(option)
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=next(iter(option))):
        hl.load(tmp_path)


def test_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    with pytest.raises(UnsupportedArchitecture, match="does not know"):
        hl.load(tmp_path)


def test_path_object_and_model_give_the_same(folder):
    ids = torch.arange(3, 13)[None]
    by_path, by_object = hl.load(folder), hl.load(build("llama"))
    with torch.no_grad():
        assert torch.equal(by_path.forward(ids).logits, by_object.forward(ids).logits)
    assert by_path.provenance()["weights"] == by_object.provenance()["weights"]
    assert hl.load(by_path) is by_path
    assert by_path.name == str(folder)
    assert not by_path.hf.training


def test_sizes(folder):
    model = hl.load(folder)
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_model, model.d_head) == (3, 4, 2, 48, 12)
    assert (model.n_ctx, model.vocab_size, model.bos) == (128, 97, 1)


def test_dtype(folder):
    assert hl.load(folder).dtype == torch.float32
    assert hl.load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert hl.load(folder, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ModelError, match="not 'int8'"):
        hl.load(folder, dtype="int8")


def test_fp16_checkpoint_is_read_in_float32(tmp_path):
    build("gpt2").half().save_pretrained(tmp_path)
    assert hl.load(tmp_path).dtype == torch.float32
    assert hl.load(tmp_path, dtype="auto").dtype == torch.float16


def test_mixture_of_experts_runs_in_float64(tmp_path):
    build("gpt_oss").save_pretrained(tmp_path)
    assert hl.verify(tmp_path, dtype="float64", n_tokens=12).passed


def test_nowhere(tmp_path):
    with pytest.raises(ModelNotFound, match="no folder"):
        hl.load(tmp_path / "nothing" / "here")
    with pytest.raises(ModelNotFound, match="no config.json"):
        hl.load(tmp_path)
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ModelNotFound, match="is a file"):
        hl.load(tmp_path / "model.bin")
    with pytest.raises(ModelNotFound, match="nope"):
        hl.load("zoo:nope")
    with pytest.raises(ModelError, match="not a dict"):
        hl.load({})


def edit_weights(folder, change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, value):
    edit_weights(folder, lambda w: w["model.layers.1.self_attn.q_proj.weight"].view(-1)[5:6].fill_(value))
    with pytest.raises(InvalidWeights, match="layers.1.self_attn.q_proj"):
        hl.load(folder)


def test_large_finite_weights_are_not_mistaken_for_infinite(folder):
    edit_weights(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"].view(-1)[:4].fill_(3e38))
    hl.load(folder)


def test_missing_weights(folder):
    edit_weights(folder, lambda w: w.pop("model.layers.2.self_attn.k_proj.weight"))
    with pytest.raises(InvalidWeights, match="layers.2.self_attn.k_proj"):
        hl.load(folder)


def test_damaged_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be read"):
        hl.load(folder)


def test_pickled_weights_are_not_read(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        hl.load(folder)


def test_config_and_weights_that_disagree():
    hf = build("llama")
    hf.model.layers[0].self_attn.k_proj = torch.nn.Linear(48, 36)
    with pytest.raises(UnsupportedArchitecture, match="36 outputs"):
        hl.load(hf)


def test_quantised_weights_are_refused():
    hf = build("gpt2")
    model = hl.load(hf)
    hf.transformer.h[0].attn.c_attn.weight = torch.nn.Parameter(
        torch.zeros(8, 8, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedArchitecture, match="quantised"):
        model.head(0, 0)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_no_heads_to_take_apart(name):
    model = hl.load(build(name))
    with pytest.raises(UnsupportedArchitecture, match="encoder"):
        model.head(0, 0)
    with pytest.raises(UnsupportedArchitecture, match="encoder"):
        hl.verify(model)


def test_provenance_tells_models_apart():
    same, other = (hl.load(build("gpt2", seed=seed)).provenance()["weights"] for seed in (0, 1))
    assert hl.load(build("gpt2")).provenance()["weights"] == same != other


def test_provenance_tells_an_edited_weight_and_another_config():
    hf = build("llama")
    before = hl.load(hf).provenance()
    with torch.no_grad():
        hf.model.embed_tokens.weight[57, 3] += 1e-6
    assert hl.load(hf).provenance()["weights"] != before["weights"]
    hf.config.rms_norm_eps = 0.1
    after = hl.load(hf).provenance()
    assert after["config"] != before["config"]


def test_tokenizer_hash_does_not_depend_on_use(stories):
    model = hl.load(stories)
    before = model.provenance()["tokenizer"]
    model.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert model.provenance()["tokenizer"] == before


def test_options_that_would_not_apply_are_refused(folder):
    with pytest.raises(ModelError, match="no revision 'main'"):
        hl.load(folder, revision="main")
    with pytest.raises(ModelError, match="leave them out"):
        hl.load(build("gpt2"), dtype="float64")
    with pytest.raises(ModelError, match="leave them out"):
        hl.verify(hl.load(folder), dtype="float64")


def test_adapters_are_refused():
    """A subclass of Linear may add to its output what its weight does not hold."""

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    hf = build("llama")
    hf.model.layers[0].self_attn.q_proj = Linear(48, 48)
    with pytest.raises(UnsupportedArchitecture, match="adapter"):
        hl.load(hf)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "gpt_neox"])
def test_no_tokenizer_is_none_not_one_made_up(name, tmp_path):
    """transformers conjures an empty tokenizer for some families; its ids would be wrong."""
    build(name).save_pretrained(tmp_path)
    model = hl.load(tmp_path)
    assert model.tokenizer is None
    assert model.bos == model.config.bos_token_id


def test_a_zoo_name_without_its_prefix_is_recognised():
    with pytest.raises(ModelNotFound, match="zoo:llama-small"):
        hl.load("llama-small")
