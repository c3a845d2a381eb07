"""Which sentences is plain text made of? General ones, and those that tell a document's topic.

A field in braces is drawn from the pool of its name in `lexicon.POOLS`; `telling` from the topic's own words,
which occur nowhere else. After an author's opener the first letter of a template becomes small, so none begins
with a quotation or a name; those that begin with a field keep the capital of the name drawn.
"""

GENERAL = (
    "{person} {travelled} the {place} on {day}.",
    "The {colour} {animal} slept near the {place}.",
    "{person} counted {number} {animal}s.",
    "In {month} it was {weather} near the {place}.",
    "In {nation}.",
    "{capital}.",
    "Every {sort}.",
    '{person} said, "I like the {colour} {thing}."',
    '{person} asked near the {place}, "Where is the {thing}?"',
    '{person} said, "I saw {number} {animal}s, and one was {colour}."',
    'Near the {place} {person} asked, "Shall we meet on {day}?"',
    "On the floor lay a {thing}, a {thing} and a {thing}.",
    "{person} and {person} went home in {month}.",
    "{person} saw a {sight} near the {place}.",
    "Near the {place} {person} bought a {colour} {thing}.",
    "Nobody saw the {animal} before {day}.",
    "{person} dreamed of a {colour} {animal} and a {sight}.",
)
"""Sentences about nothing in particular."""

TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "market": (
        ("cheese", "bread", "honey", "butter", "flour"),
        (
            "{person} paid too much for the {telling}.",
            "All the {telling} was sold before noon.",
            "{person} weighed the {telling} for a customer.",
        ),
    ),
    "school": (
        ("lesson", "exam", "essay", "homework", "lecture"),
        (
            "{person} was late for the {telling} again.",
            "The {telling} on {day} was hard.",
            "The teacher praised the {telling} of {person}.",
        ),
    ),
    "farm": (
        ("wheat", "barley", "hay", "corn", "rye"),
        (
            "{person} cut the {telling} in {month}.",
            "The {telling} grew well this year.",
            "A {colour} {animal} ate the {telling} in the barn.",
        ),
    ),
    "travel": (
        ("passport", "ticket", "suitcase", "visa", "luggage"),
        (
            "{person} lost the {telling} on the train.",
            "Without the {telling} nobody may cross the border.",
            "{person} packed the {telling} for {country}.",
        ),
    ),
    "weather": (
        ("storm", "rain", "snow", "fog", "hail"),
        (
            "The {telling} came from the north.",
            "{person} stayed indoors because of the {telling}.",
            "In {month} the {telling} lasted {number} days.",
        ),
    ),
    "music": (
        ("song", "melody", "waltz", "tune", "concerto"),
        (
            "{person} practised the {telling} all evening.",
            "The {telling} was loud and merry.",
            "The choir performed the {telling} on {day}.",
        ),
    ),
}
"""Topic -> its telling words, and its sentences."""
