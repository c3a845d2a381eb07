"""What happened inside? Sites, capture, edits, and the proof that heads are read right."""

from headlens.tracing.capture import Batch, capture
from headlens.tracing.edit import Edit, ablate, cut, edit, patch
from headlens.tracing.sites import site_names
from headlens.tracing.verify import ParityReport, verify

__all__ = [
    "Batch",
    "Edit",
    "ParityReport",
    "ablate",
    "capture",
    "cut",
    "edit",
    "patch",
    "site_names",
    "verify",
]
