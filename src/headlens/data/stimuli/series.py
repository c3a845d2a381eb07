"""Which tokens follow one another in an order that everyone knows? Days, months, numbers, digits, letters.

A class counts as far as its members are single tokens: as they stand after a space, or without one, whichever gives
the longer run of consecutive members (after a space, where both do). Shorter runs than `LEAST` are left out. A
class goes round (Sunday, Monday) only if the run is all of it.

Axes: id = a member's place in its class. Source of the question: Gould et al. 2023 (successor heads).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from headlens._errors import DataError
from headlens.data.stimuli import english
from headlens.data.stimuli.prompts import Language, check_language
from headlens.data.stimuli.words import CARRIER, spelled
from headlens.data.world import lexicon

LEAST = 4
"""Members of a class that is worth a question."""
CLASSES: dict[Language, dict[str, tuple[tuple[str, ...], bool]]] = {
    "english": {
        "days": (english.DAYS, True),
        "months": (english.MONTHS, True),
        "numbers": (english.NUMBERS, False),
        "digits": (english.DIGITS, False),
        "letters": (english.LETTERS, False),
    },
    "world": {"days": (lexicon.DAYS, True), "months": (lexicon.MONTHS, True), "numbers": (lexicon.NUMBERS, False)},
}
"""Class -> its members, and whether the first follows the last."""


class Order(NamedTuple):
    """Tokens in an order: `ids[i + 1]` follows `ids[i]`."""

    name: str
    ids: Int[np.ndarray, " id"]
    cyclic: bool
    """Whether ids[0] follows ids[-1]."""


def orders(tokenizer: Any, *, language: Language = "english") -> list[Order]:
    """Return the ordered classes whose members are single tokens.

    Raises
    ------
    DataError
        If the tokenizer spells `LEAST` consecutive members of no class so.
    """
    check_language(language)
    found = []
    for name, (members, cyclic) in CLASSES[language].items():
        runs = [_longest_run(_single(tokenizer, members, after), cyclic) for after in (CARRIER, "")]
        ids = max(runs, key=len)  # the first of equally long ones
        if len(ids) >= LEAST:
            found.append(Order(name, np.array(ids), cyclic and len(ids) == len(members)))
    if not found:
        raise DataError(
            f"The tokenizer spells {LEAST} consecutive days, months or numbers as single tokens in no case: "
            "use the other language ('english' or 'world')."
        )
    return found


def _single(tokenizer: Any, members: Sequence[str], after: str) -> list[int | None]:
    """The token that spells each member; None where it takes more than one."""
    words = {word.text: word.ids for word in spelled(tokenizer, members, after=after)}
    return [words[member][0] if len(words.get(member, ())) == 1 else None for member in members]


def _longest_run(ids: Sequence[int | None], cyclic: bool) -> list[int]:
    """The longest stretch without a None, the first of equally long ones; it may go round where the class does."""
    best: list[int] = []
    for start in range(len(ids)):
        run: list[int] = []
        for i in (*ids[start:], *(ids[:start] if cyclic else ())):
            if i is None:
                break
            run.append(i)
        best = max(best, run, key=len)
    return best
