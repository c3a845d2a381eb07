"""What changes when one head says something else? Causal measures, by patching one head at one place.

Every measure takes prompts, what each head is made to write at one place of each prompt, and a number read from the
model afterwards; its score is how much that number moves, and its null how much it moves when the head is made to
write something that lacks the information in question.

    s_inhibition        what name movers give to the indirect object at the end; drop, when the head writes what it
                        writes for another giver (a third name in place of the second mention). Null: for other names
                        altogether
    concept_induction   p(second token of an entity) after its first; rise, when the head writes, one place earlier,
                        what it writes where the entity is known, into a prompt where it is not. Null: what it writes
                        there when the context is another
    function_vector     p(answer) after examples whose answers were shuffled; rise, when the head writes, at the end,
                        its mean over other prompts of the relation with right examples (average indirect effect, AIE).
                        Null: its mean over the shuffled ones

All heads of a layer go through the model side by side, as copies of the prompts: a sweep costs heads x one forward
pass over the prompts.

Axes: prompt, layer, head, d_head. Memory: one batch. Source: Wang et al. 2023 (IOI); Feucht et al. 2025 (concepts);
Todd et al. 2024 (function vectors).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.tokens import Tokens, pack, pad
from headlens.heads.setting import Setting
from headlens.heads.tally import Measured
from headlens.models import Model
from headlens.tracing.capture import Batch, Reducer, capture
from headlens.tracing.edit import Edit, edit

PATTERN = "blocks.{}.attn.hook_pattern"
NAME_MOVERS = 3
"""How many of the heads that look most to the indirect object are watched."""

Z = Float[Tensor, "layer head prompt d_head"]
Where = Int[np.ndarray, " prompt"]
Read = Callable[[Tensor, Tensor, Int[np.ndarray, " row"]], Float[Tensor, " row"]]
"""From padded ids, their mask and the prompt of each row to one number per row; it runs the model."""


def outputs_at(model: Model, prompts: Tokens, where: Where, *, batch_tokens: int = 8192) -> Z:
    """Return what every head puts out (z, before W_O) at one place of each prompt."""
    found = torch.empty(model.n_layers, model.n_heads, len(prompts), model.d_head, dtype=model.dtype)
    for batch in capture(model, prompts, ["blocks.*.attn.hook_z"], batch_tokens=batch_tokens):
        rows, at = torch.arange(len(batch.index)), torch.from_numpy(where[batch.index])
        for layer in range(model.n_layers):
            found[layer][:, batch.index] = batch[f"blocks.{layer}.attn.hook_z"][rows, at].transpose(0, 1).cpu()
    return found


def sweep(
    model: Model, prompts: Tokens, new: Z, where: Where, read: Read, *, batch_tokens: int = 8192
) -> Float[np.ndarray, "prompt layer head"]:
    """Return what `read` finds when each head in turn puts out `new` at `where`, and all else runs on."""
    found = np.empty((len(prompts), model.n_layers, model.n_heads))
    pairs = np.argwhere(np.ones((model.n_heads, len(prompts)), bool))
    step = max(1, batch_tokens // int(prompts.lengths.max()))
    for layer in range(model.n_layers):
        for some in (pairs[start : start + step] for start in range(0, len(pairs), step)):
            head, prompt = some.T
            ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(prompts, prompt))
            put = _put(new[layer][head, prompt], torch.from_numpy(where[prompt]), torch.from_numpy(head))
            with torch.no_grad(), edit(model, Edit(f"blocks.{layer}.attn.hook_z", put)):
                found[prompt, layer, head] = read(ids, mask, prompt).double().cpu().numpy()
    return found


def _put(new: Float[Tensor, "row d_head"], where: Tensor, head: Tensor) -> Callable[[Tensor], Tensor]:
    def change(z: Float[Tensor, "row token head d_head"]) -> Tensor:
        changed = z.clone()
        changed[torch.arange(len(new)), where, head] = new.to(z)
        return changed

    return change


def probability_of(model: Model, targets: Int[np.ndarray, " prompt"]) -> Read:
    """Return what reads the probability of each prompt's target after its last token."""

    def read(ids: Tensor, mask: Tensor, prompt: np.ndarray) -> Tensor:
        logits = model.forward(ids, mask).logits
        last = mask.sum(1) - 1
        rows = torch.arange(len(ids), device=logits.device)
        return logits[rows, last].float().softmax(-1)[rows, torch.from_numpy(targets[prompt]).to(logits.device)]

    return read


def attention_of(model: Model, heads: list[tuple[int, int]], query: Where, keys: list[np.ndarray]) -> Read:
    """Return what reads how much some heads (mean) give, at one query of each prompt, to its keys."""

    def read(ids: Tensor, mask: Tensor, prompt: np.ndarray) -> Tensor:
        fold = dict.fromkeys({PATTERN.format(layer) for layer, _ in heads}, _given(query[prompt], keys, prompt))
        (batch,) = capture(model, ids, fold, mask=mask, batch_tokens=ids.numel())
        return torch.stack([batch[PATTERN.format(layer)][:, head] for layer, head in heads]).mean(0)

    return read


def _given(query: Where, keys: list[np.ndarray], prompt: Where) -> Reducer:
    """From patterns to what each head gives, at one query of each row, to the keys of the row's prompt."""

    def fold(pattern: Float[Tensor, "row head token token"], batch: Batch) -> Float[Tensor, "row head"]:
        to = torch.zeros(batch.ids.shape, device=pattern.device)
        for row, i in enumerate(batch.index):
            to[row, keys[prompt[i]]] = 1
        at = torch.from_numpy(query[batch.index])
        return (pattern[torch.arange(len(to)), :, at] * to[:, None]).sum(-1)

    return fold


