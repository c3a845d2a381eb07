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
    copy_suppression      copying_logits negated, among all tokens, at places of a text where the token that the head
                          attends to is what the model expects anyway

Each measure of a model is a pair `own, null`, a number per (sample, layer, head). `null` is the same statistic with
another token put for the right one, drawn so that a head without the behaviour has own - null = 0 on average over
heads and samples. One such head is still a little to one side: its weights are one draw, so judge by size as well.

Which x: what differs between tokens as layer l reads it. On texts that is the true residual stream; for single tokens
(eigenvalues, top-1, successor) it is the stream at the token in [BOS, token] (in [token], without BOS): as it enters
block 0 for layer 0, and as it leaves block 0 for all later layers (the 'effective embedding').

Axes: head, token (read), vocab (written), d_head, d_model. Source: Elhage et al. 2021 (eigenvalues); Olsson et al. 2022
(25 random tokens); Gould et al. 2023 (successor); McDougall et al. 2023 (copy suppression).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack
from headlens.heads.read_out import effective_inputs, output_weights, read_out, toward_unembedding, unembedding
from headlens.heads.setting import allowed_ids
from headlens.heads.tally import Measured
from headlens.models import Model
from headlens.tracing.capture import Batch, capture, check_tokens, groups

EIGEN_TOKENS = 512
"""Tokens of one sample of `copying_eigenvalues`."""
TEXT_TOKENS = 25
"""Tokens of one random text of `copying_logits`."""
EXPECTED = 10
"""How many of the model's likeliest next tokens count as expected, in `copy_suppression`."""
_LOGITS_AT_ONCE = 2**24

Seed = int | np.random.Generator


# --- arrays: what a map from tokens to tokens does ----------------------------------------------------------------


def eigenvalue_copying(
    E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    U: Float[Tensor, "d_model token"],
) -> Float[Tensor, " head"]:
    """Return Re(sum of eigenvalues) / sum of |eigenvalues| of each head's map E W_V W_O U; 0 for a map that is zero.

    In float64 on the CPU, and from matrices of d_head x d_head: AB and BA have the same eigenvalues but for zeros.
    """
    return _eigenvalue_ratio(_on_cpu(E) @ _on_cpu(W_V), _on_cpu(W_O) @ _on_cpu(U))


def top1_copying(
    E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    U: Float[Tensor, "d_model token"],
) -> Float[Tensor, " head"]:
    """Return the share of tokens whose highest logit through each head is their own; shared first places do not count.

    Memory: d_head x token for one head, and as many rows of token x token as `_LOGITS_AT_ONCE` holds.
    """
    diagonal = torch.arange(len(E), device=E.device)[:, None]
    found = [_first_through(E @ v, o @ U, diagonal)[:, 0].float().mean() for v, o in zip(W_V, W_O, strict=True)]
    return torch.stack(found)


def logit_copying(logits: Float[Tensor, "*any token token"]) -> Float[Tensor, " *any"]:
    """Return how far up the own token (the diagonal) is among each row: 1 where first, 0 at chance, -1 where last."""
    diagonal = torch.arange(logits.shape[-1], device=logits.device)
    return (2 * share_below(logits, diagonal) - 1).mean(-1)


def successor_share(logits: Float[Tensor, "*any member member"], *, cyclic: bool) -> Float[Tensor, " *any"]:
    """Return the share of members (rows) whose successor is the highest of the class.

    The last member counts only where the class is `cyclic`: its successor is then the first.
    """
    n = logits.shape[-1]
    following = torch.arange(1, n + cyclic, device=logits.device) % n
    return ranks_first(logits[..., : n - 1 + cyclic, :], following).to(logits.dtype).mean(-1)


def suppressed_copying(
    logits: Float[Tensor, "*any query vocab"],
    attended: Int[Tensor, "*#any query"],
    expected: Bool[Tensor, "*#any query"],
) -> Float[Tensor, " *any"]:
    """Return how far down the attended token is, -1 to 1, on average over queries where it is expected anyway.

    `logits` are a head's direct logits over ordinary tokens at each query and `attended` indexes them. NaN where no
    query counts.
    """
    down = torch.where(expected, 1 - 2 * share_below(logits, attended), 0.0)
    return down.sum(-1) / expected.sum(-1)


def share_below(logits: Float[Tensor, "*any vocab"], target: Int[Tensor, "*#any"]) -> Float[Tensor, " *any"]:
    """Return the share of all other tokens whose logit lies below the target's; ties count half."""
    comes = logits.gather(-1, target.expand(logits.shape[:-1])[..., None])
    twice = 2 * (logits < comes).sum(-1) + (logits == comes).sum(-1) - 1  # the target ties with itself
    return twice.to(logits.dtype) / (2 * (logits.shape[-1] - 1))


def ranks_first(logits: Float[Tensor, "*any vocab"], target: Int[Tensor, "*#any"]) -> Bool[Tensor, " *any"]:
    """Return whether the target's logit lies above all others: a head that writes nothing ranks nothing first."""
    value, index = logits.topk(2, dim=-1)
    return (index[..., 0] == target) & (value[..., 0] > value[..., 1])


