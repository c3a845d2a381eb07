"""Does a head look at what the model is copying out of a long text?

The model writes on greedily from a prompt whose answer is a needle in the text. At every token w that it writes,
a head scores if the key it attends to most is in the needle and holds w itself:

    retrieval = |{w written : t_argmax = w, argmax in needle}| / |needle|       each token of the needle counts once
    null      = the same for the decoy, another fact of the text

Axes: prompt, layer, head. Source: Wu et al. 2024, whose code counts a token again whenever it is written.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens.data.tokens import Tokens, pack, pad
from headlens.heads.setting import Setting
from headlens.heads.tally import Measured
from headlens.models import Model
from headlens.tracing.capture import Batch, capture


def copied_share(
    attended: Int[np.ndarray, "*any step"], ids: Int[np.ndarray, " token"], written: Int[np.ndarray, " step"],
    needle: Bool[np.ndarray, " token"],
) -> Float[np.ndarray, "*any"]:  # fmt: skip
    """Return the share of a needle's tokens that were written while the head attended to them most.

    `attended` is the position attended to most at each step. Tokens are told apart by their place in the needle.
    """
    hit = needle[attended] & (ids[attended] == written)
    places = np.flatnonzero(needle)
    return (hit[..., None] & (attended[..., None] == places)).any(-2).mean(-1)


def retrieval(setting: Setting) -> Measured:
    """Measure how much of a needle each head points at while the model copies it out."""
    model, stimulus = setting.model, setting.stimulus("needles")
    needles, decoys = ([stimulus.marked(part, i) for i in range(len(stimulus.tokens))] for part in ("needle", "decoy"))
    steps = max(int(one.sum()) for one in needles)
    whole = write_on(model, stimulus.tokens, steps, batch_tokens=setting.protocol.batch_tokens)
    shape = (len(whole), model.n_layers, model.n_heads)
    own, null = np.empty(shape), np.empty(shape)

    def most(pattern: Float[Tensor, "batch head token token"], batch: Batch) -> np.ndarray:
        last = torch.from_numpy(stimulus.tokens.lengths[batch.index] - 1)
        at = (last[:, None] + torch.arange(steps)).to(pattern.device)
        return pattern[torch.arange(len(at))[:, None], :, at].argmax(-1).cpu().numpy()  # batch step head

    sites = {"blocks.*.attn.hook_pattern": most}
    for batch in capture(model, whole, sites, batch_tokens=setting.protocol.batch_tokens):
        for row, i in enumerate(batch.index):
            n, ids = int(needles[i].sum()), whole[i]
            written = ids[len(needles[i]) :][:n]
            for layer in range(model.n_layers):
                attended = batch[f"blocks.{layer}.attn.hook_pattern"][row, :n].T
                for found, marked in ((own, needles[i]), (null, decoys[i])):
                    here = np.concatenate([marked, np.zeros(len(ids) - len(marked), bool)])
                    found[i, layer] = copied_share(attended, ids, written, here)
        setting.tell("retrieval", int(batch.index[-1]) + 1, len(whole))
    return Measured(own, null)


def write_on(model: Model, prompts: Tokens, steps: int, *, batch_tokens: int) -> Tokens:
    """Return the prompts with `steps` tokens more, each the likeliest after those before it."""
    rows = [row.tolist() for row in prompts]
    for _ in range(steps):
        tokens, at_once = pack(rows), max(1, batch_tokens // max(map(len, rows)))
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // at_once)):
            ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(tokens, some))
            with torch.no_grad():
                logits = model.forward(ids, mask).logits
            likeliest = logits[torch.arange(len(some)), mask.sum(1) - 1].argmax(-1).tolist()
            for i, token in zip(some, likeliest, strict=True):
                rows[i].append(token)
    return pack(rows)
