"""The one mechanism under capture and edit: functions called with the value at a site, while it exists.

A tap is `function(value) -> None | new value`. Block sites are reached by forward hooks. Sites inside
attention are reached by standing in for the attention function: a registered attention interface (or,
for the two families that have none, the module's `_attn`), which calls the model's *own* eager function
for mask, softmax and value mixing. So logits are those of eager attention to the last bit, and an edit
of the scores cannot undo the mask: it is handed on as an addition to it.

Outside a `tapped` block nothing is installed and the model runs exactly as loaded.
Source: transformers 5 (AttentionInterface, AttentionMaskInterface); science of the design in docs/.
"""

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headlens._errors import SiteError, UnsupportedArchitecture
from headlens.models import Model
from headlens.models.projections import Projection
from headlens.tracing.sites import Site

Tap = Callable[[Tensor], Tensor | None]
_NAME = "headlens"
_PROJECTED = {"attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v"}

# Which taps stand at each attention module, in this thread or task only.
_ACTIVE: contextvars.ContextVar[dict[nn.Module, dict[str, list[Tap]]]] = contextvars.ContextVar("taps")


@contextlib.contextmanager
def tapped(model: Model, taps: Mapping[Site, Tap]) -> Iterator[None]:
    """Call each tap whenever the model computes its site, until the block ends.

    Blocks nest: an outer one's taps run first, so a capture inside an edit sees the edited value.

    Raises
    ------
    SiteError
        At the end of the block, if the model ran but some site never appeared.
    """
    fired: set[Site] = set()
    runs: list[torch.Size] = []
    attention = _attention_taps(model, taps, fired)
    entries = {model.hf, model.hf.base_model}  # a language model may or may not call its base model as a module
    handles = [entry.register_forward_pre_hook(_noting_shape(runs), with_kwargs=True) for entry in entries]
    handles += _block_hooks(model, taps, fired, runs)
    token = _ACTIVE.set(_merged(_ACTIVE.get({}), attention))
    try:
        with _own_attention(model):
            yield
        if runs and (silent := set(taps) - fired):
            first = min(silent)
            raise SiteError(
                f"{first} did not appear while {model.name} ran ({len(silent)} sites in all): this build of "
                f"{model.family.title} does not compute attention where its row in headlens/models/families.py says."
            )
    finally:
        _ACTIVE.reset(token)
        for handle in handles:
            handle.remove()


class _Stop(Exception):  # no error: the way out of a forward pass
    """Raised inside a forward pass when all that was wanted has been seen."""


def run_through(model: Model, layer: int, ids: Tensor, mask: Tensor | None) -> None:
    """Run the model up to and including block `layer`; what comes after is not computed."""

    def stop(*_: Any) -> None:
        raise _Stop

    handle = model.blocks[layer].register_forward_hook(stop)  # after the taps of this block: registered last
    try:
        model.forward(ids, mask, logits=False)
    except _Stop:
        pass
    finally:
        handle.remove()


def _attention_taps(model: Model, taps: Mapping[Site, Tap], fired: set[Site]) -> dict[nn.Module, dict[str, list[Tap]]]:
    found: dict[nn.Module, dict[str, list[Tap]]] = {}
    for site, tap in taps.items():
        if site.name.startswith("attn.") and site.name not in _PROJECTED:
            module = model.attention_module(site.layer)
            found.setdefault(module, {}).setdefault(site.name, []).append(_noting(tap, site, fired))
    return found


def _merged(
    outer: dict[nn.Module, dict[str, list[Tap]]], inner: dict[nn.Module, dict[str, list[Tap]]]
) -> dict[nn.Module, dict[str, list[Tap]]]:
    both = {module: {name: list(taps) for name, taps in sites.items()} for module, sites in outer.items()}
    for module, sites in inner.items():
        for name, taps in sites.items():
            both.setdefault(module, {}).setdefault(name, []).extend(taps)
    return both


def _noting(tap: Tap, site: Site, fired: set[Site]) -> Tap:
    def noting(value: Tensor) -> Tensor | None:
        fired.add(site)
        return tap(value)

    return noting


