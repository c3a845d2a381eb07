"""Which tokens does a head write and match? Its two circuits over single tokens, read out in words.

    OV    write(s, t)         = direct logit of t from a head that reads s, less the mean over all t
    QK    match(a, b; offset) = cap(scale query(x_a, p) . key(x_b, p - offset)), less the mean over all b and offsets

What is taken off is what a softmax does not see: one number for all targets of a source, or for all keys of a query.
Direct logits leave out what the final norm divides by (heads/circuits.py), so their size compares within a model only.
x is the effective input of one token: the stream at it in [BOS, token], entering block 0 or leaving it.

Lists, per head; `source` is what is read, or the query; `target` what is written, or the key:

    raised, lowered          pairs with the largest, the smallest write(s, t)
    copied, suppressed       tokens with the largest, the smallest write(t, t)
    attended                 pairs with the largest match, for each offset
    matched                  the same where the key is whatever comes after `target`: an induction head has every
                             token look for what came after itself. From layer 1 on, at the largest offset. The key's
                             stream is the true one at x in [BOS, target, x], and keys are averaged over a few x

Where positions are learned, they are part of the stream, and a table over tokens cannot say how far a head looks.
There the position's own vector is taken out of the stream (later layers keep what earlier ones made of it), and offset
is null.

Memory: n_tokens x d_model for every layer, d_head x vocab for one head, and at most `_AT_ONCE` scores; never vocab x
vocab.

Axes: source, target (token); d_model, d_head. Source: Elhage et al. 2021.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens._result import Provenance, Result, versions
from headlens.heads.read_out import effective_inputs, read_out, unembedding
from headlens.heads.setting import allowed_ids
from headlens.models import Head, Model, load
from headlens.tracing.capture import capture

CIRCUITS_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("side", pa.string()),  # ov or qk
        ("list", pa.string()),  # a row of LISTS
        ("offset", pa.int32()),  # how far the key stands before the query; null for ov, and for learned positions
        ("rank", pa.int32()),  # 0 for the first of its list
        ("source", pa.string()),  # ov: the token that is read; qk: the query
        ("target", pa.string()),  # ov: the token that is written; qk: the key
        ("value", pa.float64()),  # logits
        ("place", pa.int64()),  # ov: how many tokens the source raises more than the target; null for qk
    ]
)
LISTS = {"raised": "ov", "lowered": "ov", "copied": "ov", "suppressed": "ov", "attended": "qk", "matched": "qk"}
OFFSETS = (1, 2, 4, 8, 16)
_FOLLOWERS = 4
"""How many x the keys of `matched` are averaged over."""
_AT_ONCE = 2**24


@dataclass(frozen=True)
class HeadCircuits(Result):
    """What each head of one model writes and matches most, in words."""

    table: pa.Table
    """Columns as in `CIRCUITS_SCHEMA`; rows sorted by layer, head, then list and offset as in `LISTS`, and rank."""

    def to_table(self) -> pa.Table:
        return self.table

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "HeadCircuits":  # noqa: ARG003
        return cls(provenance, table.cast(CIRCUITS_SCHEMA))

    @property
    def model(self) -> str:
        return self.table["model"][0].as_py()


def head_circuits(
    source: Any,
    *,
    n_tokens: int = 2000,
    top: int = 10,
    offsets: Sequence[int] = OFFSETS,
    seed: int = 0,
    **load_options: Any,
) -> HeadCircuits:
    """Return the tokens that every head of a model writes and matches most.

    Parameters
    ----------
    source, load_options
        As for `hl.load`.
    n_tokens
        How many ordinary tokens to read, and to match; drawn at random where the vocabulary has more. Written tokens
        are always all ordinary ones.
    top
        Rows of each list.
    offsets
        How far keys stand before the query, where the model rotates; those that a head cannot see are left out.

    Raises
    ------
    DataError
        If a number is out of range, or the model has no ordinary token.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    model = load(source, **load_options)
    model.check_causal("its heads cannot be taken apart")
    offsets = _checked(model, n_tokens, top, offsets)
    ordinary = allowed_ids(model)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(ordinary))[:n_tokens])
    reading = _Reading(model, ordinary, drawn, top, offsets, seed)
    rows = [
        row for layer in range(model.n_layers) for head in range(model.n_heads) for row in reading.rows(layer, head)
    ]
    names = token_texts(model.tokenizer, ordinary)
    columns: dict[str, list] = {name: [row[i] for row in rows] for i, name in enumerate(_Reading.columns)}
    columns |= {end: [names[i] for i in columns[end]] for end in ("source", "target")}
    table = pa.table({"model": [model.name] * len(rows), **columns}, schema=CIRCUITS_SCHEMA)
    made = {"tokens": len(drawn), "of": len(ordinary), "top": top, "offsets": list(offsets)}
    return HeadCircuits(Provenance((model.provenance(),), {"circuits": made}, seed, "", versions()), table)


