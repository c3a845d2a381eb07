"""The sites inside attention: standing in for the attention function, without computing it ourselves.

transformers calls a registered attention interface (or, in the two families that have none, the module's
`_attn`); ours calls the taps, and the model's *own* eager function for mask, softmax and value mixing. So
logits are those of eager attention to the last bit. An edit of the scores is handed on as an addition to
the mask: the softmax stays the model's, and no edit can undo the mask. In half precision that addition is
rounded to the type; edit scores in float32 where that matters.

Source: transformers 5 (AttentionInterface, AttentionMaskInterface).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headlens._errors import SiteError, UnsupportedArchitecture
from headlens.models import Model
from headlens.tracing.sites import Site

Tap = Callable[[Tensor], Tensor | None]
_NAME = "headlens"

# Which taps stand at each attention module.
_ACTIVE: dict[nn.Module, dict[str, list[Tap]]] = {}


@contextlib.contextmanager
def attention_taps(model: Model, taps: Mapping[Site, Tap]) -> Iterator[None]:
    """Call `taps` at their sites inside attention until the block ends, after those of enclosing blocks."""
    before = dict(_ACTIVE)
    for site, tap in taps.items():
        module = model.attention_module(site.layer)
        outer = _ACTIVE.get(module, {})
        _ACTIVE[module] = outer | {site.name: [*outer.get(site.name, ()), tap]}
    try:
        with _methods_replaced(model) if model.family.tap == "_attn" else _implementation(model):
            yield
    finally:
        for site in taps:
            module = model.attention_module(site.layer)
            if module in before:
                _ACTIVE[module] = before[module]
            else:
                _ACTIVE.pop(module, None)


def _apply(taps: dict[str, list[Tap]], name: str, value: Tensor) -> Tensor | None:
    """Run the taps of a site on `value`; return the new value if any tap gave one."""
    changed = None
    for tap in taps.get(name, ()):
        new = tap(value)
        if new is not None:
            changed = value = new
    return changed


def _on_token_axis(taps: dict[str, list[Tap]], name: str, heads_first: Tensor) -> Tensor:
    """Run taps that see (batch, token, head, d_head) on a tensor kept as (batch, head, token, d_head)."""
    if name not in taps:
        return heads_first
    new = _apply(taps, name, heads_first.transpose(1, 2))
    return heads_first if new is None else new.transpose(1, 2)


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None,
    unseen: Tensor | None, eager: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run one attention with its taps; `eager` is the model's own, and returns z (batch, token, head, d_head)."""
    taps = _ACTIVE.get(module, {})
    q, k = _on_token_axis(taps, "attn.hook_rot_q", q), _on_token_axis(taps, "attn.hook_rot_k", k)
    if "attn.hook_attn_scores" in taps:
        scores = _scores(q, k, scaling, softcap)
        edited = _apply(taps, "attn.hook_attn_scores", scores)
        if edited is not None:
            mask = _added_to_mask(edited - scores, mask, unseen)
    z, pattern = eager(q, k, v, mask)
    edited = _apply(taps, "attn.hook_pattern", pattern)
    if edited is not None:
        pattern = edited
        z = torch.matmul(pattern, _per_query_head(v, q.shape[1])).transpose(1, 2).contiguous()
    edited = _apply(taps, "attn.hook_z", z)
    return z if edited is None else edited, pattern


