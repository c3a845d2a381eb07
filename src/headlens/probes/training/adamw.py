"""Train many probes together with AdamW, on the same minibatches.

    weight -= rate (first / sqrt(second) + penalty weight)      Loshchilov and Hutter 2019: decoupled weight decay

Biases and slopes are not penalised. Rates rise over the first 5 % of the steps and fall along a cosine to 0.
A probe with validation documents is judged on them once an epoch; it stops when `patience` looks in a row brought
nothing better, and what it returns are its parameters at the best look. No probe's way depends on its company: one that
has stopped is taken out.

Axes: all_probes; probe of a bank; document.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens.probes.training.module import Parameters, is_decayed
from headlens.probes.training.objective import Bank, Objective

BETAS, EPSILON = (0.9, 0.999), 1e-8
WARM_UP = 0.05
LOOKS = 100
"""How often, at most about, validation documents are read."""

Tell = Callable[[int, int], None]
"""Is told the step, and of how many."""


@dataclass
class Outcome:
    """How the training of a bank's probes ended."""

    bank: Bank
    loss: Float[Tensor, " probe"]
    """On the validation documents, where a probe has some; else the last seen in training. Without penalty."""
    steps: Int[Tensor, " probe"]
    """When the parameters returned were reached."""
    converged: Bool[Tensor, " probe"]
    """L-BFGS: the gradient vanished. AdamW: validation stopped the probe before the last step."""

    @classmethod
    def none_yet(cls, bank: Bank) -> "Outcome":
        n = len(bank.members)
        loss = torch.full((n,), math.inf, dtype=torch.float64)
        return cls(bank.take(torch.arange(n)), loss, torch.zeros(n).long(), torch.zeros(n).bool())

    def keep(self, bank: Bank, place: Int[Tensor, " kept"], own: Int[Tensor, " kept"], loss: Tensor, step: int) -> None:
        """Copy the parameters of probes `own` of `bank`, which go on changing, to `place`."""
        for name, value in self.bank.parameters.items():
            value[place] = bank.parameters[name][own]
        self.loss[place], self.steps[place] = loss[own].cpu(), step


@dataclass
class _Moving:
    """The probes of a bank that are still trained."""

    bank: Bank
    home: int
    """Which bank they come from,"""
    place: Int[Tensor, " probe"]
    """and where they stand in it."""
    first: Parameters
    second: Parameters
    stale: Int[Tensor, " probe"]
    """Looks since the best."""

    @classmethod
    def of(cls, bank: Bank, home: int) -> "_Moving":
        every = torch.arange(len(bank.members))
        first, second = ({name: torch.zeros_like(x) for name, x in bank.parameters.items()} for _ in range(2))
        return cls(bank.take(every), home, every, first, second, stale=torch.zeros_like(every))

    def take(self, some: Int[Tensor, " chosen"]) -> "_Moving":
        first, second = ({name: value[some] for name, value in part.items()} for part in (self.first, self.second))
        return _Moving(self.bank.take(some), self.home, self.place[some], first, second, self.stale[some])

    def move(self, gradients: Parameters, step: int, factor: float) -> None:
        """Make one step of AdamW."""
        for name, gradient in gradients.items():
            value, first, second = self.bank.parameters[name], self.first[name], self.second[name]
            rate = (factor * self.bank.learning_rate).view(-1, *[1] * (value.ndim - 1))
            if is_decayed(name):
                value.mul_(1 - rate * self.bank.penalty.view_as(rate))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
            value.sub_(first / size * (rate / (1 - BETAS[0] ** step)))


def adamw(
    objective: Objective,
    banks: Sequence[Bank],
    training: Float[Tensor, "all_probes document"],
    validation: Float[Tensor, "all_probes document"],
    *,
    steps: int,
    batch: int,
    patience: int,
    seed: int,
    tell: Tell | None = None,
) -> list[Outcome]:
    """Return the banks' probes trained; `training` and `validation` are weights, those of a probe sum to 1 or are 0."""
    trains, judges = ((weights > 0).any(0).numpy() for weights in (training, validation))
    held_out, n_documents = np.flatnonzero(judges), len(trains)
    judged = (validation > 0).any(1)
    outcomes = [Outcome.none_yet(bank) for bank in banks]
    moving = [_Moving.of(bank, i) for i, bank in enumerate(banks)]
    look_every = max(1, round(n_documents / batch), steps // LOOKS)
    for step, some in enumerate(_batches(n_documents, batch, steps, seed), 1):
        share = len(some) / n_documents
        losses, gradients = objective.evaluate([one.bank for one in moving], training, some[trains[some]])
        for one, gradient in zip(moving, gradients, strict=True):
            one.move({name: value / share for name, value in gradient.items()}, step, _rate_factor(step, steps))
        if tell is not None:
            tell(step, steps)
        if step == steps:
            _keep_unjudged(moving, outcomes, judged, [loss / share for loss in losses], step)
        if held_out.size and (step % look_every == 0 or step == steps):
            moving = _look(
                objective, moving, outcomes, validation, held_out, judged, step, patience, last=step == steps
            )
        if not moving:
            break
    return outcomes


def _batches(n_documents: int, batch: int, steps: int, seed: int) -> Iterator[Int[np.ndarray, " some"]]:
    """Yield `steps` minibatches, epoch after epoch in new orders; within one, documents stand as they lie.

    Drawn from all documents, whether or not some probe trains on them: else a probe's batches would depend on others.
    """
    rng = np.random.default_rng(seed)
    documents, per_epoch = np.arange(n_documents), max(1, round(n_documents / batch))
    parts: list[np.ndarray] = []
    for step in range(steps):
        if step % per_epoch == 0:
            parts = [documents] if per_epoch == 1 else np.array_split(rng.permutation(documents), per_epoch)
        yield np.sort(parts[step % per_epoch])


def _rate_factor(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _keep_unjudged(
    moving: list[_Moving], outcomes: list[Outcome], judged: Tensor, losses: list[Tensor], step: int
) -> None:
    for one, loss in zip(moving, losses, strict=True):
        own = torch.nonzero(~judged[one.bank.members])[:, 0]
        outcomes[one.home].keep(one.bank, one.place[own], own, loss, step)


def _look(
    objective: Objective,
    moving: list[_Moving],
    outcomes: list[Outcome],
    validation: Tensor,
    held_out: Int[np.ndarray, " document"],
    judged: Tensor,
    step: int,
    patience: int,
    *,
    last: bool,
) -> list[_Moving]:
    """Judge every probe on its validation documents, and return those that go on."""
    with torch.no_grad():
        losses, _ = objective.evaluate([one.bank for one in moving], validation, held_out, gradient=False)
    going = []
    for one, loss in zip(moving, losses, strict=True):
        outcome, has = outcomes[one.home], judged[one.bank.members]
        better = has & (loss.cpu() < outcome.loss[one.place])
        own = torch.nonzero(better)[:, 0]
        outcome.keep(one.bank, one.place[own], own, loss, step)
        one.stale = torch.where(better, 0, one.stale + 1)
        stop = has & (one.stale >= patience)
        outcome.converged[one.place[stop]] = not last
        if not stop.all():
            going.append(one.take(torch.nonzero(~stop)[:, 0]) if stop.any() else one)
    return going
