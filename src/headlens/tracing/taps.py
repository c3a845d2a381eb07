"""The one mechanism under capture and edit: functions called with the value at a site, while it exists.

A tap is `function(value) -> None | new value`. Block sites are reached by forward hooks, here; sites inside
attention by standing in for the attention function (tracing/attention.py). Outside a `tapped` block
nothing is installed and the model runs exactly as loaded.

One thread at a time may tap a model: hooks belong to the model, and a second thread would read the first
one's values.
"""

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from headlens._errors import SiteError
from headlens.models import Model
from headlens.models.projections import Projection
from headlens.tracing.attention import Tap, attention_taps
from headlens.tracing.sites import Site

_PROJECTED = {"attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v"}


class Run(NamedTuple):
    """One forward pass in progress."""

    shape: tuple[int, ...]
    """(batch, token)"""
    mask: Tensor | None
    """(batch, token), nonzero on real tokens; None where all are real."""


@dataclass
class Watch:
    """What happened inside a `tapped` block."""

    fired: set[Site] = field(default_factory=set)
    entered: set[int] = field(default_factory=set)
    """Layers whose block ran: where one did and a site in it did not appear, something is wrong."""
    runs: int = 0


_RUN: contextvars.ContextVar[Run] = contextvars.ContextVar("run")
_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()  # pyright: ignore[reportInvalidTypeForm]


def running() -> Run:
    """Return the forward pass that a tap is called from."""
    return _RUN.get()


@contextlib.contextmanager
def tapped(model: Model, taps: Mapping[Site, Tap]) -> Iterator[Watch]:
    """Call each tap whenever the model computes its site, until the block ends.

    Blocks nest: an outer one's taps run first, so a capture inside an edit sees the edited value.

    Raises
    ------
    SiteError
        If another thread is in such a block of this model; or, at the end, if a block of the model ran and
        a site in it never appeared.
    """
    watch = Watch()
    noting = {site: _noting(tap, site, watch) for site, tap in taps.items()}
    inside = {
        site: tap for site, tap in noting.items() if site.name.startswith("attn.") and site.name not in _PROJECTED
    }
    with _this_thread_only(model), contextlib.ExitStack() as hooks:
        for handle in (*_run_hooks(model, noting, watch), *_block_hooks(model, noting)):
            hooks.callback(handle.remove)
        with attention_taps(model, inside):
            yield watch
    silent = {site for site in taps if site.layer in watch.entered} - watch.fired
    if silent:
        raise SiteError(
            f"{min(silent)} did not appear while {model.name} ran ({len(silent)} sites in all): this build of "
            f"{model.family.title} does not compute attention where its row in headlens/models/families.py says."
        )


@contextlib.contextmanager
def _this_thread_only(model: Model) -> Iterator[None]:
    lock = _LOCKS.setdefault(model.hf, threading.RLock())
    if not lock.acquire(blocking=False):
        raise SiteError(f"Another thread is capturing from or editing {model.name}; load it twice, or take turns.")
    try:
        yield
    finally:
        lock.release()


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


def _noting(tap: Tap, site: Site, watch: Watch) -> Tap:
    def noting(value: Tensor) -> Tensor | None:
        watch.fired.add(site)
        return tap(value)

    return noting


def _run_hooks(model: Model, taps: Mapping[Site, Tap], watch: Watch) -> Iterator[Any]:
    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs["inputs_embeds"][..., 0] if given is None else given
        watch.runs += 1
        _RUN.set(Run(tuple(given.shape), kwargs.get("attention_mask")))

    # A language model may or may not call its base model as a module; to note a run twice does no harm.
    for entry in {model.hf, model.hf.base_model}:
        yield entry.register_forward_pre_hook(begin, with_kwargs=True)
    for layer in {site.layer for site in taps}:
        yield model.blocks[layer].register_forward_pre_hook(lambda *_, layer=layer: watch.entered.add(layer))


# --- block sites: forward hooks ---------------------------------------------------------------------------


def _block_hooks(model: Model, taps: Mapping[Site, Tap]) -> Iterator[Any]:
    for site, tap in taps.items():
        if site.name in _PROJECTED:
            projection = model.projections(site.layer)[_PROJECTED[site.name]]
            yield projection.module.register_forward_hook(_on_heads(projection, tap))
        elif not site.name.startswith("attn."):
            yield from _block_hook(model, site, _with_tokens(tap))


def _block_hook(model: Model, site: Site, tap: Tap) -> Iterator[Any]:
    block, family = model.blocks[site.layer], model.family
    match site.name:
        case "hook_resid_pre":
            yield block.register_forward_pre_hook(_on_input(tap), with_kwargs=True)
        case "hook_resid_mid" if family.mid_is_output:
            yield block.get_submodule(family.mid).register_forward_hook(_on_output(tap))
        case "hook_resid_mid":
            yield from _mid_hooks(block, block.get_submodule(family.mid), tap)
        case "ln1.hook_normalized":
            yield block.get_submodule(family.pre_norm).register_forward_hook(_on_output(tap))
        case "hook_attn_out":
            yield block.get_submodule(family.attn_out).register_forward_hook(_on_output(tap))
        case "hook_mlp_out":
            yield block.get_submodule(family.mlp_out).register_forward_hook(_on_output(tap))
        case _:
            yield block.register_forward_hook(_on_output(tap))


def _mid_hooks(block: nn.Module, reader: nn.Module, tap: Tap) -> Iterator[Any]:
    """Hook what the MLP's side reads of the stream; a change goes on in the stream itself as well.

    The block has put the stream aside before `reader` sees it, so the change is added to the block's output,
    before any tap of `hook_resid_post` runs.
    """
    changes: list[Tensor] = []

    def noting_change(value: Tensor) -> Tensor | None:
        new = tap(value)
        if new is not None:
            changes.append(new - value)
        return new

    def carry(value: Tensor) -> Tensor | None:
        return value + changes.pop().reshape(value.shape) if changes else None

    yield reader.register_forward_pre_hook(_on_input(noting_change), with_kwargs=True)
    yield block.register_forward_hook(_on_output(carry), prepend=True)


def _with_tokens(tap: Tap) -> Tap:
    """OPT flattens batch and token before its MLP: show them apart all the same."""

    def unflattening(value: Tensor) -> Tensor | None:
        if value.ndim == 3:
            return tap(value)
        new = tap(value.unflatten(0, running().shape))
        return None if new is None else new.flatten(0, 1)

    return unflattening


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
