"""The loss of many probes and its gradient, from one read of the rows.

    columns = rows W' + shift        all first layers of all probes beside each other: one matrix product
    loss_p = sum_n w_pn l(logit_np, target_n)      the weights of a probe sum to 1; a held-out document has none
    dW = (d loss / d columns)' rows  the other product; what lies between is small and left to autograd

Rows come chunk by chunk and are never copied as a whole; half precision is widened chunk by chunk, sums are of the
probes' type. Where a probe is trained on standardised rows, (x - mean) scale, the products still read raw ones:

    W = W_std scale        shift = -W mean        dW_std = (dW - dshift mean') scale

Losses: "logistic" is binary cross-entropy, the mean over outputs where there are several labels; "softmax" is
cross-entropy over classes; "squared" is the mean squared error over outputs. Targets may be soft.

Axes: probe; document; unit = what has a target: a document, or a row; column = weights that meet the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from headlens.probes.training.module import Parameters, Shape, logits, meets_rows
from headlens.probes.training.pooling import Packing
from headlens.store.rows import Rows

CHUNK = 2**22
"""Numbers, about, that a chunk of rows or of columns holds: little enough for a processor's cache."""


def _logistic(logit: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logit, target.expand_as(logit), reduction="none").mean(-1)


def _softmax(logit: Tensor, target: Tensor) -> Tensor:
    return -(target * logit.log_softmax(-1)).sum(-1)


def _squared(logit: Tensor, target: Tensor) -> Tensor:
    return (logit - target).square().mean(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logistic": _logistic,
    "softmax": _softmax,
    "squared": _squared,
}
"""Of logits and targets, (unit, probe, output) each: a number for each unit and probe."""


@dataclass
class Bank:
    """Probes of one shape, stacked."""

    shape: Shape
    members: Int[Tensor, " probe"]
    """Which probe of all each is."""
    parameters: Parameters
    penalty: Float[Tensor, " probe"]
    learning_rate: Float[Tensor, " probe"]
    mean: Float[Tensor, "probe width"] | None = None
    scale: Float[Tensor, "probe width"] | None = None

    def take(self, some: Int[Tensor, " chosen"]) -> "Bank":
        """Return some of the probes, in copies of their own."""
        own = {name: value[some] for name, value in self.parameters.items()}
        mean, scale = (None if x is None else x[some] for x in (self.mean, self.scale))
        return Bank(self.shape, self.members[some], own, self.penalty[some], self.learning_rate[some], mean, scale)

    def first_layer(self) -> tuple[Float[Tensor, "column width"], Float[Tensor, " column"]]:
        """Weights and shift for raw rows."""
        weights, shifts = [], []
        for name in meets_rows(self.shape):
            weight = self.parameters[name] if self.scale is None else self.parameters[name] * self.scale[:, None]
            shift = weight.new_zeros(weight.shape[:2])
            if self.shape.before:
                shift = shift + self.parameters["map_bias_0"]
            if self.mean is not None:
                shift = shift - (weight @ self.mean[..., None])[..., 0]
            weights.append(weight.flatten(0, 1))
            shifts.append(shift.flatten())
        return torch.cat(weights), torch.cat(shifts)

    def first_gradients(self, weight: Float[Tensor, "column width"], shift: Float[Tensor, " column"]) -> Parameters:
        """Turn the gradients of what `first_layer` returned into those of the parameters."""
        out: Parameters = {}
        for name in meets_rows(self.shape):
            own = self.parameters[name]
            n = own.shape[0] * own.shape[1]
            d_weight, weight = weight[:n].view_as(own), weight[n:]
            d_shift, shift = shift[:n].view(own.shape[:2]), shift[n:]
            if self.shape.before:
                out["map_bias_0"] = d_shift
            if self.mean is not None and self.scale is not None:
                d_weight = (d_weight - d_shift[..., None] * self.mean[:, None]) * self.scale[:, None]
            out[name] = d_weight
        return out

    def later_names(self) -> list[str]:
        """Names of the parameters that do not meet rows."""
        first = {*meets_rows(self.shape), *(["map_bias_0"] if self.shape.before else [])}
        return [name for name in self.parameters if name not in first]


