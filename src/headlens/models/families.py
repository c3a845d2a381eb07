"""Where each architecture keeps what a head is made of: one row per family, and nothing per family elsewhere.

A row says, as paths inside transformers' own modules, where the blocks, norms, projections and
attention are, and which of the field's variations the family uses. To add an architecture: add a row,
add a tiny config to tests/families.py, run `make test`. See CONTRIBUTING.md.

Paths: `stack` is relative to `hf.base_model`, `blocks` to the stack; all others to a block, except `query`,
`key`, `value`, `fused`, `out`, `query_norm` and `key_norm`, which are relative to the attention module.
Source: the modeling files of transformers 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from headlens._errors import UnsupportedArchitecture


def _scaling(attention: Any) -> float:
    return attention.scaling


def _no_window(attention: Any) -> int | None:  # noqa: ARG001
    return None


def _module_window(attention: Any) -> int | None:
    return attention.sliding_window


def _config_window(attention: Any) -> int | None:
    return getattr(attention.config, "sliding_window", None)


def _nothing_odd(config: Any) -> str | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Family:
    """One architecture: where things are, and how its attention differs from the plain one."""

    title: str
    blocks: str
    attention: str
    out: str | None
    """Output projection; None where it lies outside the attention module (capture only)."""
    mlp_out: str
    """Module in the block whose output is what the MLP adds to the residual stream."""
    attn_out: str
    """Module in the block whose output is what attention adds to the residual stream."""

    stack: str = ""
    """Module that holds the blocks and the rotary embedding; the base model itself where empty."""
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    fused: str | None = None
    """One projection that gives query, key and value; then `query`, `key`, `value` are unused."""
    fused_order: Literal["sections", "per_head"] = "sections"
    """`sections`: all queries, then keys, then values. `per_head`: head by head, each its q, k, v."""

    pre_norm: str | None = None
    post_norm: str | None = None
    """Norm on attention's output, before it is added."""
    norm: Literal["layer", "rms", "rms_gain_in_float32", "rms_one_plus"] = "rms"
    query_norm: str | None = None
    key_norm: str | None = None
    qk_norm_over: Literal["head", "layer"] = "head"

    rotary: Literal["none", "half", "pairs"] = "half"
    """`half`: dimension i turns with i + n/2. `pairs`: 2i with 2i + 1."""
    rotary_by_layer_type: bool = False
    sinks: str | None = None
    softcap: str | None = None
    scale: Callable[[Any], float] = _scaling
    window: Callable[[Any], int | None] = _no_window
    tap: Literal["interface", "_attn"] = "interface"
    """How attention is reached: transformers' attention interface, or the module's own `_attn` method."""
    parallel: Callable[[Any], bool] = lambda config: False  # noqa: ARG005
    """Whether attention and MLP read the same residual stream, so that no `hook_resid_mid` exists."""
    mid: str | None = None
    """Module in the block that reads the residual stream between attention and MLP."""
    mid_is_output: bool = False
    """Whether `mid` names the module that puts that stream out, instead of one that reads it."""
    causal: bool = True
    odd: Callable[[Any], str | None] = _nothing_odd
    """What in this config makes the row wrong, in words; None where nothing does."""


def _gpt2_odd(config: Any) -> str | None:
    if config.add_cross_attention:
        return "add_cross_attention=True"
    if config.reorder_and_upcast_attn:
        return "reorder_and_upcast_attn=True (its attention bypasses the interface)"
    return None


def _opt_odd(config: Any) -> str | None:
    return None if config.do_layer_norm_before else "do_layer_norm_before=False (norms after the addition)"


def _bidirectional(config: Any) -> str | None:
    return "use_bidirectional_attention" if getattr(config, "use_bidirectional_attention", False) else None


def _decoder(config: Any) -> str | None:
    return "is_decoder=True" if config.is_decoder else None


