"""Turn feature-resolved attention into what views/feature_attention.js reads.

    fra        [{name, model, layer, head, tokens, n_features, window, softcap, merged, bytes}]
        merged     whether features were summed (below)
        bytes      of fra_R, about
    fra_R      {tokens, width, others, query, key, scores, attention, labels, contexts}
        width      numbers of a part of a query or key: d_head
        others     names of sources from n_features on; the last one is the sum of features that are not kept one by one
        query, key {offsets, source, activation, vector}: as in `Side`; the last three packed (int32, float32, float32)
        scores     packed float32: the model's own s[q, k] for k <= q, row by row, -inf beyond the window
        attention  packed float32: A[q, k], likewise
        labels     {feature: text}, of features that are here
        contexts   {feature: [[before, token, after], ...]}, likewise

A pair is a product of two rows, so that the page has every pair, every channel and every difference of keys from these
rows. Where there are too many, each position keeps those features whose pairs are largest (half of their weight even
over the keys, half as attention has it), and one row is the sum of the others: whatever is shown, what is left to
each score is known exactly. A page has about 2.3 MB of a text of 128
tokens at d_head 64, however many features are active.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headlens._errors import ResultError
from headlens._result import Result
from headlens.fra.attention import FeatureAttention
from headlens.fra.labels import FeatureLabels
from headlens.fra.sides import OTHERS, Side
from headlens.report.feature_labels import LONGEST_LABEL, labels_of, model_names
from headlens.report.plain import pack

BYTES = 1 << 20
"""Of the vectors of one side, unless that left fewer than `LEAST` features to a position."""
LEAST = 6
MERGED = "other features"
CONTEXTS = 4
_START = 90


def fra_traits(results: Sequence[Result]) -> dict[str, Any]:
    """Return the named values of feature-resolved attention, with labels of their dictionaries.

    Raises
    ------
    ResultError
        If there are labels and nothing that they could be labels of.
    """
    found = [r for r in results if isinstance(r, FeatureAttention)]
    labels = [r for r in results if isinstance(r, FeatureLabels)]
    if labels and not found:
        raise ResultError("FeatureLabels are shown beside a FeatureAttention: pass that too.")
    contents = [_content(one, labels_of(one, labels)) for one in found]
    models = model_names(found)
    starts = ["".join(one.tokens)[:_START] for one in found]
    heads = [f"Layer {one.layer}, head {one.head} of {model}" for one, model in zip(found, models, strict=True)]
    several = len({one.tokens for one in found}) > 1
    return {
        "fra": [
            {
                "name": f"{head}: {start}" if several else head,
                "model": model,
                "layer": one.layer,
                "head": one.head,
                "tokens": len(one.tokens),
                "n_features": one.n_features,
                "window": one.window,
                "softcap": one.softcap,
                "merged": merged,
                "bytes": _size(content),
            }
            for one, model, head, start, (content, merged) in zip(found, models, heads, starts, contents, strict=True)
        ],
        **{f"fra_{r}": content for r, (content, _) in enumerate(contents)},
    }


def _content(result: FeatureAttention, labels: FeatureLabels | None) -> tuple[dict[str, Any], bool]:
    kept = _kept(result)
    sides = {"query": _merged(result.query, kept[0], result), "key": _merged(result.key, kept[1], result)}
    present = torch.cat([side.source for side in sides.values()]).unique()
    features = [i for i in present.tolist() if i < result.n_features]
    below = np.tril_indices(len(result.tokens))
    scores = result.scores().float().numpy()[below]
    named = {i: label for i in features if labels is not None and (label := labels.label(i)) is not None}
    seen = {i: own for i in features if labels is not None and (own := labels.contexts(i)[:CONTEXTS])}
    return {
        "tokens": list(result.tokens),
        "width": result.query.vector.shape[1],
        "others": [*OTHERS, MERGED],
        **{name: _side(side) for name, side in sides.items()},
        "scores": pack(scores),
        "attention": pack(result.pattern.float().numpy()[below]),
        "labels": {str(i): label[:LONGEST_LABEL] for i, label in named.items()},
        "contexts": {str(i): [[c["before"], c["token"], c["after"]] for c in own] for i, own in seen.items()},
    }, not all(bool(one.all()) for one in kept)


def _size(content: dict[str, Any]) -> int:
    return sum(len(part) for side in ("query", "key") for part in content[side].values() if isinstance(part, str))


def _side(side: Side) -> dict[str, Any]:
    return {
        "offsets": side.offsets.tolist(),
        "source": pack(side.source.numpy().astype(np.int32)),
        "activation": pack(side.activation.float().numpy()),
        "vector": pack(side.vector.float().numpy()),
    }


# --- what is kept one by one ------------------------------------------------------------------------------


def _kept(result: FeatureAttention) -> tuple[Bool[Tensor, " query_row"], Bool[Tensor, " key_row"]]:
    """Rows of queries, and of keys, that stay rows of their own."""
    n = max(LEAST, BYTES // (4 * result.query.vector.shape[1] * len(result.tokens)) - len(OTHERS) - 1)
    sizes = _sizes(result)
    return (
        _largest(result.query, sizes[0], n, result.n_features), _largest(result.key, sizes[1], n, result.n_features)
    )  # fmt: skip


def _sizes(result: FeatureAttention) -> tuple[Float[Tensor, " query_row"], Float[Tensor, " key_row"]]:
    """How much the pairs of each row amount to, over the keys that are seen."""
    query, key = result.query, result.key
    of_query, of_key = (torch.zeros(len(side.source), dtype=torch.float64) for side in (query, key))
    position = key.position
    for q in range(query.n_tokens):
        first = 0 if result.window is None else max(0, q - result.window + 1)
        rows, columns = query.at(q), slice(int(key.offsets[first]), int(key.offsets[q + 1]))
        weight = (result.pattern[q, position[columns]].double() + 1 / (q + 1 - first)) / 2
        values = (query.vector[rows] @ key.vector[columns].T).abs().double()
        of_query[rows] = values @ weight
        of_key[columns] += values.sum(0) * weight
    return of_query, of_key


def _largest(side: Side, size: Float[Tensor, " row"], n: int, n_features: int) -> Bool[Tensor, " row"]:
    """The n features of each position whose size is largest, and all other sources."""
    position, is_feature = side.position, side.source < n_features
    order = np.lexsort((-size.numpy(), ~is_feature.numpy(), position.numpy()))  # features of a position come first
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - side.offsets[position[torch.from_numpy(order)]].numpy()
    return (torch.from_numpy(rank) < n) | ~is_feature


def _merged(side: Side, kept: Bool[Tensor, " row"], result: FeatureAttention) -> Side:
    """The side with rows that are not kept summed into one a position."""
    if bool(kept.all()):
        return side
    left, position = ~kept, side.position
    at, count = position[left].unique(return_counts=True)
    total = side.vector.new_zeros(side.n_tokens, side.vector.shape[1]).index_add_(0, position[left], side.vector[left])
    where = torch.cat([position[kept], at])
    source = torch.cat([side.source[kept], torch.full_like(at, result.n_features + len(OTHERS))])
    activation = torch.cat([side.activation[kept], count.to(side.activation.dtype)])
    order = torch.argsort(where, stable=True)
    offsets = torch.searchsorted(where[order], torch.arange(side.n_tokens + 1))
    return Side(offsets, source[order], activation[order], torch.cat([side.vector[kept], total[at]])[order])
