"""Train many probes together with L-BFGS: every evaluation reads the data once for all, each probe goes its own way.

    minimise  loss + penalty / 2 |weight|^2          biases and slopes are not penalised
    direction = -H gradient                          from the last 10 steps; Liu and Nocedal 1989
    step      loss falls by 1e-4 of what the slope promises, and the slope to 0.9 of what it was: found by doubling
              and bisection, which also holds where a maximum has kinks; Lewis and Overton 2013

A probe has converged when no entry of its gradient is larger than `tolerance`. It also ends where rounding leaves no
lower point to be found, which is not called convergence. Nothing is drawn at random.

Axes: all_probes; probe of a bank; D = all parameters of a probe, flat.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headlens.probes.training.adamw import Outcome, Tell
from headlens.probes.training.module import is_decayed
from headlens.probes.training.objective import Bank, Objective

HISTORY = 10
DECREASE, CURVATURE = 1e-4, 0.9
TRIALS = 25
"""Points that a line search tries before it gives up."""


def lbfgs(
    objective: Objective,
    banks: Sequence[Bank],
    training: Float[Tensor, "all_probes document"],
    *,
    steps: int,
    tolerance: float,
    tell: Tell | None = None,
) -> list[Outcome]:
    """Return the banks' probes at their minima, or after `steps` evaluations."""
    documents = np.flatnonzero((training > 0).any(0).numpy())
    outcomes = [Outcome.none_yet(bank) for bank in banks]
    searches = [_Search.of(bank, i) for i, bank in enumerate(banks)]
    for step in range(1, steps + 1):
        losses, gradients = objective.evaluate([one.at_trial() for one in searches], training, documents)
        going = []
        for one, loss, gradient in zip(searches, losses, gradients, strict=True):
            flat = torch.cat([gradient[name].flatten(1) for name in one.bank.parameters], 1)
            one.see(loss, flat)
            converged = one.gradient.abs().amax(1) <= tolerance
            ended = converged | one.stuck | (step == steps)
            at = torch.nonzero(ended)[:, 0]
            outcome = outcomes[one.home]
            outcome.keep(one.at(one.point), one.place[at], at, one.loss, step)
            outcome.converged[one.place[at]] = converged[at].cpu()
            if not ended.all():
                going.append(one.take(torch.nonzero(~ended)[:, 0]) if ended.any() else one)
        searches = going
        if tell is not None:
            tell(step, steps)
        if not searches:
            break
        for one in searches:
            one.aim()
    return outcomes


