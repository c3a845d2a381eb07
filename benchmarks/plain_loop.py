"""What research scripts do: keep all attention of all layers, then loop over layers and heads.

    out = model(ids, output_attentions=True)
    previous_token    mean of the first diagonal below the main one
    self              mean of the main diagonal, without the first query
    sink              mean of the first column, without the first query
    offset            the largest mean of a diagonal, from the second to half the sequence
    duplicate_token, induction, delimiter    a mask times the pattern, summed over keys, mean over rows with a target
    weighted          the same of the pattern times |v W_O|, over its sum

Nulls: the same on the control, which is a second forward pass; or even attention, which no head has a part in; or
another mask. Logits are not computed, to the scripts' advantage: they mostly are.

Axes: query, key.
"""

from typing import Any

import torch

Scores = dict[tuple[str, int, int], float]
"""(kind, layer, head) -> score"""

BY_POSITION = ("previous_token", "self", "sink")
BY_MASK = ("duplicate_token", "induction", "delimiter")
CONTROLLED = ("duplicate_token", "induction")
"""Kinds whose null is the control."""


def masks_of(ids: torch.Tensor, delimiter: torch.Tensor, elsewhere: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return where each kind looks (query, key) in one sequence, and where the null of the delimiters does."""
    same = (ids[:, None] == ids[None, :]).tril(-1)
    shifted = torch.zeros_like(same)
    shifted[:, 1:] = same[:, :-1]
    masks = {"duplicate_token": same, "induction": shifted.tril(-1)}
    rows = delimiter.expand(len(ids), -1).tril(-1)
    null = elsewhere.expand(len(ids), -1).tril(-1) & rows.any(-1)[:, None]
    return masks | {"delimiter": rows, "elsewhere": null}


@torch.no_grad()
def observe(hf: Any, ids: torch.Tensor, masks: dict[str, torch.Tensor]) -> Scores:
    """Return what one sequence shows of every kind, from one forward pass."""
    out = hf.transformer(ids[None], output_attentions=True, use_cache=True)
    found: Scores = {}
    rows = {name: mask.any(-1) for name, mask in masks.items()}
    for layer in range(hf.config.n_layer):
        W_O = hf.transformer.h[layer].attn.c_proj.weight.view(hf.config.n_head, -1, hf.config.n_embd)
        for head in range(hf.config.n_head):
            pattern = out.attentions[layer][0, head]
            found["previous_token", layer, head] = pattern.diagonal(-1).mean().item()
            found["self", layer, head] = pattern.diagonal()[1:].mean().item()
            found["sink", layer, head] = pattern[1:, 0].mean().item()
            for name, mask in masks.items():
                found[name, layer, head] = (pattern * mask).sum(-1)[rows[name]].mean().item()
            writes = (out.past_key_values.layers[layer].values[0, head] @ W_O[head]).norm(dim=-1)
            weighted = pattern * writes
            share = (weighted * masks["induction"]).sum(-1) / weighted.sum(-1)
            found["weighted induction", layer, head] = share[rows["induction"]].mean().item()
    return found


def offset(hf: Any, choosing: torch.Tensor, measuring: torch.Tensor) -> Scores:
    """Return the attention that each head gives, on one sequence, to the offset it prefers on another."""
    chosen, own = _diagonals(hf, choosing), _diagonals(hf, measuring)
    return {("offset", *at): own[at][means.index(max(means))] for at, means in chosen.items()}


@torch.no_grad()
def _diagonals(hf: Any, ids: torch.Tensor) -> dict[tuple[int, int], list[float]]:
    """Return each head's mean attention to the token d back, from d = 2 to half the sequence."""
    attentions = hf.transformer(ids[None], output_attentions=True, use_cache=False).attentions
    found = {}
    for layer in range(hf.config.n_layer):
        for head in range(hf.config.n_head):
            pattern = attentions[layer][0, head]
            found[layer, head] = [pattern.diagonal(-back).mean().item() for back in range(2, len(ids) // 2 + 1)]
    return found
