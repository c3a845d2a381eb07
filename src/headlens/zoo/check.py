"""Does a zoo model contain what its card claims? Measured on the saved weights, by transformers alone.

    previous token    mean_{q >= 2} A[q, q-1], on held-out world text and on random tokens
    induction         mean_q A[q, k+1], where t_k = t_q, on `<bos> R G R`: R is 50 different random tokens and
                      the gap G is 0-40 others, so a head that looks a fixed distance back scores near 0
    copying           share of the second R (but its first token) that the model predicts
    facts             share of facts said again in held-out documents whose every token the model predicts

Axes: layer head query key. A model passes when it exceeds every one of `BARS`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from headlens.data import world
from headlens.zoo.curriculum import plain_ids

BARS = {"previous token, world": 0.8, "induction": 0.9, "copying": 0.5, "facts": 0.5}
"""What a model must exceed."""
HELD_OUT = 1_000_003
"""World seed of the documents that no model is trained on."""
N_REPEAT, MAX_GAP = 50, 40


@dataclass(frozen=True)
class Findings:
    """What was measured in one model."""

    heads: Mapping[str, Float[Tensor, "layer head"]]
    """Kind of head -> score of each head."""
    n: int
    """Random stimuli, and held-out documents."""
    parameters: int
    copying: float
    facts: float
    world_loss: float
    """Nats per token on held-out documents."""

    def best(self, kind: str) -> tuple[float, int, int]:
        """Score, layer and head of the best head of this kind."""
        scores = self.heads[kind]
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        return float(scores[layer, head]), layer, head

    @property
    def failures(self) -> list[str]:
        """What this model should contain and does not."""
        found = {kind: self.best(kind)[0] for kind in self.heads} | {"copying": self.copying, "facts": self.facts}
        return [f"{what} {found[what]:.3f} is not above {bar}" for what, bar in BARS.items() if found[what] <= bar]


def check(folder: Path, *, n: int = 100) -> Findings:
    """Measure the model saved in `folder` on `n` random stimuli and `n` held-out documents."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = list(world.documents(n, seed=HELD_OUT))
    induction, previous_random, copying = _on_random_tokens(model, tokenizer, n)
    previous_world, world_loss = _on_world(model, tokenizer, documents)
    heads = {
        "previous token, world": previous_world,
        "previous token, random": previous_random,
        "induction": induction,
    }
    facts = facts_right(model, tokenizer, documents)
    return Findings(heads, n, model.num_parameters(), copying, facts, world_loss)


def _run(model: PreTrainedModel, ids: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Logits (query, token id) and patterns (layer, head, query, key) of one sequence."""
    with torch.no_grad():
        out = model(torch.tensor([list(ids)]), output_attentions=True)
    return out.logits[0], torch.stack(out.attentions)[:, 0]


def _previous(patterns: Float[Tensor, "layer head query key"]) -> Float[Tensor, "layer head"]:
    before = patterns.diagonal(offset=-1, dim1=2, dim2=3)  # layer head query, from query 1
    return reduce(before[..., 1:], "layer head query -> layer head", "mean")


def _on_random_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int
) -> tuple[Tensor, Tensor, float]:
    """Induction, previous-token and copying scores on `<bos> R G R`."""
    induction, previous, copying = [], [], []
    plain = plain_ids(tokenizer)
    for i in range(n):
        generator = np.random.Generator(np.random.PCG64([HELD_OUT, i]))
        gap = int(generator.integers(MAX_GAP + 1))
        shuffled = generator.permutation(plain)
        repeated, between = shuffled[:N_REPEAT], shuffled[N_REPEAT : N_REPEAT + gap]
        ids = torch.tensor([tokenizer.bos_token_id, *repeated, *between, *repeated])
        logits, patterns = _run(model, ids.tolist())
        query = torch.arange(1 + N_REPEAT + gap, len(ids))
        induction.append(
            reduce(patterns[:, :, query, query - N_REPEAT - gap + 1], "layer head query -> layer head", "mean")
        )
        previous.append(_previous(patterns))
        copying.append((logits[query[:-1]].argmax(dim=1) == ids[query[1:]]).float().mean().item())
    return _mean(induction), _mean(previous), float(np.mean(copying))


def _on_world(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[world.Document]
) -> tuple[Tensor, float]:
    """Previous-token scores and loss on documents."""
    previous, losses = [], []
    for document in documents:
        ids = _ids(model, tokenizer, document.text)["input_ids"]
        logits, patterns = _run(model, ids)
        previous.append(_previous(patterns))
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item())
    return _mean(previous), float(np.mean(losses))


def facts_right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[world.Document]) -> float:
    """Share of facts said again whose every token is the model's first choice."""
    right = []
    for document in documents:
        encoded = _ids(model, tokenizer, document.text)
        ids, offsets = torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]
        guesses = _run(model, ids.tolist())[0].argmax(dim=1)
        for span in document.spans:
            if span.kind != "fact" or span.repeats is None:
                continue
            at = [i for i, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
            if at and offsets[-1][1] >= span.end:
                right.append(all(guesses[i - 1] == ids[i] for i in at))
    return float(np.mean(right))


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str):
    return tokenizer(
        text, return_offsets_mapping=True, truncation=True, max_length=model.config.max_position_embeddings
    )


def _mean(scores: list[Tensor]) -> Float[Tensor, "layer head"]:
    return reduce(torch.stack(scores), "sequence layer head -> layer head", "mean")
