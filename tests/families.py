"""A tiny random model of every family: all norms, biases and sinks away from their neutral start."""

import torch
import transformers as tf

_COMMON = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_LLAMA = _COMMON | _ROPE | {
    "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip

CONFIGS = {
    "gpt2": lambda: tf.GPT2Config(**_GPT, scale_attn_by_inverse_layer_idx=True),
    "gpt_neo": lambda: tf.GPTNeoConfig(
        hidden_size=48, num_layers=3, num_heads=4, vocab_size=97, max_position_embeddings=128, window_size=5,
        attention_types=[[["global", "local", "global"], 1]], bos_token_id=1, eos_token_id=2,
    ),
    "gptj": lambda: tf.GPTJConfig(**_GPT, rotary_dim=8),
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        **_COMMON, intermediate_size=64, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox_sequential": lambda: tf.GPTNeoXConfig(
        **_COMMON, intermediate_size=64, max_position_embeddings=128, use_parallel_residual=False,
        bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    ),
    "opt": lambda: tf.OPTConfig(**_COMMON, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=48,
                                pad_token_id=1, bos_token_id=2, eos_token_id=2),
    "llama": lambda: tf.LlamaConfig(**_LLAMA, attention_bias=True),
    "llama3_rope": lambda: tf.LlamaConfig(**_LLAMA | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, head_dim=16),
    "mistral": lambda: tf.MistralConfig(**_LLAMA, sliding_window=6),
    "qwen2": lambda: tf.Qwen2Config(**_LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": lambda: tf.Qwen3Config(**_LLAMA, head_dim=16),
    "phi3": lambda: tf.Phi3Config(**_LLAMA | {"rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}, sliding_window=7),
    "gemma2": lambda: tf.Gemma2Config(**_LLAMA, head_dim=16, sliding_window=6, attn_logit_softcapping=2.0,
                                      query_pre_attn_scalar=10),
    "gemma3_text": lambda: tf.Gemma3TextConfig(
        **_COMMON, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128, head_dim=16,
        sliding_window=6, query_pre_attn_scalar=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3": lambda: tf.Gemma3Config(
        text_config=CONFIGS["gemma3_text"]().to_dict(), mm_tokens_per_image=4,
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                       "image_size": 28, "patch_size": 14},
    ),
    "olmo2": lambda: tf.Olmo2Config(**_LLAMA),
    "gpt_oss": lambda: tf.GptOssConfig(**_LLAMA, head_dim=16, sliding_window=6, num_local_experts=2,
                                       num_experts_per_tok=1),
}  # fmt: skip
ENCODERS = {
    "bert": lambda: tf.BertConfig(**_COMMON, intermediate_size=64, max_position_embeddings=128),
    "roberta": lambda: tf.RobertaConfig(**_COMMON, intermediate_size=64, max_position_embeddings=128),
}


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Return the transformers model `name`, its every parameter drawn at random."""
    config = (CONFIGS | ENCODERS)[name]()
    auto = tf.AutoModel if name in ENCODERS else tf.AutoModelForCausalLM
    extra = {"experts_implementation": "eager"} if name == "gpt_oss" else {}
    hf = auto.from_config(config, dtype=dtype, **extra).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = parameter.ndim == 1 and key.endswith("weight")
            is_one_plus = is_gain and name.startswith("gemma")
            parameter.copy_((0.0 if not is_gain or is_one_plus else 1.0) + 0.25 * noise)
    return hf
