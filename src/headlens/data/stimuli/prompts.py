"""How does a text with marked stretches become a prompt with marked tokens?

A line is written whole, with its answer; the tokens before the answer's first are the prompt:

    text      When Ada and Tom met, Tom gave a book to Ada.          spans: io, s1, s2, answer
    tokens    When| Ada| and| Tom| met|,| Tom| gave| a| book| to     the last one is marked `end`
    answer    | Ada                                                  as the tokenizer spells it there

so no prompt ends inside a token that the tokenizer would have written. A span marks each token that holds a
character of it. The control is another line, whose tokens stand in the same places.

Axes: see data/tokens.py. Randomness: draws of `Scene(seed, i)` (data/world/scene.py), for both languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from headlens._errors import DataError
from headlens.data.stimuli.stimulus import check_sizes
from headlens.data.stimuli.words import touching
from headlens.data.tokens import Tokens, pack, tokenize
from headlens.data.world.config import DEFAULT
from headlens.data.world.scene import Line, Scene

Language = Literal["english", "world"]
"""Wording for models of English, or for the zoo's, which know the text world alone."""
ANSWER = "answer"
"""Kind of the span that ends the prompt."""
TRIES = 20
"""Draws for each prompt asked for, before too few different ones are said to exist."""


@dataclass(frozen=True)
class Prompt:
    """A line that ends with its answer, and its control."""

    told: Line
    control: Line


@dataclass(frozen=True)
class Reading:
    """Prompts as tokens."""

    tokens: Tokens
    marks: dict[str, Bool[np.ndarray, " packed"]]
    spelled: Tokens
    """The answer of each."""


def check_language(language: str) -> None:
    """Raise if there is no wording in this language."""
    if language not in get_args(Language):
        raise DataError(f"language must be {' or '.join(get_args(Language))}, not '{language}'.")


def draw(name: str, n: int, seed: int, make: Callable[[Scene, int], Prompt]) -> list[Prompt]:
    """Make `n` different prompts: the k-th is made from the first scene that gives none of those before it.

    Raises
    ------
    DataError
        If the tokenizer leaves words for fewer, or a number is out of range.
    """
    check_sizes(name, 1, n=n)
    check_sizes(name, 0, seed=seed)
    found: dict[str, Prompt] = {}
    for i in range(TRIES * n):
        prompt = make(Scene(seed, i, DEFAULT), len(found))
        found.setdefault(prompt.told.text, prompt)
        if len(found) == n:
            return list(found.values())
    raise DataError(f"{name} can write {len(found)} different prompts with this tokenizer, not {n}: ask for fewer.")


def read(
    name: str, prompts: Sequence[Prompt], tokenizer: Any, bos: int | None, *, broken: str
) -> tuple[Reading, Tokens]:
    """Tokenise prompts and controls, which differ where `broken` is marked and nowhere else.

    Raises
    ------
    DataError
        If the tokenizer does not know a word, or the tokens of prompt and control do not stand in the same places.
    """
    told = _read([prompt.told for prompt in prompts], tokenizer, bos)
    control = _read([prompt.control for prompt in prompts], tokenizer, bos).tokens
    _check_known(name, told.tokens, tokenizer, bos)
    aligned = np.array_equal(told.tokens.offsets, control.offsets)
    if not aligned or (told.tokens.ids != control.ids)[~told.marks[broken]].any():
        raise DataError(
            f"{name} and their control do not line up: this tokenizer spells a word differently in another sentence. "
            "Use a tokenizer that cuts text at spaces first."
        )
    return told, control


def _read(lines: Sequence[Line], tokenizer: Any, bos: int | None) -> Reading:
    whole = tokenize([line.text for line in lines], tokenizer, bos=bos)
    assert whole.spans is not None
    rows, answers, marked = [], [], []
    kinds = dict.fromkeys(span.kind for line in lines for span in line.spans if span.kind != ANSWER)
    for i, line in enumerate(lines):
        spans = whole.spans[whole.offsets[i] : whole.offsets[i + 1]]
        parts = {kind: np.zeros(len(spans), bool) for kind in (*kinds, ANSWER)}
        for span in line.spans:
            parts[span.kind] |= touching(spans, span.start, span.end)
        cut = int(parts[ANSWER].argmax())
        answers.append(whole[i][parts.pop(ANSWER)])
        rows.append(whole[i][:cut])
        marked.append({kind: part[:cut] for kind, part in parts.items()} | {"end": np.arange(cut) == cut - 1})
    marks = {kind: np.concatenate([parts[kind] for parts in marked]) for kind in (*kinds, "end")}
    return Reading(pack(rows), marks, pack(answers))


def _check_known(name: str, tokens: Tokens, tokenizer: Any, bos: int | None) -> None:
    unknown = tokens.ids == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)
    if bos is not None:
        unknown[tokens.offsets[:-1]] = False  # GPT-2's BOS is its unknown token too
    if unknown.any():
        raise DataError(
            f"The tokenizer does not know {int(unknown.sum())} of the tokens of {name}: "
            "use the language that the model was trained on ('english' or 'world')."
        )


def joined(lines: Sequence[Line]) -> Line:
    """Put lines after one another, a space between."""
    texts, spans, start = [], [], 0
    for line in lines:
        spans += [replace(span, start=start + span.start, end=start + span.end) for span in line.spans]
        texts.append(line.text)
        start += len(line.text) + 1
    return Line(" ".join(texts), tuple(spans))


def marked(reading: Reading, kind: str) -> Tokens:
    """The tokens of each prompt that are marked so, if any."""
    bounds = zip(reading.tokens.offsets[:-1], reading.tokens.offsets[1:], strict=True)
    return pack([reading.tokens.ids[start:end][reading.marks[kind][start:end]] for start, end in bounds])


def firsts(words: Tokens) -> Int[np.ndarray, " sequence"]:
    """The first token of each word."""
    return words.ids[words.offsets[:-1]]


def check_said(name: str, reading: Reading, kind: str) -> None:
    """Raise unless the tokens marked `kind` are those that spell the answer.

    Raises
    ------
    DataError
        If the tokenizer spells an answer otherwise where it is said first.
    """
    if marked(reading, kind).hash != reading.spelled.hash:
        raise DataError(
            f"This tokenizer spells an answer of {name} differently where it is said first and where it is asked for: "
            "use a tokenizer that cuts text at spaces first."
        )
