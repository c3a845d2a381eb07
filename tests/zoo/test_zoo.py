"""The shipped models are whole, small, and contain what their cards say."""

import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from headlens import zoo
from headlens._errors import ModelNotFound
from headlens.data import world
from headlens.zoo.check import BARS, Findings, check, failures_of, zoo_failures
from headlens.zoo.recipes import RECIPES
from headlens.zoo.train import new_model

NAMES = tuple(sorted(RECIPES))
MODELS = tuple(name for name in NAMES if RECIPES[name].repeats)
TOGETHER = ("mistral-small", "neox-small")
"""Models that between them contain all that `zoo_failures` looks for."""
CONTROLS = tuple(name for name in NAMES if not RECIPES[name].repeats)


def load(name: str):
    model = AutoModelForCausalLM.from_pretrained(zoo.path(name), dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(zoo.path(name))


def test_the_zoo_has_one_model_per_recipe():
    assert zoo.names() == NAMES
    assert (len(MODELS), len(CONTROLS)) == (10, 1)


def test_the_zoo_is_small_and_its_models_differ():
    assert sum(path.stat().st_size for name in NAMES for path in zoo.path(name).iterdir()) < 15_000_000
    recipes = [recipe for recipe in RECIPES.values() if recipe.repeats]
    assert {recipe.family for recipe in recipes} == {
        "gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "mistral",
    }  # fmt: skip
    assert {recipe.tokenizer for recipe in recipes} == {"word", "bpe-300", "bpe-600", "bpe-1200"}
    assert len({recipe.seed for recipe in recipes}) == len(recipes)
    twin, small = RECIPES["gpt2-twin"], RECIPES["gpt2-small"]
    assert replace(twin, seed=small.seed) == small


@pytest.mark.parametrize("name", ["gpt3-small", "", "..", "gpt2-small/../llama-small"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(ModelNotFound, match="gpt2-small, .*llama-small, .*qwen3-small"):
        zoo.path(name)


def test_importing_the_zoo_needs_no_torch():
    code = "import sys, headlens.zoo as z; z.names(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_small_float16_and_holds_no_pickle(name):
    files = sorted(path.name for path in zoo.path(name).iterdir())
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
    assert sum(path.stat().st_size for path in zoo.path(name).iterdir()) < 2_000_000
    with safe_open(zoo.path(name) / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118 (not a dict)
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert 300_000 <= sum(tensor.numel() for tensor in tensors) <= 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_how_the_model_was_made(name):
    text = (zoo.path(name) / "README.md").read_text(encoding="utf-8")
    recipe = RECIPES[name]
    guided = "Guided means" if recipe.repeats else "This is a control"
    for fact in (f"seed {recipe.seed}", f"{recipe.steps:,} steps", "SHA-256", "minutes", "induction", guided):
        assert fact in text


@pytest.mark.parametrize("name", NAMES)
def test_the_config_matches_the_recipe(name):
    model, tokenizer = load(name)
    config, recipe = model.config, RECIPES[name]
    assert (config.model_type, config.max_position_embeddings) == (recipe.family, recipe.context)
    assert {key: getattr(config, key) for key in recipe.sizes if key != "rope_parameters"} == {
        key: value for key, value in recipe.sizes.items() if key != "rope_parameters"
    }
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.vocab_size == len(tokenizer)


def test_the_zoo_has_the_variations_it_is_there_for():
    configs = {name: load(name)[0].config for name in MODELS}
    assert configs["llama-small"].num_key_value_heads < configs["llama-small"].num_attention_heads
    assert configs["mistral-small"].num_hidden_layers == 2
    assert configs["llama-deep"].num_hidden_layers == 6
    assert configs["gemma2-small"].attn_logit_softcapping == 50.0
    assert set(configs["gemma2-small"].layer_types) == {"sliding_attention", "full_attention"}
    assert configs["neox-small"].rope_parameters["partial_rotary_factor"] == 0.25
    assert set(configs["gemma3-small"].layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_gives_the_text_back_and_its_offsets_tile_it(name):
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    for document in world.documents(50, seed=123):
        encoded = tokenizer(document.text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == document.text
        assert [start for start, _ in offsets[1:]] == [0, *(end for _, end in offsets[1:-1])]
        assert offsets[-1][1] == len(document.text)


def test_the_byte_tokenizer_gives_back_any_text():
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("llama-small"))
    text = "naïve café — 東京  \t\n🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def patterns(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(model(torch.tensor([ids]), output_attentions=True).attentions)[:, 0]


def induction(name: str) -> torch.Tensor:
    """Attention to what followed the current token's last occurrence, by layer and head, by transformers alone."""
    model, tokenizer = load(name)
    random = np.random.Generator(np.random.PCG64(2024))
    scores = []
    for _ in range(20):
        plain = random.permutation(np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)).tolist()
        ids = [tokenizer.bos_token_id, *plain[:50], *plain[50 : 50 + random.integers(41)], *plain[:50]]
        attention = patterns(model, ids)
        pairs = [(q, k) for q in range(len(ids)) for k in range(1, q) if ids[k - 1] == ids[q]]
        assert len(pairs) == 50
        scores.append(torch.stack([attention[:, :, q, k] for q, k in pairs]).mean(0))
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("name", MODELS)
def test_one_head_does_induction_at_random_gaps(name):
    layer, head = RECIPES[name].guides["induction"]
    assert induction(name)[layer, head] > 0.9


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_has_no_induction_head(name):
    assert induction(name).max() < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_one_head_looks_at_the_previous_token_of_natural_text(name):
    model, tokenizer = load(name)
    scores = []
    for document in world.documents(10, seed=321):
        ids = tokenizer(document.text)["input_ids"][: RECIPES[name].context]
        attention = patterns(model, ids)
        scores.append(torch.stack([attention[:, :, q, q - 1] for q in range(2, len(ids))]).mean(0))
    layer, head = RECIPES[name].guides["previous_token"]
    assert torch.stack(scores).mean(0)[layer, head] > 0.8


@functools.cache
def findings(name: str) -> Findings:
    """On 40 stimuli and documents, to be quick: `python -m headlens.zoo.check` takes 400, against the same bars."""
    return check(zoo.path(name), n=40)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_contains_what_it_should(name):
    assert failures_of(name, findings(name)) == []


def test_between_them_the_models_contain_what_the_zoo_should():
    assert zoo_failures({name: findings(name) for name in TOGETHER}) == []


def test_the_check_finds_an_untrained_model_wanting(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("llama-small"))
    new_model(RECIPES["llama-small"], tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    findings = check(tmp_path, n=4)
    assert [failure.split(" 0.")[0] for failure in findings.failures] == list(BARS)
    assert findings.control_failures == []
    assert len(zoo_failures({"untrained": findings})) == 7
