"""What does a model expect after the last token of each sequence? Without the logits of all other places.

Memory: (batch, vocab) logits instead of (batch, token, vocab); at 8,192 tokens of a vocabulary of 50,000 that is some
MB instead of 1.6 GB.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens.models import Model


def last_logits(
    model: Model, ids: Int[Tensor, "batch token"], mask: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch vocab"]:
    """Return the logits after the last real token of each sequence, padded on the right."""
    rows, last = torch.arange(len(ids), device=ids.device), mask.sum(1) - 1

    def only_last(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][rows, last][:, None], *given[1:])

    hook = model.hf.get_output_embeddings().register_forward_pre_hook(only_last)
    try:
        return model.forward(ids, mask).logits[:, 0]
    finally:
        hook.remove()
