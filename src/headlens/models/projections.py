"""Read one layer's query, key, value and output projections out of transformers' modules, head by head.

Three layouts exist: three modules, one module with sections (queries | keys | values), and one module
that goes head by head (each head's q, k, v in turn). Here, and only here, they are told apart: as index
ranges, so that the same description slices weights, biases and the module's output.

Axes: fused = the output dimension of a fused projection.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headlens._errors import UnsupportedArchitecture
from headlens.models.families import Family
from headlens.models.head import HeadCount

_DENSE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Projection:
    """Where one of query, key and value comes from: a module, and which of its outputs, per head."""

    module: Any
    path: str
    heads: int
    d_head: int
    stride: int
    """Distance between two heads' first outputs."""
    start: int

    def split(self, output: Tensor) -> Tensor:
        """View the module's output (..., fused) as (..., head, d_head)."""
        if self.stride == self.d_head:
            section = output[..., self.start : self.start + self.heads * self.d_head]
            return section.unflatten(-1, (self.heads, self.d_head))
        return output.unflatten(-1, (self.heads, self.stride))[..., self.start : self.start + self.d_head]

    def weight(self, head: int) -> Tensor:
        """Return W (d_model, d_head) of one head, a view into the model."""
        return self.weight_in_out()[:, self.columns(head)]

    def bias(self, head: int) -> Tensor | None:
        """Return b (d_head) of one head."""
        return None if self.module.bias is None else self.module.bias[self.columns(head)]

    def columns(self, head: int) -> slice:
        begin = self.start + head * self.stride
        return slice(begin, begin + self.d_head)

    def weight_in_out(self) -> Tensor:
        """Return the module's whole weight as (d_model, fused)."""
        return weight_in_out(self.module, self.path)


def weight_in_out(module: Any, path: str) -> Tensor:
    """Return a projection's weight as (in, out): GPT-2's Conv1D stores it so, Linear the other way round."""
    from transformers.pytorch_utils import Conv1D

    # Exactly these types: a subclass (an adapter, say) may add to the output what its weight does not hold.
    if type(module) not in (nn.Linear, Conv1D) or module.weight.dtype not in _DENSE:
        kind = f"{type(module).__name__} of {getattr(getattr(module, 'weight', None), 'dtype', 'no weight')}"
        raise UnsupportedArchitecture(
            f"{path} is a {kind}, not a plain projection (quantised, or with an adapter?). Load the model in "
            "float32, float16 or bfloat16, with adapters merged."
        )
    return module.weight if type(module) is Conv1D else module.weight.T


def read_projections(attention: Any, family: Family, count: HeadCount) -> dict[str, Projection]:
    """Return the projections of one layer under `q`, `k` and `v`."""
    d = count.d_head
    if family.fused is None:
        names = {"q": family.query, "k": family.key, "v": family.value}
        heads = {"q": count.heads, "k": count.kv_heads, "v": count.kv_heads}
        return {s: Projection(_child(attention, n), n, heads[s], d, d, 0) for s, n in names.items()}
    module, path = _child(attention, family.fused), family.fused
    if family.fused_order == "per_head":
        return {s: Projection(module, path, count.heads, d, 3 * d, i * d) for i, s in enumerate("qkv")}
    keys, values = count.heads * d, (count.heads + count.kv_heads) * d
    return {
        "q": Projection(module, path, count.heads, d, d, 0),
        "k": Projection(module, path, count.kv_heads, d, d, keys),
        "v": Projection(module, path, count.kv_heads, d, d, values),
    }


def _child(module: Any, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise UnsupportedArchitecture(
            f"{type(module).__name__} has no '{path}': its row in headlens/models/families.py does not fit this "
            "version of transformers."
        ) from None


def check_fused_width(projections: dict[str, Projection], count: HeadCount) -> None:
    """Raise if the projections' widths do not add up to whole heads.

    Raises
    ------
    UnsupportedArchitecture
        If a module's output is not exactly the heads that the config promises.
    """
    expected: dict[int, int] = {}
    for p in projections.values():
        expected[id(p.module)] = expected.get(id(p.module), 0) + p.heads * count.d_head
    for p in projections.values():
        width = p.weight_in_out().shape[1]
        if width != expected[id(p.module)]:
            raise UnsupportedArchitecture(
                f"{p.path} gives {width} outputs where {expected[id(p.module)]} make whole heads of "
                f"{count.d_head}: the model's config and weights disagree."
            )


def output_weight(module: Any, path: str, head: int, d_head: int) -> Tensor:
    """Return W_O (d_head, d_model) of one query head, a view into the model."""
    return weight_in_out(module, path)[head * d_head : (head + 1) * d_head]
