"""A few pairs that show a relation, and one more to be completed by it.

    prompt     Puzzle: two is to three as five is to six as nine is to        English: Q: hot   A: cold   Q: big   A:
    control    Puzzle: two is to six as five is to three as nine is to        each answer to another's question

The answers of a prompt have equally many tokens, so prompt and control line up; each begins with another token, so
the first one tells. A pair whose two sides begin with one token is left out (a plural, where it is the singular and
an ending), for its answer could be copied.

    question, shown    the two sides of the examples       end        the last token
    target             the first token of the answer

Sequence i shows relation `recipe["relations"][i % len(recipe["relations"])]`.

Axes: see data/tokens.py. Source: Todd et al. 2024.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headlens._errors import DataError
from headlens.data.stimuli import english
from headlens.data.stimuli.prompts import ANSWER, Language, Prompt, check_language, draw, firsts, read
from headlens.data.stimuli.stimulus import Stimulus, check_sizes
from headlens.data.stimuli.words import Word, alike, one_group, several, spelled
from headlens.data.world import planted
from headlens.data.world.scene import Line, Mark, Scene, line_of

WORLD_NAMES: tuple[str, ...] = (
    "language", "capital", "number after", "number before", "day after", "day before", "month after", "category",
)  # fmt: skip
"""What to call the maps of `planted.TASKS`, in their order."""
WORLD_RELATIONS: dict[str, dict[str, str]] = dict(zip(WORLD_NAMES, planted.TASKS, strict=True))
RELATIONS: dict[Language, Mapping[str, Mapping[str, str]]] = {"english": english.RELATIONS, "world": WORLD_RELATIONS}
FORMATS: dict[Language, tuple[str, str, str, str, str]] = {
    "english": ("", "Q: ", "\nA: ", "\n\n", "\n"),
    "world": ("Puzzle: ", "", " is to ", " as ", "."),
}
"""What stands at the beginning, before a question, before its answer, between pairs, and at the end."""


def tasks(
    tokenizer: Any,
    *,
    n: int,
    shots: int = 5,
    relations: Sequence[str] | None = None,
    bos: int | None,
    seed: int,
    language: Language = "english",
) -> Stimulus:
    """Return prompts that show a relation `shots` times and end where it is to be applied.

    Marks: question, shown, end. Answers: target.

    Parameters
    ----------
    shots
        Pairs shown; 2 or more, for one answer cannot be given to another's question.
    relations
        Names: antonym, capital, plural; in the world those of `WORLD_NAMES`. None for all of which
        the tokenizer spells enough pairs.

    Raises
    ------
    DataError
        If a relation is unknown or the tokenizer spells too few of its answers alike, it does not know a word, or
        a number is out of range.
    """
    check_language(language)
    check_sizes("tasks", 2, shots=shots)
    chosen = _chosen(RELATIONS[language], relations)
    pairs = {name: _pairs(tokenizer, relation) for name, relation in chosen.items()}
    groups = {name: alike(list(pairs[name]), shots + 1) for name in pairs}
    _check_enough(groups, shots, every=relations is not None)
    names = [name for name in groups if groups[name]]

    def make(scene: Scene, k: int) -> Prompt:
        name = names[k % len(names)]
        answers = several(scene, one_group(scene, groups[name]), shots + 1)
        questions = [scene.one_of(pairs[name][answer]) for answer in answers]
        moved = [answers[i] for i in _deranged(scene, shots)]
        return Prompt(_written(questions, answers, language), _written(questions, [*moved, answers[-1]], language))

    told, control = read("tasks", draw("tasks", n, seed, make), tokenizer, bos, broken="shown")
    recipe = {"language": language, "relations": names, "shots": shots, "seed": seed}
    return Stimulus("tasks", told.tokens, bos, control, recipe, told.marks, {"target": firsts(told.spelled)})


def _chosen(known: Mapping[str, Mapping[str, str]], relations: Sequence[str] | None) -> dict[str, Mapping[str, str]]:
    names = list(known) if relations is None else [relations] if isinstance(relations, str) else list(relations)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise DataError(
            f"'{', '.join(unknown)}' is no relation of tasks; in this language they are {', '.join(known)}."
        )
    return {name: known[name] for name in names}


def _pairs(tokenizer: Any, relation: Mapping[str, str]) -> dict[Word, list[str]]:
    """Answer -> the questions that it answers, of the pairs whose sides begin with different tokens."""
    questions = {word.text: word for word in spelled(tokenizer, relation)}
    pairs: dict[Word, list[str]] = {}
    for answer in spelled(tokenizer, relation.values()):
        asked = [word for text, word in questions.items() if relation[text] == answer.text]
        if asked := [word.text for word in asked if word.ids[0] != answer.ids[0]]:
            pairs[answer] = asked
    return pairs


def _check_enough(groups: Mapping[str, list[list[Word]]], shots: int, *, every: bool) -> None:
    short = [name for name, found in groups.items() if not found]
    if len(short) == len(groups) or (every and short):
        raise DataError(
            f"{', '.join(short)}: {shots} shots need {shots + 1} answers with equally many tokens and different first "
            "ones, and the tokenizer spells fewer so: lower shots, or use the other language ('english' or 'world')."
        )


def _deranged(scene: Scene, n: int) -> list[int]:
    """0 .. n - 1 in random order, none in its own place."""
    order = list(range(n))
    while any(i == j for i, j in enumerate(order)):
        order = scene.some_of(range(n), n)
    return order


def _written(questions: Sequence[str], answers: Sequence[Word], language: Language) -> Line:
    begin, ask, answered, between, end = FORMATS[language]
    *shown, last = zip(questions, answers, strict=True)
    pieces: list[str | Mark] = [begin]
    for question, answer in shown:
        pieces += [ask, Mark(question, "question"), answered, Mark(answer.text, "shown"), between]
    return line_of((*pieces, ask, last[0], answered, Mark(last[1].text, ANSWER), end))
