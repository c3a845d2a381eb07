"""Feature-resolved attention to show: random parts, whose scores and attention follow from them."""

import numpy as np
import pyarrow as pa
import torch

from headlens._result import Provenance
from headlens.fra.attention import FeatureAttention
from headlens.fra.labels import SCHEMA, FeatureLabels
from headlens.fra.pairs import summed
from headlens.fra.sides import OTHERS, Side
from headlens.models.head import visible

WORDS = ("<s>", " the", " cat", " sat", " on", " the", " mat", " and", " the", " cat")
DIGEST = "0123456789abcdef"


def make_side(n_tokens, n_features, d_head, most, generator, scale):
    """At each position up to `most` features, the dictionary's bias and the error."""
    source, offsets = [], [0]
    for _ in range(n_tokens):
        n = int(torch.randint(0, most + 1, (1,), generator=generator))
        source.append(torch.randperm(n_features, generator=generator)[:n].sort().values)
        source.append(torch.tensor([n_features, n_features + 1]))
        offsets.append(offsets[-1] + n + 2)
    which = torch.cat(source)
    vector = scale * torch.randn(len(which), d_head, generator=generator)
    activation = torch.where(which < n_features, torch.rand(len(which), generator=generator) + 0.1, 1.0)
    return Side(torch.tensor(offsets), which, activation, vector)


def make_fra(
    tokens=WORDS, *, n_features=12, d_head=4, most=5, softcap=None, window=None, layer=1, head=2, seed=0, scale=0.6
):
    generator = torch.Generator().manual_seed(seed)
    query, key = (make_side(len(tokens), n_features, d_head, most, generator, scale) for _ in range(2))
    own = summed(query, key)
    own = own if softcap is None else softcap * torch.tanh(own / softcap)
    hidden = ~visible(len(tokens), window)
    own = own.masked_fill(hidden, -1e30)
    model = {"name": "zoo:llama-small", "revision": "abc123", "dtype": "float32"}
    data = {"dictionary": {"site": f"blocks.{layer}.hook_resid_pre", "digest": DIGEST}}
    return FeatureAttention(
        Provenance((model,), data, None, "headlens fra text", {}), layer, head, n_features, tuple(tokens),
        np.arange(len(tokens)), query, key, own, own.masked_fill(hidden, -torch.inf).softmax(-1), window, softcap,
    )  # fmt: skip


def make_labels(labels, *, digest=DIGEST, contexts=None):
    """Labels by feature; contexts by feature as (before, token, after)."""
    contexts = contexts or {}
    rows = [
        {
            "feature": i, "label": labels.get(i), "frequency": 0.1,
            "contexts": [dict(zip(("before", "token", "after", "activation"), (*one, 1.0), strict=True))
                         for one in contexts.get(i, ())],
        }
        for i in sorted({*labels, *contexts})
    ]  # fmt: skip
    data = {"dictionary": {"digest": digest}} if digest else {}
    return FeatureLabels(Provenance(data=data), pa.Table.from_pylist(rows, SCHEMA))


def name_of(result, source):
    return f"feature {source}" if source < result.n_features else OTHERS[source - result.n_features]
