"""Sums of all channels over all pairs of positions, without going through the pairs.

FA is bilinear in the parts of queries and keys, so that the sum over keys comes first: as a running sum over positions
(total), or weighed by attention (attended),

    sum_q sum_k <u_qi, v_kj>  =  sum_q <u_qi, V_qj>,        V_qj = sum_(k seen by q) v_kj    or    sum_k A[q, k] v_kj

and what is left is, query by query, a product of few parts u_qi and V_q, added up by i.

Heads that neither rotate nor norm their queries have u_qi = f_qi a_i and v_kj = f_kj b_j for features. Sums of
activations then serve all heads, and only the sources that are no features are summed as vectors:

    sum over features = ( sum_q f_qi F_qj ) <a_i, b_j>,     F_qj = sum_k f_kj or sum_k A[q, k] f_kj

Short texts are counted some `ROWS` tokens at a time, so that sums of source x source numbers are not touched for each.

Memory: for those tokens some token x source numbers; where heads rotate, for `QUERIES` tokens of a text twice token x
d_head x source numbers, and row of a side x source numbers.

Axes: token = query = key; i, j = sources; z = total, attended; s = sources that are no features.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from headlens.dictionaries.dictionary import Active, Split, nonzero
from headlens.fra.pairs import all_pairs
from headlens.fra.sides import OTHERS, Side, Used, directions, sides
from headlens.models import Head
from headlens.models.head import visible
from headlens.models.norm import Norm

ROWS = 1024
"""Tokens that are counted together, or one text."""
QUERIES = 128
"""Queries whose sums over keys are held at once, where heads rotate."""
SPARSE = torch.backends.mkl.is_available()
"""Whether torch multiplies sparse matrices on the processor."""


class Text(NamedTuple):
    """What one text gave."""

    ids: Int[Tensor, " token"]
    x: Float[Tensor, "token d_model"]
    """The stream that the block reads."""
    parts: Split
    pattern: Float[Tensor, "head query key"]
    """Of all heads of the layer."""


class ChannelSums:
    """Sums so far, of some heads of one layer."""

    def __init__(
        self, of: Sequence[Head], heads: Sequence[int], vectors: Float[Tensor, "feature d_model"], skip: Sequence[int],
        *, normalized: bool = False, extremes: bool = False,
    ) -> None:  # fmt: skip
        self.of, self.heads, self.normalized = of, heads, normalized
        self.skip = torch.as_tensor(sorted({int(i) for i in skip}), dtype=torch.int64, device=vectors.device)
        self.n_features, n = len(vectors), len(vectors) + len(OTHERS)
        wide = {"dtype": torch.float64, "device": vectors.device}
        self.sums = torch.zeros(len(of), 2, n, n, **wide)
        """Total and attended; of pairs of features of heads with `fixed` directions, attended activations alone."""
        self.activations = torch.zeros(self.n_features, self.n_features, **wide)
        """Sums of activations over all pairs, the same for all heads with `fixed` directions."""
        self.count, self.weight, self.far = (torch.zeros(n, n, **wide) for _ in range(3))
        self.extremes = torch.zeros(len(of), 3, n, n, **wide) if extremes else None
        """Sum of absolute values, highest value (at least 0), lowest (at most 0)."""
        self.score_sum = torch.zeros(len(of), **wide)
        self.n_texts = self.n_tokens = self.n_pairs = self.n_queries = 0
        self._waiting: list[Text] = []
        self.fixed = [
            None if head.rotary is not None or head.query_qk_norm is not None
            else directions(head, vectors, normalized=normalized) for head in of
        ]  # fmt: skip

    def add(self, text: Text) -> None:
        """Take in one text."""
        self.n_texts, self.n_tokens = self.n_texts + 1, self.n_tokens + len(text.ids)
        self._waiting.append(text)
        if sum(len(one.ids) for one in self._waiting) >= ROWS:
            self._count()

    def finished(self) -> tuple[Float[Tensor, "head i j"], Float[Tensor, "head i j"]]:
        """Count what waits; return totals and attended sums. All else is to be read after this."""
        self._count()
        sums, f = self.sums.clone(), self.n_features
        for h, fixed in enumerate(self.fixed):
            if fixed is not None:
                sums[h, 0, :f, :f] = self.activations
                sums[h, :, :f, :f] *= fixed[0].double() @ fixed[1].double().T
        return sums[:, 0], sums[:, 1]

    @property
    def absolute(self) -> Float[Tensor, "head i j"] | None:
        """The sum of absolute values; None where it was not asked for."""
        return None if self.extremes is None else self.extremes[:, 0]

    @property
    def largest(self) -> Float[Tensor, "head i j"] | None:
        """The value of each channel that is largest in size, anywhere; None where it was not asked for."""
        if self.extremes is None:
            return None
        high, low = self.extremes[:, 1], self.extremes[:, 2]
        return torch.where(high >= -low, high, low)

    def distance(self) -> Float[Tensor, "i j"]:
        """Return the mean distance of query and key, weighed by activations; NaN where a channel never occurs."""
        return torch.where(self.count > 0, self.far / self.weight, torch.nan)

    # --- some texts ---

    def _count(self) -> None:
        if not self._waiting:
            return
        texts, self._waiting = _Texts.of(self._waiting, self.skip, self.of[0].window), []
        self.n_pairs += sum(int(seen.sum()) for seen in texts.seen)
        self.n_queries += sum(int(torch.isin(one.ids, self.skip, invert=True).sum()) for one in texts.each)
        self._add_occurrences(texts)
        sums = self._add_activations(texts) if any(self.fixed) else None
        for h, head in enumerate(self.of):
            attended = [one.pattern[self.heads[h]] * seen for one, seen in zip(texts.each, texts.seen, strict=True)]
            fixed = self.fixed[h]
            if fixed is not None and sums is not None:
                self._add_fixed(h, fixed, texts, attended, *sums)
            if fixed is None or self.extremes is not None:
                self._add_single(h, texts, attended)
            whole = texts.scores(head)
            self.score_sum[h] += sum(one.double()[seen].sum() for one, seen in zip(whole, texts.seen, strict=True))

    def _add_occurrences(self, texts: "_Texts") -> None:
        """Count pairs at which both are active, and how far apart they are; other sources are active everywhere."""
        features = texts.parts.active.dense().abs().to(texts.x.dtype)
        head = self.of[0]
        norms = (None, None) if self.normalized else (head.query_norm, head.key_norm)
        query, key = (
            torch.cat([features, features.new_tensor(there).expand(len(features), -1)], 1)
            for there in (_there(norms[0], head.b_Q), _there(norms[1], head.b_K))
        )
        looks = [seen.to(features.dtype) for seen in texts.seen]
        far = [one * _distances(len(one), one) for one in looks]
        rows = _Rows.of_dense(query)
        self.count += rows.ones().times(texts.over(looks, (key > 0).to(key.dtype)))
        self.weight += rows.times(texts.over(looks, key))
        self.far += rows.times(texts.over(far, key))

    def _add_activations(self, texts: "_Texts") -> tuple["_Rows", Tensor, Tensor]:
        """Sum products of activations for all heads at once; return activations, sparse and dense, and running sums."""
        norm, weights = self.of[0].query_norm, texts.parts.weighted.dense()
        if norm is not None and not self.normalized:
            weights = weights * norm.inverse(texts.x)
        rows, running = _Rows.of_dense(weights), texts.over([one.to(weights.dtype) for one in texts.seen], weights)
        self.activations += rows.times(running)
        return rows, weights, running

    def _add_fixed(
        self, h: int, fixed: tuple[Tensor, Tensor], texts: "_Texts", attended: list[Tensor], rows: "_Rows",
        weights: Float[Tensor, "token feature"], running: Float[Tensor, "token feature"],
    ) -> None:  # fmt: skip
        """Sum attended activations for pairs of features, and vectors for all others."""
        f, (a, b), head, own = self.n_features, fixed, self.of[h], self.sums[h]
        run = (running, texts.over(attended, weights))
        own[1, :f, :f] += rows.times(run[1])

        others = sides(head, texts.x, _without_features(texts.parts), normalized=self.normalized)
        query, key = (_of_others(one, f) for one in others)
        for z, looks in enumerate(([one.to(weights.dtype) for one in texts.seen], attended)):
            keys = texts.over(looks, key.flatten(1))
            to_features = (query.flatten(1).T @ run[z]).view(len(OTHERS), -1, f)
            own[z, f:, :f] += torch.einsum("sdj,jd->sj", to_features, b)
            own[z, :f, f:] += torch.einsum("isd,id->is", rows.times(keys).view(f, len(OTHERS), -1), a)
            own[z, f:, f:] += torch.einsum("qsd,qrd->sr", query, keys.view_as(query))

    def _add_single(self, h: int, texts: "_Texts", attended: list[Tensor]) -> None:
        """Sum over the pairs of single texts: for heads that rotate, and for extremes."""
        names, some = texts.sources, None
        for text, used, seen, weights in zip(texts.each, texts.used, texts.seen, attended, strict=True):
            query, key = sides(self.of[h], text.x, text.parts, normalized=self.normalized, used=used)
            if self.fixed[h] is None:
                some = query.vector.new_zeros(2, len(names), len(names)) if some is None else some
                _add_sides(some, names, query, key, torch.stack([seen.to(weights.dtype), weights]))
            if self.extremes is not None:
                _add_extremes(self.extremes[h], query, key, seen, self.of[h].window)
        if some is not None and len(names) == len(self.count):
            self.sums[h] += some
        elif some is not None:
            self.sums[h][:, names[:, None], names] += some


class _Texts(NamedTuple):
    """Some texts, one after the other."""

    each: list[Text]
    x: Float[Tensor, "token d_model"]
    parts: Split
    seen: list[Tensor]
    """Of each, (query, key): which pairs count."""
    used: list[Used]

    @classmethod
    def of(cls, texts: list[Text], skip: Tensor, window: int | None) -> "_Texts":
        seen = []
        for text in texts:
            counted = ~torch.isin(text.ids, skip)
            near = visible(len(text.ids), window, device=counted.device)
            seen.append(near & counted[:, None] & counted)
        return cls(
            texts,
            torch.cat([text.x for text in texts]),
            _joined([text.parts for text in texts]),
            seen,
            [Used.of(text.parts) for text in texts],
        )

    @property
    def sources(self) -> Int[Tensor, " some"]:
        """Sources that occur in these texts, ascending, or all where most do: to pick some out takes time as well."""
        features, n = self.parts.active.features.unique(), len(self.parts.vectors)
        every = torch.arange(n + len(OTHERS), device=features.device)
        return every if 2 * len(features) > n else torch.cat([features, every[n:]])

    def over(self, looks: Sequence[Tensor], of_keys: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """Sum rows of keys for each query, as it looks at them: (query, key) of each text."""
        found, start = torch.empty_like(of_keys), 0
        for one in looks:
            here = slice(start, start + len(one))
            torch.mm(one.to(of_keys.dtype), of_keys[here], out=found[here])
            start = here.stop
        return found

    def scores(self, head: Head) -> list[Tensor]:
        """Return the head's own scores of each text, before a soft-cap."""
        found = []
        for text in self.each:
            at = torch.arange(len(text.ids), device=text.x.device)
            found.append(head.scale * (head.query(text.x, at) @ head.key(text.x, at).T))
        return found


