"""What are the features? Dictionaries of what a model holds: read, checked against the site they are used at."""

from headlens.dictionaries.autoencoder import Autoencoder
from headlens.dictionaries.dictionary import Active, Convention, Dictionary, Split
from headlens.dictionaries.load import load
from headlens.dictionaries.sites import check_site, fitted
from headlens.dictionaries.wrap import Wrapped, wrapped

__all__ = [
    "Active",
    "Autoencoder",
    "Convention",
    "Dictionary",
    "Split",
    "Wrapped",
    "check_site",
    "fitted",
    "load",
    "wrapped",
]
