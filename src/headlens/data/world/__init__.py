"""A small text world: seeded documents whose regularities are planted, so that their labels are known.

    config       how much of each regularity?
    lexicon      which words are there?
    sentences    which sentences is plain text made of?
    scene        what is drawn, and how does it become a line?
    plain        what does a document say when it plants nothing?
    planted      what comes back?
    rules        what follows from a rule?
    labels       what can be said of a whole document?
    document     how does a document come about?

Document i depends on (seed, i) and the config alone, and only on the 64-bit words of PCG64: the same seed gives
the same bytes on every machine. `docs/world.md` has a page on it; `headlens world` writes it to a file.
"""

from headlens.data.world.config import WITHOUT_REPEATS, WorldConfig
from headlens.data.world.document import ANSWERS, Document, documents, nth_document
from headlens.data.world.labels import Labels
from headlens.data.world.scene import Span

__all__ = ["ANSWERS", "WITHOUT_REPEATS", "Document", "Labels", "Span", "WorldConfig", "documents", "nth_document"]