def _joined(parts: Sequence[Split]) -> Split:
    """One text after the other."""
    active = [one.active for one in parts]
    counts = torch.cat([one.offsets.diff() for one in active])
    features, values = (torch.cat([getattr(one, name) for one in active]) for name in ("features", "values"))
    whole = Active(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), features, values, active[0].d_sae)
    weights, bias, error = (torch.cat([getattr(one, name) for one in parts]) for name in ("weights", "bias", "error"))
    return Split(whole, weights, parts[0].vectors, bias, error)


def _distances(n: int, like: Tensor) -> Float[Tensor, "query key"]:
    at = torch.arange(n, dtype=like.dtype, device=like.device)
    return at[:, None] - at


def _there(norm: Norm | None, bias: Tensor | None) -> list[float]:
    """1 for each of OTHERS that a side has."""
    return [1.0, 1.0, float(norm is not None and norm.bias is not None), float(bias is not None)]


def _add_extremes(
    found: Float[Tensor, "what i j"], query: Side, key: Side, seen: Bool[Tensor, "query key"], window: int | None
) -> None:
    """Go through all pairs of a text."""
    absolute, high, low = found.flatten(1)
    for span in all_pairs(query, key, window):
        place = query.source[span.query, None] * found.shape[-1] + key.source[span.key]
        counted = seen[query.position[span.query, None], key.position[span.key]]
        place, values = place[counted], span.values[counted].double()
        absolute.index_add_(0, place, values.abs())
        high.scatter_reduce_(0, place, values, "amax")
        low.scatter_reduce_(0, place, values, "amin")


