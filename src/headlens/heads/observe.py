"""Run a model over a stimulus and fold every pattern as it appears into the scores of all kinds that look there.

Patterns and value sizes of one layer are folded while they exist; batches of the control run beside those of the
stimulus, so that own and null of a sequence are compared as a pair.

Memory: one layer's patterns for one batch, and a tally per kind, whatever the number of sequences.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError, ModelError
from headlens._statistics import Resampling
from headlens.data.stimuli import Stimulus
from headlens.data.tokens import Tokens, pad
from headlens.heads.attention import (
    Places,
    Reading,
    Targets,
    even_mass,
    masses,
    places,
    target_mass,
    weighted_totals,
)
from headlens.heads.kinds import Looks
from headlens.heads.read_out import output_weights
from headlens.heads.setting import Setting, windows_of
from headlens.heads.tally import HeadTally, Measured
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.capture import Batch, capture

PATTERN, VALUE = "blocks.{}.attn.hook_pattern", "blocks.{}.attn.hook_v"


def observe(
    setting: Setting, stimulus: Stimulus, kinds: Mapping[str, Looks], checkpoint: Checkpoint
) -> dict[str, HeadTally]:
    """Return a tally per kind, of all of the stimulus' sequences; an empty one where none of them has a target.

    Raises
    ------
    ModelError
        If attention is NaN.
    """
    model, p = setting.model, setting.protocol
    tallies = {name: HeadTally((model.n_layers, model.n_heads)) for name in kinds}
    done = checkpoint.restore(tallies)
    resampling = Resampling(len(stimulus.tokens), seed=p.seed)
    resampling.take(done)
    for index, measured in _sequences(setting, stimulus, kinds, done):
        counts = resampling.take(len(index))
        for name in kinds:
            tallies[name].add(measured[name], counts)
        done = int(index[-1]) + 1
        checkpoint.save(tallies, done)
        setting.tell(stimulus.name, done, len(stimulus.tokens))
    return tallies


def _sequences(
    setting: Setting, stimulus: Stimulus, kinds: Mapping[str, Looks], start: int
) -> Iterator[tuple[np.ndarray, dict[str, Measured]]]:
    """Yield which sequences were read, from `start` on, and what they showed."""
    fold = _Fold(setting.model, stimulus, kinds)
    controlled = [name for name, kind in kinds.items() if kind.null == "control"]
    if controlled and stimulus.control is None:
        raise DataError(f"{', '.join(controlled)} needs a stimulus with a control, and this one has none.")
    own = _read(setting, stimulus.tokens, start, fold, list(kinds))
    control = _read(setting, stimulus.control, start, fold, controlled) if controlled else None
    for batch in own:
        index, found = batch.index + start, _by_kind(setting.model, batch)
        _check_attention(setting.model, found, fold.aimed())
        if control is not None:
            for name, (null, _, _) in _by_kind(setting.model, next(control)).items():
                found[name] = (found[name][0], null, found[name][2])
        yield index, {name: Measured(*parts) for name, parts in found.items()}


def _read(setting: Setting, tokens: Tokens | None, start: int, fold: "_Fold", names: list[str]) -> Iterator[Batch]:
    assert tokens is not None
    if start == len(tokens):
        return iter(())
    sites = {}
    for layer in range(setting.model.n_layers):
        sites[VALUE.format(layer)] = partial(fold.sizes, layer)
        sites[PATTERN.format(layer)] = partial(fold.scores, layer, start, names)
    return iter(capture(setting.model, tokens.since(start), sites, batch_tokens=setting.protocol.batch_tokens))


def _by_kind(model: Model, batch: Batch) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Own, null and weighted scores (sequence, layer, head) of each kind."""
    layers = [batch[PATTERN.format(layer)] for layer in range(model.n_layers)]
    stacked = {name: torch.stack([layer[name] for layer in layers], 2).cpu().double().numpy() for name in layers[0]}
    return {name: (parts[0], parts[1], parts[2]) for name, parts in stacked.items()}


