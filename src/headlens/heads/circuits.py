"""What does a head write, given what it reads? Measured through its output-value circuit, whatever it attends to.

The direct logits of a head that reads x are, up to what later norms divide by,

    logits(x) = value(x) W_O R        value(x) = norm(x) W_V + b_V
    R = diag(gain of the post-norm) C diag(gain of the final norm) W_U

with C taking the mean away before a final LayerNorm (an RMSNorm has none). What is left out multiplies all logits of
one place by one positive number, or bends them all by one rising curve (a soft cap), or adds the same to every head's
(biases): no order among logits changes. Attention, b_O and later layers play no part.

    copying_eigenvalues   Re(sum of eigenvalues) / sum of |eigenvalues| of value W_O R over the same tokens: 1 where the
                          map sends every token to itself, -1 to its negative, 0 at random
    copying_top1          share of tokens whose highest logit is their own. Eigenvalues alone are fooled by maps that
                          are far from normal: (1 on the diagonal, 5 above it) has only eigenvalues +1, and 63 of 64
                          tokens raise another one most. Top-1 alone misses copying that is diffuse, and anti-copying
    copying_logits        share of the other tokens of a random text that lie below the own one, from -1 (none) over 0
                          (half) to 1 (all). A rank, for chance is then 0 however many tokens the text has; the share
                          of positive logits that the own one holds starts at 1/n
    successor             share of members of an ordered class (Monday, Tuesday, ...) that raise the next one most

The same as functions of arrays: heads/token_maps.py. Each measure of a model is a pair `own, null`, a number per
(sample, layer, head). `null` is the same statistic with another token put for the right one, drawn so that a head
without the behaviour has own - null = 0 on average over heads and samples. One such head is still a little to one
side: its weights are one draw, so judge by size as well.

Which x: what differs between tokens as layer l reads it. On texts that is the true residual stream; for single tokens
(eigenvalues, top-1, successor) it is the stream at the token in [BOS, token] (in [token], without BOS): as it enters
block 0 for layer 0, and as it leaves block 0 for all later layers (the 'effective embedding').

A measure takes a `work`: killed, it goes on from the step where it was.

Axes: head, token (read), vocab (written), d_head, d_model. Source: Elhage et al. 2021 (eigenvalues); Olsson et al. 2022
(25 random tokens); Gould et al. 2023 (successor).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack
from headlens.heads.read_out import effective_inputs, output_weights, read_out, toward_unembedding, unembedding
from headlens.heads.setting import allowed_ids
from headlens.heads.tally import Measured
from headlens.heads.token_maps import eigenvalue_ratio, first_through, logit_copying, on_cpu, ranks_first
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.capture import Batch, capture

EIGEN_TOKENS = 512
"""Tokens of one sample of `copying_eigenvalues`."""
TEXT_TOKENS = 25
"""Tokens of one random text of `copying_logits`."""
TEXTS_AT_ONCE = 64


def copying_eigenvalues(model: Model, *, num_samples: int, seed: int, work: Checkpoint | None = None) -> Measured:
    """Measure how far each head maps tokens to themselves, by eigenvalues.

    A sample is a random set of 512 ordinary tokens; where the vocabulary has no more, all of them, and own is the same
    in every sample. Values are centred over it: what all tokens have in common (biases, the position) is no map of
    tokens, and has the same eigenvalues as centring the logits, which no prediction sees. Null: the written tokens
    permuted.

    Memory: d_model x 512 for each of values and reads.

    Raises
    ------
    DataError
        If `num_samples` is below 1 or the vocabulary has fewer than 4 ordinary tokens.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    ids = begin(model, num_samples)
    size = min(EIGEN_TOKENS, len(ids))
    own, null = _empty(model, num_samples)
    for i in (work or Checkpoint()).steps("samples", num_samples, {"own": own, "null": null}):
        rng = np.random.default_rng([seed, i])
        drawn = torch.from_numpy(rng.permutation(ids)[:size])
        permuted = torch.from_numpy(rng.permutation(size))
        stream = effective_inputs(model, drawn)
        for layer in range(model.n_layers):
            value, W_O = on_cpu(_values(model, layer, stream)), output_weights(model, layer)
            value = value - value.mean(-2, keepdim=True)
            read = on_cpu(read_out(model, layer, W_O, drawn))
            own[i, layer] = eigenvalue_ratio(value, read).numpy()
            null[i, layer] = eigenvalue_ratio(value, read[..., permuted]).numpy()
    return Measured(own, null)


