"""What can be read from a model's states? Attention probes and their rivals."""

from headlens.probes.apply import read_logits
from headlens.probes.estimator import AttentionProbe, Probe
from headlens.probes.module import ProbeModule, Shape
from headlens.probes.pooling import POOLINGS, Pooling
from headlens.probes.stream import Stream
from headlens.probes.train import Spec, Trained, train

__all__ = [
    "POOLINGS",
    "AttentionProbe",
    "Pooling",
    "Probe",
    "ProbeModule",
    "Shape",
    "Spec",
    "Stream",
    "Trained",
    "read_logits",
    "train",
]
