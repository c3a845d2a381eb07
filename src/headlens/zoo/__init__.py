"""Small trained models that ship with the package, and the code that trained them.

Each is an ordinary `save_pretrained` folder: `hl.load("zoo:llama-small")`, or
`AutoModelForCausalLM.from_pretrained(headlens.zoo.path("llama-small"))`. Its README.md says how it was made
and what it was measured to contain. Beside them lie the tokenizers of the text world.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from headlens._errors import ModelNotFound

_MODELS = Path(__file__).parent / "models"
_TOKENIZERS = Path(__file__).parent / "tokenizers"


def names() -> tuple[str, ...]:
    """Names of the shipped models, sorted; `zoo:NAME` loads one."""
    return tuple(sorted(config.parent.name for config in _MODELS.glob("*/config.json")))


def path(name: str) -> Path:
    """Folder of the shipped model `name`.

    Raises
    ------
    ModelNotFound
        If no such model ships with this version.
    """
    return _MODELS / _known(name, names(), "model")


def tokenizer_path(name: str) -> Path:
    """Folder of a tokenizer of the text world: word, bpe-300, bpe-600, bpe-1200 or characters.

    Raises
    ------
    ModelNotFound
        If no such tokenizer ships with this version.
    """
    return _TOKENIZERS / _known(name, sorted(folder.name for folder in _TOKENIZERS.iterdir()), "tokenizer")


def speaks_world(vocabulary: Mapping[str, int]) -> bool:
    """Whether a vocabulary (token -> id) is that of one of the text world's tokenizers."""
    return any(_vocabulary(folder.name) == vocabulary for folder in _TOKENIZERS.iterdir())


@functools.cache
def _vocabulary(name: str) -> dict[str, int]:
    tokenizer = json.loads((tokenizer_path(name) / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    return tokenizer["model"]["vocab"] | added


def _known(name: str, there: Sequence[str], what: str) -> str:
    if name not in there:
        raise ModelNotFound(f"The zoo has no {what} {name!r}; it has: {', '.join(there)}.")
    return name


def summary(name: str) -> str:
    """What the shipped model `name` is, in one line: its family, layers, heads and width.

    Raises
    ------
    ModelNotFound
        If no such model ships with this version.
    """
    config = json.loads((path(name) / "config.json").read_text(encoding="utf-8"))
    layers, heads, width = (
        config.get(gpt2) or config[other]
        for gpt2, other in (
            ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"), ("n_embd", "hidden_size"),
        )
    )  # fmt: skip
    return f"{config['model_type']}, {layers} layers x {heads} heads, width {width}"