class _Rows(NamedTuple):
    """A sparse matrix (source, row of a table), as `embedding_bag` takes it."""

    row: Int[Tensor, " entry"]
    offsets: Int[Tensor, " bound"]
    weight: Float[Tensor, " entry"] | None
    """None: 1."""

    @classmethod
    def of_dense(cls, values: Float[Tensor, "row source"]) -> "_Rows":
        source, row = nonzero(values.T)
        counts = torch.bincount(source, minlength=values.shape[1])
        return cls(row, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), values[row, source])

    def ones(self) -> "_Rows":
        return self._replace(weight=None)

    def times(self, table: Float[Tensor, "row width"]) -> Float[Tensor, "source width"]:
        """Return the matrix times a table."""
        if not len(self.row):
            return table.new_zeros(len(self.offsets) - 1, table.shape[1])
        return embedding_bag(
            self.row, table, self.offsets, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )


def _add_sides(
    found: Float[Tensor, "z i j"], names: Int[Tensor, " i"], query: Side, key: Side,
    looks: Float[Tensor, "z query key"],
) -> None:  # fmt: skip
    """Sum over all pairs of two sides, as each of `looks` weighs them; `names` are the sources that i and j are."""
    for start in range(0, query.n_tokens, QUERIES):
        stop = min(start + QUERIES, query.n_tokens)  # none of these sees a key beyond
        queries, rows = _by_query(query, names, start, stop)
        keys = _over_keys(key, names, looks[:, start:stop, :stop])
        for one, own in zip(found, keys, strict=True):
            one += rows.times((queries @ own).flatten(0, 1))


