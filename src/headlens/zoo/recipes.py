"""How each model of the zoo is made: one row per model, and nothing else decides how it comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headlens.zoo.tokenizer import TokenizerKind


@dataclass(frozen=True)
class Recipe:
    """One model: its architecture, its tokenizer, and its training."""

    family: str
    """`model_type` of transformers."""
    sizes: Mapping[str, Any]
    """Fields of the family's config, beyond vocabulary and special ids."""
    tokenizer: TokenizerKind
    vocabulary: int
    """Tokens at most."""
    context: int
    previous: tuple[int, int]
    """(layer, head) that is guided to the previous token during the first part of training."""
    induction: tuple[int, int]
    """(layer, head) that is guided to what followed the last occurrence of the current token."""
    seed: int
    steps: int = 700
    lr: float = 2e-3
    batch_tokens: int = 4096
    documents: int = 8000


_GROUPED = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
}

RECIPES: dict[str, Recipe] = {
    "gpt2-small": Recipe(
        family="gpt2",
        sizes={
            "n_embd": 128,
            "n_inner": 256,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 256,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "initializer_range": 0.06,
        },
        tokenizer="word",
        vocabulary=450,
        context=256,
        previous=(0, 1),
        induction=(1, 2),
        seed=1,
    ),
    "llama-small": Recipe(
        family="llama",
        sizes=_GROUPED,
        tokenizer="bytes",
        vocabulary=600,
        context=512,
        previous=(0, 2),
        induction=(1, 1),
        seed=2,
    ),
    "qwen3-small": Recipe(
        family="qwen3",
        sizes=_GROUPED,
        tokenizer="characters",
        vocabulary=300,
        context=512,
        previous=(0, 3),
        induction=(2, 0),
        seed=3,
    ),
}