def _alone(model: Model, prompts: Tokens, read: Read) -> Float[np.ndarray, "prompt 1 1"]:
    """What `read` finds when nothing is changed."""
    ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(prompts, np.arange(len(prompts))))
    with torch.no_grad(), edit(model, []):  # as the sweep runs: with eager attention
        return read(ids, mask, np.arange(len(prompts))).double().cpu().numpy()[:, None, None]


def _ends(prompts: Tokens) -> Where:
    return prompts.lengths - 1


def s_inhibition(setting: Setting) -> Measured:
    """Measure how much name movers lose sight of the indirect object without each head's word on the giver."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("indirect_objects")
    prompts, ends = stimulus.tokens, _ends(stimulus.tokens)
    assert stimulus.control is not None
    io = [np.flatnonzero(stimulus.marked("io", i)) for i in range(len(prompts))]
    movers = name_movers(model, prompts, ends, io)
    read = attention_of(model, movers, ends, io)
    before = _alone(model, prompts, read)
    given = outputs_at(model, prompts, ends, batch_tokens=batch_tokens)
    other_giver = outputs_at(model, stimulus.control, ends, batch_tokens=batch_tokens)
    own = before - sweep(model, prompts, other_giver, ends, read, batch_tokens=batch_tokens)
    null = before - sweep(model, prompts, given.roll(1, dims=2), ends, read, batch_tokens=batch_tokens)
    return Measured(own, null)


def name_movers(model: Model, prompts: Tokens, ends: Where, io: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return the heads that give the indirect object most at the end, as (layer, head)."""
    fold = _given(ends, io, np.arange(len(prompts)))
    found = np.zeros((model.n_layers, model.n_heads))
    for batch in capture(model, prompts, {PATTERN.format("*"): fold}):
        for layer in range(model.n_layers):
            found[layer] += batch[PATTERN.format(layer)].sum(0).double().cpu().numpy()
    best = np.argsort(-found, axis=None, kind="stable")[:NAME_MOVERS]
    return [divmod(int(i), model.n_heads) for i in best]


def concept_induction(setting: Setting) -> Measured:
    """Measure how much each head, before an entity begins, makes its second token likely."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("entities")
    assert stimulus.control is not None
    ends = _ends(stimulus.tokens)
    known, other_context = (
        outputs_at(model, tokens, ends, batch_tokens=batch_tokens) for tokens in (stimulus.tokens, stimulus.control)
    )
    unknown = _with_first(_without_entity(setting), stimulus.answers["first"])
    read = probability_of(model, stimulus.answers["second"])
    before = _alone(model, unknown, read)
    own = sweep(model, unknown, known, ends, read, batch_tokens=batch_tokens) - before
    null = sweep(model, unknown, other_context, ends, read, batch_tokens=batch_tokens) - before
    return Measured(own, null)


def _without_entity(setting: Setting) -> Tokens:
    """The same prompts with the entity's place taken by the entity of the next prompt."""
    stimulus = setting.stimulus("entities")
    rows, n = [], len(stimulus.tokens)
    first, last = ([int(np.flatnonzero(stimulus.marked(part, i))[0]) for i in range(n)] for part in ("start", "last"))
    spans = [(start, end + 1) for start, end in zip(first, last, strict=True)]
    for i, (start, stop) in enumerate(spans):
        row, j = stimulus.tokens[i].copy(), (i + 1) % len(spans)
        row[start:stop] = stimulus.tokens[j][spans[j][0] : spans[j][1]]
        rows.append(row)
    return pack(rows)


def _with_first(tokens: Tokens, first: Int[np.ndarray, " prompt"]) -> Tokens:
    return pack([np.append(row, token) for row, token in zip(tokens, first, strict=True)])


def function_vector(setting: Setting) -> Measured:
    """Measure each head's average indirect effect: what its mean over right examples does for shuffled ones."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("tasks")
    prompts = stimulus.control
    assert prompts is not None
    ends = _ends(prompts)
    relation = np.arange(len(prompts)) % len(stimulus.recipe["relations"])
    if len(prompts) < 2 * len(stimulus.recipe["relations"]):
        raise DataError(
            f"{len(prompts)} prompts of {len(stimulus.recipe['relations'])} relations have no means: raise num_prompts."
        )
    right, shuffled = (
        _mean_by(relation, outputs_at(model, tokens, ends, batch_tokens=batch_tokens))
        for tokens in (stimulus.tokens, prompts)
    )
    read = probability_of(model, stimulus.answers["target"])
    before = _alone(model, prompts, read)
    own = sweep(model, prompts, right, ends, read, batch_tokens=batch_tokens) - before
    null = sweep(model, prompts, shuffled, ends, read, batch_tokens=batch_tokens) - before
    return Measured(own, null)


def _mean_by(group: Int[np.ndarray, " prompt"], z: Z) -> Z:
    """The mean over each prompt's group, itself left out: its own answer must not be what is put in."""
    same = torch.from_numpy(group[:, None] == group[None, :]).to(z.dtype)
    same.fill_diagonal_(0)
    return torch.einsum("lhpd,qp->lhqd", z, same / same.sum(1, keepdim=True))
