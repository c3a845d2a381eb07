"""Where does a head look, and what kind of head is it?"""

from headlens.heads.atlas import HeadAtlas, atlas, label
from headlens.heads.kinds import KINDS, Kind
from headlens.heads.measure import score
from headlens.heads.patterns import AttentionPatterns, attention_patterns
from headlens.heads.scores import HeadScores

__all__ = [
    "KINDS",
    "AttentionPatterns",
    "HeadAtlas",
    "HeadScores",
    "Kind",
    "atlas",
    "attention_patterns",
    "label",
    "score",
]
