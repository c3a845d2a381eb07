"""Which English words do stimuli for ordinary models use? The counterpart of data/world/lexicon.py.

Fields in braces are drawn from the pool of their name; `a`, `b`, `giver`, `receiver`, `owner` and `value` are given.
No person of `NAMES`, no word of `CODES` and no claim's noun occurs in a filler sentence.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


NAMES = _words("""
    Mary John Tom James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul
    Steven Andrew Kevin Brian George Edward Jason Ryan Jacob Gary Eric Jonathan Stephen Larry Justin Scott Frank
    Gregory Samuel Patrick Jack Dennis Jerry Peter Adam Henry Simon Alan Victor Martin Oliver Luke Sarah Karen Nancy
    Lisa Betty Sandra Ashley Emily Kimberly Michelle Carol Amanda Melissa Deborah Laura Sharon Cynthia Anna Emma
    Helen Rachel Julia Alice Diana Jane Kate Maria Ruth Clara Elizabeth Jennifer Linda Susan Jessica
""")

# ---- indirect objects --------------------------------------------------------------------------

GIFTS = (
    "When {a} and {b} came to the {place}, {giver} gave a {thing} to {receiver}.",
    "After {a} and {b} had left the {place}, {giver} lent a {thing} to {receiver}.",
    "While {a} and {b} were waiting near the {place}, {giver} passed a {thing} to {receiver}.",
    "Yesterday {a} and {b} spent hours at the {place}, and {giver} sold a {thing} to {receiver}.",
    "Once {a} and {b} had met outside the {place}, {giver} handed a {thing} to {receiver}.",
    "The other day {a} and {b} walked past the {place}, where {giver} showed a {thing} to {receiver}.",
)
GIFT_POOLS = {
    "place": _words("""
        school library station market hospital restaurant museum garden bakery park church theatre hotel office
        bridge stadium airport harbour farm cinema
    """),
    "thing": _words("""
        book ring letter ticket drink key basket camera coin watch hammer picture map lamp box card flower bottle
        jacket necklace
    """),
}

# ---- needles -----------------------------------------------------------------------------------

SECRETS = ("secret code", "hidden password", "childhood nickname")
"""What an owner has, and nothing but needles tells."""
CODES = (
    "copper fox", "silver lake", "purple engine", "frozen ladder", "golden spoon", "hollow drum", "crimson wolf",
    "velvet anchor", "marble clock", "wooden arrow", "paper dragon", "broken mirror", "silent thunder", "bitter melon",
    "northern star", "yellow canoe", "iron feather", "plastic crown", "orange lantern", "ancient whistle",
    "electric turtle", "gentle hurricane", "double rainbow", "ivory button", "rapid comet", "salty biscuit",
    "tiny elephant", "lucky sparrow", "magic carpet", "crystal tunnel", "cotton helmet", "royal pumpkin",
    "smoky diamond", "lonely pirate", "wild rocket", "pink volcano",
)  # fmt: skip
FILLER = (
    "The {noun} near the {site} was {state} in {season}.",
    "Most visitors of the {site} come in {season}.",
    "A {noun} had been standing beside the {site} for years.",
    "Nobody remembers when the {site} was built.",
    "It rained for {number} days, and the {noun} stayed {state}.",
    "There were {number} people at the {site} that morning.",
    "In {season} the road to the {site} is often {state}.",
    "The owners of the {site} painted the {noun} twice.",
    "Some say that the {noun} is older than the {site}.",
    "For {number} weeks the {site} was {state}.",
)
FILLER_POOLS = {
    "noun": _words("fence gate roof tower wall statue bench fountain chimney barn staircase signpost"),
    "site": _words("village mill castle school harbour hospital valley factory chapel river market forest"),
    "state": _words("empty quiet closed wet dusty crowded cold dark clean ready"),
    "season": _words("spring summer autumn winter"),
    "number": _words("two three four five six seven eight nine ten twelve"),
}

# ---- relations ---------------------------------------------------------------------------------

RELATIONS: dict[str, dict[str, str]] = {
    "antonym": _pairs("""
        hot cold big small fast slow high low old young happy sad light dark open closed rich poor strong weak wet dry
        hard soft full empty early late true false left right up down good bad long short wide narrow loud quiet
        clean dirty cheap expensive safe dangerous brave cowardly first last inside outside above below before after
        buy sell win lose push pull love hate begin end north south east west day night
    """),
    "capital": _pairs("""
        France Paris Germany Berlin Spain Madrid Italy Rome Japan Tokyo China Beijing Russia Moscow Poland Warsaw
        Sweden Stockholm Norway Oslo Denmark Copenhagen Greece Athens Turkey Ankara Portugal Lisbon Finland Helsinki
        Hungary Budapest Austria Vienna Ireland Dublin Egypt Cairo Kenya Nairobi Iran Tehran Iraq Baghdad
        Syria Damascus Lebanon Beirut Jordan Amman Cuba Havana Peru Lima Chile Santiago Canada Ottawa
        Australia Canberra Thailand Bangkok Vietnam Hanoi Nepal Kathmandu Ukraine Kyiv Romania Bucharest Bulgaria Sofia
        Serbia Belgrade Croatia Zagreb Belgium Brussels Switzerland Bern Indonesia Jakarta Philippines Manila
    """),
    "plural": _pairs("""
        cat cats dog dogs car cars tree trees house houses book books bird birds hand hands door doors apple apples
        child children man men woman women foot feet tooth teeth mouse mice leaf leaves knife knives wife wives
        life lives city cities country countries story stories baby babies lady ladies army armies box boxes
        church churches bus buses class classes glass glasses wish wishes dish dishes potato potatoes hero heroes
        river rivers song songs king kings
    """),
}
"""Relation -> what goes with what; no word stands twice on one side."""

# ---- orders ------------------------------------------------------------------------------------

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
NUMBERS = _words("""
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""")
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
