"""How does a design become a Llama? As in gpt2.py, with rotation for position, and keys that two heads share.

    direction_i = e_i           W_Q = query sqrt(d_head)      W_K, W_V, W_O = key, value, output      (all transposed)

Rotary turns dimensions j and j + d_head/2 of queries and keys together, by  position * 10^(-j/4)  radians.

Matches sit in dimensions that hardly turn, from j = 24 on: over 99 positions by less than 1e-4, so that a match
is worth w cos(1e-4) = w (1 - 5e-9) or more. Looking n positions back sits in the four fastest dimensions, with

    key = (1, 0),   query = w/2 (cos n t, -sin n t)       for each t = 10^(-j/4) = 1, .562, .316, .178
    score(q, k) = w/2 sum over t of cos((q - k - n) t)

which is 2w at k = q - n and at least .679 w/2 less elsewhere within 99 positions (least: at the neighbours). With
w = 60 each neighbour gets e^-20.4 = 1.4e-9 of A[q, q - n]. Before position n, where k = q - n does not exist, A prefers
other keys (in gpt2.py: none). So smooth a curve cannot suppress one position alone: such a design is refused.

Heads 2g and 2g + 1 read the same key/value head g, whose dimensions are the union of what both need.
RMSNorm does nothing: see blank.py.

Axes: feature, d_model, column (a dimension of d_head). Unit: attention logits, logits.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers as tf
from jaxtyping import Float
from torch import Tensor

from headlens._errors import UnsupportedArchitecture
from headlens.zoo.constructed.blank import EPS, blank
from headlens.zoo.constructed.maps import Columns, Compiled, embedding, unembedding
from headlens.zoo.constructed.wiring import N_CTX, UNIFORM, Design, Wiring

GROUP = 2
"""Query heads per key/value head."""
FAST, SLOW = 4, 24
"""Dimensions below FAST tell positions apart; those from SLOW on hardly turn."""
WIDEST = 308
"""Dimensions of a head whose base of rotation, 10^(d_head / 8), is a number of float32."""


def compiled(design: Design) -> Compiled:
    """Return the design as a Llama.

    Raises
    ------
    UnsupportedArchitecture
        If a head suppresses a position, or looks back and matches at once, or the heads match too many features.
    """
    _check_rotary_suffices(design)
    most = max(map(len, design.layers))
    n_heads = most + -most % GROUP
    layers = [[*layer, *[UNIFORM] * (n_heads - len(layer))] for layer in design.layers]
    features = design.features
    hf = blank(tf.LlamaForCausalLM, _config(design, layers, len(features)))
    n = len(features)
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, :n] = embedding(design, features)
        hf.lm_head.weight[:, :n] = unembedding(design, features)
        for block, layer in zip(hf.model.layers, layers, strict=True):
            for group in range(n_heads // GROUP):
                _set_group(block.self_attn, group, layer[group * GROUP : (group + 1) * GROUP], features)
    return Compiled(hf, layers, dict(zip(features, torch.eye(n, hf.config.hidden_size), strict=True)))


def _check_rotary_suffices(design: Design) -> None:
    for wiring in (wiring for layer in design.layers for wiring in layer):
        if wiring.back and (wiring.match or len(wiring.back) > 1 or any(score < 0 for _, score in wiring.back)):
            raise UnsupportedArchitecture(
                f"The {wiring.name} head suppresses a position, or looks back and does something else besides, which "
                'rotary embeddings cannot do exactly. Build it with architecture="gpt2".'
            )


def _config(design: Design, layers: list[list[Wiring]], n_features: int) -> tf.LlamaConfig:
    n_heads = len(layers[0])
    columns = [Columns.of(layer[i : i + GROUP]) for layer in layers for i in range(0, n_heads, GROUP)]
    d_head = max(2 * (SLOW + max(len(c.keys) for c in columns)), *(len(c.values) for c in columns))
    d_head += d_head % 2
    if d_head > WIDEST:
        raise UnsupportedArchitecture(
            f"A head that turns in float32 has {WIDEST} dimensions at most, and these need {d_head}. Let them match "
            'fewer features, or build it with architecture="gpt2".'
        )
    return tf.LlamaConfig(
        vocab_size=len(design.tokens),
        hidden_size=n_features + -n_features % n_heads,
        intermediate_size=1,
        num_hidden_layers=len(layers),
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // GROUP,
        head_dim=d_head,
        max_position_embeddings=N_CTX,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": 10.0 ** (d_head / 8)},
        tie_word_embeddings=False,
        bos_token_id=design.bos,
        eos_token_id=None,
    )


def _set_group(attention: Any, group: int, wirings: Sequence[Wiring], features: Sequence[str]) -> None:
    columns, n, d_head = Columns.of(wirings), len(features), attention.head_dim
    slow = slice(SLOW, SLOW + len(columns.keys))
    key = torch.zeros(n, d_head)
    key[:, slow] = columns.key(features)
    if any(wiring.back for wiring in wirings):
        key[features.index("constant"), :FAST] = 1
    value, start = columns.value(features), group * d_head
    attention.k_proj.weight[start : start + d_head, :n] = key.T
    attention.v_proj.weight[start : start + value.shape[1], :n] = value.T
    for head, wiring in enumerate(wirings, start=group * GROUP):
        start = head * d_head
        query = torch.zeros(n, d_head)
        query[:, slow] = columns.query(wiring, features)
        for offset, score in wiring.back:
            query[features.index("constant")] += _looking_back(offset, score, d_head)
        written = columns.output(wiring, features)
        attention.q_proj.weight[start : start + d_head, :n] = query.T * d_head**0.5
        attention.o_proj.weight[:n, start : start + len(written)] = written.T


def _looking_back(offset: int, score: float, d_head: int) -> Float[Tensor, " d_head"]:
    """Return the query that, against keys of ones in the fast dimensions, prefers the key `offset` positions back."""
    query = torch.zeros(d_head)
    for j in range(FAST):
        angle = offset * 10 ** (-j / 4)
        query[j] = score / 2 * math.cos(angle)
        query[j + d_head // 2] = -score / 2 * math.sin(angle)
    return query
