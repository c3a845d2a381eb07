"""What changes when one head says something else? Causal measures, by patching one head at one place.

Every measure takes prompts, what each head is made to write at one place of each prompt, and something read from the
model afterwards; its score is how much that moves, and its null how much it moves when the head is made to write
something that lacks the information in question.

    attention_lost       sum over keys, mean over watched heads, of A before - A after
    probability_gained   p(target) after - p(target) before

    s_inhibition        attention lost by name movers on the indirect object at the end, when the head writes what it
                        writes for another giver (a third name in place of the second mention). Null: for another
                        receiver (the third name in place of the indirect object), where the giver is the same
    concept_induction   probability gained by an entity's second token after its first, when the head writes, one place
                        earlier, what it writes where the entity is known, into a prompt where it is not. Null: what it
                        writes there when the context is another
    function_vector     probability gained by the answer after examples whose answers were shuffled, when the head
                        writes, at the end, its mean over other prompts of the relation with right examples (average
                        indirect effect, AIE). Null: its mean over the shuffled ones

The first two are functions of arrays, whoever patched. All heads of a layer go through the model side by side, as
copies of the prompts: a sweep costs heads x one forward pass over the prompts.

Axes: prompt, layer, head, d_head; row = copies of prompts that run together. Memory: one batch. Source: Wang et al.
2023 (IOI); Feucht et al. 2025 (concepts); Todd et al. 2024 (function vectors).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.data.stimuli import Stimulus
from headlens.data.tokens import Tokens, pack, pad
from headlens.heads.setting import Setting
from headlens.heads.tally import Measured
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.capture import Batch, Reducer, capture
from headlens.tracing.edit import Edit, edit
from headlens.tracing.logits import last_logits

PATTERN = "blocks.{}.attn.hook_pattern"
NAME_MOVERS = 3
"""How many of the heads that look most to the indirect object are watched."""

Z = Float[Tensor, "layer head prompt d_head"]
Where = Int[np.ndarray, " prompt"]


# --- arrays: what it is worth that something changed ---------------------------------------------------------------


def attention_lost(
    before: Float[Tensor, "*#any watched key"],
    after: Float[Tensor, "*any watched key"],
    keys: Bool[Tensor, "*#any key"],
) -> Float[Tensor, " *any"]:
    """Return how much less attention goes to some keys than before, on average over the heads that are watched."""
    return ((before - after) * keys[..., None, :]).sum(-1).mean(-1)


def probability_gained(
    before: Float[Tensor, "*#any vocab"], after: Float[Tensor, "*any vocab"], target: Int[Tensor, "*#any"]
) -> Float[Tensor, " *any"]:
    """Return how much likelier the target is than before; `before` and `after` are logits."""
    p, was = (x.softmax(-1, torch.promote_types(x.dtype, torch.float32)) for x in (after, before))
    at = target.expand(p.shape[:-1])[..., None]
    return (p.gather(-1, at) - was.expand_as(p).gather(-1, at))[..., 0]


# --- a model: change one head at a time, and see -------------------------------------------------------------------


class Watch(NamedTuple):
    """What is read from the model, and what it is worth that it changed."""

    read: Callable[[Tensor, Tensor, np.ndarray], Tensor]
    """From padded ids, their mask and the prompt of each row to (row, ...); it runs the model."""
    gain: Callable[[Tensor, Tensor, np.ndarray], Float[Tensor, " row"]]
    """From what was read before and after, and the prompt of each row."""


def target_watched(model: Model, targets: Int[np.ndarray, " prompt"]) -> Watch:
    """Watch the probability of each prompt's target after its last token."""

    def gain(before: Tensor, after: Tensor, prompt: np.ndarray) -> Tensor:
        return probability_gained(before, after, torch.from_numpy(targets[prompt]).to(after.device))

    return Watch(lambda ids, mask, _: last_logits(model, ids, mask), gain)


def attention_watched(model: Model, heads: list[tuple[int, int]], query: Where, keys: list[np.ndarray]) -> Watch:
    """Watch how much some heads give, at one query of each prompt, to its keys."""
    wanted = _as_mask(keys)

    def read(ids: Tensor, mask: Tensor, prompt: np.ndarray) -> Tensor:
        fold = dict.fromkeys({PATTERN.format(layer) for layer, _ in heads}, _at(query[prompt], wanted.shape[1]))
        (batch,) = capture(model, ids, fold, mask=mask, batch_tokens=ids.numel())
        return torch.stack([batch[PATTERN.format(layer)][:, head] for layer, head in heads], 1)

    def gain(before: Tensor, after: Tensor, prompt: np.ndarray) -> Tensor:
        return attention_lost(before, after, wanted[prompt].to(after.device))

    return Watch(read, gain)


