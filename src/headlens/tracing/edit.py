"""`hl.edit`: run a model with something changed at a site: ablated, patched, or one edge of attention cut.

    with hl.edit(model, [hl.ablate("blocks.5.attn.hook_z", head=1, to="mean"), hl.cut(3, 0, query=7, key=2)]):
        ...                       # hl.capture, or model.forward

Scores are edited before the mask and the softmax: whatever is written, no query sees its future.

Axes: sites inside attention have heads; `head` selects one, `position` tokens (queries, at a pattern).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headlens._errors import SiteError
from headlens.models import Model
from headlens.tracing.attention import Tap
from headlens.tracing.sites import Site, parse_site
from headlens.tracing.taps import running, tapped


@dataclass(frozen=True)
class Edit:
    """A change at a site: `change(value)` returns the new value, and must not write into the old one."""

    site: str
    change: Callable[[Tensor], Tensor]


@contextlib.contextmanager
def edit(model: Model, edits: Sequence[Edit] | Edit) -> Iterator[None]:
    """Apply `edits` (one, or several in order) to every forward pass inside the block.

    Raises
    ------
    SiteError
        If a site does not exist, or (at the end) did not appear while the model ran; or if the model did not
        run inside the block at all: `hl.capture` is lazy, and would run unedited once the block is over.
    """
    changes: dict[Site, list[Callable[[Tensor], Tensor]]] = {}
    for one in [edits] if isinstance(edits, Edit) else edits:
        for site in parse_site(model, one.site):
            changes.setdefault(site, []).append(one.change)
    with tapped(model, {site: _in_order(several) for site, several in changes.items()}) as watch:
        yield
    if not watch.runs:
        raise SiteError(
            f"{model.name} did not run inside the edit. A capture runs as its batches are taken: take them inside."
        )


def _in_order(changes: Sequence[Callable[[Tensor], Tensor]]) -> Tap:
    def tap(value: Tensor) -> Tensor:
        for change in changes:
            value = change(value)
        return value

    return tap


def ablate(
    site: str,
    *,
    head: int | None = None,
    to: Literal["zero", "mean", "resample"] = "zero",
    generator: torch.Generator | None = None,
) -> Edit:
    """Return an edit that removes what a site (or one head of it) says.

    `mean` puts the mean over the batch's real tokens there; `resample` gives each sequence the value of
    another one, drawn with `generator` (sequences should then be of one length).

    Raises
    ------
    SiteError
        While the model runs, if there is no such head, or no other sequence to resample from.
    """

    def change(value: Tensor) -> Tensor:
        match to:
            case "zero":
                new = torch.zeros_like(value)
            case "mean":
                new = _mean_of_real_tokens(value).expand_as(value)
            case "resample":
                new = value[_others(len(value), generator).to(value.device)]
            case _:
                raise SiteError(f"to must be zero, mean or resample, not '{to}'.")
        return _at(value, new, site, head)

    if to == "resample" and generator is None:
        raise SiteError("resample draws at random: pass generator=torch.Generator().manual_seed(...).")
    if to == "mean" and _head_axis(site) == 1:
        raise SiteError(f"{site} has no token axis to average over; ablate attn.hook_z, or patch the pattern.")
    return Edit(site, change)


def patch(site: str, value: Tensor, *, head: int | None = None, position: int | Sequence[int] | None = None) -> Edit:
    """Return an edit that puts `value` at a site; it is broadcast over the axes it lacks.

    `value` has the axes of the site without those that `head` (an index) selects away; with `position`
    its token axis covers the chosen positions only.
    """
    where = [position] if isinstance(position, int) else position

    def change(old: Tensor) -> Tensor:
        new = old.clone()
        place: list[slice | int | list[int]] = [slice(None)] * old.ndim
        if head is not None:
            place[_head_axis(site)] = head
        if where is not None:
            place[_token_axis(site)] = list(where)
        new[tuple(place)] = value.to(device=old.device, dtype=old.dtype)
        return new

    return Edit(site, change)


def cut(layer: int, head: int, *, query: int | slice = slice(None), key: int | slice = slice(None)) -> Edit:
    """Return an edit after which `query` positions cannot attend to `key` positions in one head."""

    def change(scores: Tensor) -> Tensor:
        new = scores.clone()
        new[:, head, query, key] = -torch.inf
        return new

    return Edit(f"blocks.{layer}.attn.hook_attn_scores", change)


def _at(old: Tensor, new: Tensor, site: str, head: int | None) -> Tensor:
    if head is None:
        return new
    mixed = old.clone()
    axis = _head_axis(site)
    if not 0 <= head < old.shape[axis]:
        raise SiteError(f"{site} has no head {head}: it has {old.shape[axis]} (key and value heads are shared).")
    mixed.select(axis, head).copy_(new.select(axis, head))
    return mixed


def _mean_of_real_tokens(value: Tensor) -> Tensor:
    mask = running().mask
    if mask is None:
        return value.mean((0, 1), keepdim=True)
    real = mask.bool().to(value.device)
    return value[real].mean(0).expand(1, 1, *value.shape[2:])


def _others(n: int, generator: torch.Generator | None) -> Tensor:
    """Return a random order of n sequences in which none keeps its place."""
    if n < 2:
        raise SiteError("resample takes another sequence's value, and the batch has only one: pass larger batches.")
    order = torch.randperm(n, generator=generator)
    taken = torch.empty_like(order)
    taken[order] = order.roll(1)  # along one random cycle
    return taken


def _token_axis(site: str) -> int:
    """Which axis of a site's value counts tokens (at scores and patterns: queries)."""
    return 2 if site.endswith(("hook_attn_scores", "hook_pattern")) else 1


def _head_axis(site: str) -> int:
    """Which axis of a site's value counts heads.

    Raises
    ------
    SiteError
        If the site has no heads.
    """
    if site.endswith(("hook_attn_scores", "hook_pattern")):
        return 1
    if ".attn." in site:
        return 2
    raise SiteError(f"{site} has no heads to choose from: leave head out.")
