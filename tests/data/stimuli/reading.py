"""Tokenizers to read stimuli with, and what a stimulus says once it is read: an obvious reader to compare with."""

import re
from functools import cache

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from headlens import zoo
from headlens.data import Stimulus
from headlens.data.stimuli import english

BOS = "<s>"


def _english_texts() -> list[str]:
    tables = (english.NAMES, english.CODES, english.DAYS, english.MONTHS, english.NUMBERS, english.DIGITS)
    pools = (*english.GIFT_POOLS.values(), *english.FILLER_POOLS.values(), *(r for r in english.RELATIONS.values()))
    answers = tuple(word for relation in english.RELATIONS.values() for word in relation.values())
    words = [word for table in (*tables, *pools, answers, english.LETTERS) for word in table]
    sentences = [
        *english.GIFTS,
        *english.FILLER,
        *(f"What is the {s} of Ada? The {s} of Ada is" for s in english.SECRETS),
    ]
    return (
        [f"the {word}" for word in words] * 3
        + [re.sub(r"\{\w+\}", "x", s) for s in sentences]
        + ["Q: hot\nA: cold\n\n"]
    )


def _bpe(size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(tokenizer, trainers.BpeTrainer, vocab_size=size, initial_alphabet=alphabet, special_tokens=[BOS])


def _word() -> PreTrainedTokenizerFast:
    """Words without the space before them, as BERT has."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(tokenizer, trainers.WordLevelTrainer, special_tokens=[BOS, "<unk>"])


def _metaspace() -> PreTrainedTokenizerFast:
    """Spaces that may be tokens of their own, as Llama's are."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = [BOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _trained(tokenizer, trainers.BpeTrainer, vocab_size=700, special_tokens=special)


def _tiny() -> PreTrainedTokenizerFast:
    """Few words, by which little can be said."""
    words = (
        "<unk>",
        BOS,
        "the",
        "Mary",
        "John",
        *(["When", "Ada", "Lena", "and", "went", "to", "park", "gave", "a", "book", ",", ".", "of", "is"]),
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, unk_token="<unk>")


def _trained(tokenizer: Tokenizer, trainer, **options) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(_english_texts(), trainer(show_progress=False, **options))
    unk = {"unk_token": "<unk>"} if tokenizer.token_to_id("<unk>") is not None else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, **unk)


ENGLISH = {"large": lambda: _bpe(1500), "small": lambda: _bpe(420), "words": _word, "metaspace": _metaspace}
OTHERS = {"tiny": _tiny}
WORLD = ("word", "bpe-300", "bpe-600", "bpe-1200")
CASES = [*(("english", name) for name in ENGLISH), *(("world", name) for name in WORLD)]
"""Language, and a tokenizer for it."""


@cache
def tokenizer_of(language: str, name: str) -> PreTrainedTokenizerFast:
    made = ENGLISH | OTHERS
    return made[name]() if language == "english" else AutoTokenizer.from_pretrained(zoo.tokenizer_path(name))


def texts(stimulus: Stimulus, tokenizer, mark: str | None = None, *, control: bool = False) -> list[str]:
    """What each sequence says, or its marked tokens do, without any white space: decoders differ in that."""
    tokens = stimulus.control if control else stimulus.tokens
    said = []
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        chosen = np.ones(end - start, bool) if mark is None else stimulus.marks[mark][start:end]
        chosen = chosen & (tokens.ids[start:end] != tokenizer.bos_token_id)
        said.append("".join(tokenizer.decode(tokens.ids[start:end][chosen].tolist()).split()))
    return said


def places(stimulus: Stimulus, mark: str) -> list[list[int]]:
    """Which tokens of each sequence are marked."""
    bounds = zip(stimulus.tokens.offsets[:-1], stimulus.tokens.offsets[1:], strict=True)
    return [np.flatnonzero(stimulus.marks[mark][start:end]).tolist() for start, end in bounds]


def bare(text: str) -> str:
    return "".join(text.split())


def same(first: Stimulus, second: Stimulus) -> bool:
    """Whether all that two stimuli hold is the same."""
    return (
        first.provenance() == second.provenance()
        and first.control.hash == second.control.hash
        and all(np.array_equal(first.marks[m], second.marks[m]) for m in {*first.marks, *second.marks})
        and all(np.array_equal(first.answers[a], second.answers[a]) for a in {*first.answers, *second.answers})
    )
