"""The models that are measured: about 25 M random parameters, as in the field's small models; and GPT-2 small."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as tf

from headlens.data import stimuli
from headlens.data.stimuli import Stimulus

BATCH, TOKENS = 4, 128
SITES = (
    "hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_z", "attn.hook_pattern", "hook_attn_out",
)  # fmt: skip


class Size(NamedTuple):
    """How large the passes over attention are that are compared."""

    layers: int = 12
    tokens: int = 1024
    rounds: int = 9
    """Pairs of runs."""

    def __str__(self) -> str:
        return f"GPT-2, {self.layers} layers x 12 heads, {self.tokens} tokens a sequence"


FULL = Size()
SMALL = Size(layers=2, tokens=128, rounds=5)
"""To see that everything runs; its figures say nothing."""


def gpt2(n_heads: int = 8) -> tf.GPT2LMHeadModel:
    """GPT-2 architecture, 8 layers, 512 wide: 25.2 M parameters without the embeddings."""
    torch.manual_seed(0)
    config = tf.GPT2Config(n_embd=512, n_layer=8, n_head=n_heads, vocab_size=2000, bos_token_id=0, eos_token_id=0)
    return tf.GPT2LMHeadModel(config).eval()


def llama() -> tf.LlamaForCausalLM:
    """Llama architecture with grouped heads, 8 layers x 8 heads over 4, 512 wide."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, intermediate_size=1400,
        vocab_size=2000,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def gpt2_small(size: Size) -> tf.GPT2LMHeadModel:
    """GPT-2 small with random weights, without BOS, so that every token of a sequence is one that was drawn.

    Its context is one token longer than the sequences, which TransformerLens' head detector wants.
    """
    torch.manual_seed(0)
    config = tf.GPT2Config(n_layer=size.layers, n_positions=size.tokens + 1, bos_token_id=None, eos_token_id=None)
    config.architectures = ["GPT2LMHeadModel"]  # as a checkpoint would have it; TransformerLens asks
    return tf.GPT2LMHeadModel(config).eval()


def repeats(size: Size) -> Stimulus:
    """One sequence R R of random tokens with its control, and every eighth token marked as a delimiter."""
    made = stimuli.repeats(np.arange(50257), n=1, length=size.tokens // 2, max_gap=0, bos=None, seed=0)
    place = np.arange(size.tokens) % 8
    marks = {"delimiter": place == 7, "elsewhere": place == 3}
    return Stimulus(made.name, made.tokens, None, made.control, made.recipe, marks)


def ids(batch: int = BATCH, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(0, 2000, (batch, tokens), generator=torch.Generator().manual_seed(0))


Job = Callable[[], Any]
"""What is measured, all that it needs being there already."""
