"""Does a feature do what its rules say, on texts made to match them and texts made not to?

A rule reads "[key] ... [query] -> it fires". In a text from outside the mining part, in which the feature is silent and
that holds no such key, tokens are replaced, never inserted (replace.py), and the model reads it again:

    matching        a token of the key at some place, a token of the query at the end       it should fire
    without key     a neutral token at that place, the same query                           it should be silent
    without query   the same key, a neutral token at the end                                it should be silent

Tokens of a side are drawn from the few at which its feature is most active: those that stand in the rule's text. The
agreement of one text is the mean of being right where it should fire and where it should be silent (of both ways): 0.5
for a feature that fires always, never, or whatever the tokens are.

Axes: rule; context = texts; token.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int

from headlens.rules.exemplars import Exemplars
from headlens.rules.language import SkipGram
from headlens.rules.matches import NONE
from headlens.rules.replace import Difference, Replacements

RULES = 3
"""Rules of a feature that are tried: those that raise it most, over all that fires."""
CONTEXTS = 12
CARRIERS = 5
"""As many tokens stand in a computed label."""


@dataclass(frozen=True)
class Agreement:
    """How often the feature did what one rule says."""

    rule: SkipGram
    n: int
    """Texts, each read three ways (twice, where the rule names no query feature)."""
    matching: float
    """Share of matching texts at which the feature fires."""
    without_key: float
    """Share that fires with a neutral token in place of the key's."""
    without_query: float
    """Share that fires with a neutral token at the end; NaN where the rule names no query feature."""
    right: Difference
    """The agreement, with its interval over texts."""

    def to_row(self) -> dict:
        return asdict(self)


def agreement(
    rules: Sequence[SkipGram], feature: int, exemplars: Exemplars, replacements: Replacements, *, seed: int
) -> list[Agreement]:
    """Try the first of these rules of an output feature."""
    return [_tried(rule, feature, exemplars, replacements, seed) for rule in rules[:RULES]]


def _tried(rule: SkipGram, feature: int, exemplars: Exemplars, replacements: Replacements, seed: int) -> Agreement:
    rng = np.random.Generator(np.random.PCG64([seed, feature, rule.key]))
    keys, queries = (replacements.carriers(one, CARRIERS) for one in (rule.key, rule.query))
    neutral = replacements.ids[replacements.neutral([rule.query, rule.key])]
    rows = _silent(rule, feature, exemplars, replacements, rng) if len(keys) and len(neutral) else []
    matching, without_key, without_query = [], [], []
    for row in rows:
        text = replacements.context(int(row))
        place = int(rng.integers(1, len(text) - 1))
        if rule.query != NONE:
            text[-1] = rng.choice(queries)
        text[place] = rng.choice(keys)
        other, last = text.copy(), text.copy()
        other[place], last[-1] = rng.choice(neutral, 2)
        matching.append(text)
        without_key.append(other)
        without_query.append(last)
    ways = [matching, without_key] if rule.query == NONE else [matching, without_key, without_query]
    _, activation = replacements.read([text for way in ways for text in way], feature)
    fires = activation.reshape(len(ways), len(matching)) > 0
    matches, no_key, no_query = ([*fires.mean(1).tolist(), np.nan] if len(matching) else [np.nan] * 3)[:3]
    right = (fires[0] + 1.0 - fires[1:].mean(0)) / 2
    return Agreement(rule, len(matching), matches, no_key, no_query, Difference.of(right, seed=seed))


def _silent(
    rule: SkipGram, feature: int, exemplars: Exemplars, replacements: Replacements, rng: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """Positions outside the mining part, from the third token on, where it is silent and no such key was seen."""
    outside = exemplars.part[exemplars.text_of] > 0
    free = replacements.first_seen(rule.key)[exemplars.text_of] > np.arange(len(outside))
    there = outside & free & (exemplars.position >= 2)
    there[exemplars.fires_at(feature)[0]] = False
    some = np.flatnonzero(there)
    return rng.permutation(some)[:CONTEXTS]
