"""Which head of another model is like it? Patterns cloned from an encoder's states, and every head in one space.

patterns    what did every head attend to?             features     what does an encoder know of each token?
batches     both side by side                          clone        one map a head (phase 1)
decoder     one decoder for all heads (phase 2)        embed        HeadUniverse
baselines, evaluate, retrieval, outliers, rsa          study        all of it, in one go
spaces      baselines of the space                     tables       what a study keeps (measured), and its page
ablations   the decoder with one part changed           few          heads that join on few texts, and baselines
"""

from headlens.universe.batches import grouped
from headlens.universe.clone import Clones, Training, fit_clones
from headlens.universe.embed import HeadUniverse, fit_universe
from headlens.universe.evaluate import Reconstruction
from headlens.universe.features import Features, fit_features
from headlens.universe.patterns import Patterns, open_patterns, record_patterns, split_texts
from headlens.universe.tables import UniverseStudy

__all__ = [
    "Clones",
    "Features",
    "HeadUniverse",
    "Patterns",
    "Reconstruction",
    "Training",
    "UniverseStudy",
    "fit_clones",
    "fit_features",
    "fit_universe",
    "grouped",
    "open_patterns",
    "record_patterns",
    "split_texts",
]
