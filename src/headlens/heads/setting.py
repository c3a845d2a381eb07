"""What are a model's heads shown? One model, how it is measured, and the stimuli made for it.

    repeats, fixed_repeats, random      tokens drawn from the model's own vocabulary
    text                                the corpus; without one, what the zoo's models know, or else nothing
    entities                            random tokens, some of which are a phrase that comes again
    indirect_objects, needles, tasks    prompts, in English or in the language of the text world

A stimulus that a model cannot be shown is an error, which says why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from headlens import zoo
from headlens._errors import DataError
from headlens.data import stimuli, world
from headlens.data.stimuli import Language, Stimulus
from headlens.data.text import Corpus
from headlens.data.tokens import ordinary_ids
from headlens.models import Model

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many sequences are done, and how many there are."""


@dataclass(frozen=True)
class Protocol:
    """How heads are measured; everything that changes a number is here."""

    num_samples: int = 256
    """Sequences of random tokens, and texts."""
    seq_len: int = 50
    """Tokens of the repeated part."""
    max_gap: int = 40
    """Longest random gap between a part and its repetition."""
    max_tokens: int = 128
    """Where texts are cut, BOS included."""
    num_prompts: int = 32
    """Prompts of each sort; what a kind of head costs where heads are changed one by one."""
    seed: int = 0
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        least = {
            "num_samples": (self.num_samples, 1),
            "seq_len": (self.seq_len, 2),
            "max_gap": (self.max_gap, 0),
            "max_tokens": (self.max_tokens, 4),
            "num_prompts": (self.num_prompts, 2),
            "seed": (self.seed, 0),
            "batch_tokens": (self.batch_tokens, 1),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise DataError(f"{name} must be {bound} or more, not {value}.")


@dataclass(frozen=True)
class Setting:
    """One model, and what its heads are shown; each stimulus is made once."""

    model: Model
    protocol: Protocol
    texts: Corpus | None = None
    progress: Progress | None = None
    _made: dict[str, Stimulus] = field(default_factory=dict)

    def stimulus(self, name: str) -> Stimulus:
        """Return a stimulus of `STIMULI`.

        Raises
        ------
        DataError
            If this model cannot be shown it: it has no tokenizer, too small a vocabulary, too short a context.
        """
        if name not in self._made:
            made = STIMULI[name](self)
            longest = int(made.tokens.lengths.max())
            if longest > self.model.n_ctx:
                raise DataError(f"{name} takes {longest} tokens, and {self.model.name} reads {self.model.n_ctx}.")
            self._made[name] = made
        return self._made[name]

    @cached_property
    def language(self) -> Language:
        """What the model reads: the text world where its tokenizer is one of the zoo's, else English."""
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise DataError(f"{self.model.name} has no tokenizer, so no prompt can be written for it.")
        return "world" if zoo.speaks_world(tokenizer.get_vocab()) else "english"

    def orders(self) -> list[stimuli.Order]:
        """Return the ordered classes that the model's tokenizer spells in single tokens."""
        return stimuli.orders(self.model.tokenizer, language=self.language)

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"{self.model.name}: {what}", done, total)


def allowed_ids(model: Model) -> np.ndarray:
    """Return the ids random stimuli draw from: ordinary tokens of the model's own vocabulary."""
    special = [i for i in (model.bos, model.config.bos_token_id, model.config.eos_token_id) if isinstance(i, int)]
    ids = ordinary_ids(model.tokenizer, model.vocab_size, special)
    if not len(ids):
        raise DataError(f"The tokenizer of {model.name} has no ordinary token: its vocabulary is missing or empty.")
    return ids


def windows_of(model: Model) -> list[int | None]:
    """Return each layer's sliding window, or None."""
    return [model.family.window(model.attention_module(layer)) for layer in range(model.n_layers)]


def _repeats(setting: Setting) -> Stimulus:
    """Repeats that fit the model's vocabulary and context; the gap shrinks before the repeated part."""
    model, p = setting.model, setting.protocol
    ids = allowed_ids(model)
    room = model.n_ctx - (model.bos is not None)
    length = min(p.seq_len, len(ids) // 2, room // 2)
    if length < 2:
        raise DataError(f"{model.name} reads {room} tokens of {len(ids)} ordinary ids: too few to repeat any.")
    max_gap = min(p.max_gap, room - 2 * length)
    return stimuli.repeats(ids, n=p.num_samples, length=length, max_gap=max_gap, bos=model.bos, seed=p.seed)


def _fixed_repeats(setting: Setting) -> Stimulus:
    """R R without BOS and gap, as the study measured that heads/exchange/ reads."""
    p = setting.protocol
    ids = allowed_ids(setting.model)
    length = min(p.seq_len, len(ids) // 2, setting.model.n_ctx // 2)
    return stimuli.repeats(ids, n=p.num_samples, length=length, max_gap=0, bos=None, seed=p.seed)


def _random(setting: Setting) -> Stimulus:
    model, p = setting.model, setting.protocol
    ids = allowed_ids(model)
    length = min(2 * p.seq_len, len(ids), model.n_ctx - 1)
    return stimuli.plain(ids, n=p.num_samples, length=length, bos=model.bos, seed=p.seed)


def _text(setting: Setting) -> Stimulus:
    model, p, texts = setting.model, setting.protocol, setting.texts
    if texts is None:
        if setting.language != "world":
            raise DataError(f"What {model.name} does on text needs a corpus: give one.")
        texts = (document.text for document in world.documents(p.num_samples, seed=p.seed))
    limit = min(p.max_tokens, model.n_ctx)
    return stimuli.passages(texts, model.tokenizer, bos=model.bos, max_tokens=limit)


def _text_or_random(setting: Setting) -> Stimulus:
    try:
        return setting.stimulus("text")
    except DataError:
        if setting.texts is not None:
            raise
        return setting.stimulus("random")


def _entities(setting: Setting) -> Stimulus:
    model, p = setting.model, setting.protocol
    return stimuli.entities(allowed_ids(model), n=p.num_prompts, bos=model.bos, seed=p.seed)


def _prompts(make: Callable[..., Stimulus]) -> Callable[[Setting], Stimulus]:
    def made(setting: Setting) -> Stimulus:
        model, p, language = setting.model, setting.protocol, setting.language
        return make(model.tokenizer, n=p.num_prompts, bos=model.bos, seed=p.seed, language=language)

    return made


STIMULI: dict[str, Callable[[Setting], Stimulus]] = {
    "repeats": _repeats,
    "fixed_repeats": _fixed_repeats,
    "random": _random,
    "text": _text,
    "text or random": _text_or_random,
    "entities": _entities,
    "indirect_objects": _prompts(stimuli.indirect_objects),
    "needles": _prompts(stimuli.needles),
    "tasks": _prompts(stimuli.tasks),
}
