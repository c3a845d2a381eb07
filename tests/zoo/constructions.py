"""What tests of the constructions share: each is built once, read through a forward pass, and worked out in numpy."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import headlens as hl
from headlens.zoo import constructed
from headlens.zoo.constructed.designs import DESIGNS
from headlens.zoo.constructed.wiring import Design

ROTARY = tuple(name for name in constructed.names() if name not in ("all_kinds", "duplicate_token"))
"""Constructions that exist as Llama, too."""
OPTIONS: dict[tuple[str, str], dict] = {("indirect_objects", "llama"): {"by": "induction"}}
"""What a construction must be told to exist so."""
ALL = [(name, "gpt2") for name in constructed.names()] + [(name, "llama") for name in ROTARY]


@functools.cache
def construction(name: str, architecture: constructed.Architecture = "gpt2", **options) -> constructed.Constructed:
    c = constructed.build(name, architecture=architecture, **OPTIONS.get((name, architecture), {}) | options)
    c.model.requires_grad_(False)  # tests turn what heads give into numbers
    return c


def loaded(c: constructed.Constructed) -> hl.Model:
    return hl.load(c.model, tokenizer=c.tokenizer)


def directions(c: constructed.Constructed, prefix: str = "") -> Tensor:
    """(feature, d_model): of all features, or of those that begin with `prefix`."""
    return torch.stack([direction for name, direction in c.features.items() if name.startswith(prefix)])


class Seen(NamedTuple):
    """One prompt, as the model's own forward pass saw it."""

    patterns: dict[tuple[int, int], Tensor]
    """Per (layer, head): (query, key)."""
    logits: Tensor
    """(token, vocabulary)."""
    words: list[str]

    def attends(self, layer: int, head: int) -> dict[str, float]:
        """Attention of the last word, by word; the keys of a word that occurs twice add up."""
        found: dict[str, float] = {}
        for word, weight in zip(self.words, self.patterns[layer, head][-1].tolist(), strict=True):
            found[word] = found.get(word, 0.0) + weight
        return found

    def raised(self, c: constructed.Constructed, least: float = 1e-4) -> dict[str, float]:
        """Words whose logit after the last word is not 0."""
        words = c.tokenizer.convert_ids_to_tokens(range(len(c.tokenizer)))
        return {w: x for w, x in zip(words, self.logits[-1].tolist(), strict=True) if abs(x) > least}


def read(c: constructed.Constructed, text: str | list[int]) -> Seen:
    ids = c.tokenizer(text)["input_ids"] if isinstance(text, str) else text
    model = loaded(c)
    (batch,) = hl.capture(model, [ids], ["blocks.*.attn.hook_pattern"])
    patterns = {(layer, head): batch[f"blocks.{layer}.attn.hook_pattern"][0, head] for layer, head in c.heads}
    with torch.no_grad():
        logits = c.model(torch.tensor([ids])).logits[0]
    return Seen(patterns, logits, c.tokenizer.convert_ids_to_tokens(ids))


def scores_of_last(c: constructed.Constructed, text: str, layer: int, head: int) -> list[float]:
    """What every key scores for the last word, before the softmax."""
    site = f"blocks.{layer}.attn.hook_attn_scores"
    (batch,) = hl.capture(loaded(c), [c.tokenizer(text)["input_ids"]], [site])
    return batch[site][0, head, -1].tolist()


def looking_back(offset: int, n: int, architecture: constructed.Architecture) -> np.ndarray:
    """(query, key): 1 at the key `offset` back; or what four angles give, before which there may be no such key."""
    if architecture == "gpt2":
        return np.eye(n, k=-offset)
    distance = np.arange(n)[:, None] - np.arange(n) - offset
    return sum(np.cos(distance * 10 ** (-j / 4)) for j in range(4)) / 2


def by_hand(
    design: Design, ids: list[int], architecture: constructed.Architecture = "gpt2"
) -> tuple[dict[tuple[int, int], np.ndarray], np.ndarray]:
    """Patterns and logits from the wiring's own definition, in float64: no weights, no norms, no transformers."""
    index = {name: i for i, name in enumerate(design.features)}
    words = list(design.tokens)
    stream = np.zeros((len(ids), len(index)))
    for position, token in enumerate(ids):
        for feature in design.tokens[words[token]]:
            stream[position, index[feature]] += 1
    patterns, causal = {}, np.tril(np.ones((len(ids), len(ids)), dtype=bool))
    for layer, wirings in enumerate(design.layers):
        before = stream.copy()
        for head, wiring in enumerate(wirings):
            score = np.zeros((len(ids), len(ids)))
            for one, other, weight in wiring.match:
                score += weight * np.outer(before[:, index[one]], before[:, index[other]])
            for offset, weight in wiring.back:
                score += weight * looking_back(offset, len(ids), architecture)
            attention = np.exp(np.where(causal, score, -np.inf) - score.max())
            patterns[layer, head] = attention = attention / attention.sum(1, keepdims=True)
            for one, other, weight in wiring.move:
                stream[:, index[other]] += weight * attention @ before[:, index[one]]
    logits = np.zeros((len(ids), len(words)))
    for feature, word, weight in design.logits:
        logits[:, words.index(word)] += weight * stream[:, index[feature]]
    return patterns, logits


def design(name: str, architecture: constructed.Architecture = "gpt2") -> Design:
    return DESIGNS[name](**OPTIONS.get((name, architecture), {}))
