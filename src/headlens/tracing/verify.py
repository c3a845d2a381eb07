"""`hl.verify`: recompute everything from `Head` alone, and compare it with the model's own forward pass.

Per layer and head, from the residual stream that enters the block:

    scores    head.scores(x)                         against what entered the model's mask
    pattern   softmax over visible keys              against transformers' own output_attentions
    z         pattern value(x)                       against what the model mixed
    attn_out  post_norm(sum of output(z) + b_O)      against what the model's attention added     (per layer)
    resid     x + attn_out + the MLP's output        against the stream that left the block       (per layer)
    logits    a forward pass with all sites captured against transformers' eager attention        (per model)

    error = max |ours - model's| / max |model's|, over all queries and visible keys of the test batch

The test batch is padded; transformers' own patterns are taken one unpadded sequence at a time.

Bounds: 1e-5 in float32. In float64 1e-12 for scores, 1e-5 for what follows transformers' softmax, which
drops to float32 (GPT-J and GPT-Neo score in float32 already); wider after the softmax where scores are
beyond about 20, by their rounding. In half precision 6 units of the type's rounding (bfloat16: 5 %), which
is coarse: verify in float32, the map is the same. Logits must be equal to the last bit. NaN never passes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headlens._errors import DataError
from headlens._result import Provenance, Result, versions
from headlens.data.tokens import ordinary_ids
from headlens.models import Model
from headlens.models.load import load
from headlens.tracing.capture import Batch, capture
from headlens.tracing.sites import Site
from headlens.tracing.taps import tapped

QUANTITIES = ("scores", "pattern", "z", "attn_out", "resid", "logits")
_SITES = (
    "hook_resid_pre",
    "attn.hook_attn_scores",
    "attn.hook_z",
    "hook_attn_out",
    "hook_mlp_out",
    "hook_resid_post",
)


@dataclass(frozen=True)
class ParityReport(Result):
    """How far headlens' own arithmetic is from the model's, per layer, head and quantity."""

    table: pa.Table
    """Columns model, layer, head, quantity, error, bound, passed; layer and head null where not per head."""

    def to_table(self) -> pa.Table:
        return self.table

    @property
    def passed(self) -> bool:
        return all(self.table["passed"].to_pylist())

    def worst(self) -> dict[str, float]:
        """Return the largest error of each quantity over all layers and heads (NaN where any is NaN)."""
        names, errors = np.array(self.table["quantity"].to_pylist()), self.table["error"].to_numpy()
        return {name: float(np.max(errors[names == name])) for name in QUANTITIES}

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, Any]) -> "ParityReport":  # noqa: ARG003
        return cls(provenance, table)


@torch.no_grad()
def verify(source: Any, *, n_tokens: int = 64, seed: int = 0, **load_options: Any) -> ParityReport:
    """Compare every head's recomputed scores, patterns and outputs with the model itself.

    The test batch is three random sequences of `n_tokens` (at most the context; the result records it), half of
    it and a third of it, so that padding is exercised; sliding windows longer than that are not. `load_options`
    go to `hl.load`.

    Raises
    ------
    UnsupportedArchitecture
        If the model is an encoder, whose heads cannot be taken apart.
    DataError
        If `n_tokens` is too small to show anything.
    """
    model = load(source, **load_options)
    model.check_causal("it has no heads to verify")
    if n_tokens < 4:
        raise DataError(f"n_tokens must be 4 or more, not {n_tokens}: shorter sequences hardly attend to anything.")
    n_tokens = min(n_tokens, model.n_ctx)
    ids, mask = _test_batch(model, n_tokens, seed)
    (batch,) = capture(model, ids, [f"blocks.*.{s}" for s in _SITES], mask=mask, batch_tokens=ids.numel())
    patterns = _own_patterns(model, ids, mask)
    rows = [row for layer in range(model.n_layers) for row in _layer_checks(model, batch, layer, patterns[layer])]
    rows.append(Check(None, None, "logits", _logit_error(model, ids[:1]), 0.0))
    provenance = Provenance((model.provenance(),), {"tokens": {"n_tokens": n_tokens}}, seed, "", versions())
    return ParityReport(provenance, _table(model, rows))


def _test_batch(model: Model, n_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    special = [i for i in (model.config.bos_token_id, model.config.eos_token_id) if isinstance(i, int)]
    allowed = torch.from_numpy(ordinary_ids(model.tokenizer, model.vocab_size, special))
    draw = torch.randint(len(allowed), (3, n_tokens), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([n_tokens, -(-n_tokens // 2), -(-n_tokens // 3)])
    mask = torch.arange(n_tokens) < lengths[:, None]
    return torch.where(mask, allowed[draw], 0), mask


def _own_patterns(model: Model, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return every layer's patterns as transformers alone computes them, one unpadded sequence at a time."""
    batch, n_tokens = ids.shape
    patterns = [torch.zeros(batch, model.n_heads, n_tokens, n_tokens, device=model.device, dtype=model.dtype)
                for _ in range(model.n_layers)]  # fmt: skip
    for row, length in enumerate(mask.sum(-1).tolist()):
        for whole, one in zip(patterns, _own_eager(model, ids[row : row + 1, :length]).attentions, strict=True):
            whole[row, :, :length, :length] = one[0]
    return patterns


