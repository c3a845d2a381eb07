"""Does a head push down the token that it attends to, where the model expects that token anyway?

At every place of a text where it does, the head's output from that token alone is read out as in heads/circuits.py:

    copy_suppression = mean over places of  1 - 2 (share of ordinary tokens whose direct logit is below the token's)

which is 1 where the token is pushed below all others, 0 at chance and -1 where it is raised above them.

Axes: head, query, vocab. Source: McDougall et al. 2023.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack
from headlens.heads.circuits import begin
from headlens.heads.read_out import output_weights, toward_unembedding, unembedding
from headlens.heads.tally import Measured
from headlens.heads.token_maps import LOGITS_AT_ONCE, chunks, share_below
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.capture import Batch, capture, check_tokens, groups

EXPECTED = 10
"""How many of the model's likeliest next tokens count as expected."""


def copy_suppression(model: Model, tokens: Tokens, *, seed: int, work: Checkpoint | None = None) -> Measured:
    """Measure how far each head pushes down the token that it attends to, where the model expects that token.

    A place counts for a head if the token that it attends to most (BOS aside) is among the 10 that the model itself,
    this head included, holds likeliest to come next. There the head's output from that token alone is read out over
    all ordinary tokens. A sample is a sequence: the mean over its places, and 0 in both for a head that has none in it.

    Null: at the same places, another of the tokens that this head attends to at such places of the batch, each
    different token alike (the own one where there is no other). A head's own logits help to choose the places, which
    leaves own - null a little below 0 where there is nothing: -0.03 to -0.14 on average over heads of untrained models.

    Memory: logits and values of one batch; a batch has 8192 tokens, fewer where the logits would be more than 2^24,
    and one sequence at least.

    Raises
    ------
    DataError
        If there is nothing to read, it does not fit the model, or nothing that a head attends to is ever expected.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    ids = begin(model)
    check_tokens(model, tokens.ids, tokens.lengths)
    ordinary = torch.from_numpy(ids).to(model.device)
    U = unembedding(model, ordinary).T
    shape = (len(tokens), model.n_layers, model.n_heads)
    sums = {"places": np.zeros(shape), "own": np.zeros(shape), "null": np.zeros(shape)}
    batches = list(groups(tokens.lengths, min(8192, LOGITS_AT_ONCE // model.vocab_size), model.rotary_limit))
    for step in (work or Checkpoint()).steps("texts", len(batches), sums):
        index, rng = batches[step], np.random.default_rng([seed, step])
        expecting = _Expecting(model, pack([tokens[i] for i in index]), ordinary)
        for layer in range(model.n_layers):
            reads = toward_unembedding(model, layer, output_weights(model, layer))
            for head, read in enumerate(reads):
                value, attended, sequence = expecting.places(layer, head)
                np.add.at(sums["places"][:, layer, head], index[sequence], 1)
                targets = torch.stack((attended, _another(attended, rng)))
                for rows in chunks(len(value), len(ids)):
                    logits = torch.linalg.multi_dot((value[rows], read, U))
                    for name, target in zip(("own", "null"), targets[:, rows], strict=True):
                        down = (1 - 2 * share_below(logits, target)).cpu().numpy()
                        np.add.at(sums[name][:, layer, head], index[sequence[rows]], down)
    if not sums["places"].any():
        raise DataError("No head attends to a token that the model expects: use more, or longer, texts.")
    n_places = np.maximum(sums["places"], 1)
    return Measured(sums["own"] / n_places, sums["null"] / n_places)


def _another(tokens: Int[Tensor, " place"], rng: np.random.Generator) -> Int[Tensor, " place"]:
    """Return, for each, another of the different tokens among them, all alike; the same where there is no other."""
    kinds, which = tokens.unique(return_inverse=True)
    step = torch.from_numpy(rng.integers(1, max(2, len(kinds)), size=len(tokens))).to(tokens.device)
    return kinds[(which + step) % max(1, len(kinds))]


def _is(ids: Int[Tensor, "batch token"], token: int | None) -> Bool[Tensor, "batch token"]:
    return torch.zeros_like(ids, dtype=torch.bool) if token is None else ids == token


class _Expecting:
    """One batch of texts, what the model expects at each of its places, and where its heads attend."""

    def __init__(self, model: Model, tokens: Tokens, ordinary: Int[Tensor, " vocab"]) -> None:
        self.model = model

        def most(pattern: Float[Tensor, "batch head query key"], batch: Batch) -> Int[Tensor, "batch head query"]:
            return pattern.masked_fill(_is(batch.ids, model.bos)[:, None, None], -1).argmax(-1)

        sites = {"blocks.*.attn.hook_v": None, "blocks.*.attn.hook_pattern": most}
        (self.batch,) = capture(model, tokens, sites, batch_tokens=int(tokens.lengths.max()) * len(tokens))
        with torch.no_grad():
            logits = model.forward(self.batch.ids, self.batch.mask).logits[..., ordinary]
        self.expected = logits.topk(min(EXPECTED, len(ordinary) - 1)).indices
        """(batch, query, rank): which ordinary token"""
        self.expected_ids = ordinary[self.expected]
        self.queries = self.batch.mask & ~_is(self.batch.ids, model.bos)

    def places(
        self, layer: int, head: int
    ) -> tuple[Float[Tensor, "place d_head"], Int[Tensor, " place"], Int[np.ndarray, " place"]]:
        """Return of each place that counts for a head: the value it reads, which ordinary token, which sequence."""
        key = self.batch[f"blocks.{layer}.attn.hook_pattern"][:, head]
        attended = self.batch.ids.gather(-1, key)
        found = (self.expected_ids == attended[..., None]) & self.queries[..., None]
        sequence, query, rank = found.nonzero(as_tuple=True)
        value = self.batch[f"blocks.{layer}.attn.hook_v"][:, :, self.model.count.kv_head(head)]
        read = value[sequence, key[sequence, query]].float()
        return read, self.expected[sequence, query, rank], sequence.cpu().numpy()
