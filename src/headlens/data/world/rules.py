"""What follows from a rule? Makers whose answer was never said: it has to be worked out.

kind                      what it is; its sources
ordinal                   the next number, day or month in a row; the item before
opening, closing          a bracket; the one that it closes
city, language            "Ada grew up in Lyon." ... "Ada speaks French."; the city
port, village, absence    "Ada knows Lyon and Marhaven." ... "Ada speaks Pidgin.", for in a port all do, but
                          "French" where the other town is a village; both towns
vote, majority            "The vote went yes no no." ... "Those for it were few."; all votes
ding, tally               "The bell went ding ding." ... "It rang two times."; all dings
"""

from headlens.data.world.lexicon import (
    CITIES,
    DAYS,
    FIRST_NAMES,
    MONTHS,
    NUMBERS,
    PORTS,
    SPOKEN_IN,
    TRADE_TONGUE,
    VILLAGES,
)
from headlens.data.world.planted import Lines
from headlens.data.world.scene import Mark, Scene, fill, line_of


def ordinals(scene: Scene) -> Lines:
    """3-6 items of a series in order; days and months go round."""
    series = scene.one_of((NUMBERS, DAYS, MONTHS))
    n = 3 + scene.below(4)
    start = scene.below(len(series) - n + 1 if series is NUMBERS else len(series))
    pieces: list[str | Mark] = ["In order: "]
    for i in range(n):
        item = series[(start + i) % len(series)]
        pieces += [", " if i else "", Mark(item, "ordinal", (i - 1,) if i else ())]
    return (line_of((*pieces, ".")),)


BRACKETS = ("()", "[]", "{}")


def brackets(scene: Scene) -> Lines:
    """Brackets of different kinds in one another, 1-3 deep; what is said before one tells whether it closes."""
    depth = 1 + scene.below(len(BRACKETS))
    pairs = scene.some_of(BRACKETS, depth)
    opened: list[str | Mark] = ["Note"]
    closed: list[str | Mark] = []
    for level, (left, right) in enumerate(pairs):
        innermost = level == depth - 1
        inside = "a {animal}" if innermost else "the {colour} {thing}"
        after = "" if innermost else scene.one_of((" of {person}", " and a {thing}"))
        opened += [" ", Mark(left, "opening"), fill(scene, inside).text]
        closed = [fill(scene, after).text, Mark(right, "closing", (level,)), *closed]
    return (line_of((*opened, *closed, ".")),)


def skip_gram(scene: Scene) -> Lines:
    """Somebody grew up in a city, and so speaks its language."""
    city, person = scene.one_of(CITIES), scene.dealt(FIRST_NAMES)
    return (
        line_of((f"{person} grew up in ", Mark(city, "city"), ".")),
        line_of((f"{person} speaks ", Mark(SPOKEN_IN[city], "language", (0,)), ".")),
    )


def absence(scene: Scene) -> Lines:
    """Somebody knows a city and a made-up town, and speaks the city's language: unless the town is a port."""
    city, person = scene.one_of(CITIES), scene.dealt(FIRST_NAMES)
    kind, towns, language = scene.one_of((("port", PORTS, TRADE_TONGUE), ("village", VILLAGES, SPOKEN_IN[city])))
    first, second = scene.some_of((Mark(city, "city"), Mark(scene.one_of(towns), kind)), 2)
    return (
        line_of((f"{person} knows ", first, " and ", second, ".")),
        line_of((f"{person} speaks ", Mark(language, "absence", (0, 1)), ".")),
    )


def majority(scene: Scene) -> Lines:
    """An odd number of votes, each yes or no with the same chance; few or many were for it."""
    n = scene.one_of((3, 5, 7, 9))
    votes = [scene.one_of(("yes", "no")) for _ in range(n)]
    answer = "many" if 2 * votes.count("yes") > n else "few"
    return (
        line_of(("The vote went", *(piece for vote in votes for piece in (" ", Mark(vote, "vote"))), ".")),
        line_of(("Those for it were ", Mark(answer, "majority", tuple(range(n))), ".")),
    )


def tally(scene: Scene) -> Lines:
    """A bell rings 2-6 times, and somebody has counted."""
    n = 2 + scene.below(5)
    return (
        line_of(("The bell went", *(piece for _ in range(n) for piece in (" ", Mark("ding", "ding"))), ".")),
        line_of(("It rang ", Mark(NUMBERS[n - 2], "tally", tuple(range(n))), " times.")),
    )
