"""The shipped models are whole, small, and contain what their cards say."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from headlens import zoo
from headlens._errors import ModelNotFound
from headlens.data import world
from headlens.zoo.recipes import RECIPES

NAMES = ("gpt2-small", "llama-small", "qwen3-small")


def load(name: str):
    model = AutoModelForCausalLM.from_pretrained(zoo.path(name), dtype=torch.float32, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(zoo.path(name))


def test_the_zoo_has_one_model_per_recipe():
    assert zoo.names() == NAMES == tuple(sorted(RECIPES))


@pytest.mark.parametrize("name", ["gpt3-small", "", "..", "gpt2-small/../llama-small"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(ModelNotFound, match="gpt2-small, llama-small, qwen3-small"):
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
    for fact in (
        f"seed {recipe.seed}",
        f"{recipe.steps} steps",
        "SHA-256",
        "induction",
        "previous token",
        "Guided means",
    ):
        assert fact in text


@pytest.mark.parametrize("name", NAMES)
def test_the_config_matches_the_recipe(name):
    model, tokenizer = load(name)
    config, recipe = model.config, RECIPES[name]
    assert (config.model_type, config.max_position_embeddings) == (recipe.family, recipe.context)
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.vocab_size == len(tokenizer)
    if recipe.family != "gpt2":
        assert config.num_key_value_heads < config.num_attention_heads


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


@pytest.mark.parametrize("name", NAMES)
def test_one_head_does_induction_at_random_gaps(name):
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
    best = torch.stack(scores).mean(0)
    assert best.max() > 0.9
    assert divmod(int(best.argmax()), best.shape[1]) == RECIPES[name].induction


@pytest.mark.parametrize("name", NAMES)
def test_one_head_looks_at_the_previous_token_of_natural_text(name):
    model, tokenizer = load(name)
    scores = []
    for document in world.documents(10, seed=321):
        ids = tokenizer(document.text)["input_ids"][: RECIPES[name].context]
        attention = patterns(model, ids)
        scores.append(torch.stack([attention[:, :, q, q - 1] for q in range(2, len(ids))]).mean(0))
    best = torch.stack(scores).mean(0)
    assert best.max() > 0.8
    assert divmod(int(best.argmax()), best.shape[1]) == RECIPES[name].previous
