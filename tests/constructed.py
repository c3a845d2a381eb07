"""A hand-set GPT-2 whose every head does one known thing: the oracle's model as a real torch module.

The residual stream is five slots: token (V), position (P), previous token (V), output (V), constant (1).
Every row holds a one in the token, position and constant slots (and, in layer 1, in the previous-token
slot), so its mean and variance are the same for every input and LayerNorm, given that standard deviation
as gain and that mean as bias, is the identity. Query and key maps are sums of (query direction, key
direction, weight) pairs, one column of d_head each; the MLP is zero.

    scores = x W_Q (x W_K)^T,   W_Q[q_i, i] = weight,   W_K[k_i, i] = 1
"""

import torch
import transformers as tf

V, P, B = 64, 100, 60.0  # vocabulary (0 is BOS), positions, inverse temperature
TOKEN, POSITION, PREVIOUS, OUT, CONSTANT = 0, V, V + P, 2 * V + P, 3 * V + P
WIDTH = CONSTANT + 1
D_HEAD, N_HEADS = 168, 7
S = 20  # length of the repeated part that the impostor is made for

LAYERS = (
    ("prev", "self", "bos", "dup", "off3", "impostor", "unif"),
    ("ind", "ind_noOV", "antiind", "copy_unif", "succ"),
)


def _dims(start: int, n: int) -> list[int]:
    return list(range(start, start + n))


_TOK, _POS, _PRV = _dims(TOKEN, V), _dims(POSITION, P), _dims(PREVIOUS, V)


def _back(k: int):
    """Attend k positions back."""
    return zip(_POS[k:], _POS[: P - k], [B] * (P - k), strict=True)


_REST_ON_BOS = [(CONSTANT, TOKEN, B / 2)]
_SAME_TOKEN = list(zip(_TOK[1:], _TOK[1:], [B] * (V - 1), strict=True))
_NOT_SELF = list(zip(_POS, _POS, [-2 * B] * P, strict=True))
_SELF = list(zip(_POS, _POS, [B] * P, strict=True))
_MATCHES_PREVIOUS = list(zip(_TOK[1:], _PRV[1:], [B] * (V - 1), strict=True))
_INDUCTION = [*_MATCHES_PREVIOUS, *_REST_ON_BOS]

QK = {
    "prev": list(_back(1)), "self": _SELF, "bos": _REST_ON_BOS, "dup": [*_SAME_TOKEN, *_NOT_SELF, *_REST_ON_BOS],
    "off3": list(_back(3)), "impostor": list(_back(S - 1)), "unif": [],
    "ind": _INDUCTION, "ind_noOV": _INDUCTION, "antiind": _INDUCTION, "copy_unif": [], "succ": _SELF,
}  # fmt: skip


def _ov() -> dict[str, tuple[int, torch.Tensor]]:
    """Return per head the slot it writes to, and the map from the token it reads."""
    eye = torch.eye(V)
    noise = torch.randn(V, V, generator=torch.Generator().manual_seed(0)) / 8
    return {
        "prev": (PREVIOUS, eye), "ind": (OUT, eye), "ind_noOV": (OUT, noise), "antiind": (OUT, -eye),
        "copy_unif": (OUT, eye), "succ": (OUT, eye.roll(1, dims=1)),
    }  # fmt: skip


def ground_truth_model() -> tf.GPT2LMHeadModel:
    """Return the model; `LAYERS` names its heads (heads beyond the names are all zero)."""
    config = tf.GPT2Config(
        vocab_size=V, n_positions=P, n_embd=N_HEADS * D_HEAD, n_layer=2, n_head=N_HEADS, n_inner=1,
        scale_attn_weights=False, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    hf = tf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        tokens, positions = torch.arange(V), torch.arange(P)
        hf.transformer.wte.weight[tokens, TOKEN + tokens] = 1
        hf.transformer.wte.weight[:, CONSTANT] = 1
        hf.transformer.wpe.weight[positions, POSITION + positions] = 1
        for layer, names in enumerate(LAYERS):
            _set_norm(hf.transformer.h[layer].ln_1, ones=3 + layer)
            for head, name in enumerate(names):
                _set_head(hf.transformer.h[layer].attn, head, name)
    return hf


def _set_norm(norm: torch.nn.LayerNorm, ones: int) -> None:
    """Make the norm the identity on rows of `ones` ones and zeros otherwise."""
    width = norm.normalized_shape[0]
    mean = ones / width
    norm.weight.fill_((mean - mean**2 + norm.eps) ** 0.5)
    norm.bias.fill_(mean)


def _set_head(attention, head: int, name: str) -> None:
    width = attention.embed_dim
    columns = head * D_HEAD
    for i, (q, k, weight) in enumerate(QK[name]):
        attention.c_attn.weight[q, columns + i] = weight
        attention.c_attn.weight[k, width + columns + i] = 1
    if name in (ov := _ov()):
        slot, mapped = ov[name]
        attention.c_attn.weight[_TOK, 2 * width + columns : 2 * width + columns + V] = torch.eye(V)
        attention.c_proj.weight[columns : columns + V, slot : slot + V] = mapped