def _checked(model: Model, n_tokens: int, top: int, offsets: Sequence[int]) -> tuple[int, ...]:
    if n_tokens < 2 or top < 1:
        raise DataError(f"n_tokens must be 2 or more and top 1 or more, not {n_tokens} and {top}.")
    if not offsets or any(offset < 0 for offset in offsets):
        raise DataError(f"offsets must be 0 or more, and one at least, not {list(offsets)}.")
    seen = tuple(sorted({int(offset) for offset in offsets if offset < model.n_ctx}))
    if not seen:
        raise DataError(f"{model.name} reads {model.n_ctx} tokens at most: no offset of {list(offsets)} fits.")
    return seen


def token_texts(tokenizer: Any | None, ids: Int[np.ndarray, " token"]) -> list[str]:
    """Return what each token puts into a text, its leading space included; its name where that cannot be told.

    Without a tokenizer a token is its number: #17.
    """
    if tokenizer is None:
        return [f"#{i}" for i in ids]
    backend = tokenizer.backend_tokenizer
    # Some decoders drop the space at the start of a text, so each token is read behind another one.
    before = int(ids[0])
    start = backend.decode([before], skip_special_tokens=False)
    pairs = backend.decode_batch([[before, int(i)] for i in ids], skip_special_tokens=False)
    names = tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    behind = [text.removeprefix(start) if text.startswith(start) else "" for text in pairs]
    return [name if text == "" or "\ufffd" in text else text for text, name in zip(behind, names, strict=True)]


# --- reading one head ---------------------------------------------------------------------------------------------

_Row = tuple[int, int, str, str, int | None, int, int, int, float, int | None]


class _Reading:
    """What the heads of one model have in common: tokens, their streams, and how many rows are kept."""

    columns = ("layer", "head", "side", "list", "offset", "rank", "source", "target", "value", "place")

    def __init__(
        self,
        model: Model,
        ordinary: Int[np.ndarray, " vocab"],
        drawn: Int[np.ndarray, " token"],
        top: int,
        offsets: tuple[int, ...],
        seed: int,
    ) -> None:
        self.model, self.top, self.offsets = model, top, offsets
        self.drawn = torch.from_numpy(drawn).to(model.device)
        """Which of the ordinary tokens are read."""
        self.ordinary = torch.from_numpy(ordinary).to(model.device)
        unembedding(model, self.ordinary[:1])  # a model that has none to read out is refused before any work
        ids = self.ordinary[self.drawn]
        self.stream = effective_inputs(model, ids)
        followers = np.random.default_rng(seed).choice(ordinary, min(_FOLLOWERS, len(ordinary)), replace=False)
        self.after = _after(model, ids, [int(x) for x in followers])
        self.positions = [_position(model, ids, self.stream[0])]
        """What learned positions add to `stream`, and to `after`."""
        self.positions += [_position(model, torch.tensor(followers[:1], device=model.device), self.after[0, 0])]

    def rows(self, layer: int, head: int) -> Iterator[_Row]:
        with torch.no_grad():
            lists = [*self._ov(layer, head), *self._qk(layer, head)]
        for name, offset, best in lists:
            for rank, (source, target, value, place) in enumerate(best):
                yield layer, head, LISTS[name], name, offset, rank, source, target, value, place

    def _ov(self, layer: int, head: int) -> Iterator[tuple[str, None, list]]:
        h = self.model.head(layer, head)
        value = h.value(self.stream[min(layer, 1)]).float()
        read = read_out(self.model, layer, h.W_O.detach(), self.ordinary)
        read = read - read.mean(-1, keepdim=True)  # (d_head, vocab): centred logits, since logits are linear in it
        high, low = _Best(self.top), _Best(self.top, least=True)
        own, places = [], []
        for rows in _chunks(len(value), read.shape[-1]):
            logits = value[rows] @ read
            high.add(logits, rows.start)
            low.add(logits, rows.start)
            own.append(logits.gather(1, self.drawn[rows, None]))
            places.append((logits > own[-1]).sum(-1))
        own, place = torch.cat(own)[:, 0], torch.cat(places)
        for name, best in (("raised", high), ("lowered", low)):
            yield name, None, [self._pair(value, read, *entry) for entry in best.entries()]
        order = own.argsort(stable=True)
        for name, chosen in (("copied", order.flip(0)), ("suppressed", order)):
            chosen = chosen[: self.top]
            tokens, numbers, counts = (x[chosen].tolist() for x in (self.drawn, own, place))
            yield name, None, [(t, t, v, n) for t, v, n in zip(tokens, numbers, counts, strict=True)]

    def _pair(self, value: Tensor, read: Tensor, row: int, target: int, logit: float) -> tuple[int, int, float, int]:
        logits = value[row] @ read  # not compared with `logit`, which another product may give another last digit
        place = int((logits > logits[target]).sum())
        return int(self.drawn[row]), target, logit, place

    def _qk(self, layer: int, head: int) -> Iterator[tuple[str, int | None, list]]:
        h = self.model.head(layer, head)
        offsets = [o for o in self.offsets if h.window is None or o < h.window]
        if not offsets:
            return
        largest = max(offsets)
        x = self._seen(h, self.stream[min(layer, 1)], 0)
        if h.rotary is None:
            query, keys = h.query(x, None), {None: h.key(x, None)}
        else:
            query, keys = h.query(x, largest), {o: h.key(x, largest - o) for o in offsets}
        for offset, best in zip(keys, self._matches(h, query, list(keys.values())), strict=True):
            yield "attended", offset, best
        if layer > 0:
            place = None if h.rotary is None else 0
            after = torch.stack([h.key(self._seen(h, x, 1), place) for x in self.after[:, layer]]).float().mean(0)
            (best,) = self._matches(h, query, [after])
            yield "matched", None if h.rotary is None else largest, best

    def _seen(self, head: Head, x: Float[Tensor, "token d_model"], after: int) -> Float[Tensor, "token d_model"]:
        """Return the part of a stream that is about tokens: where positions are learned, all but the position's own."""
        return x if head.rotary is not None else x - self.positions[after]

    def _matches(
        self, head: Head, query: Float[Tensor, "token d_head"], keys: Sequence[Float[Tensor, "token d_head"]]
    ) -> list[list[tuple[int, int, float, None]]]:
        """Return the best pairs with each of `keys`: (query, key, score), scores compared over all of them."""
        found = [_Best(self.top) for _ in keys]
        stacked = torch.stack([key.float() for key in keys])
        for rows in _chunks(len(query), stacked.shape[0] * stacked.shape[1]):
            scores = head.cap(head.scale * query[rows].float() @ stacked.transpose(-1, -2))  # (offset, query, key)
            scores = scores - scores.mean((0, 2), keepdim=True)
            for best, some in zip(found, scores, strict=True):
                best.add(some, rows.start)
        drawn = self.drawn.tolist()
        return [[(drawn[q], drawn[k], value, None) for q, k, value in best.entries()] for best in found]


