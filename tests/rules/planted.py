"""Texts in which rules are planted, and the same in which they are not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headlens.data.tokens import Tokens
from headlens.data.world import WITHOUT_REPEATS, Document
from headlens.data.world.lexicon import LANGUAGES, NUMBERS, PORTS, SPOKEN_IN, TRADE_TONGUE
from headlens.models import Model
from headlens.rules import NONE, Absence, Count, Observed, Rules
from headlens.rules.matches import Sparse
from headlens.rules.replace import Difference
from headlens.tracing import Edit, edit
from headlens.tracing.logits import last_logits
from headlens.zoo.answers import Case, predicted, spell

WORLD = replace(WITHOUT_REPEATS, skip_grams=0.25, absences=0.3, counts=0.3)
"""Documents full of rules: who grew up where and speaks what, ports and villages, votes, bells."""
ANSWERS = {
    "language": LANGUAGES, "absence": (*LANGUAGES, TRADE_TONGUE), "majority": ("many", "few"), "tally": NUMBERS[:5],
}  # fmt: skip
VOTES = ("yes", "no")


def without_rules(documents: Iterable[Document], *, seed: int = 0) -> Iterator[Document]:
    """Yield documents whose answers are drawn anew, so that nothing before them tells which one comes."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for document in documents:
        text, spans, shift = "", [], 0
        done = 0
        for span in document.spans:
            answer = document.text[span.start : span.end]
            if span.kind in ANSWERS and span.sources:
                answer = str(rng.choice(ANSWERS[span.kind]))
            text += document.text[done : span.start] + answer
            done = span.end
            spans.append(replace(span, start=span.start + shift, end=span.start + shift + len(answer)))
            shift = len(text) - done
        yield replace(document, text=text + document.text[done:], spans=tuple(spans))


@dataclass(frozen=True)
class Answer:
    """A word that a rule gives, where a corpus holds it."""

    kind: str
    word: str
    row: int
    """The token before it, of all tokens."""
    token: int
    case: Case
    sources: Mapping[str, tuple[str, ...]]
    """Kind -> words."""

    @property
    def city(self) -> str | None:
        """The city that alone decides it; None of other rules, and where a port does."""
        return None if "port" in self.sources else next(iter(self.sources.get("city", ())), None)


def answers_in(tokens: Tokens, documents: Sequence[Document], tokenizer: Any) -> list[Answer]:
    """Return all answers of a corpus, which `tokens` may have cut."""
    found = []
    for i, document in enumerate(documents):
        for span in document.spans:
            if span.kind not in ANSWERS or not span.sources:
                continue
            case = spell(tokenizer, document.text, span.start, span.end)
            first, sources = int(case.answer[0]), {}
            if first >= tokens.lengths[i]:
                continue
            for source in (document.spans[j] for j in span.sources):
                word = document.text[source.start : source.end]
                sources[source.kind] = (*sources.get(source.kind, ()), word)
            row = int(tokens.offsets[i]) + first - 1
            word = document.text[span.start : span.end]
            found.append(Answer(span.kind, word, row, int(case.ids[first]), case, sources))
    return found


def learnt(model: Model, answers: Sequence[Answer], *, bar: float = 0.9) -> list[str]:
    """Return the cities after which a model says the right language, in this share of cases or more."""
    some = [answer for answer in answers if answer.city is not None]
    right = predicted(model, [answer.case for answer in some])
    city = np.array([answer.city for answer in some])
    return [one for one in SPOKEN_IN if (city == one).any() and right[city == one].mean() >= bar]


