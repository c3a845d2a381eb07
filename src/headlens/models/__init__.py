"""What is a head? Models, the table of architectures, and each head's exact maps."""

from headlens.models.families import FAMILIES, Family
from headlens.models.head import Head
from headlens.models.load import load
from headlens.models.model import Model

__all__ = ["FAMILIES", "Family", "Head", "Model", "load"]
