"""How does a tokenizer spell words, and which of them are spelled alike?

Prompts and their controls line up only if the words that are exchanged have as many tokens; an answer can be
told from another by one prediction only if their first tokens differ.

    ids of a word      the tokens that hold its characters where it stands after a space
    alike              words of equally many tokens, among which at least so many first tokens are different

A space that is a token of its own belongs to no word, but takes up its place: words are alike only if all have one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from headlens.data.tokens import tokenize
from headlens.data.world.scene import Scene

CARRIER = "the "
"""What words are spelled after."""


class Word(NamedTuple):
    """A word, or a few, and the tokens that spell it."""

    text: str
    ids: tuple[int, ...]
    width: int
    """Tokens that it takes up where it stands after a space: one more than `ids` if the space is one."""


def spelled(tokenizer: Any, words: Iterable[str], *, after: str = CARRIER) -> list[Word]:
    """Spell words, and leave out those that the tokenizer does not know.

    Raises
    ------
    DataError
        If there is no tokenizer, or it cannot tell where its tokens stand.
    """
    words = list(dict.fromkeys(words))
    tokens = tokenize([after + word for word in words], tokenizer)
    assert tokens.spans is not None
    found = []
    for i, word in enumerate(words):
        spans = tokens.spans[tokens.offsets[i] : tokens.offsets[i + 1]]
        ids = tokens[i][touching(spans, len(after), len(after) + len(word))].tolist()
        width = int(touching(spans, len(after.rstrip()), len(after) + len(word)).sum())
        if tokenizer.unk_token_id not in ids:
            found.append(Word(word, tuple(ids), width))
    return found


def touching(spans: Int[np.ndarray, "token span"], start: int, end: int) -> Bool[np.ndarray, " token"]:
    """Which tokens hold characters of `start .. end`."""
    return (spans[:, 0] < end) & (spans[:, 1] > start)


def alike(words: Sequence[Word], n: int) -> list[list[Word]]:
    """Group words by number of tokens; keep the groups in which `n` first tokens are different."""
    groups: dict[tuple[int, int], list[Word]] = {}
    for word in words:
        groups.setdefault((len(word.ids), word.width), []).append(word)
    return [group for _, group in sorted(groups.items()) if len({word.ids[0] for word in group}) >= n]


def several(scene: Scene, group: Sequence[Word], n: int) -> list[Word]:
    """Draw `n` words with different first tokens; `group` has so many."""
    left, drawn = list(group), []
    while len(drawn) < n:
        word = scene.taken(left)
        if all(word.ids[0] != other.ids[0] for other in drawn):
            drawn.append(word)
    return drawn


def one_group(scene: Scene, groups: Sequence[list[Word]]) -> list[Word]:
    """Draw a group, each as often as it is long."""
    return groups[scene.which([len(group) for group in groups])]
