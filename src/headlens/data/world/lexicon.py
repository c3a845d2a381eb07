"""Which words does the text world have? Every table of words, and what belongs together.

A word is in one table unless it means the same in both. What must be told apart has words of its own: verbs of
concept lines, telling words of topics, words of praise and blame, needles.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ---- people and places -------------------------------------------------------------------------

FIRST_NAMES = _words("""
    Ada Tom Mary John Lena Omar Ruth Paul Nina Hugo Clara Ivan Sofia Karl Emma Noah Julia Peter Laura Simon
    Alice David Maria Felix Anna Victor Helen Oscar Grace Martin Irene Louis
""")
LAST_NAMES = _words("""
    Lovell Barton Marsh Keller Novak Fisher Conrad Hansen Porter Walsh Moreno Tanner Becker Sutton Archer
    Dalton Meyer Foster Granger Linden
""")
COUNTRIES = _words("""
    France Germany Spain Italy Japan China Russia Poland Sweden Norway Denmark Greece Turkey Portugal Finland
    Hungary
""")
LANGUAGES = _words("""
    French German Spanish Italian Japanese Chinese Russian Polish Swedish Norwegian Danish Greek Turkish
    Portuguese Finnish Hungarian
""")
CAPITALS = _words("""
    Paris Berlin Madrid Rome Tokyo Beijing Moscow Warsaw Stockholm Oslo Copenhagen Athens Ankara Lisbon Helsinki
    Budapest
""")
OTHER_CITIES = _words("""
    Lyon Hamburg Seville Milan Osaka Shanghai Kazan Krakow Uppsala Bergen Aarhus Patras Izmir Porto Turku Szeged
""")
LANGUAGE_OF = dict(zip(COUNTRIES, LANGUAGES, strict=True))
CAPITAL_OF = dict(zip(COUNTRIES, CAPITALS, strict=True))
SPOKEN_IN = {
    **dict(zip(CAPITALS, LANGUAGES, strict=True)),
    **dict(zip(OTHER_CITIES, LANGUAGES, strict=True)),
}
"""City -> the language of its country."""
CITIES = tuple(SPOKEN_IN)
PORTS = _words("Dunmouth Marhaven Selquay Torport")
"""Made-up towns by the sea, where all speak `TRADE_TONGUE`."""
VILLAGES = _words("Brinfold Elmstow Oakmere Thornlea")
"""Made-up towns inland, which change nobody's language."""
TRADE_TONGUE = "Pidgin"
PLACES = _words("""
    park school market station garden library museum harbour bridge church kitchen river forest bakery castle
    theatre farm hotel shop office
""")

# ---- things ------------------------------------------------------------------------------------

CATEGORIES = {
    "tool": _words("hammer saw drill ladder shovel brush"),
    "dish": _words("cup mug plate bowl spoon kettle jar"),
    "garment": _words("coat scarf hat glove shirt boot"),
    "furniture": _words("table chair lamp shelf bed desk"),
    "fruit": _words("peach pear lemon plum cherry melon"),
    "instrument": _words("bell drum flute harp horn fiddle"),
}
CATEGORY_OF = {thing: category for category, things in CATEGORIES.items() for thing in things}
OBJECTS = (*CATEGORY_OF, *_words("book letter map key clock"))
SYNONYMS = (
    _words("ship boat ferry"),
    _words("road street lane"),
    _words("house cottage hut"),
    _words("coin penny"),
    _words("doctor nurse"),
    _words("stone rock pebble"),
    _words("rope cord string"),
    _words("bag sack"),
)
CONCEPTS = (*SYNONYMS, *CATEGORIES.values())
"""Groups of nouns that stand for one another in concept lines."""
HAPPENINGS = _words("sank broke fell burned vanished moved shook rolled slid froze rose stopped")
"""What happens to a concept; said nowhere else."""
ANIMALS = _words("dog cat horse cow goat duck frog bird bear lion tiger rabbit snake whale")
COLOURS = _words("red blue green yellow black white brown grey pink purple silver golden")
WEATHER = _words("cold warm rainy sunny windy quiet dark bright")

# ---- series ------------------------------------------------------------------------------------

DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
NUMBERS = _words("""
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""")

# ---- words of labels ---------------------------------------------------------------------------

FAVOURITE = {"Ash": "Indeed", "Birch": "Well", "Cedar": "So"}
"""Author, whom no text names -> how this author likes to open a sentence."""
PRAISE = _words("lovely splendid pleasant charming superb")
BLAME = _words("awful dreadful nasty horrid dismal")
NEEDLES = _words("zephyr quartz obelisk saffron marzipan tundra")

# ---- what templates draw from ------------------------------------------------------------------

LIST_WORDS = (*OBJECTS, *COLOURS, *ANIMALS, *PLACES, *NUMBERS)

POOLS: dict[str, tuple[str, ...]] = {
    "person": FIRST_NAMES,
    "last": LAST_NAMES,
    "travelled": ("went to", "walked to", "ran to", "visited", "left", "came to", "looked for", "waited at"),
    "place": PLACES,
    "day": DAYS,
    "month": MONTHS,
    "number": NUMBERS,
    "weather": WEATHER,
    "colour": COLOURS,
    "thing": OBJECTS,
    "sight": tuple(noun for group in SYNONYMS for noun in group),
    "animal": ANIMALS,
    "country": COUNTRIES,
    "nation": tuple(f"{country} people speak {language}" for country, language in LANGUAGE_OF.items()),
    "capital": tuple(f"{capital} is the capital of {country}" for country, capital in CAPITAL_OF.items()),
    "sort": tuple(
        f"{thing} is {'' if category == 'furniture' else 'a' + 'n' * (category[0] in 'aeiou') + ' '}{category}"
        for thing, category in CATEGORY_OF.items()
    ),
    "opening": ("Remember", "Note", "We know", "They say"),
}
"""What a field of a template is drawn from."""
