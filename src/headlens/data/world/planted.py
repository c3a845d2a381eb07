"""What comes back? Makers whose echo says again, word for word or in other words, what their line said.

    kind                what it is; the echo's sources
    sentence            a plain sentence, again word for word; the first
    list                4-12 unrelated words, again; the first
    name                a first and a last name, again; the first
    concept             a noun; its echo is another of its group (ship, boat; hammer, saw), the first noun
    consequence         what happens to it ("sank"); in the echo the same, after the first noun and its verb
    fact                what is said of somebody, again; the first
    cell, lookup        a name or value in a table; a value asked for, its owner's cell and its own
    subject             the giver, in "When Ada and Tom met, Tom gave a book to Ada."; the first mention
    indirect object     the receiver, in the same sentence; the first mention
    task input, task    "two is to three as five is to six": an output, its input and all pairs before it

A maker returns the lines of one utterance: a line, and mostly an echo that is put some utterances later.
"""

from headlens.data.world.lexicon import (
    CAPITAL_OF,
    CATEGORY_OF,
    CONCEPTS,
    DAYS,
    FIRST_NAMES,
    HAPPENINGS,
    LANGUAGE_OF,
    LIST_WORDS,
    MONTHS,
    NUMBERS,
    OBJECTS,
    POOLS,
)
from headlens.data.world.plain import plain
from headlens.data.world.scene import Line, Mark, Scene, Span, again, fill, line_of

Lines = tuple[Line, ...]


def sentence(scene: Scene) -> Lines:
    """A plain sentence, again word for word."""
    (said,) = plain(scene)
    whole = Span("sentence", 0, len(said.text))
    line = Line(said.text, (whole, *said.spans))
    return line, again(line)


def word_list(scene: Scene) -> Lines:
    """A list of unrelated words, again in the same order."""
    words = " ".join(scene.some_of(LIST_WORDS, 4 + scene.below(9)))
    return tuple(fill(scene, '{person} read: "{list}."', list=Mark(words, "list", sources)) for sources in ((), (0,)))


def name(scene: Scene) -> Lines:
    """Somebody's first and last name, again."""
    full = fill(scene, "{person} {last}").text
    return tuple(
        fill(scene, opening + " {name} {travelled} the {place}.", name=Mark(full, "name", sources))
        for opening, sources in (("Then", ()), ("Later", (0,)))
    )


PAIRS = 3
"""Concepts of one line; more than one, so that the verb to say is not just the verb that was said."""
CONCEPT_LINES = min(len(CONCEPTS), len(HAPPENINGS)) // PAIRS
"""Concept lines that a document can hold before its groups of nouns, or its verbs, would come again."""


def concept(scene: Scene) -> Lines:
    """Things happen to three nouns; the same things, to other nouns of the same groups, in any order."""
    groups = [scene.dealt(CONCEPTS) for _ in range(PAIRS)]
    verbs = [scene.dealt(HAPPENINGS) for _ in range(PAIRS)]
    nouns, others = zip(*(scene.some_of(group, 2) for group in groups), strict=True)
    first = [(Mark(noun, "concept"), Mark(verb, "consequence")) for noun, verb in zip(nouns, verbs, strict=True)]
    echo = [
        (Mark(others[i], "concept", (2 * i,)), Mark(verbs[i], "consequence", (2 * i, 2 * i + 1)))
        for i in scene.some_of(range(PAIRS), PAIRS)
    ]
    return _happenings(first), _happenings(echo)


def _happenings(pairs: list[tuple[Mark, Mark]]) -> Line:
    (a, a_did), (b, b_did), (c, c_did) = pairs
    return line_of(("The ", a, " ", a_did, ", the ", b, " ", b_did, " and the ", c, " ", c_did, "."))


FACTS = (
    ("the {thing} of {owner} is {value}", "colour"),
    ("the home of {owner} is {value}", "country"),
    ("the month of {owner} is {value}", "month"),
)
"""What can be said of somebody, and the pool that its value is drawn from."""


