"""The models that are measured: about 25 M random parameters, as in the field's small models."""

import torch
import transformers as tf

BATCH, TOKENS = 4, 128
SITES = (
    "hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_z", "attn.hook_pattern", "hook_attn_out",
)  # fmt: skip


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


def ids(batch: int = BATCH, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(0, 2000, (batch, tokens), generator=torch.Generator().manual_seed(0))
