"""Where does a head look, what does it write, and what kind of head is it?"""

from headlens.heads.atlas import HeadAtlas, atlas, label
from headlens.heads.circuit_tokens import HeadCircuits, head_circuits
from headlens.heads.exchange import read_concept_scores, read_legacy_maps, read_study, write_study
from headlens.heads.kinds import KINDS, Kind
from headlens.heads.measure import score
from headlens.heads.merge import merge
from headlens.heads.patterns import AttentionPatterns, attention_patterns
from headlens.heads.scores import HeadScores

__all__ = [
    "KINDS",
    "AttentionPatterns",
    "HeadAtlas",
    "HeadCircuits",
    "HeadScores",
    "Kind",
    "atlas",
    "attention_patterns",
    "head_circuits",
    "label",
    "merge",
    "read_concept_scores",
    "read_legacy_maps",
    "read_study",
    "score",
    "write_study",
]
