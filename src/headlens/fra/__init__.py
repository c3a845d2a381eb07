"""Why does a head look where it looks? Its scores, taken apart into pairs of features."""

from headlens.fra.attention import FeatureAttention, Pair
from headlens.fra.channels import ChannelStats, channels
from headlens.fra.cut import CutEffects, cut_effects
from headlens.fra.labels import FeatureLabels, label_features, read_labels
from headlens.fra.pairs import all_pairs, sparse_pairs, top_pairs
from headlens.fra.resolve import resolve
from headlens.fra.sides import OTHERS, Side, sides

__all__ = [
    "OTHERS",
    "ChannelStats",
    "CutEffects",
    "FeatureAttention",
    "FeatureLabels",
    "Pair",
    "Side",
    "all_pairs",
    "channels",
    "cut_effects",
    "label_features",
    "read_labels",
    "resolve",
    "sides",
    "sparse_pairs",
    "top_pairs",
]
