"""Models on disk, sound and broken in every way, and a way to type a command at them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headlens.cli import run
from tests.families import build

WORDS = tuple(f"w{i}" for i in range(94))


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit status and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def headlens(tmp_path, monkeypatch, capsys) -> Callable[..., Outcome]:
    """Type a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def type_(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(status, printed.out, printed.err)

    return type_


@pytest.fixture
def never_loaded(monkeypatch) -> None:
    """Let the test fail where a model is read."""
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("a model was read"))


@pytest.fixture
def refused(headlens, tmp_path) -> Callable[..., str]:
    """Type a command that must fail with one clear sentence and leave nothing behind; return the sentence."""

    def type_(*arguments: object) -> str:
        before = contents(tmp_path)
        outcome = headlens(*arguments)
        assert outcome.status == 2
        assert outcome.out == ""
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
        assert "Traceback" not in outcome.err and "fault of headlens" not in outcome.err
        assert contents(tmp_path) == before
        return outcome.err.removeprefix("error: ").strip()

    return type_


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every path under `folder`, and what files hold."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def word_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """One token per word; the vocabulary of the tiny models, and words that they have no row for."""
    vocabulary = {word: i for i, word in enumerate(("<unk>", "<s>", "</s>", *WORDS, *more))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: reads any text, and has no word for the beginning."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """A folder of sound tiny models: llama and neox (which read words), bytes (any text), silent (token ids)."""
    root = tmp_path_factory.mktemp("models")
    for name, family in {"llama": "llama", "neox": "gpt_neox", "silent": "llama"}.items():
        build(family).save_pretrained(root / name)
    for name in ("llama", "neox"):
        word_tokenizer().save_pretrained(root / name)
    config = tf.LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            vocab_size=256, max_position_embeddings=64, bos_token_id=None, eos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    tf.LlamaForCausalLM(config).save_pretrained(root / "bytes")
    byte_tokenizer().save_pretrained(root / "bytes")
    return root


@pytest.fixture
def llama(zoo) -> Path:
    return zoo / "llama"


def _nan(folder: Path) -> None:
    _change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))


def _incomplete(folder: Path) -> None:
    _change_weights(folder, lambda weights: weights.pop("model.layers.1.self_attn.k_proj.weight"))


def _overflowing(folder: Path) -> None:
    """Finite in every precision, but scores beyond what float16 can hold."""

    def enlarge(weights):
        for name in weights:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weights[name] *= 1e3

    _change_weights(folder, enlarge)


def _change_weights(folder: Path, change: Callable) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _headless(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def _mismatched(folder: Path) -> None:
    word_tokenizer("more", "words", "than", "rows").save_pretrained(folder)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _mamba(folder: Path) -> None:
    shutil.rmtree(folder)
    config = tf.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)
    tf.MambaForCausalLM(config).save_pretrained(folder)


def _bloom(folder: Path) -> None:
    shutil.rmtree(folder)
    tf.BloomForCausalLM(tf.BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(folder)


def _encoder(folder: Path) -> None:
    shutil.rmtree(folder)
    build("bert").save_pretrained(folder)


BREAK = {change.__name__.removeprefix("_"): change for change in (
    _nan, _incomplete, _overflowing, _truncated, _headless, _mismatched, _no_config, _no_weights, _broken_config,
    _mamba, _bloom, _encoder,
)}  # fmt: skip


@pytest.fixture
def broken(llama, tmp_path) -> Callable[[str], str]:
    """Make a copy of the sound model that is broken in the way named, and return its name."""

    def copy(how: str) -> str:
        shutil.copytree(llama, tmp_path / "broken")
        BREAK[how](tmp_path / "broken")
        return "broken"

    return copy
