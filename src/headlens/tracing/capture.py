"""`hl.capture`: run a model over tokens and hand over what was at some sites, batch by batch.

Blocks after the last one asked for are not run, nor are logits.

Memory: a batch holds what its sites hold. For patterns that is heads x T x T per layer; pass a reducer
instead, and each layer's pattern is folded while it exists and freed before the next one is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headlens._errors import DataError, SiteError
from headlens.data.tokens import Tokens, pack, pad
from headlens.models import Model
from headlens.tracing.attention import Tap
from headlens.tracing.sites import Site, parse_site
from headlens.tracing.taps import run_through, tapped

Reducer = Callable[[Tensor, "Batch"], Any]
Sites = Sequence[str] | Mapping[str, Reducer | None]


@dataclass
class Batch:
    """Sequences that went through the model together, and what was seen at each site."""

    ids: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    """True on real tokens; padding is on the right unless the caller padded."""
    index: Int[np.ndarray, " batch"]
    """Which of the given sequences these are."""
    values: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Any:
        if site not in self.values:
            raise SiteError(f"'{site}' was not captured; this batch has: {', '.join(self.values)}.")
        return self.values[site]

    def keys(self) -> list[str]:
        return list(self.values)


def capture(
    model: Model,
    tokens: Any,
    sites: Sites,
    *,
    mask: Bool[Tensor, "batch token"] | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Yield batches in the order given, each with the value of every site asked for.

    Parameters
    ----------
    tokens
        `Tokens`, a one-dimensional tensor (one sequence), a list of id lists, or a padded (batch, token)
        tensor with `mask`. Never text: tokenise once, with `hl.data.tokenize`.
    sites
        Names such as `blocks.3.attn.hook_pattern` or `blocks.*.hook_resid_post`; or a mapping from names to
        reducers, called as `reducer(value, batch)` the moment the value exists; the batch keeps what it returns.
    batch_tokens
        How many tokens, padding included, go through the model at once.
    progress
        Called with the number of sequences done after each batch.

    Raises
    ------
    SiteError
        If a site does not exist in this model, or did not appear while it ran.
    DataError
        If there is nothing to read, a sequence is longer than the context, or an id outside the vocabulary.
    """
    wanted = _wanted(model, sites)
    last = max(site.layer for site in wanted)
    batches = _batches(model, tokens, mask, batch_tokens)

    def run() -> Iterator[Batch]:
        for batch in batches:
            with torch.no_grad(), tapped(model, _taps(wanted, batch)):
                run_through(model, last, batch.ids, batch.mask)
            yield batch
            if progress is not None:
                progress(len(batch.index))

    return run()


def _wanted(model: Model, sites: Sites) -> dict[Site, Reducer | None]:
    if isinstance(sites, str):
        raise SiteError(f"sites is a list of names, not one string: write ['{sites}'].")
    named = sites if isinstance(sites, Mapping) else dict.fromkeys(sites)
    if not named:
        raise SiteError("No site was asked for.")
    return {site: reducer for text, reducer in named.items() for site in parse_site(model, text)}


def _taps(wanted: Mapping[Site, Reducer | None], batch: Batch) -> dict[Site, Tap]:
    def keeping(site: Site, reducer: Reducer | None) -> Tap:
        def tap(value: Tensor) -> None:
            value = value.detach()
            batch.values[str(site)] = value if reducer is None else reducer(value, batch)

        return tap

    return {site: keeping(site, reducer) for site, reducer in wanted.items()}


def _batches(model: Model, tokens: Any, mask: Tensor | None, batch_tokens: int) -> Iterator[Batch]:
    if isinstance(tokens, Tensor) and tokens.ndim == 2:
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        check_tokens(model, tokens[mask].cpu().numpy(), mask.sum(-1).cpu().numpy())
        _check_one_length(model, mask)
        return _padded_batches(model, tokens, mask, batch_tokens)
    if mask is not None:
        raise DataError("mask goes with a padded (batch, token) tensor; ragged sequences need none.")
    packed = as_tokens(tokens)
    check_tokens(model, packed.ids, packed.lengths)
    return _packed_batches(model, packed, batch_tokens)


def _check_one_length(model: Model, mask: Tensor) -> None:
    limit, lengths = model.rotary_limit, mask.sum(-1)
    if limit is not None and len(lengths.unique()) > 1 and int(lengths.max()) > limit:
        raise DataError(
            f"{model.name} turns its queries and keys by angles that depend on the longest sequence of a batch beyond "
            f"{limit} tokens: pass ragged sequences instead of a padded tensor, and each long one runs alone."
        )


def as_tokens(tokens: Any) -> Tokens:
    """Return any of the ragged forms that callers may pass as `Tokens`."""
    if isinstance(tokens, Tokens):
        return tokens
    if isinstance(tokens, (Tensor, np.ndarray)):
        if tokens.ndim != 1:
            raise DataError(f"A token array is (token,) or (batch, token), not {tuple(tokens.shape)}.")
        return pack([np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)])
    if isinstance(tokens, str) or any(isinstance(row, str) for row in tokens):
        raise DataError("Token ids are wanted, and text was given: tokenise it first with hl.data.tokenize.")
    rows = list(tokens)
    return pack([rows] if rows and isinstance(rows[0], (int, np.integer)) else rows)


def check_tokens(model: Model, ids: np.ndarray, lengths: np.ndarray) -> None:
    """Raise if these sequences cannot be read by this model.

    Raises
    ------
    DataError
        If there is nothing to read, a sequence is longer than the context, or an id outside the vocabulary.
    """
    if not len(lengths) or lengths.min() == 0:
        raise DataError("There is nothing to read: no sequence, or an empty one.")
    if lengths.max() > model.n_ctx:
        raise DataError(
            f"A sequence of {lengths.max()} tokens is longer than the {model.n_ctx} that {model.name} was made for: "
            "cut it (max_tokens=...)."
        )
    if ids.min() < 0 or ids.max() >= model.vocab_size:
        worst = ids.max() if ids.max() >= model.vocab_size else ids.min()
        raise DataError(
            f"Token id {worst} is outside the vocabulary of {model.name} (0 to {model.vocab_size - 1}): these tokens "
            "come from another tokenizer."
        )


def _padded_batches(model: Model, ids: Tensor, mask: Tensor, batch_tokens: int) -> Iterator[Batch]:
    ids, mask = ids.to(model.device), mask.to(model.device)
    step = max(1, batch_tokens // ids.shape[1])
    for start in range(0, len(ids), step):
        rows = slice(start, start + step)
        yield Batch(ids[rows], mask[rows], np.arange(start, min(start + step, len(ids))))


def _packed_batches(model: Model, tokens: Tokens, batch_tokens: int) -> Iterator[Batch]:
    for index in groups(tokens.lengths, batch_tokens, alone_beyond=model.rotary_limit):
        ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(tokens, index))
        yield Batch(ids, mask, index)


def groups(lengths: np.ndarray, batch_tokens: int, alone_beyond: int | None = None) -> Iterator[np.ndarray]:
    """Yield consecutive sequences whose padded size stays within `batch_tokens` (one, where one exceeds it).

    Sequences longer than `alone_beyond` come one at a time.
    """
    start, widest = 0, 0
    for i, length in enumerate(map(int, lengths)):
        widest = max(widest, length)
        full = widest * (i - start + 1) > batch_tokens
        long = alone_beyond is not None and widest > alone_beyond
        if i > start and (full or long):
            yield np.arange(start, i)
            start, widest = i, length
    if start < len(lengths):
        yield np.arange(start, len(lengths))
