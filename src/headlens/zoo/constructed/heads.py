"""Which head does what? One function per kind; each returns a head's whole wiring over a list of words.

Features: token:w (the word here), previous:w (the word before, once a previous-token head has moved it),
output:w (what is read out as a logit of w), constant (1 everywhere); of gifts: name (any person's), again (a name that
was said before), inhibited:w (a name not to be said); of entities: third:w (the word three back), coming:w (what is to
be said after the next word); of relations: question:w (that an answer was given to), asked:w, shown:r (the relation
that this right answer shows), task:r (the relation that is to be applied). Scores: a match is worth MATCH = 60, resting
on BOS half of that, everything else 0, so that with n keys in view

    a match beats BOS by e^30 and the rest by e^60:     A[match] = 1 - 1e-13        (two matches: 1/2 each)
    BOS beats the rest by e^30:                         A[BOS]   = 1 - n * 1e-13

which is 1 in float32. Heads move words only, never BOS: what rests on BOS writes nothing.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from headlens.zoo.constructed.wiring import BOS, Term, Wiring

Relations = Mapping[str, Mapping[str, str]]
"""Relation -> what goes with what."""
MATCH = 60.0
REST_ON_BOS: tuple[Term, ...] = (("constant", f"token:{BOS}", MATCH / 2),)


def matches(query: str, key: str, names: Sequence[str], score: float = MATCH) -> tuple[Term, ...]:
    """Return the terms that match feature `query:x` with feature `key:x`, for each x in `names`."""
    return tuple((f"{query}:{x}", f"{key}:{x}", score) for x in names)


def copies(source: str, target: str, names: Sequence[str], scale: float = 1.0) -> tuple[Term, ...]:
    """Return the terms that write `scale` of feature `source:x` to feature `target:x`, for each x in `names`."""
    return tuple((f"{source}:{x}", f"{target}:{x}", scale) for x in names)


def shifted(words: Sequence[str]) -> tuple[Term, ...]:
    """Return the terms that write each word's successor; the first word succeeds the last."""
    return tuple((f"token:{w}", f"output:{after}", 1.0) for w, after in zip(words, rotated(words), strict=True))


