"""What a probe computes: from the rows of a document to a logit.

    y_t = map(x_t)                       hidden layers with ReLU, or the row itself
    k_th = q_h . y_t + w_h t + b_h       key; t counts the rows of the document from 0
    s_th = V_h y_t + c_h                 score: one number for each output, or for each hidden unit of the head
    z = sum_h sum_t a_th s_th + b        a_th as the table in `pooling.py` says; of no row, b alone
    logit = head(z)                      z itself, or relu and further layers

Several probes of one shape stand beside each other: their first layers are one matrix, so that rows are read once for
all of them, and the functions here have a probe axis. `ProbeModule` is the same with one probe.

Heads find what they look for from equal attention, but for the slopes w. Of several heads half start at slope 0, from
which what any token says can be learned, and the others evenly from -1 (the first token) to 1 (the last): from zero
alone, as published, a head has to move its slope while other weights are still meaningless, and most never find "the
last token"; from steep slopes alone heads never see the middle of a long text, and learn first and last words by heart.

Axes: row, document as packed; unit = document, or row for the pooling "token"; probe; head; output.
Source: EleutherAI 2025; McKenzie et al. 2025; Press et al. 2022 (slopes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headlens._errors import DataError
from headlens.probes.training.pooling import POOLINGS, Keys, Packing, Pooling, Seen, pool_rows

LONE_SLOPE = 0.02
"""Where the slope of a single head starts: it sees some fifty tokens, and of these the last ones best."""

FIRST_VALUE = 0.02
"""How large values of keyed poolings start: small, or those of the wrong sign drive their head away from its token."""

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a probe is made of; probes of one shape are trained together."""

    width: int
    outputs: int = 1
    pooling: str = "attention"
    n_heads: int = 1
    before: tuple[int, ...] = ()
    """Widths of the hidden layers that each row goes through."""
    after: tuple[int, ...] = ()
    """Widths of the hidden layers between what is pooled and the logit."""
    slopes: bool = True
    """Whether keys may depend on the position."""
    setting: float | None = None
    """Temperature, window or alpha of the pooling; None: the usual one."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise DataError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}.")
        if self.n_heads < 1 or (self.n_heads > 1 and not self.how.several_heads):
            many = ", ".join(name for name, how in POOLINGS.items() if how.several_heads)
            raise DataError(f"n_heads must be 1 for pooling {self.pooling!r}, not {self.n_heads}: several take {many}.")
        if self.setting is not None and not self.how.setting_name:
            raise DataError(f"pooling {self.pooling!r} has no setting; it got {self.setting}.")
        if min((self.width, self.outputs, *self.before, *self.after)) < 1:
            raise DataError(f"Every layer must have a unit at least; this probe has the layers {self}.")

    @property
    def how(self) -> Pooling:
        return POOLINGS[self.pooling]

    @property
    def pooled_first(self) -> bool:
        """Whether documents become one row each before the probe reads them."""
        return self.how.pools_features and not self.before

    @property
    def features(self) -> int:
        """Width of y."""
        return self.before[-1] if self.before else self.width

    @property
    def pooled(self) -> int:
        """Width of z."""
        return self.after[0] if self.after else self.outputs

    @property
    def value(self) -> float:
        """The pooling's setting."""
        return self.how.setting if self.setting is None else self.setting


