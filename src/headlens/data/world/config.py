"""How much of each regularity? One knob each; 0 switches it off, so that a control corpus can be written."""

import math
from dataclasses import asdict, dataclass, fields

from headlens._errors import DataError


@dataclass(frozen=True)
class WorldConfig:
    """Shares of what the text world writes."""

    # Of a document's utterances; what is left is plain text.
    sentence_repeats: float = 0.03
    list_repeats: float = 0.04
    name_repeats: float = 0.05
    concepts: float = 0.08
    facts: float = 0.14
    tables: float = 0.03
    indirect_objects: float = 0.07
    tasks: float = 0.05
    ordinals: float = 0.03
    brackets: float = 0.03
    skip_grams: float = 0.05
    absences: float = 0.05
    counts: float = 0.07

    # Of plain utterances.
    topics: float = 0.6
    authors: float = 0.3

    # Of documents.
    sentiments: float = 0.4
    needles: float = 0.05

    def __post_init__(self) -> None:
        shares = asdict(self)
        for knob, share in shares.items():
            most = 0.5 if knob == "needles" else 1  # as many documents get a decoy
            if not 0 <= share <= most:
                raise DataError(f"{knob} must be a share from 0 to {most}, not {share}.")
        planted = math.fsum(shares[knob] for knob in PLANTED)
        if planted > 1:
            raise DataError(f"The shares of {', '.join(PLANTED)} add to {planted:.3g}, and to at most 1: lower some.")


KNOBS = tuple(field.name for field in fields(WorldConfig))
PLANTED = KNOBS[: KNOBS.index("topics")]
"""Knobs that share the utterances of a document between them."""

DEFAULT = WorldConfig()
WITHOUT_REPEATS = WorldConfig(
    sentence_repeats=0.0,
    list_repeats=0.0,
    name_repeats=0.0,
    concepts=0.0,
    facts=0.0,
    tables=0.0,
    indirect_objects=0.0,
    tasks=0.0,
)
"""No token and no concept comes back by design; rules, series, brackets and labels stay."""
