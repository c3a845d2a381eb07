"""What can be read from a model's states? Attention probes and their rivals."""

from headlens.probes.card import Kept, load, read_card
from headlens.probes.estimator import AttentionProbe, Probe
from headlens.probes.evaluation.baselines import (
    BagOfWords,
    Majority,
    RandomDirection,
    content_words,
    control_labels,
    permuted_labels,
    selectivity,
)
from headlens.probes.evaluation.calibrate import Platt, Temperature
from headlens.probes.evaluation.metrics import Evaluation, entropy_ratio, evaluate
from headlens.probes.evaluation.roc import threshold_at_fpr, tpr_at_fpr
from headlens.probes.linear import LDA, DifferenceOfMeans, Logistic, Ridge, RidgeRegression
from headlens.probes.readings import ProbeReadings, readings
from headlens.probes.stream import Stream
from headlens.probes.sweep import Sweep, sweep
from headlens.probes.training.apply import read_logits
from headlens.probes.training.module import ProbeModule, Shape
from headlens.probes.training.pooling import POOLINGS, Pooling
from headlens.probes.training.train import Spec, Trained, train

__all__ = [
    "LDA",
    "POOLINGS",
    "AttentionProbe",
    "BagOfWords",
    "DifferenceOfMeans",
    "Evaluation",
    "Kept",
    "Logistic",
    "Majority",
    "Platt",
    "Pooling",
    "Probe",
    "ProbeModule",
    "ProbeReadings",
    "RandomDirection",
    "Ridge",
    "RidgeRegression",
    "Shape",
    "Spec",
    "Stream",
    "Sweep",
    "Temperature",
    "Trained",
    "content_words",
    "control_labels",
    "entropy_ratio",
    "evaluate",
    "load",
    "permuted_labels",
    "read_card",
    "read_logits",
    "readings",
    "selectivity",
    "sweep",
    "threshold_at_fpr",
    "tpr_at_fpr",
    "train",
]