def _as_mask(keys: list[np.ndarray]) -> Bool[Tensor, "prompt key"]:
    wanted = torch.zeros(len(keys), 1 + max(int(k.max()) for k in keys), dtype=torch.bool)
    for i, k in enumerate(keys):
        wanted[i, k] = True
    return wanted


def _at(query: Where, n_keys: int) -> Reducer:
    """From patterns to one query's attention to the first keys, `n_keys` of them in every batch."""

    def fold(pattern: Float[Tensor, "row head token token"], batch: Batch) -> Float[Tensor, "row head key"]:
        at = torch.from_numpy(query[batch.index]).to(pattern.device)
        rows = pattern[torch.arange(len(at), device=at.device), :, at][..., :n_keys]
        return torch.nn.functional.pad(rows, (0, n_keys - rows.shape[-1]))

    return fold


def outputs_at(model: Model, prompts: Tokens, where: Where, *, batch_tokens: int = 8192) -> Z:
    """Return what every head puts out (z, before W_O) at one place of each prompt."""
    found = torch.empty(model.n_layers, model.n_heads, len(prompts), model.d_head, dtype=model.dtype)
    for batch in capture(model, prompts, ["blocks.*.attn.hook_z"], batch_tokens=batch_tokens):
        rows, at = torch.arange(len(batch.index)), torch.from_numpy(where[batch.index])
        for layer in range(model.n_layers):
            found[layer][:, batch.index] = batch[f"blocks.{layer}.attn.hook_z"][rows, at].transpose(0, 1).cpu()
    return found


def undisturbed(
    model: Model, prompts: Tokens, watch: Watch, *, batch_tokens: int = 8192
) -> Float[Tensor, "prompt ..."]:
    """Return what is read from each prompt when nothing is changed."""
    found = []
    with torch.no_grad(), edit(model, []):  # as the sweep runs: with eager attention
        for some in _groups(np.arange(len(prompts)), prompts, batch_tokens):
            ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(prompts, some))
            found.append(watch.read(ids, mask, some))
    return torch.cat(found)


def sweep(
    model: Model,
    prompts: Tokens,
    new: Z,
    where: Where,
    watch: Watch,
    *,
    batch_tokens: int = 8192,
    work: Checkpoint | None = None,
    loop: str = "sweep",
) -> Float[np.ndarray, "prompt layer head"]:
    """Return what is gained when each head in turn puts out `new` at `where`, and all else runs on."""
    before = undisturbed(model, prompts, watch, batch_tokens=batch_tokens)
    found = np.zeros((len(prompts), model.n_layers, model.n_heads))
    pairs = np.argwhere(np.ones((model.n_heads, len(prompts)), bool))
    batches = [(layer, *some.T) for layer in range(model.n_layers) for some in _groups(pairs, prompts, batch_tokens)]
    for step in (work or Checkpoint()).steps(loop, len(batches), {"found": found}):
        layer, head, prompt = batches[step]
        ids, mask = (torch.from_numpy(a).to(model.device) for a in pad(prompts, prompt))
        put = _put(new[layer][head, prompt], torch.from_numpy(where[prompt]), torch.from_numpy(head))
        with torch.no_grad(), edit(model, Edit(f"blocks.{layer}.attn.hook_z", put)):
            after = watch.read(ids, mask, prompt)
        found[prompt, layer, head] = watch.gain(before[prompt], after, prompt).double().cpu().numpy()
    return found


