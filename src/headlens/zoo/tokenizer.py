"""Tokenizers of the zoo, trained on the text world: whole words, bytes merged into pieces, or characters.

Text is first cut so that a space stays with what follows it (" dog"): pieces put side by side are the text
again, and their character offsets tile it. `<bos>` opens every sequence and separates documents.
"""

from collections.abc import Iterable
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TokenizerKind = Literal["word", "bytes", "characters"]

BOS, PAD, UNK = "<bos>", "<pad>", "<unk>"


def train_tokenizer(kind: TokenizerKind, texts: Iterable[str], *, size: int, context: int) -> PreTrainedTokenizerFast:
    """Learn at most `size` tokens from `texts`; `context` is the longest input of the model it is for."""
    tokenizer, alphabet = _untrained(kind)
    common = {"vocab_size": size, "special_tokens": [BOS, PAD, UNK], "show_progress": False}
    if kind == "word":
        trainer = trainers.WordLevelTrainer(**common)
    else:
        trainer = trainers.BpeTrainer(**common, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _untrained(kind: TokenizerKind) -> tuple[Tokenizer, list[str]]:
    """An empty tokenizer of this kind, and the symbols that it must know whatever the texts hold."""
    pieces = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[^A-Za-z\s]|\s"), "isolated")
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, spell])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK) if kind == "word" else models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, []