class _Best:
    """The largest (or least) entries of a matrix that is seen a few rows at a time."""

    def __init__(self, n: int, *, least: bool = False) -> None:
        self.n, self.sign = n, -1 if least else 1
        self.values, self.places = torch.zeros(0), torch.zeros(0, 2, dtype=torch.long)

    def add(self, entries: Float[Tensor, "row column"], first: int) -> None:
        """Take rows `first`, `first` + 1, ... into account."""
        flat = entries.flatten()
        chosen = (self.sign * flat).topk(min(self.n, len(flat))).indices
        places = torch.stack((chosen // entries.shape[1] + first, chosen % entries.shape[1]), 1)
        values = torch.cat((self.values, flat[chosen].cpu()))
        best = (self.sign * values).argsort(stable=True, descending=True)[: self.n]
        self.values, self.places = values[best], torch.cat((self.places, places.cpu()))[best]

    def entries(self) -> list[tuple[int, int, float]]:
        return [(row, column, x) for (row, column), x in zip(self.places.tolist(), self.values.tolist(), strict=True)]


def _chunks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // width)
    return (slice(start, start + step) for start in range(0, n, step))


def _position(
    model: Model, ids: Int[Tensor, " #token"], stream: Float[Tensor, "token d_model"]
) -> Float[Tensor, " d_model"]:
    """Return what is in the stream as it enters block 0 besides the tokens: a learned position, or nothing."""
    with torch.no_grad():
        return (stream - model.hf.get_input_embeddings()(ids)).mean(0)


def _after(
    model: Model, ids: Int[Tensor, " token"], followers: Sequence[int]
) -> Float[Tensor, "follower layer token d_model"]:
    """Return the stream as it enters each layer at the token after each of `ids`, for some tokens that come after."""
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    found = []
    for follower in followers:
        parts = [ids, torch.full_like(ids, follower)]
        if model.bos is not None:
            parts.insert(0, torch.full_like(ids, model.bos))
        batches = list(capture(model, torch.stack(parts, 1), dict.fromkeys(sites, lambda x, batch: x[:, -1])))  # noqa: ARG005
        found.append(torch.stack([torch.cat([batch[site] for batch in batches]) for site in sites]))
    return torch.stack(found)