def _groups(items: np.ndarray, prompts: Tokens, batch_tokens: int) -> Iterator[np.ndarray]:
    step = max(1, batch_tokens // int(prompts.lengths.max()))
    return (items[start : start + step] for start in range(0, len(items), step))


def _put(new: Float[Tensor, "row d_head"], where: Tensor, head: Tensor) -> Callable[[Tensor], Tensor]:
    def change(z: Float[Tensor, "row token head d_head"]) -> Tensor:
        changed = z.clone()
        changed[torch.arange(len(new)), where, head] = new.to(z)
        return changed

    return change


# --- the kinds -----------------------------------------------------------------------------------------------------


def _patched(
    setting: Setting, work: Checkpoint | None, prompts: Tokens, where: Where, watch: Watch, own: Z, null: Z
) -> Measured:
    """Sweep twice: with what each head is to write, and with what lacks the information."""

    def gained(new: Z, loop: str) -> Float[np.ndarray, "prompt layer head"]:
        at_once = setting.protocol.batch_tokens
        return sweep(setting.model, prompts, new, where, watch, batch_tokens=at_once, work=work, loop=loop)

    return Measured(gained(own, "patched"), gained(null, "patched with the null"))


def _ends(prompts: Tokens) -> Where:
    return prompts.lengths - 1


def s_inhibition(setting: Setting, work: Checkpoint | None = None) -> Measured:
    """Measure how much name movers lose sight of the indirect object without each head's word on the giver."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("indirect_objects")
    prompts, ends = stimulus.tokens, _ends(stimulus.tokens)
    assert stimulus.control is not None
    io = [np.flatnonzero(stimulus.marked("io", i)) for i in range(len(prompts))]
    watch = attention_watched(model, name_movers(model, prompts, ends, io), ends, io)
    other_giver, other_receiver = (
        outputs_at(model, tokens, ends, batch_tokens=batch_tokens)
        for tokens in (stimulus.control, _other_receiver(stimulus))
    )
    return _patched(setting, work, prompts, ends, watch, other_giver, other_receiver)


def _other_receiver(stimulus: Stimulus) -> Tokens:
    """The same prompts with the receiver's name taken by a third one, that of the control's giver."""
    assert stimulus.control is not None
    rows = []
    for i, given in enumerate(stimulus.tokens):
        row = given.copy()
        row[stimulus.marked("io", i)] = stimulus.control[i][stimulus.marked("s2", i)]
        rows.append(row)
    return pack(rows)


def name_movers(model: Model, prompts: Tokens, ends: Where, io: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return the heads that give the indirect object most at the end, as (layer, head)."""
    given, wanted = np.zeros((model.n_layers, model.n_heads)), _as_mask(io)
    for batch in capture(model, prompts, {PATTERN.format("*"): _at(ends, wanted.shape[1])}):
        for layer in range(model.n_layers):
            attended = batch[PATTERN.format(layer)].cpu() * wanted[batch.index][:, None]
            given[layer] += attended.double().sum((0, 2)).numpy()
    best = np.argsort(-given, axis=None, kind="stable")[:NAME_MOVERS]
    return [divmod(int(i), model.n_heads) for i in best]


def concept_induction(setting: Setting, work: Checkpoint | None = None) -> Measured:
    """Measure how much each head, before an entity begins, makes its second token likely."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("entities")
    assert stimulus.control is not None
    ends = _ends(stimulus.tokens)
    known, other_context = (
        outputs_at(model, tokens, ends, batch_tokens=batch_tokens) for tokens in (stimulus.tokens, stimulus.control)
    )
    unknown = _with_first(_without_entity(setting), stimulus.answers["first"])
    watch = target_watched(model, stimulus.answers["second"])
    return _patched(setting, work, unknown, ends, watch, known, other_context)


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


def function_vector(setting: Setting, work: Checkpoint | None = None) -> Measured:
    """Measure each head's average indirect effect: what its mean over right examples does for shuffled ones."""
    model, batch_tokens = setting.model, setting.protocol.batch_tokens
    stimulus = setting.stimulus("tasks")
    prompts, n_relations = stimulus.control, len(stimulus.recipe["relations"])
    assert prompts is not None
    if len(prompts) < 2 * n_relations:
        raise DataError(f"{len(prompts)} prompts of {n_relations} relations have no means: raise num_prompts.")
    ends, relation = _ends(prompts), np.arange(len(prompts)) % n_relations
    right, shuffled = (
        _mean_by(relation, outputs_at(model, tokens, ends, batch_tokens=batch_tokens))
        for tokens in (stimulus.tokens, prompts)
    )
    watch = target_watched(model, stimulus.answers["target"])
    return _patched(setting, work, prompts, ends, watch, right, shuffled)


def _mean_by(group: Int[np.ndarray, " prompt"], z: Z) -> Z:
    """The mean over each prompt's group, itself left out: its own answer must not be what is put in."""
    same = torch.from_numpy(group[:, None] == group[None, :]).to(z.dtype)
    same.fill_diagonal_(0)
    return torch.einsum("lhpd,qp->lhqd", z, same / same.sum(1, keepdim=True))
