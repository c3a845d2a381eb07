"""Train many probes at once: one read of the rows serves all of them.

A `Spec` says what one probe is; `train` takes as many as you like, of any poolings, heads, penalties and seeds, each
with weights of its own over the documents. Cross-validation, class weights and held-out documents are weights:

    weights[p, n]       how much document n counts in the training loss of probe p; 0: it does not see it
    validation[p, n]    the same for the loss that decides when AdamW stops, and what it keeps

Probes that are pooled to one row a document before anything is learned (mean, last, absmax without hidden layers) train
on those rows; all others on the tokens', together. Standardisation takes mean and scale from the rows of the documents
that a probe trains on, and is folded into the weights: what comes back reads raw rows.

The numbers are computed in the type of the rows, at least single precision. Same seeds, same bytes, on a CPU.

Axes: probe; document; unit = what has a target: a document, or a row where the pooling is "token".
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headlens._errors import DataError
from headlens.probes.training.adamw import Outcome, Tell, adamw
from headlens.probes.training.lbfgs import lbfgs
from headlens.probes.training.module import ProbeModule, Shape, meets_rows, start
from headlens.probes.training.objective import LOSSES, Bank, Objective
from headlens.probes.training.survey import survey
from headlens.store.rows import Rows

Optimizer = Literal["adamw", "lbfgs"]


@dataclass(frozen=True)
class Spec:
    """One probe to be trained. What the fields of a probe's `Shape` mean, it says."""

    pooling: str = "attention"
    n_heads: int = 1
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    slopes: bool = True
    setting: float | None = None
    penalty: float = 0.0
    learning_rate: float = 0.01
    """Of AdamW, at its highest."""
    standardize: bool = True
    seed: int = 0
    """Of the parameters that training starts from."""

    def shape(self, width: int, outputs: int) -> Shape:
        return Shape(
            width, outputs, self.pooling, self.n_heads, self.before, self.after, self.slopes, self.setting
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One probe, trained."""

    spec: Spec
    module: ProbeModule
    loss: float
    """On its validation documents, where it has some; else in training. Without penalty."""
    steps: int
    """After how many its parameters were reached."""
    converged: bool
    """L-BFGS: the gradient vanished. AdamW: validation stopped it."""


def train(
    rows: Rows,
    targets: Float[Tensor, "unit output"] | Float[Tensor, "probe unit output"],
    specs: Sequence[Spec],
    weights: Float[Tensor, "probe document"] | None = None,
    *,
    validation: Float[Tensor, "probe document"] | None = None,
    importance: Float[Tensor, " target"] | None = None,
    loss: Literal["logistic", "softmax", "squared"] = "logistic",
    optimizer: Optimizer = "adamw",
    steps: int = 1000,
    batch: int = 256,
    patience: int = 20,
    tolerance: float = 1e-5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    tell: Tell | None = None,
) -> list[Trained]:
    """Return the probes of `specs`, trained, in their order.

    Parameters
    ----------
    targets
        For "softmax" the probabilities of the classes, for "logistic" those of each label. The same for all probes, or
        for each its own. For the pooling "token" a target for every row.
    weights
        None: every document counts alike. They need not sum to anything.
    importance
        How much a unit counts in the loss of any probe, as class weights do; 0 for a row without label.
    steps
        Of AdamW, on minibatches of `batch` documents; evaluations of L-BFGS.
    patience
        Looks at the validation documents without a better loss, after which AdamW stops a probe.
    tolerance
        Where L-BFGS has arrived: the largest entry of its gradient.
    seed
        Of the order of minibatches, which are the same for all probes.

    Raises
    ------
    DataError
        If shapes disagree, a probe has no document to train on or one without rows, an activation or a target is no
        number, or validation is given to L-BFGS, which does not stop early.
    """
    _check_options(specs, optimizer, {"steps": steps, "batch": batch, "patience": patience})
    weights = _weights(rows, specs, weights, "weights")
    held_out = _weights(rows, specs, torch.zeros_like(weights) if validation is None else validation, "validation")
    if optimizer == "lbfgs" and held_out.any():
        raise DataError("L-BFGS goes to the minimum and does not stop early: give it no validation documents.")
    targets = _targets(rows, targets, specs, loss)
    importance = torch.ones(len(targets)) if importance is None else importance
    if tuple(importance.shape) != (len(targets),) or not bool((importance.isfinite() & (importance >= 0)).all()):
        raise DataError(f"importance must be a number of at least 0 for each of the {len(targets)} targets.")
    _check_documents(rows, weights, held_out)
    shapes = [spec.shape(rows.width, targets.shape[-1]) for spec in specs]
    seen = np.flatnonzero(((weights > 0) | (held_out > 0)).any(0).numpy())
    forms = defaultdict(list)
    for i, shape in enumerate(shapes):
        forms[shape.pooling if shape.pooled_first else ""].append(i)

    def sets_of(members: list[int]) -> tuple[Tensor | None, Tensor]:
        sets, which = torch.unique(weights[members] > 0, dim=0, return_inverse=True)
        return (sets if any(specs[i].standardize for i in members) else None), which

    tokens = sets_of(forms[""])[0] if "" in forms else None
    found = survey(rows, seen, sorted(set(forms) - {""}), tokens)
    trained: dict[int, Trained] = {}
    for form, members in forms.items():
        sets, which = sets_of(members)
        own = found if form == "" else survey(found.pooled[form], seen, [], sets)
        read = rows if form == "" else found.pooled[form]
        counts = importance.to(found.dtype)
        objective = Objective(read, targets, counts, loss, found.dtype, torch.device(device))
        moments = None if own.moments is None else own.moments.mean_and_scale()
        banks = _banks(objective, specs, shapes, members, moments, which)
        of_units = [_per_unit(objective, shapes[members[0]], part) for part in (weights, held_out)]
        if optimizer == "adamw":
            training, judging = of_units
            outcomes = adamw(
                objective, banks, training, judging, steps=steps, batch=batch, patience=patience, seed=seed, tell=tell
            )
        else:
            outcomes = lbfgs(objective, banks, of_units[0], steps=steps, tolerance=tolerance, tell=tell)
        for outcome in outcomes:
            trained |= _modules(outcome, specs)
    return [trained[i] for i in range(len(specs))]


# --- what was asked for ---


def _check_options(specs: Sequence[Spec], optimizer: str, counts: dict[str, int]) -> None:
    if not specs:
        raise DataError("There is no probe to train: specs is empty.")
    if optimizer not in get_args(Optimizer):
        raise DataError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, not {optimizer!r}.")
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name} must be at least 1, not {value}.")
    for spec in specs:
        for name in ("penalty", "learning_rate"):
            if not getattr(spec, name) >= 0:
                raise DataError(f"{name} must be at least 0, not {getattr(spec, name)}.")


def _weights(rows: Rows, specs: Sequence[Spec], weights: Tensor | None, name: str) -> Float[Tensor, "probe document"]:
    n_documents = len(rows.lengths)
    if weights is None:
        return torch.ones(len(specs), n_documents)
    if tuple(weights.shape) != (len(specs), n_documents):
        raise DataError(
            f"{name} must be (probe, document) = {(len(specs), n_documents)}, not {tuple(weights.shape)}."
        )  # fmt: skip
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise DataError(f"{name} must be numbers of at least 0.")
    return weights.float()


def _targets(rows: Rows, targets: Tensor, specs: Sequence[Spec], loss: str) -> Float[Tensor, "unit probe output"]:
    tokens = {spec.pooling == "token" for spec in specs}
    if len(tokens) > 1:
        raise DataError('Pooling "token" has a target for each row, others for each document: train them apart.')
    if loss not in LOSSES:
        raise DataError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}.")
    n_units = int(np.sum(rows.lengths)) if tokens == {True} else len(rows.lengths)
    targets = targets[None] if targets.ndim == 2 else targets
    if targets.ndim != 3 or targets.shape[1] != n_units or len(targets) not in (1, len(specs)):
        what = "row" if tokens == {True} else "document"
        raise DataError(f"targets must have a row for each of the {n_units} {what}s, not shape {tuple(targets.shape)}.")
    if not bool(targets.isfinite().all()):
        raise DataError("Targets hold NaN or infinite numbers: give any number, and an importance of 0, instead.")
    return targets.transpose(0, 1)


def _check_documents(rows: Rows, weights: Tensor, validation: Tensor) -> None:
    if idle := [i for i, own in enumerate(weights) if not own.any()]:
        raise DataError(f"Probe {idle[0]} has no document to train on: all its weights are 0.")
    used = ((weights > 0) | (validation > 0)).any(0).numpy()
    if len(empty := np.flatnonzero(used & (np.asarray(rows.lengths) == 0))):
        raise DataError(f"Document {empty[0]} has no rows (all are masked): leave it out of training.")


def _per_unit(objective: Objective, shape: Shape, weights: Tensor) -> Float[Tensor, "probe document"]:
    """Weights that, times importance, sum to 1 over a probe's units, where it has any."""
    units = objective.importance
    if shape.pooling == "token":
        at = torch.repeat_interleave(torch.arange(weights.shape[1]), objective.lengths)
        units = units.new_zeros(weights.shape[1]).index_add(0, at, units)
    total = (weights.to(units.dtype) @ units)[:, None]
    if bool(((total[:, 0] == 0) & weights.any(1)).any()):
        raise DataError("A probe has nothing to train on or to be judged on: the importance of all its targets is 0.")
    return weights / torch.where(total > 0, total, 1.0)


# --- what is trained, and what comes back ---


def _banks(
    objective: Objective,
    specs: Sequence[Spec],
    shapes: Sequence[Shape],
    members: Sequence[int],
    moments: tuple[Tensor, Tensor] | None,
    which: Int[Tensor, " member"],
) -> list[Bank]:
    """Put probes of one shape, standardised or not, side by side."""
    groups = defaultdict(list)
    for place, i in enumerate(members):
        groups[shapes[i], specs[i].standardize].append((place, i))
    banks = []
    for (shape, standardize), own in groups.items():
        starts = [start(shape, specs[i].seed) for _, i in own]
        kind = {"dtype": objective.dtype, "device": objective.device}
        stacked = {name: torch.stack([one[name] for one in starts]).to(**kind) for name in starts[0]}
        penalty, rate = ([getattr(specs[i], name) for _, i in own] for name in ("penalty", "learning_rate"))
        bank = Bank(
            shape, torch.tensor([i for _, i in own]), stacked, torch.tensor(penalty, **kind), torch.tensor(rate, **kind)
        )  # fmt: skip
        if standardize and moments is not None:
            sets = which[[place for place, _ in own]]
            bank.mean, bank.scale = (part[sets].to(**kind) for part in moments)
        banks.append(bank)
    return banks


def _modules(outcome: Outcome, specs: Sequence[Spec]) -> dict[int, Trained]:
    """Fold standardisation into the weights of each probe."""
    bank = outcome.bank
    weight, shift = bank.first_layer()
    raw = {name: value.clone() for name, value in bank.parameters.items()}
    for name in meets_rows(bank.shape):
        own = raw[name]
        n = own.shape[0] * own.shape[1]
        raw[name], weight = weight[:n].view_as(own), weight[n:]
        raw["map_bias_0" if bank.shape.before else f"{name}_shift"] = shift[:n].view(own.shape[:2])
        shift = shift[n:]
    out = {}
    for p, i in enumerate(bank.members.tolist()):
        module = ProbeModule(bank.shape, {name: value[p].cpu() for name, value in raw.items()})
        ending = float(outcome.loss[p]), int(outcome.steps[p]), bool(outcome.converged[p])
        out[i] = Trained(specs[i], module, *ending)
    return out
