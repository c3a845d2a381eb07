"""Score a text while it is written: the logit of every prefix, in a memory that does not grow.

    token                            nothing
    mean, tanh                       sum a s, n
    last                             s of this token
    max, multimax                    largest s
    absmax                           the largest |y_j| so far, with its sign, for each feature
    softmax, attention               largest key, sum e^k s, sum e^k
    rolling_attention                last `window` keys and scores; the best
    rolling_mean_max                 last `window` scores; the best
    ema                              the average; the best

After each row, `update` returns the probe's logit of all rows so far: the same number as offline, up to rounding.

Axes: head; pooled = numbers a head says; window. State: at most 2 x head x window x pooled numbers, or one a feature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError
from headlens.probes.training.module import ProbeModule, Shape

State = dict[str, Tensor]


class Stream:
    """One text that a probe follows; `probe.stream()` begins it."""

    def __init__(self, module: ProbeModule) -> None:
        self._module = module
        self._state: State = {}
        self.n = 0
        """Rows so far."""

    @torch.no_grad()
    def update(self, row: Any) -> float | Float[Tensor, " output"]:
        """Take in the next row, and return the logit of all so far; several logits where the probe has several.

        Raises
        ------
        DataError
            If the row has another width than the probe reads, or holds NaN or infinite numbers.
        """
        module, shape = self._module, self._module.shape
        x = torch.as_tensor(row).detach().to(module.value.device, module.value.dtype)
        if x.shape != (shape.width,):
            raise DataError(f"A row must have {shape.width} numbers, ({shape.width},), not {tuple(x.shape)}.")
        if not x.isfinite().all():
            raise DataError(f"Row {self.n} holds NaN or infinite activations: the stream did not take it in.")
        y = module.features(x[None])
        if shape.pooling == "absmax":
            y, self._state = _absmax(y, self._state)
        keys, scores = module.keys_and_scores(y, torch.tensor([self.n], device=x.device))
        z = scores[0]
        if step := STEPS.get(shape.pooling):
            z, self._state = step(Row(z, keys[0], self._state, shape))
        self.n += 1
        return _plain(module.head(z.sum(0)[None])[0])


def _plain(logit: Float[Tensor, " output"]) -> float | Float[Tensor, " output"]:
    return float(logit) if len(logit) == 1 else logit


class Row(NamedTuple):
    """What a step takes in: a row's scores and keys, and what was kept of those before."""

    s: Float[Tensor, "head pooled"]
    k: Tensor
    state: State
    shape: Shape


Stepped = tuple[Tensor, State]
"""What is pooled so far, (head, pooled), and what is kept."""


def _absmax(y: Float[Tensor, "1 feature"], state: State) -> Stepped:
    best = state.get("best", y)
    best = torch.where(y.abs() > best.abs(), y, best)
    return best, {"best": best}


def _mean(row: Row) -> Stepped:
    total, n = row.state.get("sum", 0) + row.s, row.state.get("n", row.s.new_zeros(())) + 1
    return total / n, {"sum": total, "n": n}


def _largest(row: Row) -> Stepped:
    return _best(row.s, row.state)


def _tanh(row: Row) -> Stepped:
    total = row.state.get("sum", 0) + row.k.tanh() * row.s
    return total, {"sum": total}


def _softmax(row: Row) -> Stepped:
    return _attention(row._replace(k=row.s / row.shape.value))


def _attention(row: Row) -> Stepped:
    s, k, state = row.s, row.k, row.state
    top = torch.maximum(state.get("top", k), k)
    old, new = (state.get("top", k) - top).exp(), (k - top).exp()
    numerator, denominator = old * state.get("numerator", 0) + new * s, old * state.get("denominator", 0) + new
    return numerator / denominator, {"top": top, "numerator": numerator, "denominator": denominator}


def _rolling_attention(row: Row) -> Stepped:
    keys, scores = (_ring(new, row.state.get(name), row.shape) for new, name in ((row.k, "keys"), (row.s, "scores")))
    best, kept = _best((keys.softmax(0) * scores).sum(0), row.state)
    return best, kept | {"keys": keys, "scores": scores}


def _rolling_mean(row: Row) -> Stepped:
    scores = _ring(row.s, row.state.get("scores"), row.shape)
    best, kept = _best(scores.mean(0), row.state)
    return best, kept | {"scores": scores}


def _average(row: Row) -> Stepped:
    alpha = row.shape.value
    average = alpha * row.s + (1 - alpha) * row.state.get("average", row.s)
    best, kept = _best(average, row.state)
    return best, kept | {"average": average}


def _best(now: Float[Tensor, "head pooled"], state: State) -> Stepped:
    best = torch.maximum(state.get("best", now), now)
    return best, {"best": best}


def _ring(new: Tensor, held: Tensor | None, shape: Shape) -> Float[Tensor, "window head any"]:
    return new[None] if held is None else torch.cat([held, new[None]])[-int(shape.value) :]


STEPS: dict[str, Callable[[Row], Stepped]] = {
    "mean": _mean,
    "max": _largest,
    "multimax": _largest,
    "softmax": _softmax,
    "attention": _attention,
    "tanh": _tanh,
    "rolling_attention": _rolling_attention,
    "rolling_mean_max": _rolling_mean,
    "ema": _average,
}
"""Poolings whose z depends on more than this row's scores; "absmax" is chosen among features."""