def _scores(q: Tensor, k: Tensor, scaling: float, softcap: float | None) -> Tensor:
    # The same operations in the same order as every eager function of transformers.
    scores = torch.matmul(q, _per_query_head(k, q.shape[1]).transpose(2, 3)) * scaling
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _per_query_head(kv: Tensor, heads: int) -> Tensor:
    """Repeat each key/value head for the query heads that read it."""
    return kv if kv.shape[1] == heads else kv.repeat_interleave(heads // kv.shape[1], dim=1)


def _floor(dtype: torch.dtype) -> float:
    """Return the value that a hidden key has in a mask: the type's least, where that is safe to add a score to."""
    if dtype == torch.float16:
        return torch.finfo(dtype).min / 2  # -65504 plus a score would be -inf
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


def _safe(mask: Tensor | None) -> Tensor | None:
    """Return the mask with hidden keys at `_floor`.

    A padding query that sees nothing has a row of the type's minimum. In float64 the model's softmax casts it to
    float32, in float16 a score is added: either gives -inf throughout, and its NaN would spread to every token.
    """
    if mask is None or mask.dtype not in (torch.float64, torch.float16):
        return mask
    return mask.clamp(min=_floor(mask.dtype))


def _added_to_mask(change: Tensor, mask: Tensor | None, unseen: Tensor | None) -> Tensor:
    """Return the mask that makes the model's own softmax see the edited scores, and no masked key.

    `unseen` are keys that the model hides by other means than the mask.

    Raises
    ------
    SiteError
        If the edit wrote NaN or +inf, or a query that saw something would see nothing: its attention would not be
        defined, and some models would spread it over the future.
    """
    if bool((change.isnan() | change.isposinf()).any()):
        raise SiteError("The edit writes NaN or +inf into attention scores; write finite numbers, or -inf to cut.")
    low = _floor(change.dtype if mask is None else mask.dtype) / 2
    hidden = torch.zeros_like(change, dtype=torch.bool) if mask is None else (mask <= low).expand_as(change)
    hidden = hidden if unseen is None else hidden | unseen
    total = change if mask is None else torch.where(hidden, mask, mask + change)
    blind = (hidden | (total <= low)).all(-1) & ~hidden.all(-1)
    if bool(blind.any()):
        raise SiteError("The edit hides every key that some query sees; leave it at least one.")
    return total


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """transformers' attention interface: the model's own eager attention, with taps."""
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None or kwargs.get("position_bias") is not None:
        raise UnsupportedArchitecture(
            f"{type(module).__name__} does not compute attention as its family does: headlens would give wrong numbers."
        )
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(
        module, query, key, value, _safe(attention_mask), scaling, kwargs.get("softcap"), None,
        lambda q, k, v, mask: own(module, q, k, v, mask, **kwargs),
    )  # fmt: skip


def _method(module: Any, scale: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """A stand-in for the `_attn` method of the families that have no attention interface."""

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            z, pattern = type(module)._attn(module, q, k, v, mask)
            return z.transpose(1, 2), pattern

        # Both such families score in float32 whatever the model's dtype.
        unseen = _beyond_own_window(module, query.shape[-2], key.shape[-2])
        z, pattern = _attend(module, query.float(), key.float(), value, attention_mask, scale, None, unseen, own)
        return z.transpose(1, 2), pattern

    return attn


def _beyond_own_window(module: Any, queries: int, keys: int) -> Tensor | None:
    """Return which keys GPT-Neo's own causal or local buffer hides; its mask does not say."""
    own = getattr(module, "bias", None)
    return None if own is None else ~own[:, :, keys - queries : keys, :keys]


@contextlib.contextmanager
def _methods_replaced(model: Model) -> Iterator[None]:
    modules = [model.attention_module(layer) for layer in range(model.n_layers)]
    fresh = [m for m in modules if "_attn" not in vars(m)]  # an enclosing block may have replaced them already
    for module in fresh:
        module._attn = _method(module, model.family.scale(module))
    try:
        yield
    finally:
        for module in fresh:
            del module._attn


@contextlib.contextmanager
def _implementation(model: Model) -> Iterator[None]:
    _register()
    modules = (model.attention_module(layer) for layer in range(model.n_layers))
    configs = {id(c): c for c in (model.hf.config, model.config, *(m.config for m in modules))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _interface)
    # Without a mask function of the same name transformers passes no mask at all: causality would be lost.
    AttentionMaskInterface.register(_NAME, eager_mask)