def _own_eager(model: Model, ids: Tensor) -> Any:
    """Run transformers alone, with its eager attention and nothing of ours installed."""
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        return model.hf(input_ids=ids.to(model.device), output_attentions=True, use_cache=False)
    finally:
        model.hf.set_attn_implementation(before)


class Check(NamedTuple):
    """One comparison; layer and head are None where it is not per layer or head."""

    layer: int | None
    head: int | None
    quantity: str
    error: float
    bound: float


def _layer_checks(model: Model, batch: Batch, layer: int, own_pattern: Tensor) -> list[Check]:
    def seen(name: str) -> Tensor:
        return batch[f"blocks.{layer}.{name}"]

    x, mask = seen("hook_resid_pre"), batch.mask.to(model.device)
    rows: list[Check] = []
    total, largest = torch.zeros_like(x), 0.0
    for index in range(model.n_heads):
        head = model.head(layer, index)
        visible = head.visible(x.shape[1], mask) & mask[:, :, None]
        scores = head.scores(x)
        pattern = head.pattern(scores, visible)
        z = head.z(pattern, x)
        total += head.output(z)
        pairs = {
            "scores": (scores, seen("attn.hook_attn_scores")[:, index], visible),
            "pattern": (pattern, own_pattern[:, index], mask[:, :, None].expand_as(pattern)),
            "z": (z, seen("attn.hook_z")[:, :, index], mask),
        }
        size = float(pairs["scores"][1][visible].abs().max())
        largest = max(largest, size)
        rows += [
            Check(layer, index, name, relative_error(a[where], b[where]), bound(model, name, size))
            for name, (a, b, where) in pairs.items()
        ]
    attn_out = _attention_output(model, layer, total)
    resid = x + attn_out + seen("hook_mlp_out")
    for name, ours, theirs in (("attn_out", attn_out, "hook_attn_out"), ("resid", resid, "hook_resid_post")):
        error = relative_error(ours[mask], seen(theirs)[mask])
        rows.append(Check(layer, None, name, error, bound(model, name, largest)))
    return rows


def _attention_output(model: Model, layer: int, total: Tensor) -> Tensor:
    bias, post_norm = model.output_bias(layer), model.norm(layer, "post_norm")
    total = total if bias is None else total + bias
    return total if post_norm is None else post_norm(total)


def _logit_error(model: Model, ids: Tensor) -> float:
    sites = {Site(layer, name): _ignore for layer in range(model.n_layers) for name in _SITES}
    with tapped(model, sites):
        ours = model.forward(ids).logits
    eager = _own_eager(model, ids).logits
    # Equal to the last bit or not at all: any difference is reported at its size, never as zero.
    return 0.0 if torch.equal(ours, eager) else max(relative_error(ours, eager), 1e-300)


def _ignore(value: Tensor) -> None:
    del value


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return max |ours - theirs| / max |theirs|; NaN if either holds NaN."""
    ours, theirs = ours.cpu().double(), theirs.cpu().double()  # Apple's GPUs have no float64
    gap, size = (ours - theirs).abs().max(), theirs.abs().max()
    return float(gap) if float(size) == 0 else float(gap / size)


def bound(model: Model, quantity: str, largest_score: float) -> float:
    """Return the largest relative error that still counts as the same number.

    A softmax turns the rounding of its scores, which grows with them, into relative error: beyond scores of
    about 20 that is more than 1e-5, however right the arithmetic.
    """
    if model.dtype in (torch.float16, torch.bfloat16):
        return 6 * torch.finfo(model.dtype).eps
    if quantity == "scores":
        return 1e-12 if model.dtype == torch.float64 and model.family.tap == "interface" else 1e-5
    return max(1e-5, 4 * torch.finfo(torch.float32).eps * largest_score)


def _table(model: Model, checks: list[Check]) -> pa.Table:
    layers, heads, quantities, errors, bounds = zip(*checks, strict=True)
    return pa.table(
        {
            "model": pa.array([model.name] * len(checks)),
            "layer": pa.array(layers, pa.int32()),
            "head": pa.array(heads, pa.int32()),
            "quantity": pa.array(quantities),
            "error": pa.array(errors, pa.float64()),
            "bound": pa.array(bounds, pa.float64()),
            "passed": pa.array([e <= b for e, b in zip(errors, bounds, strict=True)]),
        }
    )
