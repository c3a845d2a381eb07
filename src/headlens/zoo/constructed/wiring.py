"""What is a head that is set by hand? Three short lists: what it matches, how far it looks back, what it moves.

The residual stream at position p is a sum of named features, x_p = sum_i f_i(p) direction_i. A wired head has

    score(q, k)  = sum over (i, j, w) in match of  w f_i(q) f_j(k)   +   sum over (n, w) in back of  w [k = q - n]
    written(q)   = sum over (i, j, w) in move of   w direction_j  sum_k A[q, k] f_i(k)           A = softmax_k score

and nothing else: no bias, no MLP. `match` is thus the head's complete table of feature-pair scores (what
feature-resolved attention must find), `move` its complete table of what a feature it sees makes it write.

Unit of scores: attention logits. Source: the residual stream as named bases, Lindner et al. 2023 (tracr).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BOS = "<bos>"
N_CTX = 100
"""Longest sequence of every construction, in tokens."""
Term = tuple[str, str, float]


@dataclass(frozen=True)
class Wiring:
    """One head, in words."""

    name: str
    """What kind of head it is; several heads may be of one kind."""
    match: tuple[Term, ...] = ()
    """(feature of the query, feature of the key, score)."""
    back: tuple[tuple[int, float], ...] = ()
    """(offset, score) of the key that many positions before the query."""
    move: tuple[Term, ...] = ()
    """(feature of the key, feature it is written to, how much)."""


UNIFORM = Wiring("uniform")
"""Attends to all keys alike and writes nothing; it also stands where a layer has fewer heads than another."""


@dataclass(frozen=True)
class Design:
    """A whole model, in words."""

    tokens: Mapping[str, tuple[str, ...]]
    """Every word, in the order of its id, with the features that its embedding holds (each once)."""
    layers: tuple[tuple[Wiring, ...], ...]
    logits: tuple[Term, ...]
    """(feature of the last stream, word, logit that a unit of it gives)."""

    @property
    def bos(self) -> int | None:
        """Id of the word that every sequence begins with, or None where the model knows none."""
        return 0 if BOS in self.tokens else None

    @property
    def features(self) -> tuple[str, ...]:
        """Every feature that is embedded, matched, moved or read out, in order of appearance."""
        return tuple(dict.fromkeys(self._mentioned()))

    def _mentioned(self) -> Iterator[str]:
        for carried in self.tokens.values():
            yield from carried
        for wiring in (wiring for layer in self.layers for wiring in layer):
            for one, other, _ in (*wiring.match, *wiring.move):
                yield from (one, other)
        yield from (feature for feature, _, _ in self.logits)
