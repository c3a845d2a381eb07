"""How do lists of named terms become matrices over features?

    query (feature, column), key (feature, column)      query key^T = the table of `match`
    value (feature, column), output (column, feature)   value output = the table of `move`

A column, that is a dimension of d_head, stands for one feature that keys hold, or one that values move. Heads that
share keys and values (grouped-query attention) share columns: the union of what each needs.

Axes: feature, column, token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from headlens.zoo.constructed.wiring import Design, Wiring


class Compiled(NamedTuple):
    """A design as a transformers module."""

    hf: Any
    layers: list[list[Wiring]]
    """The head at each place of it, padding included."""
    directions: dict[str, Tensor]
    """Per feature, its direction (d_model)."""


@dataclass(frozen=True)
class Columns:
    """What the dimensions of d_head stand for, in heads that share their keys and values."""

    keys: tuple[str, ...]
    values: tuple[tuple[str, float], ...]
    """(feature, norm): the value of a feature is as long as what the head writes for it."""

    @classmethod
    def of(cls, sharing: Sequence[Wiring]) -> "Columns":
        """Return one column per key feature, and per moved feature, of these heads."""
        keys = dict.fromkeys(key for wiring in sharing for _, key, _ in wiring.match)
        values = dict.fromkeys(value for wiring in sharing for value in _norms(wiring).items())
        return cls(tuple(keys), tuple(values))

    def key(self, features: Sequence[str]) -> Float[Tensor, "feature column"]:
        """Return the map to keys: a one where a column stands for the feature."""
        return table([(name, name, 1.0) for name in self.keys], features, self.keys)

    def value(self, features: Sequence[str]) -> Float[Tensor, "feature column"]:
        """Return the map to values: the norm where a column stands for the feature."""
        return table([(name, (name, norm), norm) for name, norm in self.values], features, self.values)

    def query(self, wiring: Wiring, features: Sequence[str]) -> Float[Tensor, "feature column"]:
        """Return one head's map to queries."""
        return table(wiring.match, features, self.keys)

    def output(self, wiring: Wiring, features: Sequence[str]) -> Float[Tensor, "column feature"]:
        """Return one head's map from values to what it writes."""
        norms = _norms(wiring)
        terms = [((source, norms[source]), target, w / norms[source]) for source, target, w in wiring.move]
        return table(terms, self.values, features)


def _norms(wiring: Wiring) -> dict[str, float]:
    squares: dict[str, float] = {}
    for source, _, w in wiring.move:
        squares[source] = squares.get(source, 0.0) + w * w
    return {source: square**0.5 for source, square in squares.items()}


def embedding(design: Design, features: Sequence[str]) -> Float[Tensor, "token feature"]:
    """Return which features each word's embedding holds."""
    terms = [(word, feature, 1.0) for word, carried in design.tokens.items() for feature in carried]
    return table(terms, list(design.tokens), features)


def unembedding(design: Design, features: Sequence[str]) -> Float[Tensor, "token feature"]:
    """Return the logit that a unit of each feature gives each word."""
    return table([(word, feature, w) for feature, word, w in design.logits], list(design.tokens), features)


def table(terms: Sequence[tuple], rows: Sequence, columns: Sequence) -> Float[Tensor, "row column"]:
    """Return the matrix of (row, column, number) terms; what is named twice adds up."""
    row, column = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    filled = torch.zeros(len(row), len(column))
    if terms:
        at = tuple(torch.tensor([(row[r], column[c]) for r, c, _ in terms]).T)
        filled.index_put_(at, torch.tensor([float(w) for _, _, w in terms]), accumulate=True)
    return filled
