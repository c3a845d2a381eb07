"""How do head scores come from and go to other people's files?

    read_study              JSON of the seed study (attendome): one induction score per head, levels by threshold
    write_study             the same, with what the study does not record: seed, revision, dtype, BOS, tokenizer
    read_concept_scores     JSON of its attention to entities: two scores per head
    read_legacy_maps        its pickles of attention maps, or of distances between them

A file is read whole or refused, with the place of what is wrong.
"""

from headlens.heads.exchange.concepts import read_concept_scores
from headlens.heads.exchange.legacy import read_legacy_maps
from headlens.heads.exchange.read_study import read_study
from headlens.heads.exchange.write_study import write_study

__all__ = ["read_concept_scores", "read_legacy_maps", "read_study", "write_study"]
