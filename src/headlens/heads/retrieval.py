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
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.capture import Batch, capture, groups
from headlens.tracing.logits import last_logits


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


def retrieval(setting: Setting, work: Checkpoint | None = None) -> Measured:
    """Measure how much of a needle each head points at while the model copies it out."""
    model, stimulus, work = setting.model, setting.stimulus("needles"), work or Checkpoint()
    batch_tokens = setting.protocol.batch_tokens
    needles, decoys = ([stimulus.marked(part, i) for i in range(len(stimulus.tokens))] for part in ("needle", "decoy"))
    steps = max(int(one.sum()) for one in needles)
    whole = write_on(model, stimulus.tokens, steps, batch_tokens=batch_tokens, work=work)
    shape = (len(whole), model.n_layers, model.n_heads)
    found = {"own": np.zeros(shape), "null": np.zeros(shape)}
    batches = list(groups(whole.lengths, batch_tokens, model.rotary_limit))
    for step in work.steps("attention", len(batches), found):
        attended = _most_attended(model, whole, batches[step], stimulus.tokens.lengths, steps)
        for row, i in enumerate(batches[step]):
            n, ids = int(needles[i].sum()), whole[i]
            written = ids[len(needles[i]) :][:n]
            for scores, marked in ((found["own"], needles[i]), (found["null"], decoys[i])):
                here = np.concatenate([marked, np.zeros(len(ids) - len(marked), bool)])
                scores[i] = copied_share(attended[row, ..., :n], ids, written, here)
    return Measured(found["own"], found["null"])


def _most_attended(
    model: Model, whole: Tokens, index: Int[np.ndarray, " row"], asked: Int[np.ndarray, " prompt"], steps: int
) -> Int[np.ndarray, "row layer head step"]:
    """The key that each head attends to most, at the last token of each prompt and at those written after it."""

    def most(pattern: Float[Tensor, "batch head token token"], batch: Batch) -> Int[Tensor, "batch step head"]:
        last = torch.from_numpy(asked[index[batch.index]] - 1)
        at = (last[:, None] + torch.arange(steps)).to(pattern.device)
        return pattern[torch.arange(len(at), device=at.device)[:, None], :, at].argmax(-1)

    some = pack([whole[i] for i in index])
    at_once = int(some.lengths.max()) * len(some)
    (batch,) = capture(model, some, {"blocks.*.attn.hook_pattern": most}, batch_tokens=at_once)
    layers = [batch[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.n_layers)]
    return torch.stack(layers, 1).transpose(2, 3).cpu().numpy()


def write_on(model: Model, prompts: Tokens, steps: int, *, batch_tokens: int, work: Checkpoint | None = None) -> Tokens:
    """Return the prompts with `steps` tokens more, each the likeliest after those before it."""
    written = np.zeros((len(prompts), steps), np.int64)
    for step in (work or Checkpoint()).steps("writing", steps, {"written": written}):
        tokens = _with(prompts, written[:, :step])
        for some in groups(tokens.lengths, batch_tokens, model.rotary_limit):
            ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(tokens, some))
            with torch.no_grad():
                written[some, step] = last_logits(model, ids, mask).argmax(-1).cpu().numpy()
    return _with(prompts, written)


def _with(prompts: Tokens, written: Int[np.ndarray, "prompt step"]) -> Tokens:
    return pack([np.concatenate(both) for both in zip(prompts, written, strict=True)])