def copying_top1(model: Model, *, num_samples: int, seed: int, work: Checkpoint | None = None) -> Measured:
    """Measure how often a token's highest direct logit, among all ordinary tokens, is its own.

    A sample is one ordinary token, without replacement: there are as many as asked for or as the vocabulary has. Own
    and null are 0 or 1. Null: another random token is the highest.

    Memory: d_head x vocab for one head, `LOGITS_AT_ONCE` logits, and the unembedding once in float32; never vocab x
    vocab.

    Raises
    ------
    DataError
        If `num_samples` is below 1 or the vocabulary has fewer than 4 ordinary tokens.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    ids, rng = begin(model, num_samples), np.random.default_rng(seed)
    place = rng.permutation(len(ids))[:num_samples]
    other = (place + rng.integers(1, len(ids), size=len(place))) % len(ids)  # never the own one
    targets = torch.from_numpy(np.stack([place, other], 1)).to(model.device)
    stream = effective_inputs(model, torch.from_numpy(ids[place]))
    U = unembedding(model, torch.from_numpy(ids)).T
    own, null = _empty(model, len(place))
    for layer in (work or Checkpoint()).steps("layers", model.n_layers, {"own": own, "null": null}):
        reads = toward_unembedding(model, layer, output_weights(model, layer))
        for head, value in enumerate(_values(model, layer, stream)):
            first = first_through(value, reads[head] @ U, targets).cpu().numpy()
            own[:, layer, head], null[:, layer, head] = first[:, 0], first[:, 1]
    return Measured(own, null)


def copying_logits(model: Model, *, num_samples: int, seed: int, work: Checkpoint | None = None) -> Measured:
    """Measure how far each token of a random text lifts itself above the text's other tokens.

    A sample is a text of 25 different ordinary tokens after BOS (fewer, where vocabulary or context are smaller); heads
    read the residual stream of that run. Null: what is written at a token is looked up at the token after it, of which
    nothing is known there (at the last token: the first).

    Raises
    ------
    DataError
        If `num_samples` is below 1, or there are too few ordinary tokens or places for a text.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    ids, rng = begin(model, num_samples), np.random.default_rng(seed)
    start = [] if model.bos is None else [model.bos]
    length = min(TEXT_TOKENS, len(ids), model.n_ctx - len(start))
    if length < 2:
        raise DataError(f"{model.name} reads {model.n_ctx} tokens at most: too few for a text of two and BOS.")
    texts = pack([np.concatenate((start, rng.permutation(ids)[:length])).astype(np.int64) for _ in range(num_samples)])
    own, null = _empty(model, num_samples)
    batches = np.array_split(np.arange(num_samples), -(-num_samples // TEXTS_AT_ONCE))
    for step in (work or Checkpoint()).steps("texts", len(batches), {"own": own, "null": null}):
        some = batches[step]
        own[some], null[some] = _copied_in_texts(model, pack([texts[i] for i in some]), len(start))
    return Measured(own, null)


def _copied_in_texts(model: Model, texts: Tokens, start: int) -> Float[np.ndarray, "two text layer head"]:
    """Own and null of texts that begin with `start` tokens which are no part of them."""
    found = _empty(model, len(texts))

    def folder(layer: int) -> Callable[[Tensor, Batch], None]:
        reads = toward_unembedding(model, layer, output_weights(model, layer))

        def fold(value: Float[Tensor, "batch token kv_head d_head"], batch: Batch) -> None:
            value, tokens = value[:, start:].float(), unembedding(model, batch.ids[:, start:])
            for head, read in enumerate(reads):
                logits = value[:, :, model.count.kv_head(head)] @ read @ tokens.transpose(-1, -2)
                for scores, looked_up in zip(found, (logits, logits.roll(-1, -1)), strict=True):
                    scores[batch.index, layer, head] = logit_copying(looked_up).cpu().numpy()

        return fold

    for _ in capture(model, texts, {f"blocks.{layer}.attn.hook_v": folder(layer) for layer in range(model.n_layers)}):
        pass
    return found


def successor(
    model: Model, classes: Sequence[np.ndarray], cyclic: Sequence[bool], *, seed: int, work: Checkpoint | None = None
) -> Measured:
    """Measure how often a member of an ordered class lifts the next member above all others of its class.

    A sample is one member that has a successor, class after class; own and null are 0 or 1. Null: the successors of the
    class dealt out at random among its members.

    Parameters
    ----------
    classes
        Token ids of each class, in order.
    cyclic
        Of each class, whether its first member follows its last (days, not numbers).

    Raises
    ------
    DataError
        If there is no class, one has fewer than 3 members or one twice, or ids are outside the vocabulary.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    model.check_causal("its heads cannot be taken apart")
    _check_classes(classes, cyclic)
    bounds = np.cumsum([0, *(len(ids) - (not c) for ids, c in zip(classes, cyclic, strict=True))])
    own, null = _empty(model, int(bounds[-1]))
    for i in (work or Checkpoint()).steps("classes", len(classes), {"own": own, "null": null}):
        here, rng = slice(bounds[i], bounds[i + 1]), np.random.default_rng([seed, i])
        own[here], null[here] = _successor_of_class(model, classes[i], cyclic[i], rng)
    return Measured(own, null)


def _successor_of_class(
    model: Model, members: np.ndarray, cyclic: bool, rng: np.random.Generator
) -> Float[np.ndarray, "two member layer head"]:
    ids = torch.from_numpy(np.asarray(members, dtype=np.int64))
    following = np.arange(1, len(ids) + cyclic) % len(ids)
    dealt = torch.from_numpy(rng.permutation(following)).to(model.device)
    right = torch.from_numpy(following).to(model.device)
    stream = effective_inputs(model, ids)
    found = _empty(model, len(following))
    for layer in range(model.n_layers):
        reads = read_out(model, layer, output_weights(model, layer), ids)
        logits = _values(model, layer, stream)[:, : len(following)] @ reads
        for scores, target in zip(found, (right, dealt), strict=True):
            scores[:, layer] = ranks_first(logits, target).T.cpu().numpy()
    return found


def _check_classes(classes: Sequence[np.ndarray], cyclic: Sequence[bool]) -> None:
    if not len(classes):
        raise DataError("There is no ordered class to measure successors in: give one or more.")
    if len(classes) != len(cyclic):
        raise DataError(f"There are {len(classes)} classes and {len(cyclic)} values of cyclic: give one for each.")
    for i, members in enumerate(classes):
        if len(members) < 3 or len(np.unique(members)) < len(members):
            raise DataError(f"Class {i} has {len(members)} members: it needs 3 or more, each once.")


def _values(
    model: Model, layer: int, stream: Float[Tensor, "place token d_model"]
) -> Float[Tensor, "head token d_head"]:
    with torch.no_grad():
        x = stream[min(layer, 1)]
        return torch.stack([model.head(layer, head).value(x) for head in range(model.n_heads)]).float()


def begin(model: Model, num_samples: int = 1) -> Int[np.ndarray, " id"]:
    """Check what every measure needs; return the ordinary tokens."""
    model.check_causal("its heads cannot be taken apart")
    if num_samples < 1:
        raise DataError(f"num_samples must be 1 or more, not {num_samples}.")
    ids = allowed_ids(model)
    if len(ids) < 4:
        raise DataError(f"{model.name} has {len(ids)} ordinary tokens: too few to tell one from others.")
    return ids


def _empty(model: Model, num_samples: int) -> Float[np.ndarray, "two sample layer head"]:
    return np.zeros((2, num_samples, model.n_layers, model.n_heads))
