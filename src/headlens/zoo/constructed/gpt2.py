"""How does a design become a GPT-2? Every feature gets a direction, and each map is written into its weights.

    direction_i = (e_i - e_{i + d_model/2}) / sqrt 2        orthonormal, and the entries of each sum to zero
    W_Q = directions^T query sqrt(d_head)                   undoes GPT-2's 1 / sqrt(d_head)
    W_K, W_V = directions^T key, value       W_O = output directions       W_E, W_U = embedding, unembedding directions

with the maps over features of maps.py. Each position p has a feature position:p in the table of positions, and
`back` is written out as matches of position:p with position:p-n. What is not named here (biases, MLPs) is zero.
LayerNorm does nothing, because every row is a sum of directions, so its mean is 0: see blank.py.

Axes: feature, d_model, column (a dimension of d_head). Unit: attention logits, logits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers as tf
from jaxtyping import Float
from torch import Tensor

from headlens.zoo.constructed.blank import EPS, blank
from headlens.zoo.constructed.maps import Columns, Compiled, embedding, unembedding
from headlens.zoo.constructed.wiring import N_CTX, UNIFORM, Design, Wiring

POSITIONS = tuple(f"position:{p}" for p in range(N_CTX))


def compiled(design: Design) -> Compiled:
    """Return the design as a GPT-2."""
    n_heads = max(map(len, design.layers))
    layers = [[_written_out(w) for w in (*layer, *[UNIFORM] * (n_heads - len(layer)))] for layer in design.layers]
    features = (*design.features, *POSITIONS)
    hf = blank(tf.GPT2LMHeadModel, _config(design, layers, len(features)))
    basis = _directions(len(features), hf.config.n_embd)
    with torch.no_grad():
        hf.transformer.wte.weight.copy_(embedding(design, features) @ basis)
        hf.transformer.wpe.weight.copy_(basis[-N_CTX:])
        hf.lm_head.weight.copy_(unembedding(design, features) @ basis)
        for block, layer in zip(hf.transformer.h, layers, strict=True):
            for head, wiring in enumerate(layer):
                _set_head(block.attn, head, wiring, features, basis)
    return Compiled(hf, layers, dict(zip(features, basis, strict=True)))


def _written_out(wiring: Wiring) -> Wiring:
    pairs = [(f"position:{q}", f"position:{q - n}", w) for n, w in wiring.back for q in range(n, N_CTX)]
    return replace(wiring, match=(*wiring.match, *pairs), back=())


def _config(design: Design, layers: list[list[Wiring]], n_features: int) -> tf.GPT2Config:
    n_heads = len(layers[0])
    columns = [Columns.of([wiring]) for layer in layers for wiring in layer]
    widest = max(max(len(c.keys), len(c.values)) for c in columns)
    d_head = max(widest, -(-2 * n_features // n_heads))
    return tf.GPT2Config(
        vocab_size=len(design.tokens),
        n_positions=N_CTX,
        n_embd=n_heads * (d_head + d_head % 2),  # even: a direction and its mirror image
        n_layer=len(layers),
        n_head=n_heads,
        n_inner=1,
        layer_norm_epsilon=EPS,
        tie_word_embeddings=False,
        bos_token_id=design.bos,
        eos_token_id=None,
    )


def _directions(n_features: int, d_model: int) -> Float[Tensor, "feature d_model"]:
    half = torch.eye(n_features, d_model // 2)
    return torch.cat((half, -half), 1) / 2**0.5


def _set_head(
    attention: Any, head: int, wiring: Wiring, features: Sequence[str], basis: Float[Tensor, "feature d_model"]
) -> None:
    columns, d_head = Columns.of([wiring]), attention.head_dim
    query = columns.query(wiring, features) * d_head**0.5
    for section, over_features in enumerate((query, columns.key(features), columns.value(features))):
        start = section * attention.embed_dim + head * d_head  # queries | keys | values, side by side
        attention.c_attn.weight[:, start : start + over_features.shape[1]] = basis.T @ over_features
    written = columns.output(wiring, features) @ basis
    attention.c_proj.weight[head * d_head : head * d_head + len(written)] = written
