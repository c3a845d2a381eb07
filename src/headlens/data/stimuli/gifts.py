"""Two people, one of whom gives something to the other: who gets it?

    prompt     When Ada and Tom went to the park, Tom gave a book to          io: Ada   s1, s2: Tom   end: to
    control    When Ada and Tom went to the park, Lena gave a book to         nobody is named twice

IO is named first in half of the prompts (ABBA), second in the other half (BABA), so that neither order
nor distance tells. The three names are spelled with equally many tokens, each beginning with another.

Axes: see data/tokens.py. Source: Wang et al. 2023, whose ABC prompts are the control.
"""

from typing import Any

import numpy as np

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
    marked,
    read,
)
from headlens.data.stimuli.stimulus import Stimulus, check_sizes
from headlens.data.stimuli.words import Word, alike, one_group, several, spelled
from headlens.data.world import lexicon, planted
from headlens.data.world.scene import Mark, Scene, fill

ENOUGH = 12
"""So many names of one token make longer ones needless."""
WORLD_POOLS = {field: lexicon.POOLS[field] for field in ("place", "thing")}


def indirect_objects(tokenizer: Any, *, n: int, bos: int | None, seed: int, language: Language = "english") -> Stimulus:
    """Return prompts that end where the indirect object is to be named.

    Marks: io, s1, s2 (the names), end. Answers: io and s, the first token of each name.

    Raises
    ------
    DataError
        If the tokenizer spells too few names alike or does not know a word, or a number is out of range.
    """
    check_language(language)
    check_sizes("indirect_objects", 1, n=n)
    check_sizes("indirect_objects", 0, seed=seed)
    is_english = language == "english"
    groups = _names(tokenizer, english.NAMES if is_english else lexicon.FIRST_NAMES)
    templates, pools = (english.GIFTS, english.GIFT_POOLS) if is_english else (planted.GIFTS, WORLD_POOLS)
    io_first = np.random.Generator(np.random.PCG64(seed)).permutation(np.arange(n) < n // 2)

    def make(scene: Scene, k: int) -> Prompt:
        io, s, third = (name.text for name in several(scene, one_group(scene, groups), 3))
        pair = [Mark(io, "io"), Mark(s, "s1")]
        a, b = pair if io_first[k] else reversed(pair)
        template = scene.one_of(templates)
        drawn = {field: scene.one_of(pool) for field, pool in pools.items()}
        told, control = (
            fill(scene, template, a=a, b=b, giver=Mark(giver, "s2"), receiver=Mark(io, ANSWER), **drawn)
            for giver in (s, third)
        )
        return Prompt(told, control)

    told, control = read("indirect_objects", draw("indirect_objects", n, seed, make), tokenizer, bos, broken="s2")
    check_said("indirect_objects", told, "io")
    answers = {"io": firsts(told.spelled), "s": firsts(marked(told, "s1"))}
    recipe = {"language": language, "seed": seed, "names": sum(map(len, groups))}
    return Stimulus("indirect_objects", told.tokens, bos, control, recipe, told.marks, answers)


def _names(tokenizer: Any, names: tuple[str, ...]) -> list[list[Word]]:
    """Groups of names that are spelled alike: those of one token, if there are enough."""
    words = spelled(tokenizer, names)
    single = [word for word in words if word.width == 1]
    if len({word.ids for word in single}) >= ENOUGH:
        return [single]
    groups = alike(words, 3)
    if not groups:
        raise DataError(
            f"indirect_objects needs three names with equally many tokens and different first ones; of "
            f"{len(names)} the tokenizer knows {len(words)}: use the other language ('english' or 'world')."
        )
    return groups