class _Fold:
    """From a layer's values and pattern to the scores of every kind; targets are made once per batch."""

    def __init__(self, model: Model, stimulus: Stimulus, kinds: Mapping[str, Looks]) -> None:
        self.stimulus, self.kinds, self.windows = stimulus, kinds, windows_of(model)
        self.kv_heads = [model.count.kv_head(head) for head in range(model.n_heads)]
        W_O = [output_weights(model, layer).float() for layer in range(model.n_layers)]
        self.metrics = [w @ w.transpose(1, 2) for w in W_O]
        self._made: tuple[bytes, dict[str, tuple[Places, Places | None]]] = (b"", {})

    def sizes(self, layer: int, values: Float[Tensor, "batch token kv_head d_head"], _: Batch) -> Tensor:
        """Return how much each key would write through each head: |v W_O| (batch, token, head)."""
        v = values[:, :, self.kv_heads].float()
        return torch.einsum("bthd,hde,bthe->bth", v, self.metrics[layer], v).clamp_min(0).sqrt()

    def scores(
        self, layer: int, start: int, names: list[str], pattern: Float[Tensor, "batch head token token"], batch: Batch
    ) -> dict[str, Float[Tensor, "3 batch head"]]:
        """Return own, null and weighted score of each kind."""
        sizes = batch[VALUE.format(layer)]
        totals = weighted_totals(pattern, sizes)
        found = {}
        aims = self._aims(batch.index + start, pattern.device)
        for name in names:
            at, other = aims[name]
            own, weighted = masses(pattern, sizes, totals, at)
            null = (
                target_mass(pattern, other)
                if other is not None
                else even_mass(at, self.windows[layer])[:, None].expand_as(own)
            )
            found[name] = torch.stack([own, null, weighted])
        return found

    def aimed(self) -> dict[str, np.ndarray]:
        """Which sequences of the last batch have a target, for each kind."""
        return {name: (at.n_rows > 0).cpu().numpy() for name, (at, _) in self._made[1].items()}

    def _aims(self, index: np.ndarray, device: torch.device) -> dict[str, tuple[Places, Places | None]]:
        if self._made[0] != index.tobytes():
            reading = _reading(self.stimulus, index, device)
            aims = {}
            for name, kind in self.kinds.items():
                targets = kind.aim(reading)
                other = kind.null(reading) if callable(kind.null) else None
                aims[name] = (places(targets), None if other is None else _in_rows_of(targets, other))
            self._made = (index.tobytes(), aims)
        return self._made[1]


def _in_rows_of(targets: Targets, other: Targets) -> Places:
    """Other places as a null of the targets: counted over the same rows."""
    rows = targets.any(-1)
    return places(other & rows[:, :, None])._replace(n_rows=rows.sum(-1))


def _reading(stimulus: Stimulus, index: np.ndarray, device: torch.device) -> Reading:
    """The sequences as the stimulus has them, padded, whatever control is being read."""
    ids, mask = (torch.from_numpy(a).to(device) for a in pad(stimulus.tokens, index))
    marks = {}
    for name in stimulus.marks:
        marks[name] = torch.zeros_like(mask)
        marks[name][mask] = torch.from_numpy(np.concatenate([stimulus.marked(name, i) for i in index])).to(device)
    return Reading(ids, mask, stimulus.bos, marks)


def _check_attention(
    model: Model, found: Mapping[str, tuple[np.ndarray, ...]], aimed: Mapping[str, np.ndarray]
) -> None:
    for name, (own, _, _) in found.items():
        lost = np.argwhere(np.isnan(own) & aimed[name][:, None, None])  # elsewhere NaN means: no target
        if len(lost):
            layer, head = lost[0, 1:]
            raise ModelError(
                f"The attention of layer {layer}, head {head} of {model.name} is NaN: its numbers overflow "
                f"{str(model.dtype).removeprefix('torch.')}. Load it in a wider dtype."
            )