def fact(scene: Scene) -> Lines:
    """Something about somebody of whom nothing else is said, again."""
    claim, pool = scene.one_of(FACTS)
    told = {"owner": scene.dealt(FIRST_NAMES)}
    if "{thing}" in claim:
        told["thing"] = scene.one_of(OBJECTS)
    value = scene.one_of(POOLS[pool])
    return tuple(
        fill(scene, f"{{opening}} that {claim}.", **told, value=Mark(value, "fact", sources)) for sources in ((), (0,))
    )


COLUMNS = ("colour", "animal", "country", "month", "number")


def table(scene: Scene) -> Lines:
    """Three or four people and two things about each; one of them, looked up."""
    n_rows = 3 + scene.below(2)
    columns = scene.some_of(COLUMNS, 2)
    owners = [scene.dealt(FIRST_NAMES) for _ in range(n_rows)]
    values = [scene.some_of(POOLS[column], n_rows) for column in columns]
    cells = [piece for row in zip(owners, *values, strict=True) for piece in _cells(row)]
    row, column = scene.below(n_rows), scene.below(len(columns))
    width = 1 + len(columns)
    answer = Mark(values[column][row], "lookup", (row * width, row * width + 1 + column))
    return (
        line_of((f"Table: name, {', '.join(columns)}", *cells, ".")),
        line_of((f"In the table the {columns[column]} of {owners[row]} is ", answer, ".")),
    )


def _cells(row: tuple[str, ...]) -> list[str | Mark]:
    owner, *values = row
    pieces: list[str | Mark] = ["; ", Mark(owner, "cell")]
    for value in values:
        pieces += [", ", Mark(value, "cell")]
    return pieces


GIFTS = (
    "When {a} and {b} went to the {place}, {giver} gave a {thing} to {receiver}.",
    "After {a} and {b} met near the {place}, {giver} handed a {thing} to {receiver}.",
    "While {a} and {b} worked near the {place}, {giver} sold a {thing} to {receiver}.",
    "Then {a} and {b} came home, and {giver} brought a {thing} to {receiver}.",
)


def indirect_object(scene: Scene) -> Lines:
    """Two people, one of whom gives something to the other: to the one that does not give."""
    pair = scene.some_of(FIRST_NAMES, 2)
    giver = scene.below(2)
    kinds = ["indirect object", "indirect object"]
    kinds[giver] = "subject"
    a, b = (Mark(person, kind) for person, kind in zip(pair, kinds, strict=True))
    gives = Mark(pair[giver], "subject", (giver,))
    gets = Mark(pair[1 - giver], "indirect object", (1 - giver,))
    return (fill(scene, scene.one_of(GIFTS), a=a, b=b, giver=gives, receiver=gets),)


_INNER = NUMBERS[1:-1]
"""Numbers that have one before and one after them."""

TASKS: tuple[dict[str, str], ...] = (
    LANGUAGE_OF,
    CAPITAL_OF,
    dict(zip(_INNER, NUMBERS[2:], strict=True)),
    dict(zip(_INNER, NUMBERS[:-2], strict=True)),
    dict(zip(DAYS, (*DAYS[1:], DAYS[0]), strict=True)),
    dict(zip(DAYS, (DAYS[-1], *DAYS[:-1]), strict=True)),
    dict(zip(MONTHS, (*MONTHS[1:], MONTHS[0]), strict=True)),
    CATEGORY_OF,
)
"""Maps from input to output. Most inputs belong to two of them: only the pairs before tell which is meant."""


def task(scene: Scene) -> Lines:
    """4-6 pairs of one map; from the second pair on the output is known."""
    answer = scene.one_of(TASKS)
    pieces: list[str | Mark] = ["Puzzle: "]
    for i, given in enumerate(scene.some_of(tuple(answer), 4 + scene.below(3))):
        sources = tuple(range(2 * i + 1)) if i else ()
        pieces += [" as " if i else "", Mark(given, "task input"), " is to ", Mark(answer[given], "task", sources)]
    return (line_of((*pieces, ".")),)
