"""What kinds of head are called on a page: a word short enough for a cell, and the group that they stand in.

A kind that is not here goes by its raw name, among the others; tests/report hold this table to `heads.KINDS`.
"""

from headlens.heads.kinds import KINDS

_LOOKS, _WRITES, _CHANGES = "Where it looks", "What it writes", "What the model does with it"
OTHERS = "Others"
_NAMES = {
    "previous_token": ("Prev", _LOOKS),
    "offset": ("Offs", _LOOKS),
    "self": ("Self", _LOOKS),
    "sink": ("Sink", _LOOKS),
    "delimiter": ("Delim", _LOOKS),
    "duplicate_token": ("Dup", _LOOKS),
    "induction": ("Ind", _LOOKS),
    "fixed_gap_induction": ("FixInd", _LOOKS),
    "name_mover": ("Name", _LOOKS),
    "giver_attention": ("Giver", _LOOKS),
    "query_focused_retrieval": ("Query", _LOOKS),
    "entity_end_attention": ("End", _LOOKS),
    "copying_eigenvalues": ("Eig", _WRITES),
    "copying_top1": ("Top1", _WRITES),
    "copying_logits": ("Copy", _WRITES),
    "copy_suppression": ("Supp", _WRITES),
    "successor": ("Succ", _WRITES),
    "s_inhibition": ("S-inh", _CHANGES),
    "retrieval": ("Retr", _CHANGES),
    "concept_induction": ("Conc", _CHANGES),
    "function_vector": ("FV", _CHANGES),
}
_SPELT = {
    "fixed_gap_induction": "Fixed-gap induction",
    "query_focused_retrieval": "Query-focused retrieval",
    "copying_top1": "Copying top-1",
    "s_inhibition": "S-inhibition",
}
"""Names that are more than their words."""


def described(kind: str) -> dict[str, str | float | None]:
    """Return what a page says of a kind; `high` is the excess from which on a head is one, strongly."""
    if kind not in KINDS:  # measured by someone else: it goes by its raw name
        return {"kind": kind, "name": None, "short": None, "group": OTHERS, "meaning": None, "high": None}
    short, group = _NAMES.get(kind, (None, OTHERS))
    return {
        "kind": kind,
        "name": _SPELT.get(kind, kind.replace("_", " ").capitalize()),
        "short": short,
        "group": group,
        "meaning": f"{KINDS[kind].definition.capitalize()}.",
        "high": KINDS[kind].high,
    }
