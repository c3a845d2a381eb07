"""What a research script does: one attention probe at a time, on a padded float32 batch, by autograd.

    k = x q^T + w t     v = x V^T + b     a = softmax over real tokens of k     logit = sum over tokens and heads of a v

Two linear layers, a masked softmax and torch's AdamW, every document in every step, as in the published probe; but
started like ours, so that losses can be compared.

Axes: document, token, head.
"""

from collections.abc import Callable

import torch
from torch import nn


class PlainProbe(nn.Module):
    def __init__(self, width: int, n_heads: int, start: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(width, n_heads, bias=False), nn.Linear(width, n_heads)
        self.slopes, self.bias = nn.Parameter(start["slopes"].clone()), nn.Parameter(start["bias_0"].clone())
        with torch.no_grad():
            self.q.weight.copy_(start["query"])
            self.v.weight.copy_(start["value"])
            self.v.bias.zero_()

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        k = self.q(x) + self.slopes * torch.arange(x.shape[1])[:, None]
        a = k.masked_fill(~mask[..., None], -torch.inf).softmax(1)
        return (a * self.v(x)).sum((1, 2)) + self.bias


def train(
    x: torch.Tensor,
    mask: torch.Tensor,
    y: torch.Tensor,
    start: dict[str, torch.Tensor],
    rate: Callable[[int], float],
    steps: int,
) -> float:
    """Take some steps; return the loss that the last of them saw."""
    probe = PlainProbe(x.shape[2], len(start["slopes"]), start)
    probe.v.bias.requires_grad_(False)  # ours has one bias for all heads
    optimizer = torch.optim.AdamW([p for p in probe.parameters() if p.requires_grad], lr=1.0, weight_decay=0)
    loss = torch.zeros(())
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(probe(x, mask), y)
        loss.backward()
        optimizer.step()
    return loss.item()
