"""One fact hidden in a document, and a question that only it answers.

    prompt     filler. The secret code of Ada is copper fox. filler. The secret code of Tom is silver lake. filler.
               What is the secret code of Ada? The secret code of Ada is
    control    the same, asking for Lena, of whom nothing is said (the null query)

    needle     copper fox        gold        the sentence that says it
    decoy      silver lake       question    from "What" on; in the world "Note that the key of Ada is"
    end        the last token    answers     first: the first token of the needle; all of them are its marked tokens

Needle and decoy stand among the filler in either order, wherever chance puts them. Their values, and the three
owners, have equally many tokens, each beginning with another. No filler sentence says an owner, a word of a value
or the thing, and none comes twice.

Axes: see data/tokens.py. Source: Wu et al. 2024 (retrieval heads); arXiv 2506.09944 (the null query).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from headlens._errors import DataError
from headlens.data.stimuli import english
from headlens.data.stimuli.prompts import (
    ANSWER,
    Language,
    Prompt,
    check_language,
    check_said,
    draw,
    firsts,
    joined,
    read,
)
from headlens.data.stimuli.stimulus import Stimulus, check_sizes
from headlens.data.stimuli.words import Word, alike, one_group, several, spelled
from headlens.data.world import lexicon, planted
from headlens.data.world.plain import plain
from headlens.data.world.scene import Line, Mark, Scene, Span, fill

PATIENCE = 100
"""Sentences drawn for each one of filler, before it is said that there are no more."""


class Fact(NamedTuple):
    """What can be known of an owner: how it is said and asked for, and its values, those spelled alike together."""

    said: str
    asked: str
    values: list[list[Word]]


def needles(
    tokenizer: Any, *, n: int, n_filler: int = 8, bos: int | None, seed: int, language: Language = "english"
) -> Stimulus:
    """Return documents with one needle and one decoy, up to where the needle is to be said again.

    Marks: needle, gold, decoy, question, end. Answers: first.

    Parameters
    ----------
    n_filler
        Sentences that are neither; the document has two more, and the question.

    Raises
    ------
    DataError
        If the tokenizer spells too few names or values alike or does not know a word, or a number is out of range.
    """
    check_language(language)
    check_sizes("needles", 0, n_filler=n_filler)
    owners = alike(spelled(tokenizer, english.NAMES if language == "english" else lexicon.FIRST_NAMES), 3)
    facts = [fact for fact in _facts(tokenizer, language) if fact.values]
    if not owners or not facts:
        raise DataError(
            f"needles needs {'two values' if owners else 'three names'} with equally many tokens and different first "
            "ones, and the tokenizer spells none so: use the other language ('english' or 'world')."
        )
    write = _english_sentence if language == "english" else _world_sentence

    def make(scene: Scene, _: int) -> Prompt:
        owner, other, nobody = (word.text for word in several(scene, one_group(scene, owners), 3))
        said, asked, values = scene.one_of(facts)
        value, wrong = (word.text for word in several(scene, one_group(scene, values), 2))
        given = {"thing": scene.one_of(lexicon.OBJECTS)}  # facts that are not of a thing leave it out
        gold = fill(scene, said, owner=owner, value=Mark(value, "needle"), **given)
        decoy = fill(scene, said, owner=other, value=Mark(wrong, "decoy"), **given)
        secret = {owner, other, nobody, *given.values(), *value.split(), *wrong.split()}
        document = _filler(scene, write, secret, n_filler, tokenizer)
        for line in scene.some_of((_whole(gold, "gold"), decoy), 2):
            document.insert(scene.below(len(document) + 1), line)
        given["opening"] = scene.one_of(lexicon.POOLS["opening"])
        told, control = (
            joined([*document, _question(fill(scene, asked, owner=person, value=Mark(value, ANSWER), **given))])
            for person in (owner, nobody)
        )
        return Prompt(told, control)

    told, control = read("needles", draw("needles", n, seed, make), tokenizer, bos, broken="question")
    check_said("needles", told, "needle")
    recipe = {"language": language, "n_filler": n_filler, "seed": seed}
    answers = {"first": firsts(told.spelled)}
    return Stimulus("needles", told.tokens, bos, control, recipe, told.marks, answers)


def _facts(tokenizer: Any, language: Language) -> list[Fact]:
    if language == "world":
        told = [(f"{{opening}} that {claim}.", lexicon.POOLS[pool]) for claim, pool in planted.FACTS]
        return [Fact(said, said, alike(spelled(tokenizer, pool), 2)) for said, pool in told]
    told = [
        (f"What is the {secret} of {{owner}}?", f"The {secret} of {{owner}} is {{value}}.")
        for secret in english.SECRETS
    ]
    codes = alike(spelled(tokenizer, english.CODES), 2)
    return [Fact(said, f"{asked} {said}", codes) for asked, said in told]


def _whole(line: Line, kind: str) -> Line:
    """The line with all of it marked, too."""
    return replace(line, spans=(*line.spans, Span(kind, 0, len(line.text))))


def _question(line: Line) -> Line:
    """The line with all that stands before its answer marked, too."""
    (answer,) = line.spans
    return replace(line, spans=(Span("question", 0, answer.start), answer))


def _filler(scene: Scene, write: Callable[[Scene], str], secret: set[str], n: int, tokenizer: Any) -> list[Line]:
    """Write `n` different sentences that hold none of the secret words, and none that the tokenizer does not know."""
    found: dict[str, Line] = {}
    for _ in range(PATIENCE * n):
        text = write(scene)
        known = spelled(tokenizer, [f"{text} {text}"], after="")  # as it begins a document, and as it stands within
        if known and not secret & set(re.findall("[A-Za-z]+", text)):
            found.setdefault(text, Line(text))
        if len(found) == n:
            break
    if len(found) < n:
        raise DataError(f"needles can write {len(found)} different sentences of filler here, not {n}: lower n_filler.")
    return list(found.values())


def _english_sentence(scene: Scene) -> str:
    drawn = {field: scene.one_of(pool) for field, pool in english.FILLER_POOLS.items()}
    return fill(scene, scene.one_of(english.FILLER), **drawn).text


def _world_sentence(scene: Scene) -> str:
    return plain(scene)[0].text
