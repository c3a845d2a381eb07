"""The seed study's JSON of attention to entities: two scores per head.

    {next_tok_attn, end_tok_attn: [{layer, head_idx, score}]}

Axes: entry (of a list of heads). Source: github.com/loftusa/attendome.
"""

from pathlib import Path

import numpy as np

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.heads.exchange.fields import get, head_id, head_list, in_order, listed, read_object
from headlens.heads.merge import result_of
from headlens.heads.scores import HeadScores

CONCEPT_KINDS = {"next_tok_attn": "entity_next_attention", "end_tok_attn": "entity_end_attention"}


def read_concept_scores(path: str | Path, *, model: str) -> HeadScores:
    """Return a file of the study's attention to entities, which does not say of which model it is.

    Per head two scores, both of the last query, which repeats what preceded an entity of several tokens, and both
    weighted by the norms of the values: "entity_next_attention" of the entity's first token (what comes next) and
    "entity_end_attention" of its last one.

    Beware of models without BOS. compute_attention_scores.py took every sequence to begin with one. Those of Qwen do
    not, and its indices are off by one there: "next" is then the entity's second token, and "end" the token after
    the entity. Nothing in a file says which version of the script wrote it; do not compare a Qwen model's scores
    with others' unless you know.

    Interval, null and n are unknown and null.

    Raises
    ------
    DataError
        If the file cannot be read, misses a list, lists a head twice or in one list only, or holds something of
        another type or a number that is not finite.
    """
    path = Path(path)
    content, digest = read_object(path)
    tables, seen = [], {}
    for theirs, kind in CONCEPT_KINDS.items():
        where = f"{path}: {theirs}"
        layer, head, score = head_list(get(content, theirs, list, f"{path}"), "head_idx", where)
        if not len(score):
            raise DataError(f"{where} is empty: it should hold every head of {model}.")
        for wrong, what in ((layer < 0) | (head < 0), "has a negative index"), (~np.isfinite(score), "is not finite"):
            if wrong.any():
                raise DataError(f"{where}[{np.flatnonzero(wrong)[0]}] {what}.")
        heads, times = np.unique(np.stack([layer, head]), axis=1, return_counts=True)
        if (times > 1).any():
            at = head_id(model, *heads[:, times > 1][:, 0])
            raise DataError(f"{where} lists {at} {times.max()} times.")
        seen[theirs] = set(map(tuple, heads.T.tolist()))
        tables.append(listed(model, kind, layer, head, score))
    first, second = seen.values()
    if alone := sorted(first ^ second):
        raise DataError(f"{path} has {head_id(model, *alone[0])} in one of {' and '.join(seen)} only.")
    entry = {
        "name": "entities in text",
        "weighting": "norms of the values",
        "source": {"file": path.name, "hash": digest},
    }
    data = {f"{model}: {', '.join(CONCEPT_KINDS.values())}": entry}
    return result_of(in_order(tables), Provenance(({"name": model},), data))