def _over_keys(
    key: Side, names: Int[Tensor, " j"], looks: Float[Tensor, "z query key"]
) -> Float[Tensor, "z query d_head j"]:
    """Sum the first keys of a side for each query, as it looks at them."""
    n, d, n_keys = len(names), key.vector.shape[1], looks.shape[-1]
    here = slice(0, int(key.offsets[n_keys]))
    slot, position, vector = torch.searchsorted(names, key.source[here]), key.position[here], key.vector[here]
    if SPARSE and vector.device.type == "cpu":
        table = _by_source(slot, position, vector, n, n_keys)
        found = looks.new_empty(looks.shape[0] * looks.shape[1], d * n)
        torch.addmm(found.T, table, looks.flatten(0, 1).T, beta=0, out=found.T)  # by columns: nothing is copied
    else:
        dense = vector.new_zeros(n_keys, d, n)
        dense[position[:, None], torch.arange(d, device=dense.device), slot[:, None]] = vector
        found = looks.flatten(0, 1) @ dense.flatten(1)
    return found.view(*looks.shape[:2], d, n)


def _by_source(
    slot: Int[Tensor, " row"], position: Int[Tensor, " row"], vector: Float[Tensor, "row d_head"], n: int, n_tokens: int
) -> Tensor:
    """Return parts as a sparse matrix ((d_head, source), token): few sources of each are there."""
    d, order = vector.shape[1], torch.argsort(slot, stable=True)
    ends = torch.bincount(slot, minlength=n).cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), (ends + len(slot) * torch.arange(d)[:, None]).flatten()])
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that such tensors are new
        return torch.sparse_csr_tensor(
            bounds, position[order].repeat(d), vector[order].T.flatten(), (d * n, n_tokens), check_invariants=False
        )


def _by_query(
    query: Side, names: Int[Tensor, " i"], start: int, stop: int
) -> tuple[Float[Tensor, "some most d_head"], _Rows]:
    """Return the parts of some queries as one array, each with room for as many as the largest, and where they add."""
    here = slice(int(query.offsets[start]), int(query.offsets[stop]))
    at = query.position[here] - start
    place = torch.arange(here.start, here.stop, device=at.device) - query.offsets[start:stop][at]
    most = int(query.offsets[start : stop + 1].diff().max())
    parts = query.vector.new_zeros(stop - start, most, query.vector.shape[1])
    parts[at, place] = query.vector[here]
    slot = torch.searchsorted(names, query.source[here])
    order = torch.argsort(slot, stable=True)
    counts = torch.bincount(slot, minlength=len(names))
    return parts, _Rows((at * most + place)[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)]), None)


def _without_features(parts: Split) -> Split:
    active = parts.active
    none = Active(torch.zeros_like(active.offsets), active.features[:0], active.values[:0], active.d_sae)
    return Split(none, parts.weights[:0], parts.vectors, parts.bias, parts.error)


def _of_others(side: Side, n_features: int) -> Float[Tensor, "token s d_head"]:
    """Sources that are no features, those that the head does not have as 0."""
    dense = side.vector.new_zeros(side.n_tokens, len(OTHERS), side.vector.shape[1])
    dense[side.position, side.source - n_features] = side.vector
    return dense