def _noting_shape(runs: list[torch.Size]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        runs.append((args[0] if args else kwargs["input_ids"]).shape)

    return hook


# --- block sites: forward hooks ---------------------------------------------------------------------------


def _block_hooks(model: Model, taps: Mapping[Site, Tap], fired: set[Site], runs: list[torch.Size]) -> list[Any]:
    hooks = []
    for site, tap in taps.items():
        noting = _noting(tap, site, fired)
        if site.name in _PROJECTED:
            projection = model.projections(site.layer)[_PROJECTED[site.name]]
            hooks.append(projection.module.register_forward_hook(_on_heads(projection, noting)))
        elif not site.name.startswith("attn."):
            hooks.append(_block_hook(model, site, _with_tokens(noting, runs)))
    return hooks


def _with_tokens(tap: Tap, runs: list[torch.Size]) -> Tap:
    """OPT flattens batch and token before its MLP: show them apart all the same."""

    def unflattening(value: Tensor) -> Tensor | None:
        if value.ndim == 3:
            return tap(value)
        new = tap(value.unflatten(0, tuple(runs[-1])))
        return None if new is None else new.flatten(0, 1)

    return unflattening


def _block_hook(model: Model, site: Site, tap: Tap) -> Any:
    block, family = model.blocks[site.layer], model.family
    match site.name:
        case "hook_resid_pre":
            return block.register_forward_pre_hook(_on_input(tap), with_kwargs=True)
        case "hook_resid_mid":
            return block.get_submodule(family.mid).register_forward_pre_hook(_on_input(tap), with_kwargs=True)
        case "ln1.hook_normalized":
            return block.get_submodule(family.pre_norm).register_forward_hook(_on_output(tap))
        case "hook_attn_out":
            return block.get_submodule(family.attn_out).register_forward_hook(_on_output(tap))
        case "hook_mlp_out":
            return block.get_submodule(family.mlp_out).register_forward_hook(_on_output(tap))
        case _:
            return block.register_forward_hook(_on_output(tap))


def _on_input(tap: Tap) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        if args:
            new = tap(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = tap(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    return hook


def _on_output(tap: Tap) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        if isinstance(output, tuple):
            new = tap(output[0])
            return None if new is None else (new, *output[1:])
        return tap(output)

    return hook


def _on_heads(projection: Projection, tap: Tap) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:  # noqa: ARG001
        new = tap(projection.split(output))
        if new is None:
            return None
        whole = output.clone()
        projection.split(whole).copy_(new)
        return whole

    return hook


# --- sites inside attention -------------------------------------------------------------------------------


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
    eager: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run one attention with its taps; `eager` is the model's own, and returns z (batch, token, head, d_head)."""
    taps = _ACTIVE.get({}).get(module, {})
    q, k = _on_token_axis(taps, "attn.hook_rot_q", q), _on_token_axis(taps, "attn.hook_rot_k", k)
    if "attn.hook_attn_scores" in taps:
        scores = _scores(q, k, scaling, softcap)
        edited = _apply(taps, "attn.hook_attn_scores", scores)
        if edited is not None:
            mask = _added_to_mask(edited - scores, mask)
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


def _added_to_mask(change: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask that makes the model's own softmax see the edited scores, and no masked key.

    Raises
    ------
    SiteError
        If a query that saw something would see nothing: its attention would not be defined.
    """
    if mask is None:
        hidden, total = torch.zeros_like(change, dtype=torch.bool), change
    else:
        hidden = (mask < max(torch.finfo(mask.dtype).min, torch.finfo(torch.float32).min) / 2).expand_as(change)
        total = torch.where(hidden, mask, mask + change)
    blind = (hidden | torch.isneginf(total)).all(-1) & ~hidden.all(-1)
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
    if attention_mask is not None and attention_mask.dtype == torch.float64:
        # A padding query that sees nothing has a row of float64's minimum; cast to float32 by the model's
        # softmax that is -inf throughout, and its NaN would spread to every token.
        attention_mask = attention_mask.clamp(min=torch.finfo(torch.float32).min)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(
        module, query, key, value, attention_mask, scaling, kwargs.get("softcap"),
        lambda q, k, v, mask: own(module, q, k, v, mask, **kwargs),
    )  # fmt: skip


def _method(module: Any, scale: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """A stand-in for the `_attn` method of the families that have no attention interface."""

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            z, pattern = type(module)._attn(module, q, k, v, mask)
            return z.transpose(1, 2), pattern

        # Both such families score in float32 whatever the model's dtype.
        z, pattern = _attend(module, query.float(), key.float(), value, attention_mask, scale, None, own)
        return z.transpose(1, 2), pattern

    return attn


@contextlib.contextmanager
def _own_attention(model: Model) -> Iterator[None]:
    """Route attention through taps, and put everything back at the end."""
    if model.family.tap == "_attn":
        with _methods_replaced(model):
            yield
    else:
        with _implementation(model):
            yield


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
