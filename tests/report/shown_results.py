"""Results to show, whose true attention is known: hostile text, a long text, a missing score."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from headlens._result import Provenance
from headlens.heads.atlas import ATLAS_SCHEMA, HeadAtlas
from headlens.heads.circuit_tokens import CIRCUITS_SCHEMA, LISTS, HeadCircuits
from headlens.heads.patterns import AttentionPatterns
from headlens.heads.scores import SCHEMA, HeadScores

KINDS = ("previous_token", "induction", "duplicate_token", "sink", "my_kind")
FIRST, SECOND = "zoo:llama-small", "org/<b>other</b>"
SHAPES = {FIRST: (3, 4), SECOND: (2, 6)}
MISSING = (FIRST, 1, 2)  # this head has no previous_token score

HOSTILE = (
    "<script>alert(1)</script>",
    "</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--",
    "&lt;b&gt;",
    "\x00",
    "\x1b[31m",
    "\n",
    "\t",
    "\r",
    "\u2028",
    "\u202e",
    "\u200b",
    "",
    "\u0301",
    "\ufffd",
    "\ud800",
    " שלום",
    "👩\u200d🚀",
    " end",
)
SENTENCE = "Once upon a time Lily saw a big red ball and Tom saw a big red ball"
PLAIN = ("<s>", *(f" {word}" for word in SENTENCE.split()))
LONG = tuple(f" w{i}" for i in range(512))


@dataclass(frozen=True)
class Example:
    """Results, and the floats that they were made from."""

    scores: HeadScores
    patterns: dict[str, AttentionPatterns]
    attention: dict[tuple[str, int], np.ndarray]
    """(model, text) -> layer head query key."""

    def row(self, model: str, layer: int, head: int, kind: str) -> dict:
        wanted = {"model": model, "layer": layer, "head": head, "kind": kind}
        rows = self.scores.table.to_pylist()
        return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))

    @property
    def results(self) -> list:
        return [self.scores, *self.patterns.values()]


def causal_attention(rng: np.random.Generator, layers: int, heads: int, tokens: int) -> np.ndarray:
    weights = np.tril(rng.exponential(size=(layers, heads, tokens, tokens)) ** 3)
    return weights / weights.sum(axis=-1, keepdims=True)


def quantised(attention: np.ndarray) -> np.ndarray:
    rows, columns = np.tril_indices(attention.shape[-1])
    return np.round(255 * attention[:, :, rows, columns]).astype(np.uint8)


def make_patterns(model: str, shape: tuple[int, int], texts, rng) -> tuple[AttentionPatterns, list[np.ndarray]]:
    attention = [causal_attention(rng, *shape, len(tokens)) for tokens in texts]
    weights = tuple(quantised(a) for a in attention)
    return AttentionPatterns(provenance(model), model, tuple(texts), weights), attention


def patterns_of(model: str, texts, weights) -> AttentionPatterns:
    """AttentionPatterns past the shape check of the tests, as a damaged file would give them."""
    result = object.__new__(AttentionPatterns)
    fields = {"provenance": provenance(model), "model": model, "tokens": tuple(texts), "weights": tuple(weights)}
    for name, value in fields.items():
        object.__setattr__(result, name, value)
    return result


def provenance(model: str) -> Provenance:
    return Provenance(
        models=({"name": model, "revision": "abc123", "dtype": "float32"},),
        data={"repeats": {"hash": "sha256:5b2e"}},
        seed=7,
        command="headlens heads --seed 7",
        versions={"python": "3.11"},
    )


def make_scores(shapes: dict[str, tuple[int, int]], rng: np.random.Generator) -> HeadScores:
    rows = []
    for model, (layers, heads) in shapes.items():
        for kind in KINDS:
            for layer, head in np.ndindex(layers, heads):
                score = float(rng.uniform(0.2, 0.95))
                if kind == "previous_token" and (model, layer, head) == MISSING:
                    score = float("nan")
                row = (model, layer, head, kind, score, score - 0.04, score + 0.03, 0.125, 64, None, None, None)
                rows.append(dict(zip(SCHEMA.names, row, strict=True)))
    return HeadScores(provenance("all"), pa.Table.from_pylist(rows, schema=SCHEMA))


def scores_of(rows: list[tuple]) -> HeadScores:
    """Rows of (model, layer, head, kind, score, low, high, null, n)."""
    named = [dict(zip(SCHEMA.names, (*row, None, None, None), strict=True)) for row in rows]
    return HeadScores(Provenance(), pa.Table.from_pylist(named, schema=SCHEMA))


def atlas_of(rows: list[dict]) -> HeadAtlas:
    """Rows with what is not given filled in: model m, layer 0, an interval of .02, a null of 0, 64 samples."""
    full = []
    for row in rows:
        score = row.get("score", 0.0)
        usual = {"model": "m", "layer": 0, "low": score - 0.01, "high": score + 0.01, "null": 0.0, "n": 64, "q": 0.5}
        full.append(dict.fromkeys(ATLAS_SCHEMA.names) | usual | {"level": "low"} | row)
    return HeadAtlas(provenance("all"), pa.Table.from_pylist(full, schema=ATLAS_SCHEMA))


ATLAS_SHAPES = {FIRST: (3, 4), SECOND: (2, 6)}
PROFILES = {
    (FIRST, 1, 1): {"induction": 0.9, "copying_logits": 0.8, "my_kind": 0.6},
    (SECOND, 1, 5): {"induction": 0.85, "copying_logits": 0.8},  # nearest to the one above
    (SECOND, 0, 0): {"induction": 0.8, "sink": 0.5},
    (FIRST, 0, 2): {"previous_token": 0.95},
}
ATLAS_KINDS = (
    *("previous_token", "self", "sink", "delimiter", "duplicate_token", "induction"),
    *("copying_logits", "copy_suppression", "successor", "retrieval", "my_kind"),
)


def make_atlas() -> HeadAtlas:
    """Eleven kinds; the heads of `PROFILES` are of what they say, all others of nothing."""
    rows = []
    for model, shape in ATLAS_SHAPES.items():
        for kind in ATLAS_KINDS:
            for layer, head in np.ndindex(shape):
                score = PROFILES.get((model, layer, head), {}).get(kind, 0.01)
                level = "high" if score >= 0.7 else "medium" if score >= 0.3 else "low"
                row = {"model": model, "layer": layer, "head": head, "kind": kind, "score": score, "null": 0.01}
                row |= {"level": None if kind == "my_kind" else level, "q": 0.0002 if score > 0.3 else 0.75}
                row |= {"weighted": score / 2} if kind == "induction" else {}
                row |= {"detail": "2 back <b>"} if kind == "sink" else {}
                rows.append(row)
    return atlas_of(rows)


def make_circuits(model: str, shape: tuple[int, int], tokens=HOSTILE) -> HeadCircuits:
    """Every list of every head, and one token of each; a rotary model, so pairs have offsets."""
    rows = []
    for layer, head in np.ndindex(shape):
        for name, side in LISTS.items():
            for offset in {"attended": (1, 4), "matched": (4,)}.get(name, (None,)):
                for rank, token in enumerate(tokens):
                    sign = -1 if name in ("lowered", "suppressed") else 1
                    target = token if name in ("copied", "suppressed") else tokens[-1 - rank]
                    value = sign * (10.0 * layer + head + 1 - rank / 64)
                    row = (
                        model,
                        layer,
                        head,
                        side,
                        name,
                        offset,
                        rank,
                        token,
                        target,
                        value,
                        rank if side == "ov" else None,
                    )
                    rows.append(dict(zip(CIRCUITS_SCHEMA.names, row, strict=True)))
    return circuits_of(model, rows)


def circuits_of(model: str, rows: list[dict]) -> HeadCircuits:
    """HeadCircuits whose tokens may hold lone surrogates, which Arrow does not."""
    shown = [
        {name: x.encode("utf-8", "replace").decode() if isinstance(x, str) else x for name, x in row.items()}
        for row in rows
    ]
    return HeadCircuits(provenance(model), pa.Table.from_pylist(shown, schema=CIRCUITS_SCHEMA))


def make_example() -> Example:
    rng = np.random.default_rng(0)
    first, first_attention = make_patterns(FIRST, SHAPES[FIRST], (PLAIN, HOSTILE, LONG), rng)
    second, second_attention = make_patterns(SECOND, SHAPES[SECOND], (PLAIN,), rng)
    attention = {(FIRST, i): a for i, a in enumerate(first_attention)}
    attention |= {(SECOND, i): a for i, a in enumerate(second_attention)}
    return Example(make_scores(SHAPES, rng), {FIRST: first, SECOND: second}, attention)
