"""Models set by hand, of which everything is known: what methods are checked against.

    c = constructed.build("induction")     hl.load(c.model, tokenizer=c.tokenizer)     print(c.proof)

Files, in the order in which data flows: vocabulary.py (words), wiring.py (a head as lists of named terms), heads.py
(one function per kind of head), designs.py (one per model, with its proof), maps.py (terms to matrices),
blank.py (norms that do nothing), gpt2.py and llama.py (matrices to weights), construction.py (what one calls).
"""

from headlens.zoo.constructed.construction import Architecture, Constructed, build, names
from headlens.zoo.constructed.wiring import Wiring

__all__ = ["Architecture", "Constructed", "Wiring", "build", "names"]