def rotated(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words, each replaced by the one that follows it."""
    return (*words[1:], words[0])


def noise(words: Sequence[str]) -> tuple[Term, ...]:
    """Return terms with no system: normal numbers of standard deviation 1/8, always the same ones."""
    weights = torch.randn(len(words), len(words), generator=torch.Generator().manual_seed(0)) / 8
    return tuple(
        (f"token:{a}", f"output:{b}", float(weights[i, j])) for i, a in enumerate(words) for j, b in enumerate(words)
    )


def upper_triangle(words: Sequence[str]) -> tuple[Term, ...]:
    """Return terms that write each word once and every later word five times.

    As a matrix: triangular, with ones on the diagonal. All its eigenvalues are 1, as if it copied; but the largest
    entry of each row is off the diagonal, except in the last row.
    """
    later = tuple((f"token:{a}", f"output:{b}", 5.0) for i, a in enumerate(words) for b in words[i + 1 :])
    return copies("token", "output", words) + later


def previous_token(words: Sequence[str]) -> Wiring:
    """A[q, q-1] = 1; writes the word before to previous:w. The first position sees itself only."""
    return Wiring("previous_token", back=((1, MATCH),), move=copies("token", "previous", words))


def offset(n: int, name: str, move: tuple[Term, ...] = ()) -> Wiring:
    """A[q, q-n] = 1 from position n on; writes nothing, unless it is told to."""
    return Wiring(name, back=((n, MATCH),), move=move)


def self_attending() -> Wiring:
    """A[q, q] = 1; writes nothing."""
    return offset(0, "self")


def sink(words: Sequence[str]) -> Wiring:
    """A[q, BOS] = 1. It would copy words, had it any attention left for them; for BOS it writes nothing."""
    return Wiring("sink", match=REST_ON_BOS, move=copies("token", "output", words))


def leaky_sink(words: Sequence[str]) -> Wiring:
    """A[q, BOS] = .99, A[q, q] = .01 (no word twice); |value| of BOS .01, of words 1: weighted, both count the same."""
    match = (("constant", f"token:{BOS}", MATCH), *matches("token", "token", words, MATCH - math.log(99)))
    bos = (f"token:{BOS}", f"output:{BOS}", 0.01)
    return Wiring("leaky_sink", match=match, move=(bos, *copies("token", "output", words)))


def duplicate_token(words: Sequence[str], move: tuple[Term, ...] = ()) -> Wiring:
    """All attention to earlier copies of the query's word, evenly; to BOS where there is none."""
    not_self = ((0, -2 * MATCH),)
    return Wiring("duplicate_token", match=matches("token", "token", words) + REST_ON_BOS, back=not_self, move=move)


def induction(words: Sequence[str], name: str = "induction", move: tuple[Term, ...] | None = None) -> Wiring:
    """All attention to what followed earlier copies of the query's word, evenly; to BOS where there is none."""
    move = copies("token", "output", words) if move is None else move
    return Wiring(name, match=matches("token", "previous", words) + REST_ON_BOS, move=move)


def induction_random_ov(words: Sequence[str]) -> Wiring:
    """Attends like induction; what it writes has nothing to do with what it sees."""
    return induction(words, "induction_random_ov", noise(words))


def anti_induction(words: Sequence[str]) -> Wiring:
    """Attends like induction, and lowers the logit of what it sees: copy suppression."""
    return induction(words, "anti_induction", copies("token", "output", words, -1.0))


def copying(words: Sequence[str]) -> Wiring:
    """Even attention; raises each word it sees. Its OV is the identity on words."""
    return Wiring("copying", move=copies("token", "output", words))


def anti_copying(words: Sequence[str]) -> Wiring:
    """Even attention; lowers each word it sees. Its OV is minus the identity."""
    return Wiring("anti_copying", move=copies("token", "output", words, -1.0))


def fake_copying(words: Sequence[str]) -> Wiring:
    """Even attention; an OV whose eigenvalues say copying (+1) and which hardly ever copies."""
    return Wiring("fake_copying", move=upper_triangle(words))


def successor(words: Sequence[str]) -> Wiring:
    """A[q, q] = 1; raises the word that follows the query's in the list."""
    return Wiring("successor", back=((0, MATCH),), move=shifted(words))


# ---- who gets it: at `to`, after "When Mary and Tom met, Tom gave a book" -------------------------------------------


def said_before(source: str, names: Sequence[str]) -> tuple[Term, ...]:
    """Return the terms that write `again` for any name."""
    return tuple((f"{source}:{name}", "again", 1.0) for name in names)


def looking_at_giver(name: str, move: tuple[Term, ...] = ()) -> Wiring:
    """At `to`, all attention to names that were said before, evenly; elsewhere, and where there is none, to BOS."""
    return Wiring(name, match=(("token:to", "again", MATCH), *REST_ON_BOS), move=move)


def s_inhibition(names: Sequence[str]) -> Wiring:
    """Looks at the giver, and writes that this name is not to be said."""
    return looking_at_giver("s_inhibition", copies("token", "inhibited", names))


def looking_at_names(name: str, names: Sequence[str], move: tuple[Term, ...] = ()) -> Wiring:
    """At `to`, all attention to names that are not inhibited, evenly; elsewhere, and where there is none, to BOS."""
    match = (("token:to", "name", MATCH), *matches("inhibited", "token", names, -MATCH), *REST_ON_BOS)
    return Wiring(name, match=match, move=move)


# ---- what follows this context: three tokens on, an entity ends -----------------------------------------------------


def looking_at_entity_end(name: str, words: Sequence[str], move: tuple[Term, ...] = ()) -> Wiring:
    """All attention to what stood three places after earlier copies of the query's word; to BOS where there is none."""
    return Wiring(name, match=matches("token", "third", words) + REST_ON_BOS, move=move)


# ---- two is to three as five is to ... ------------------------------------------------------------------------------


def right_answer(relations: Relations) -> Wiring:
    """At an answer that is right, A[q, q] = 1, and writes the relation that it shows; elsewhere all to BOS.

    It is the answer to its question (60), and here (60 for the same word): either alone loses to BOS (90).
    """
    pairs = [(name, *pair) for name, pairs in relations.items() for pair in pairs.items()]
    answers = {answer: name for name, _, answer in pairs}
    move = tuple((f"token:{answer}", f"shown:{name}", 1.0) for answer, name in answers.items())
    match = (
        *((f"question:{question}", f"token:{answer}", MATCH) for _, question, answer in pairs),
        *matches("token", "token", list(answers)),
        ("constant", f"token:{BOS}", 1.5 * MATCH),
    )
    return Wiring("right_answer", match, move=move)


def looking_at_examples(name: str, relations: Relations, move: tuple[Term, ...] = ()) -> Wiring:
    """At a colon, all attention to right answers, evenly; elsewhere, and where there is none, to BOS."""
    return Wiring(name, match=(*(("token::", f"shown:{r}", MATCH) for r in relations), *REST_ON_BOS), move=move)


def applying(relation: str, pairs: Mapping[str, str]) -> Wiring:
    """Where the relation is to be applied, A[q, q] = 1, and raises the answer to what is asked; else all to BOS."""
    bos = f"token:{BOS}"
    gate = (("constant", bos, 1.5 * MATCH), (f"task:{relation}", bos, -MATCH))
    move = tuple((f"asked:{question}", f"output:{answer}", 1.0) for question, answer in pairs.items())
    return Wiring(f"applying_{relation}", match=(*matches("asked", "asked", list(pairs)), *gate), move=move)
