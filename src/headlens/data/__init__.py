"""What do we read? Text, tokens, stimuli and the text world."""

from headlens.data.tokens import Tokens, ordinary_ids, pack, pad, tokenize

__all__ = ["Tokens", "ordinary_ids", "pack", "pad", "tokenize"]
