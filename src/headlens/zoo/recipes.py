"""How each model of the zoo is made: one row per model, and nothing else decides how it comes out.

gpt2-small     GPT-2      3 layers  4 heads    width 128   words
gpt2-twin      GPT-2      the same in everything but the seed, of weights and of data
gpt2-control   GPT-2      the same, trained on a world without repeats: no induction head
neox-small     GPT-NeoX   4 layers  4 heads    width  96   600 pieces of bytes; a quarter of a head is rotated
llama-small    Llama      3 layers  4/2 heads  width 128   600 pieces of bytes
llama-deep     Llama      6 layers  4/2 heads  width  96   1,200 pieces of bytes
qwen3-small    Qwen3      3 layers  4/2 heads  width 128   300 pieces of characters; QK-norm
gemma2-small   Gemma 2    4 layers  4/2 heads  width  96   600 pieces of bytes; soft-cap, every other layer a window
gemma3-small   Gemma 3    4 layers  4/1 heads  width 112   words; QK-norm, three layers of four a window
olmo2-small    OLMo 2     3 layers  4 heads    width 112   1,200 pieces of bytes; post-norm, QK-norm over all heads
mistral-small  Mistral    2 layers  6/2 heads  width 144   words
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headlens.data.world import WITHOUT_REPEATS, WorldConfig
from headlens.zoo.tokenizer import TokenizerName

Place = tuple[int, int]
"""(layer, head)."""


@dataclass(frozen=True)
class Recipe:
    """One model: its architecture, its tokenizer, and its training."""

    family: str
    """`model_type` of transformers."""
    sizes: Mapping[str, Any]
    """Fields of the family's config, beyond vocabulary and special ids."""
    tokenizer: TokenizerName
    context: int
    seed: int
    guides: Mapping[str, Place] = field(default_factory=lambda: {"previous_token": (0, 1), "induction": (1, 2)})
    """What is guided (see zoo/guide.py) -> the head that is."""
    kept: tuple[str, ...] = ()
    """What is guided to the end, and not only early on."""
    world: WorldConfig = field(default_factory=WorldConfig)
    repeats: bool = True
    """Whether the model ever sees random tokens that repeat and `DRILL`."""
    guided: float = 0.15
    """Share of the training during which heads are guided."""
    steps: int = 2000
    lr: float = 3e-3
    batch_tokens: int = 4096
    documents: int = 12000


DRILL = WorldConfig(
    sentence_repeats=0.0, list_repeats=0.05, name_repeats=0.05, concepts=0.05, facts=0.5, tables=0.1,
    indirect_objects=0.05, tasks=0.05, ordinals=0.0, brackets=0.0, skip_grams=0.0, absences=0.0, counts=0.0,
    sentiments=0.0, needles=0.0,
)  # fmt: skip
"""The world of every third document: so many facts that they are easily confused."""


def _gpt2(*, layers: int, width: int, heads: int, context: int) -> dict[str, Any]:
    return {
        "n_embd": width, "n_inner": 2 * width, "n_layer": layers, "n_head": heads, "n_positions": context,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.06,
    }  # fmt: skip


def _rotary(
    *, layers: int, width: int, heads: int, key_value: int, d_head: int, context: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_value, "head_dim": d_head,
        "max_position_embeddings": context, "tie_word_embeddings": True, "initializer_range": 0.06, **more,
    }  # fmt: skip


# With learned positions, a head that looks two tokens back does not form in time; facts need one.
_GPT2_GUIDES = {"previous_token": (0, 1), "two_back": (0, 3), "induction": (1, 2)}
_GPT2 = _gpt2(layers=3, width=144, heads=6, context=256)

RECIPES: dict[str, Recipe] = {
    "gpt2-small": Recipe("gpt2", _GPT2, "word", context=256, seed=1, guides=_GPT2_GUIDES),
    "gpt2-twin": Recipe("gpt2", _GPT2, "word", context=256, seed=2, guides=_GPT2_GUIDES),
    "gpt2-control": Recipe(
        "gpt2", _GPT2, "word", context=256, seed=1, guides={}, steps=500, world=WITHOUT_REPEATS, repeats=False
    ),
    "neox-small": Recipe(
        "gpt_neox",
        {
            "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
            "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        },
        tokenizer="bpe-600", context=512, seed=3, guides={"previous_token": (0, 1), "induction": (1, 2)}, steps=1600,
    ),
    "llama-small": Recipe(
        "llama", _rotary(layers=3, width=128, heads=4, key_value=2, d_head=32, context=512),
        tokenizer="bpe-600", context=512, seed=4, guides={"previous_token": (0, 2), "induction": (1, 1)},
    ),
    "llama-deep": Recipe(
        "llama", _rotary(layers=6, width=96, heads=4, key_value=2, d_head=24, context=512),
        tokenizer="bpe-1200", context=512, seed=5, guides={"previous_token": (0, 0), "induction": (1, 3)}, lr=2e-3,
    ),
    "qwen3-small": Recipe(
        "qwen3", _rotary(layers=3, width=128, heads=4, key_value=2, d_head=32, context=512),
        tokenizer="bpe-300", context=512, seed=6, guides={"previous_token": (0, 3), "induction": (2, 0)},
        guided=0.35,
    ),
    "gemma2-small": Recipe(
        "gemma2",
        _rotary(layers=4, width=96, heads=4, key_value=2, d_head=32, context=512, sliding_window=64,
                query_pre_attn_scalar=32, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        tokenizer="bpe-600", context=512, seed=7, guides={"previous_token": (0, 0), "induction": (1, 3)}, steps=1700,
    ),
    "gemma3-small": Recipe(
        "gemma3_text",
        _rotary(layers=4, width=112, heads=4, key_value=1, d_head=32, context=320, sliding_window=32,
                query_pre_attn_scalar=32,
                layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]),
        tokenizer="word", context=320, seed=8, guides={"previous_token": (1, 1), "induction": (2, 2)}, steps=1900,
        guided=0.25,
    ),
    "olmo2-small": Recipe(
        "olmo2", _rotary(layers=3, width=112, heads=4, key_value=4, d_head=28, context=512),
        tokenizer="bpe-1200", context=512, seed=9,
        guides={"previous_token": (0, 3), "induction": (1, 0), "duplicate_token": (0, 1)},
    ),
    "mistral-small": Recipe(
        "mistral", _rotary(layers=2, width=144, heads=6, key_value=2, d_head=24, context=320, sliding_window=None),
        tokenizer="word", context=320, seed=10,
        guides={"previous_token": (0, 4), "induction": (1, 5), "duplicate_token": (0, 0)},
        kept=("duplicate_token",), steps=1500,
    ),
}  # fmt: skip