class Planted:
    """What of an observed head has to do with the rules that were planted."""

    def __init__(self, observed: Observed, head: int, answers: Sequence[Answer]) -> None:
        self.observed, self.head, self.answers = observed, head, answers
        self.tokenizer = observed.model.tokenizer
        self.active, self.fires = Sparse.of(observed.active), observed.heads[head].fires.dense().numpy()
        self.ids = observed.tokens.ids

    def firing(self, city: str) -> np.ndarray:
        """The share of places after a city's people at which each output feature fires."""
        rows = [answer.row for answer in self.answers if answer.city == city]
        return (self.fires[rows] > 0).mean(0)

    def features(self, kinds: Sequence[str], n: int) -> list[int]:
        """The n output features of each answer that fire where it comes, and least where others of its kind do."""
        own = [one for one in self.answers if one.kind in kinds and "port" not in one.sources]
        rows, words = np.array([one.row for one in own]), np.array([one.word for one in own])
        chosen = set()
        for word in np.unique(words):
            there = self.fires[rows] > 0
            apart = there[words == word].mean(0) - there[words != word].mean(0)
            chosen |= {int(f) for f in np.argsort(-apart)[:n]}
        return sorted(chosen)

    @torch.no_grad()
    def raises(self, feature: int, word: str, *, n: int = 24) -> Difference:
        """How much less an answer stands out among answers like it, once a feature is taken out where it comes."""
        own = [one for one in self.answers if one.word == word and self.fires[one.row, feature] > 0]
        own = [one for one in own if "port" not in one.sources][:n]
        if not own:
            return Difference.of(np.zeros(0), seed=0)
        others = [self._token(one) for one in ANSWERS[own[0].kind] if one != word]
        model, z = self.observed.model, self.observed.heads[self.head].dictionary
        lengths = [one.row - self._start(one.row) + 1 for one in own]
        ids = torch.zeros(len(own), max(lengths), dtype=torch.long)
        for i, one in enumerate(own):
            ids[i, : lengths[i]] = torch.from_numpy(self.ids[self._start(one.row) : one.row + 1].astype(np.int64))
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        last = torch.tensor(lengths) - 1
        active = torch.from_numpy(self.fires[[one.row for one in own], feature])

        def without(value: torch.Tensor) -> torch.Tensor:
            new = value.clone()
            new[torch.arange(len(own)), last, self.head] -= active[:, None] * z.W_dec[feature]
            return new

        before = last_logits(model, ids, mask)
        with edit(model, Edit(f"blocks.{self.observed.layer}.attn.hook_z", without)):
            after = last_logits(model, ids, mask)
        token = self._token(word)
        stands_out = [one[:, token] - one[:, others].mean(1) for one in (before, after)]
        return Difference.of((stands_out[0] - stands_out[1]).numpy(), seed=0)

    def firing_at(self, feature: int, language: str) -> float:
        """The largest share of places after one city's people of that language at which an output feature fires."""
        return max(float(self.firing(c)[feature]) for c in SPOKEN_IN if SPOKEN_IN[c] == language)

    def is_of(self, feature: int, word: str) -> bool:
        """Whether an input feature is a word's."""
        return self.share_on(feature, [word]) >= SELECTIVE and self.often_on(feature, word) >= OFTEN

    def share_on(self, feature: int, words: Iterable[str]) -> float:
        """The share of an input feature's activity that falls on these words."""
        if feature == NONE:
            return 0.0
        own = self.active.features == feature
        there = np.isin(self.ids[self.active.rows[own]], [self._token(word) for word in words])
        values = np.abs(self.active.values[own])
        return float(values[there].sum() / max(values.sum(), 1e-30))

    def often_on(self, feature: int, word: str) -> float:
        """The share of a word's places at which an input feature is active."""
        rows = np.flatnonzero(self.ids == self._token(word))
        own = self.active.rows[self.active.features == feature]
        return float(np.isin(rows, own).mean()) if len(rows) else 0.0

    def _token(self, word: str) -> int:
        (token,) = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return token

    def _start(self, row: int) -> int:
        offsets = self.observed.tokens.offsets
        return int(offsets[np.searchsorted(offsets, row, side="right") - 1])


# --- what rules say of them -------------------------------------------------------------------------------

SELECTIVE = 0.5
"""A feature is a word's if at least so much of its activity falls on it (and on words of the same rule)."""
OFTEN = 0.9
"""And if it is active at so many of the word's places."""
FIRST, STRONG = 256, 0.3
"""Rules that are read: so many of a feature, and only those with this share of its strongest one's effect."""


@dataclass(frozen=True)
class Told:
    """Skip-grams that rules of some features report at ` speaks`."""

    cities: frozenset[str]
    """Those whose language a rule tells."""
    planted: int
    """How many of the reported rules name a city (or both) of a language that the feature raises."""
    reported: int


def skip_grams(planted: Planted, found: Rules, n: int = FIRST) -> Told:
    """Read rules `[key] ... [ speaks] -> +` of features that raise languages, and see whose they are."""
    cities, good, reported = set(), 0, 0
    for feature in found.features:
        raised = [word for word in LANGUAGES if planted.firing_at(feature, word) >= SELECTIVE]
        raised = [word for word in raised if planted.raises(feature, word).low > 0]
        asked = [one for one in found.rules(feature)[:n] if one.effect > 0 and planted.is_of(one.query, "speaks")]
        strongest = max((one.effect for one in asked), default=0.0)
        rules = [one for one in asked if one.effect >= STRONG * strongest] if raised else []
        for rule in rules:
            spoken = {language: [c for c in SPOKEN_IN if SPOKEN_IN[c] == language] for language in raised}
            good += planted.share_on(rule.key, [c for some in spoken.values() for c in some]) >= SELECTIVE
            for some in spoken.values():
                own = planted.share_on(rule.key, some) >= SELECTIVE
                told = [c for c in some if own and planted.often_on(rule.key, c) >= OFTEN]
                cities |= {c for c in told if planted.firing(c)[feature] >= SELECTIVE}
        reported += len(rules)
    return Told(frozenset(cities), good, reported)


def absences(planted: Planted, found: Rules) -> list[Absence]:
    """Confirmed absences that say: a city's language, unless a port is there."""
    return [
        one
        for feature in found.features
        for one in found.absences(feature)
        if planted.is_of(one.rule.query, "speaks")
        and planted.share_on(one.rule.key, SPOKEN_IN) >= SELECTIVE
        and planted.share_on(one.distractor.key, PORTS) >= SELECTIVE
    ]


def counts(planted: Planted, found: Rules) -> list[Count]:
    """Confirmed counts that say: more of one vote than of the other, within a factor of two."""
    return [
        one
        for feature in found.features
        for one in found.counts(feature)
        if planted.is_of(one.query, "were")
        and one.suppress is not None
        and any(planted.is_of(one.attract, a) and planted.is_of(one.suppress, b) for a, b in (VOTES, VOTES[::-1]))
        and 0.5 <= one.ratio <= 2
    ]