@dataclass
class Objective:
    """What probes are trained on."""

    rows: Rows
    targets: Float[Tensor, "unit #probe output"]
    """The same for every probe, or for each its own."""
    importance: Float[Tensor, " unit"]
    """How much a unit counts in any probe's loss; 0 where it has no target."""
    loss: str
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        self.lengths = torch.as_tensor(np.asarray(self.rows.lengths), dtype=torch.int64)
        self.first_row = self.lengths.cumsum(0) - self.lengths

    def evaluate(
        self,
        banks: Sequence[Bank],
        weights: Float[Tensor, "all_probes document"],
        documents: Int[np.ndarray, " some"],
        *,
        gradient: bool = True,
    ) -> tuple[list[Float[Tensor, " probe"]], list[Parameters]]:
        """Return the weighted loss of each bank's probes over some documents, and its gradient."""
        layers = [bank.first_layer() for bank in banks]
        weight, shift = (torch.cat(parts) for parts in zip(*layers, strict=True))
        sizes = [len(own) for own, _ in layers]
        shifts = any(bank.shape.before or bank.mean is not None for bank in banks)
        losses = [torch.zeros(len(bank.members), dtype=torch.float64, device=self.device) for bank in banks]
        d_weight, d_shift = torch.zeros_like(weight), torch.zeros_like(shift)
        later = [
            {k: bank.parameters[k].detach().requires_grad_(gradient) for k in bank.later_names()} for bank in banks
        ]
        d_later = [{k: torch.zeros_like(v) for k, v in own.items()} for own in later]

        for some in self.chunks(documents, len(weight)):
            rows = self.read(some)
            columns = torch.addmm(shift, rows, weight.T).split(sizes, 1)
            at = Packing(self.lengths[some].to(self.device))
            d_columns = []
            for i, bank in enumerate(banks):
                own = columns[i].detach().requires_grad_(gradient)
                with torch.set_grad_enabled(gradient):
                    unit_losses = self._unit_losses(bank, later[i], own, at, some)
                    loss = (unit_losses * self._unit_weights(bank, weights, at, some)).sum(0)
                losses[i] += loss.detach()
                if gradient:
                    grads = torch.autograd.grad(loss.sum(), [own, *later[i].values()])
                    d_columns.append(grads[0])
                    for total, grad in zip(d_later[i].values(), grads[1:], strict=True):
                        total += grad
            if gradient:
                every = torch.cat(d_columns, 1) if len(banks) > 1 else d_columns[0]
                d_weight.addmm_(every.T, rows)
                if shifts:
                    d_shift += every.sum(0)
        firsts = [
            bank.first_gradients(w, s)
            for bank, w, s in zip(banks, d_weight.split(sizes), d_shift.split(sizes), strict=True)
        ]
        return losses, [first | own for first, own in zip(firsts, d_later, strict=True)]

    def read(self, documents: Int[np.ndarray, " some"]) -> Float[Tensor, "row width"]:
        return self.rows.read(documents).to(self.device, self.dtype)

    def chunks(self, documents: Int[np.ndarray, " some"], n_columns: int) -> Iterator[Int[np.ndarray, " fewer"]]:
        """Cut documents into runs whose rows, and their columns, fit a chunk; a longer document stands alone."""
        return in_chunks(documents, self.lengths.numpy(), max(1, CHUNK // max(n_columns, self.rows.width)))

    def _unit_losses(
        self, bank: Bank, later: Parameters, columns: Tensor, at: Packing, documents: Int[np.ndarray, " some"]
    ) -> Float[Tensor, "unit probe"]:
        target = self.targets[self._units(bank, documents)].to(self.device, self.dtype)
        if target.shape[1] > 1:
            target = target[:, bank.members]
        return LOSSES[self.loss](logits(bank.shape, bank.parameters | later, columns, at), target)

    def _unit_weights(
        self, bank: Bank, weights: Tensor, at: Packing, documents: Int[np.ndarray, " some"]
    ) -> Float[Tensor, "unit probe"]:
        own = weights[bank.members][:, documents].T.to(self.device)
        own = at.spread(own) if bank.shape.pooling == "token" else own
        return own * self.importance[self._units(bank, documents)].to(self.device)[:, None]

    def _units(self, bank: Bank, documents: Int[np.ndarray, " some"]) -> Int[Tensor, " unit"]:
        if bank.shape.pooling != "token":
            return torch.as_tensor(documents)
        at = Packing(self.lengths[documents])
        return at.position + at.spread(self.first_row[documents])


def in_chunks(
    documents: Int[np.ndarray, " some"], lengths: Int[np.ndarray, " document"], n_rows: int
) -> Iterator[Int[np.ndarray, " fewer"]]:
    """Cut documents into runs of `n_rows` rows at most, or of one document."""
    ends = np.cumsum(lengths[documents])
    start = 0
    while start < len(documents):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + n_rows, side="right")))
        yield documents[start:stop]
        start = stop
