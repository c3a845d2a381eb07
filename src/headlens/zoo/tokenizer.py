"""Tokenizers of the zoo, trained on the text world: words, bytes or characters merged into pieces, characters.

Text is first cut so that a space stays with what follows it (" dog"): pieces put side by side are the text
again, and their character offsets tile it. `<bos>` opens every sequence and separates documents. The
character tokenizers know all of Latin-1, most of which the world never writes.

`python -m headlens.zoo.tokenizer` writes the five that ship in `zoo/tokenizers/`; the same texts give the
same files.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headlens._files import whole_folder
from headlens.data import world

TokenizerName = Literal["word", "bpe-300", "bpe-600", "bpe-1200", "characters"]

SIZES: dict[TokenizerName, int] = {"word": 1000, "bpe-300": 300, "bpe-600": 600, "bpe-1200": 1200, "characters": 0}
"""Tokens at most, with the special ones; never fewer than the symbols that must be known."""
TEXTS, SEED = 4000, 0
"""The documents that tokenizers learn from."""
BOS, PAD, UNK = "<bos>", "<pad>", "<unk>"
LATIN_1 = [chr(i) for i in (*range(0x20, 0x7F), *range(0xA1, 0x100)) if i != 0xAD]


def train_tokenizer(name: TokenizerName, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the tokenizer `name` from texts."""
    tokenizer, alphabet = _untrained(name)
    special = [BOS, PAD, UNK]
    size = max(SIZES[name], len(alphabet) + len(special))
    common = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if name == "word":
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
        clean_up_tokenization_spaces=False,
    )


def _untrained(name: TokenizerName) -> tuple[Tokenizer, list[str]]:
    """An empty tokenizer, and the symbols that it must know whatever the texts hold."""
    pieces = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[^A-Za-z\s]|\s"), "isolated")
    if name in ("bpe-600", "bpe-1200"):
        tokenizer = Tokenizer(models.BPE())
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, spell])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK) if name == "word" else models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, LATIN_1 if name == "characters" else []


def world_tokenizer(name: TokenizerName) -> PreTrainedTokenizerFast:
    """The tokenizer `name`, trained on the first `TEXTS` documents of the text world."""
    return train_tokenizer(name, (document.text for document in world.documents(TEXTS, seed=SEED)))


def main(out: Path = Path(__file__).parent / "tokenizers") -> None:
    """Write all tokenizers to folders below `out`."""
    for name in SIZES:
        with whole_folder(out / name) as folder:
            world_tokenizer(name).save_pretrained(folder)


if __name__ == "__main__":
    main()