def start(shape: Shape, seed: int) -> Parameters:
    """Return the parameters that a probe's training starts from."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(outputs: int, inputs: int, gain: float = 1.0) -> Tensor:
        return (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * gain / inputs**0.5

    parameters: Parameters = {}
    for i, (inputs, outputs) in enumerate(zip((shape.width, *shape.before), shape.before, strict=False)):
        parameters[f"map_weight_{i}"] = uniform(outputs, inputs, gain=6**0.5)
        parameters[f"map_bias_{i}"] = torch.zeros(outputs)
    if shape.how.keyed:
        parameters["query"] = torch.zeros(shape.n_heads, shape.features)
        if shape.slopes:
            parameters["slopes"] = _first_slopes(shape)
    gain = FIRST_VALUE if shape.how.keyed else 1.0
    parameters["value"] = uniform(shape.n_heads * shape.pooled, shape.features, gain)
    parameters["bias_0"] = torch.zeros(shape.pooled)
    for i, (inputs, outputs) in enumerate(zip(shape.after, (*shape.after[1:], shape.outputs), strict=False), 1):
        parameters[f"head_weight_{i}"] = uniform(outputs, inputs, gain=6**0.5 if i < len(shape.after) else 1.0)
        parameters[f"bias_{i}"] = torch.zeros(outputs)
    return parameters


def _first_slopes(shape: Shape) -> Float[Tensor, " head"]:
    if shape.n_heads == 1:
        return torch.full((1,), LONE_SLOPE * shape.how.first_slope)
    n_steep = shape.n_heads // 2
    steep = torch.linspace(-1, 1, n_steep) if n_steep > 1 else torch.ones(1)
    return torch.cat([torch.zeros(shape.n_heads - n_steep), steep * shape.how.first_slope])


def is_decayed(name: str) -> bool:
    """Whether a penalty shrinks a parameter: not biases, slopes and what only shifts."""
    return name.startswith(("map_weight", "query", "value", "head_weight")) and not name.endswith("shift")


def meets_rows(shape: Shape) -> tuple[str, ...]:
    """Names of the weights that are multiplied with rows."""
    if shape.before:
        return ("map_weight_0",)
    return ("query", "value") if shape.how.keyed else ("value",)


def logits(
    shape: Shape, parameters: Parameters, columns: Float[Tensor, "row column"], at: Packing
) -> Float[Tensor, "unit probe output"]:
    """Go on from `columns`, rows times the weights that meet them and a shift, to logits.

    `parameters` have a probe axis; the columns of each such weight stand together, probe by probe.
    Where documents are pooled first, `columns` come from the pooled rows.
    """
    z = _pooled(shape, *_keys_and_scores(shape, parameters, columns, at), at)
    return _head(shape, parameters, z)


def _keys_and_scores(
    shape: Shape, parameters: Parameters, columns: Tensor, at: Packing
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row probe head pooled"]]:
    if shape.before:
        columns = _after_map(shape, parameters, columns, at)
    n_probes = len(parameters["value"])
    n_keys = n_probes * shape.n_heads if shape.how.keyed else 0
    keys, scores = columns.split([n_keys, columns.shape[1] - n_keys], 1)
    scores = scores.unflatten(1, (n_probes, shape.n_heads, shape.pooled))
    if shape.how.keyed and shape.slopes:
        position = at.position.to(keys.dtype)[:, None]
        keys = torch.addmm(keys, position, parameters["slopes"].flatten()[None])  # as a product: its gradient is fast
    return keys, scores


def _after_map(shape: Shape, parameters: Parameters, columns: Tensor, at: Packing) -> Float[Tensor, "row column"]:
    """What `columns` would be if rows were y."""
    n_probes = len(parameters["value"])
    y = columns.view(len(columns), n_probes, -1).relu()
    for i in range(1, len(shape.before)):
        y = _layer(y, parameters[f"map_weight_{i}"], parameters[f"map_bias_{i}"]).relu()
    if shape.how.pools_features:
        y = pool(shape, y[:, :0, :1], y.flatten(1)[..., None], at).view(-1, n_probes, shape.features)
    names = ("query", "value") if shape.how.keyed else ("value",)
    return torch.cat([_layer(y, parameters[name]).flatten(1) for name in names], 1)


def _pooled(shape: Shape, keys: Tensor, scores: Tensor, at: Packing) -> Float[Tensor, "unit probe pooled"]:
    if shape.pooling == "token":
        return scores.sum(2)
    if shape.pooled_first:  # a row a document, or none
        return at.sum(scores).sum(2)
    if shape.how.pools_features:
        return scores.sum(2)
    flat = scores.flatten(1, 2)
    out = pool(shape, keys[..., None], flat, at)
    return out.view(-1, *scores.shape[1:]).sum(2)


def pool(shape: Shape, keys: Keys, scores: Float[Tensor, "row column output"], at: Packing) -> Tensor:
    """Sum scores over the rows of documents, as the pooling weighs them."""
    return at.sum(shape.how.weights(Seen(scores, keys, at, shape.value)) * scores)


def _head(shape: Shape, parameters: Parameters, z: Float[Tensor, "unit probe pooled"]) -> Tensor:
    z = z + parameters["bias_0"]
    for i in range(1, len(shape.after) + 1):
        z = _layer(z.relu(), parameters[f"head_weight_{i}"], parameters[f"bias_{i}"])
    return z


def _layer(y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.einsum("t p i, p o i -> t p o", y, weight)
    return out if bias is None else out + bias


def shifts(shape: Shape) -> Parameters:
    """Return b and c of the formula, at zero; behind hidden layers there are none."""
    if shape.before:
        return {}
    heads = {"query": shape.n_heads, "value": shape.n_heads * shape.pooled}
    return {f"{name}_shift": torch.zeros(heads[name]) for name in meets_rows(shape)}


class ProbeModule(nn.Module):
    """One probe, reading raw rows: what standardised them in training is folded into its weights.

    `query_shift` and `value_shift` are b and c of the formula. Training folds into them what it subtracts from rows;
    the other parameters are those of `start`.
    """

    value: Tensor
    query: Tensor
    bias_0: Tensor

    def __init__(self, shape: Shape, parameters: Parameters | None = None) -> None:
        super().__init__()
        self.shape = shape
        first = start(shape, 0) if parameters is None else parameters
        for name, value in (shifts(shape) | first).items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def forward(
        self, rows: Float[Tensor, "row width"], lengths: Int[Tensor, " document"]
    ) -> Float[Tensor, "unit output"]:
        """Return the logits of documents, or of rows for the pooling "token"."""
        rows, at = rows.to(self.value.dtype), Packing(lengths)
        if self.shape.pooled_first:
            rows, at = pool_rows(self.shape.how, rows, at)
        stacked, weight, shift = side_by_side([self])
        return logits(self.shape, stacked, torch.addmm(shift, rows, weight.T), at)[:, 0]

    @property
    def bias(self) -> Float[Tensor, " output"]:
        """The logit of a document without rows."""
        return self.head(self.value.new_zeros(1, self.shape.pooled))[0]

    def features(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row feature"]:
        """Return y."""
        y, own = rows.to(self.value.dtype), dict(self.named_parameters())
        for i in range(len(self.shape.before)):
            y = (y @ own[f"map_weight_{i}"].T + own[f"map_bias_{i}"]).relu()
        return y

    def keys_and_scores(
        self, y: Float[Tensor, "row feature"], position: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row key 1"], Float[Tensor, "row head pooled"]]:
        """Return k, empty where the pooling has no keys, and s."""
        own = dict(self.named_parameters())
        scores = y @ own["value"].T + own.get("value_shift", 0.0)
        scores = scores.unflatten(1, (self.shape.n_heads, self.shape.pooled))
        if not self.shape.how.keyed:
            return scores[:, :0, :1], scores
        keys = y @ own["query"].T + own.get("query_shift", 0.0)
        if self.shape.slopes:
            keys = keys + position[:, None] * own["slopes"]
        return keys[..., None], scores

    def head(self, z: Float[Tensor, "unit pooled"]) -> Float[Tensor, "unit output"]:
        """Return logits of what was pooled."""
        return _head(self.shape, side_by_side([self])[0], z[:, None])[:, 0]

    def weights(
        self, rows: Float[Tensor, "row width"], lengths: Int[Tensor, " document"]
    ) -> Float[Tensor, "row head #pooled"]:
        """Return a_th, how much of each token's score is taken; of "absmax", the share of features that is."""
        at, y = Packing(lengths), self.features(rows)
        keys, scores = self.keys_and_scores(y, at.position)
        if self.shape.pooling == "absmax":
            return self._features_taken(y, at).mean(1, keepdim=True)[..., None]
        return self.shape.how.weights(Seen(scores, keys, at, self.shape.value)).expand(-1, self.shape.n_heads, -1)

    def contributions(
        self, rows: Float[Tensor, "row width"], lengths: Int[Tensor, " document"]
    ) -> Float[Tensor, "row output"]:
        """Return what each token adds to the logit: sum_h a_th s_th; with `bias` they sum to the logit.

        Hidden layers after the pooling are taken as the affine map that they are around this document's z: what tokens
        add then sums to the logit less that map's constant.
        """
        at, y = Packing(lengths), self.features(rows)
        keys, scores = self.keys_and_scores(y, at.position)
        if self.shape.pooling == "absmax":
            taken = self._features_taken(y, at)
            shift = dict(self.named_parameters()).get("value_shift", 0.0)
            own = (taken * y) @ self.value.T + taken.mean(1, keepdim=True) * shift
        else:
            own = (self.shape.how.weights(Seen(scores, keys, at, self.shape.value)) * scores).sum(1)
        if not self.shape.after:
            return own
        z = own if self.shape.pooling == "token" else at.spread(at.sum(own))
        return torch.einsum("t e, t o e -> t o", own, self._slope_of_head(z))

    def with_pooling(self, pooling: str) -> "ProbeModule":
        """Return a probe with these weights that pools in another way; it needs a threshold of its own.

        Raises
        ------
        DataError
            If the other pooling needs queries that this probe has not, or takes one head where it has several.
        """
        shape = replace(self.shape, pooling=pooling, setting=None)
        if shape.how.keyed and not self.shape.how.keyed:
            raise DataError(f"Pooling {pooling!r} needs queries; a probe trained with {self.shape.pooling!r} has none.")
        wanted = shifts(shape) | start(shape, 0)
        return ProbeModule(shape, {name: value for name, value in self.named_parameters() if name in wanted})

    def told_in(self, scale: Float[Tensor, " output"], shift: Float[Tensor, " output"]) -> "ProbeModule":
        """Return a probe that says scale times what this one says, plus shift."""
        own = {name: value.detach().clone() for name, value in self.named_parameters()}
        n, scale, shift = len(self.shape.after), scale.to(self.value), shift.to(self.value)
        for name in (f"head_weight_{n}",) if n else ("value", "value_shift"):
            if name in own:
                rows = own[name].unflatten(0, (-1, len(scale)))
                own[name] = (rows * scale.view(-1, *[1] * (rows.ndim - 2))).flatten(0, 1)
        own[f"bias_{n}"] = own[f"bias_{n}"] * scale + shift
        return ProbeModule(self.shape, own)

    def _features_taken(self, y: Float[Tensor, "row feature"], at: Packing) -> Float[Tensor, "row feature"]:
        return self.shape.how.weights(Seen(y[..., None], y[:, :0, None], at))[..., 0]

    def _slope_of_head(self, z: Float[Tensor, "unit pooled"]) -> Float[Tensor, "unit output pooled"]:
        """d logit / d z, by the chain rule through the units that are on."""
        own = dict(self.named_parameters())
        z = z + own["bias_0"]
        slope = torch.eye(self.shape.pooled, dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        for i in range(1, len(self.shape.after) + 1):
            weight = own[f"head_weight_{i}"]
            slope = torch.einsum("o i, t i e -> t o e", weight, (z > 0)[..., None] * slope)
            z = z.relu() @ weight.T + own[f"bias_{i}"]
        return slope


def side_by_side(
    probes: Sequence[ProbeModule],
) -> tuple[Parameters, Float[Tensor, "column width"], Float[Tensor, " column"]]:
    """Return the parameters of probes of one shape with a probe axis, and weights and shift that meet rows."""
    shape, own = probes[0].shape, [dict(probe.named_parameters()) for probe in probes]
    stacked = {name: torch.stack([one[name] for one in own]) for name in own[0]}
    names = meets_rows(shape)
    weight = torch.cat([stacked[name].flatten(0, 1) for name in names])
    moved = ["map_bias_0"] if shape.before else [f"{name}_shift" for name in names]
    return stacked, weight, torch.cat([stacked[name].flatten() for name in moved])
