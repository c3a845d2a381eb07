"""What is a stimulus? Sequences to read, what plays which part in them, and the same with the regularity taken out.

    tokens     sequence i = ids[offsets[i] : offsets[i + 1]]
    control    the same offsets; where it differs, the regularity is broken
    marks      one truth value for every entry of tokens.ids
    answers    one token id for every sequence: what may come after its last token

Axes: packed = all tokens of all sequences (see data/tokens.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from headlens._errors import DataError
from headlens.data.tokens import Tokens


@dataclass(frozen=True)
class Stimulus:
    """Sequences to read, the control that goes with them, and how both were made."""

    name: str
    tokens: Tokens
    bos: int | None
    """Id that every sequence begins with, or None."""
    control: Tokens | None = None
    """Same lengths, with the regularity taken out."""
    recipe: dict[str, Any] = field(default_factory=dict)
    marks: Mapping[str, Bool[np.ndarray, " packed"]] = field(default_factory=dict)
    """Part -> which of `tokens.ids` play it."""
    answers: Mapping[str, Int[np.ndarray, " sequence"]] = field(default_factory=dict)
    """Name -> the token id that it would be right, or wrong, to predict after each sequence's last token."""

    def __post_init__(self) -> None:
        if self.control is not None and not np.array_equal(self.control.offsets, self.tokens.offsets):
            raise DataError(f"The control of {self.name} must have sequences of the same lengths as the stimulus.")
        for what, entries, n in (
            ("marks", self.marks, len(self.tokens.ids)),
            ("answers", self.answers, len(self.tokens)),
        ):
            for name, values in entries.items():
                if len(values) != n:
                    raise DataError(f"{what} '{name}' of {self.name} must have {n} entries, not {len(values)}.")

    def marked(self, part: str, index: int | np.integer) -> Bool[np.ndarray, " token"]:
        """Return which tokens of one sequence play a part."""
        start, end = self.tokens.offsets[index : index + 2]
        return self.marks[part][start:end]

    def provenance(self) -> dict[str, Any]:
        """Return what a result records of this stimulus."""
        return {"name": self.name, "n": len(self.tokens), "hash": self.tokens.hash, "bos": self.bos, **self.recipe}


def check_sizes(name: str, least: int, **sizes: int) -> None:
    """Raise if a size of the stimulus `name` is less than it may be."""
    for size, value in sizes.items():
        if value < least:
            raise DataError(f"{size} of {name} must be {least} or more, not {value}.")


def allow_list(ids: Sequence[int] | np.ndarray, needed: int, name: str) -> Int[np.ndarray, " id"]:
    """Return the different ids of an allow-list, sorted; raise if there are fewer than needed."""
    unique = np.unique(np.asarray(ids, dtype=np.int64))
    if len(unique) < needed:
        raise DataError(f"{name} needs {needed} different ids and the allow-list has {len(unique)}: make it shorter.")
    return unique


def sequence(bos: int | None, *parts: np.ndarray) -> Int[np.ndarray, " token"]:
    """Put BOS, where there is one, and parts in a row."""
    start = [] if bos is None else [np.array([bos])]
    return np.concatenate([*start, *parts])