@dataclass
class _Search:
    """Where the probes of a bank stand: a point, a direction from it, and how far along it is tried next."""

    bank: Bank
    home: int
    """Which bank they come from,"""
    place: Int[Tensor, " probe"]
    """and where they stand in it."""
    point: Float[Tensor, "probe D"]
    penalty: Float[Tensor, "probe D"]
    gradient: Float[Tensor, "probe D"]
    direction: Float[Tensor, "probe D"]
    steps: Float[Tensor, "history probe D"]
    """Moves made, a ring,"""
    turns: Float[Tensor, "history probe D"]
    """and how the gradient changed along them."""
    held: Int[Tensor, " probe"]
    """Moves made since the history was begun."""
    value: Float[Tensor, " probe"]
    """Loss and penalty at the point,"""
    loss: Float[Tensor, " probe"]
    """and loss alone."""
    length: Float[Tensor, " probe"]
    low: Float[Tensor, " probe"]
    high: Float[Tensor, " probe"]
    trials: Int[Tensor, " probe"]
    moved: Bool[Tensor, " probe"]
    """Whether the last trial was taken."""
    stuck: Bool[Tensor, " probe"]

    @classmethod
    def of(cls, bank: Bank, home: int) -> "_Search":
        point = torch.cat([value.flatten(1) for value in bank.parameters.values()], 1)
        penalty = torch.cat(
            [bank.penalty[:, None].expand(len(bank.penalty), value[0].numel()) * is_decayed(name)
             for name, value in bank.parameters.items()], 1,
        )  # fmt: skip
        n = len(point)
        nothing = torch.zeros(n, dtype=torch.float64, device=point.device)
        none = nothing.bool()
        return cls(
            bank=bank, home=home, place=torch.arange(n), point=point, penalty=penalty,
            gradient=torch.zeros_like(point), direction=torch.zeros_like(point),
            steps=point.new_zeros(HISTORY, *point.shape), turns=point.new_zeros(HISTORY, *point.shape),
            held=nothing.long(), value=nothing + math.inf, loss=nothing, length=nothing, low=nothing, high=nothing,
            trials=nothing.long(), moved=none, stuck=none,
        )  # fmt: skip

    def take(self, some: Int[Tensor, " chosen"]) -> "_Search":
        own = {
            name: value[some] for name, value in vars(self).items() if name not in ("bank", "home", "steps", "turns")
        }
        return _Search(
            bank=self.bank.take(some), home=self.home, steps=self.steps[:, some], turns=self.turns[:, some], **own
        )

    def at(self, point: Float[Tensor, "probe D"]) -> Bank:
        """The bank with its parameters at a point."""
        sizes = [value[0].numel() for value in self.bank.parameters.values()]
        for (name, value), flat in zip(self.bank.parameters.items(), point.split(sizes, 1), strict=True):
            self.bank.parameters[name] = flat.reshape(value.shape)
        return self.bank

    def trial(self) -> Float[Tensor, "probe D"]:
        return self.point + self.length[:, None].to(self.point.dtype) * self.direction

    def at_trial(self) -> Bank:
        return self.at(self.trial())

    def see(self, loss: Float[Tensor, " probe"], gradient: Float[Tensor, "probe D"]) -> None:
        """Take in what the trial brought: move there, or narrow the bracket."""
        trial = self.trial()
        gradient = gradient + self.penalty * trial
        value = loss + 0.5 * (self.penalty * trial.square()).sum(1).double()
        was, now = _dot(self.gradient, self.direction), _dot(gradient, self.direction)
        rounding = 4 * torch.finfo(self.point.dtype).eps * value.abs()
        falls = value <= self.value + DECREASE * self.length * was + rounding
        flattens = now >= CURVATURE * was
        first = self.value.isinf()
        self.moved = first | (falls & flattens & value.isfinite())
        self.high = torch.where(~falls, self.length, self.high)
        self.low = torch.where(falls & ~flattens, self.length, self.low)
        self.trials = torch.where(self.moved, 0, self.trials + 1)
        self._remember(trial - self.point, gradient - self.gradient, self.moved & ~first)
        at = self.moved[:, None]
        self.point, self.gradient = torch.where(at, trial, self.point), torch.where(at, gradient, self.gradient)
        self.value, self.loss = (torch.where(self.moved, a, b) for a, b in ((value, self.value), (loss, self.loss)))
        self.stuck = (self.trials >= TRIALS) & (self.held == 0)

    def _remember(self, step: Tensor, turn: Tensor, which: Bool[Tensor, " probe"]) -> None:
        curved = _dot(step, turn) > 1e-10 * _dot(turn, turn)
        at = torch.nonzero(which & curved)[:, 0]
        self.steps[self.held[at] % HISTORY, at], self.turns[self.held[at] % HISTORY, at] = step[at], turn[at]
        self.held[at] += 1

    def aim(self) -> None:
        """Choose what to try next: a new direction where the probe moved, else another length."""
        give_up = self.trials >= TRIALS  # with a history, which is then forgotten
        self.held = torch.where(give_up, 0, self.held)
        self.trials = torch.where(give_up, 0, self.trials)
        fresh = self.moved | give_up
        if fresh.any():
            self.direction = torch.where(fresh[:, None], self._downhill(), self.direction)
        careful = (1 / self.gradient.abs().sum(1).double().clamp(min=1e-300)).clamp(max=1.0)
        begin = torch.where(self.held == 0, careful, 1.0)
        between = torch.where(self.high.isinf(), 2 * self.length, (self.low + self.high) / 2)
        self.length = torch.where(fresh, begin, between)
        self.low, self.high = torch.where(fresh, 0.0, self.low), torch.where(fresh, math.inf, self.high)

    def _downhill(self) -> Float[Tensor, "probe D"]:
        """-H gradient, by the two loops over what is remembered."""
        n, every = min(HISTORY, int(self.held.max())), torch.arange(len(self.point))
        q, kept = -self.gradient, []
        for back in range(1, n + 1):
            at = (self.held - back) % HISTORY
            step, turn = self.steps[at, every], self.turns[at, every]
            there = (self.held >= back).double()
            rho = there / torch.where(there > 0, _dot(step, turn), 1.0)
            alpha = rho * _dot(step, q)
            q = q - alpha[:, None].to(q.dtype) * turn
            kept.append((step, turn, rho, alpha))
        if kept:
            step, turn, rho, _ = kept[0]
            gamma = torch.where(rho > 0, _dot(step, turn) / _dot(turn, turn).clamp(min=1e-300), 1.0)
            q = q * gamma[:, None].to(q.dtype)
        for step, turn, rho, alpha in reversed(kept):
            q = q + (alpha - rho * _dot(turn, q))[:, None].to(q.dtype) * step
        return q


def _dot(a: Float[Tensor, "probe D"], b: Float[Tensor, "probe D"]) -> Float[Tensor, " probe"]:
    return (a.double() * b.double()).sum(1)