_LLAMA: dict[str, Any] = {
    "blocks": "layers",
    "attention": "self_attn",
    "out": "o_proj",
    "attn_out": "self_attn",
    "pre_norm": "input_layernorm",
    "mid": "post_attention_layernorm",
    "mlp_out": "mlp",
}
_POST_NORM: dict[str, Any] = _LLAMA | {
    "pre_norm": None,
    "post_norm": "post_attention_layernorm",
    "attn_out": "post_attention_layernorm",
    "mid": "mlp",
    "mlp_out": "post_feedforward_layernorm",
}
_GEMMA: dict[str, Any] = _LLAMA | {
    "norm": "rms_one_plus",
    "post_norm": "post_attention_layernorm",
    "attn_out": "post_attention_layernorm",
    "mid": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "window": _module_window,
    "odd": _bidirectional,
}
_GEMMA3: dict[str, Any] = _GEMMA | {"query_norm": "q_norm", "key_norm": "k_norm", "rotary_by_layer_type": True}
_GPT: dict[str, Any] = {
    "blocks": "h",
    "attention": "attn",
    "attn_out": "attn",
    "pre_norm": "ln_1",
    "mlp_out": "mlp",
    "norm": "layer",
}
_GPT_NEO: dict[str, Any] = _GPT | {"attention": "attn.attention"}
_BERT: dict[str, Any] = {
    "stack": "encoder",
    "blocks": "layer",
    "attention": "attention.self",
    "query": "query",
    "key": "key",
    "value": "value",
    "out": None,
    "attn_out": "attention.output.dense",
    "mid": "attention",
    "mid_is_output": True,
    "mlp_out": "output.dense",
    "norm": "layer",
    "rotary": "none",
    "causal": False,
    "odd": _decoder,
}

FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT-2", **_GPT, fused="c_attn", out="c_proj", rotary="none", mid="ln_2", odd=_gpt2_odd),
    "gpt_neo": Family(
        "GPT-Neo",
        **_GPT_NEO,
        out="out_proj",
        rotary="none",
        mid="ln_2",
        scale=lambda attention: 1.0,  # noqa: ARG005  # GPT-Neo does not divide by sqrt(d_head)
        window=lambda attention: attention.config.window_size if attention.attention_type == "local" else None,
        tap="_attn",
    ),
    "gptj": Family(
        "GPT-J",
        **_GPT,
        out="out_proj",
        rotary="pairs",
        scale=lambda attention: 1.0 / float(attention.scale_attn),
        tap="_attn",
        parallel=lambda config: True,  # noqa: ARG005
    ),
    "gpt_neox": Family(
        "GPT-NeoX / Pythia",
        blocks="layers",
        attention="attention",
        attn_out="attention",
        pre_norm="input_layernorm",
        mlp_out="mlp",
        norm="layer",
        fused="query_key_value",
        fused_order="per_head",
        out="dense",
        mid="post_attention_layernorm",
        parallel=lambda config: config.use_parallel_residual,
    ),
    "opt": Family(
        "OPT",
        stack="decoder",
        blocks="layers",
        attention="self_attn",
        attn_out="self_attn",
        pre_norm="self_attn_layer_norm",
        mlp_out="fc2",
        norm="layer",
        out="out_proj",
        rotary="none",
        mid="final_layer_norm",
        odd=_opt_odd,
    ),
    "llama": Family("Llama", **_LLAMA),
    "mistral": Family("Mistral", **_LLAMA, window=_config_window),
    "qwen2": Family("Qwen2", **_LLAMA, window=_module_window),
    "qwen3": Family("Qwen3", **_LLAMA, window=_module_window, query_norm="q_norm", key_norm="k_norm"),
    "phi3": Family("Phi-3", **_LLAMA, window=_config_window, fused="qkv_proj"),
    "gemma2": Family("Gemma 2", **_GEMMA, softcap="attn_logit_softcapping"),
    "gemma3_text": Family("Gemma 3", **_GEMMA3),
    "gemma3": Family("Gemma 3 (text part)", **_GEMMA3, stack="language_model"),
    "olmo2": Family(
        "OLMo 2",
        **_POST_NORM,
        norm="rms_gain_in_float32",
        query_norm="q_norm",
        key_norm="k_norm",
        qk_norm_over="layer",
    ),
    "gpt_oss": Family("GPT-OSS", **_LLAMA, norm="rms_gain_in_float32", window=_module_window, sinks="sinks"),
    "bert": Family("BERT (capture only)", **_BERT),
    "roberta": Family("RoBERTa (capture only)", **_BERT),
}


def family_of(config: Any) -> Family:
    """Return the row for a transformers config.

    Raises
    ------
    UnsupportedArchitecture
        If there is no row, or the config uses an option that the row does not describe.
    """
    model_type = getattr(config, "model_type", None) or type(config).__name__
    family = FAMILIES.get(model_type)
    config = config.get_text_config() if family is not None else config
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedArchitecture(
            f"Architecture '{model_type}' is not in the table, and headlens does not guess: a wrong guess gives "
            f"wrong numbers without an error. Known: {known}. To add it, write its row in "
            "headlens/models/families.py (CONTRIBUTING.md says how)."
        )
    if reason := family.odd(config):
        raise UnsupportedArchitecture(
            f"This {family.title} model has {reason}, which its row in headlens/models/families.py does not "
            "describe. Load a model without it, or extend the row (CONTRIBUTING.md says how)."
        )
    return family