def _eigenvalue_ratio(
    value: Float[Tensor, "head token d_head"], read: Float[Tensor, "head d_head token"]
) -> Float[Tensor, " head"]:
    eigenvalues = torch.linalg.eigvals(read @ value)
    size = eigenvalues.abs().sum(-1)
    return torch.where(size == 0, 0.0, eigenvalues.sum(-1).real / size)


def _first_through(
    value: Float[Tensor, "token d_head"], read: Float[Tensor, "d_head vocab"], targets: Int[Tensor, "token target"]
) -> Bool[Tensor, "token target"]:
    """Return, for several targets of each token, whether its logits rank that one first."""
    found = [
        torch.stack([ranks_first(value[rows] @ read, target) for target in targets[rows].T], -1)
        for rows in _chunks(len(value), read.shape[-1])
    ]
    return torch.cat(found)


def _chunks(n: int, vocab: int) -> Iterator[slice]:
    step = max(1, _LOGITS_AT_ONCE // vocab)
    return (slice(start, start + step) for start in range(0, n, step))


def _on_cpu(x: Tensor) -> Tensor:
    return x.detach().cpu().double()  # Apple's GPUs have no float64, and small matrices are faster here anyway


# --- measures of a model ------------------------------------------------------------------------------------------


def copying_eigenvalues(model: Model, *, num_samples: int, seed: Seed) -> Measured:
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
    ids, rng = _begin(model, num_samples, seed)
    size = min(EIGEN_TOKENS, len(ids))
    own, null = _empty(model, num_samples)
    for i in range(num_samples):
        drawn = torch.from_numpy(rng.permutation(ids)[:size])
        permuted = torch.from_numpy(rng.permutation(size))
        stream = effective_inputs(model, drawn)
        for layer in range(model.n_layers):
            value, W_O = _on_cpu(_values(model, layer, stream)), output_weights(model, layer)
            value = value - value.mean(-2, keepdim=True)
            read = _on_cpu(read_out(model, layer, W_O, drawn))
            own[i, layer] = _eigenvalue_ratio(value, read).numpy()
            null[i, layer] = _eigenvalue_ratio(value, read[..., permuted]).numpy()
    return Measured(own, null)


def copying_top1(model: Model, *, num_samples: int, seed: Seed) -> Measured:
    """Measure how often a token's highest direct logit, among all ordinary tokens, is its own.

    A sample is one ordinary token, without replacement: there are as many as asked for or as the vocabulary has. Own
    and null are 0 or 1. Null: another random token is the highest.

    Memory: d_head x vocab for one head, `_LOGITS_AT_ONCE` logits, and the unembedding once in float32; never vocab x
    vocab.

    Raises
    ------
    DataError
        If `num_samples` is below 1 or the vocabulary has fewer than 4 ordinary tokens.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    ids, rng = _begin(model, num_samples, seed)
    place = rng.permutation(len(ids))[:num_samples]
    other = (place + rng.integers(1, len(ids), size=len(place))) % len(ids)  # never the own one
    targets = torch.from_numpy(np.stack([place, other], 1)).to(model.device)
    stream = effective_inputs(model, torch.from_numpy(ids[place]))
    U = unembedding(model, torch.from_numpy(ids)).T
    own, null = _empty(model, len(place))
    for layer in range(model.n_layers):
        reads = toward_unembedding(model, layer, output_weights(model, layer))
        for head, value in enumerate(_values(model, layer, stream)):
            first = _first_through(value, reads[head] @ U, targets).cpu().numpy()
            own[:, layer, head], null[:, layer, head] = first[:, 0], first[:, 1]
    return Measured(own, null)


def copying_logits(model: Model, *, num_samples: int, seed: Seed) -> Measured:
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
    ids, rng = _begin(model, num_samples, seed)
    start = [] if model.bos is None else [model.bos]
    length = min(TEXT_TOKENS, len(ids), model.n_ctx - len(start))
    if length < 2:
        raise DataError(f"{model.name} reads {model.n_ctx} tokens at most: too few for a text of two and BOS.")
    texts = pack([np.concatenate((start, rng.permutation(ids)[:length])).astype(np.int64) for _ in range(num_samples)])
    own, null = _empty(model, num_samples)

    def folder(layer: int) -> Callable[[Tensor, Batch], None]:
        reads = toward_unembedding(model, layer, output_weights(model, layer))

        def fold(value: Float[Tensor, "batch token kv_head d_head"], batch: Batch) -> None:
            value, tokens = value[:, len(start) :].float(), unembedding(model, batch.ids[:, len(start) :])
            for head, read in enumerate(reads):
                logits = value[:, :, model.count.kv_head(head)] @ read @ tokens.transpose(-1, -2)
                own[batch.index, layer, head] = logit_copying(logits).cpu().numpy()
                null[batch.index, layer, head] = logit_copying(logits.roll(-1, -1)).cpu().numpy()

        return fold

    for _ in capture(model, texts, {f"blocks.{layer}.attn.hook_v": folder(layer) for layer in range(model.n_layers)}):
        pass
    return Measured(own, null)


def successor(model: Model, classes: Sequence[np.ndarray], cyclic: Sequence[bool], *, seed: Seed) -> Measured:
    """Measure how often a member of an ordered class lifts the next member above all others of its class.

    Parameters
    ----------
    classes
        Token ids of each class, in order.
    cyclic
        Of each class, whether its first member follows its last (days, not numbers).

    A sample is one member that has a successor, class after class; own and null are 0 or 1. Null: the successors of the
    class dealt out at random among its members.

    Raises
    ------
    DataError
        If there is no class, one has fewer than 3 members or one twice, or ids are outside the vocabulary.
    UnsupportedArchitecture
        If the model is an encoder, is quantised, or its unembedding does not read the residual stream.
    """
    model.check_causal("its heads cannot be taken apart")
    _check_classes(classes, cyclic)
    rng = np.random.default_rng(seed)
    measured = [_successor_of_class(model, ids, c, rng) for ids, c in zip(classes, cyclic, strict=True)]
    return Measured(np.concatenate([m.own for m in measured]), np.concatenate([m.null for m in measured]))


def _successor_of_class(model: Model, members: np.ndarray, cyclic: bool, rng: np.random.Generator) -> Measured:
    ids = torch.from_numpy(np.asarray(members, dtype=np.int64))
    following = np.arange(1, len(ids) + cyclic) % len(ids)
    dealt = torch.from_numpy(rng.permutation(following)).to(model.device)
    right = torch.from_numpy(following).to(model.device)
    stream = effective_inputs(model, ids)
    own, null = _empty(model, len(following))
    for layer in range(model.n_layers):
        reads = read_out(model, layer, output_weights(model, layer), ids)
        logits = _values(model, layer, stream)[:, : len(following)] @ reads
        own[:, layer] = ranks_first(logits, right).T.cpu().numpy()
        null[:, layer] = ranks_first(logits, dealt).T.cpu().numpy()
    return Measured(own, null)


def _check_classes(classes: Sequence[np.ndarray], cyclic: Sequence[bool]) -> None:
    if not len(classes):
        raise DataError("There is no ordered class to measure successors in: give one or more.")
    if len(classes) != len(cyclic):
        raise DataError(f"There are {len(classes)} classes and {len(cyclic)} values of cyclic: give one for each.")
    for i, members in enumerate(classes):
        if len(members) < 3 or len(np.unique(members)) < len(members):
            raise DataError(f"Class {i} has {len(members)} members: it needs 3 or more, each once.")


def copy_suppression(model: Model, tokens: Tokens, *, seed: Seed) -> Measured:
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
    ids, rng = _begin(model, 1, seed)
    check_tokens(model, tokens.ids, tokens.lengths)
    ordinary = torch.from_numpy(ids).to(model.device)
    U = unembedding(model, ordinary).T
    n_places = np.zeros((len(tokens), model.n_layers, model.n_heads))
    sums = np.zeros((2, *n_places.shape))
    batch_tokens = min(8192, _LOGITS_AT_ONCE // model.vocab_size)
    for index in groups(tokens.lengths, batch_tokens, alone_beyond=model.rotary_limit):
        expecting = _Expecting(model, pack([tokens[i] for i in index]), ordinary)
        for layer in range(model.n_layers):
            reads = toward_unembedding(model, layer, output_weights(model, layer))
            for head, read in enumerate(reads):
                value, attended, sequence = expecting.places(layer, head)
                np.add.at(n_places[:, layer, head], index[sequence], 1)
                targets = torch.stack((attended, _another(attended, rng)))
                for rows in _chunks(len(value), len(ids)):
                    logits = torch.linalg.multi_dot((value[rows], read, U))
                    for total, target in zip(sums, targets[:, rows], strict=True):
                        down = (1 - 2 * share_below(logits, target)).cpu().numpy()
                        np.add.at(total[:, layer, head], index[sequence[rows]], down)
    if not n_places.any():
        raise DataError("No head attends to a token that the model expects: use more, or longer, texts.")
    return Measured(*(sums / np.maximum(n_places, 1)))


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


# --- what the measures share --------------------------------------------------------------------------------------


def _values(
    model: Model, layer: int, stream: Float[Tensor, "place token d_model"]
) -> Float[Tensor, "head token d_head"]:
    with torch.no_grad():
        x = stream[min(layer, 1)]
        return torch.stack([model.head(layer, head).value(x) for head in range(model.n_heads)]).float()


def _begin(model: Model, num_samples: int, seed: Seed) -> tuple[Int[np.ndarray, " id"], np.random.Generator]:
    """Check what every measure needs; return the ordinary tokens and the source of randomness."""
    model.check_causal("its heads cannot be taken apart")
    if num_samples < 1:
        raise DataError(f"num_samples must be 1 or more, not {num_samples}.")
    ids = allowed_ids(model)
    if len(ids) < 4:
        raise DataError(f"{model.name} has {len(ids)} ordinary tokens: too few to tell one from others.")
    return ids, np.random.default_rng(seed)


def _empty(model: Model, num_samples: int) -> Float[np.ndarray, "two sample layer head"]:
    return np.zeros((2, num_samples, model.n_layers, model.n_heads))
