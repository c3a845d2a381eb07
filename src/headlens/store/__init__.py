"""What do we keep? Activations of any size on disk, read by site, layer, document and row."""

from headlens.store.activations import ActivationStore, StoredRows
from headlens.store.capture_to import capture_to
from headlens.store.manifest import faults
from headlens.store.rows import ArrayRows, Chosen, Rows, as_rows

__all__ = ["ActivationStore", "ArrayRows", "Chosen", "Rows", "StoredRows", "as_rows", "capture_to", "faults"]
