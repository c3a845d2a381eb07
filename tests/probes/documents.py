"""Documents with a known answer, and ways to hand them over."""

import numpy as np
import torch

from headlens.store.rows import ArrayRows


def pack(documents, source=None):
    """Documents as `Rows`."""
    documents = list(documents)
    return ArrayRows(torch.cat(documents), np.cumsum([0, *map(len, documents)]), source)


def random_documents(lengths, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator, dtype=dtype) for n in lengths]


def padded(documents, side, fill=1e4):
    """(document, token, width) with a mask; padding is filled with something that would be noticed."""
    longest = max(map(len, documents))
    X = torch.full((len(documents), longest, documents[0].shape[1]), fill, dtype=documents[0].dtype)
    mask = np.zeros(X.shape[:2], dtype=bool)
    for i, own in enumerate(documents):
        at = slice(0, len(own)) if side == "right" else slice(longest - len(own), longest)
        X[i, at], mask[i, at] = own, True
    return X, mask
