"""A phrase of several tokens that comes again: will a head look for its next token, or for its end?

    entities     BOS  C  E  G  C       C: `context` random ids; E: the entity; G: a random-length gap of other ids
      control    BOS  C  E  G  C'      C': as many fresh ids, so nothing says that E comes next

After the second C, token induction attends to the first token of E (marked `start`), concept induction to the
last one (`last`). All ids of a sequence are different but those that come again, and the gap is of random length,
so neither place can be found by counting back. The last token is marked `end`; `answers` are the first
and second token of E.

Marks are places in the sequence as it stands, BOS included. Axes: see data/tokens.py. Source: Feucht et al. 2025.
"""

from collections.abc import Sequence

import numpy as np

from headlens.data.stimuli.stimulus import Stimulus, allow_list, check_sizes, sequence
from headlens.data.tokens import pack


def entities(
    ids: Sequence[int] | np.ndarray,
    *,
    n: int,
    context: int = 10,
    entity: int = 3,
    max_gap: int = 20,
    bos: int | None,
    seed: int,
) -> Stimulus:
    """Return random sequences in which an entity's context comes again, up to where the entity would.

    Parameters
    ----------
    context, entity
        Tokens of the context (1 or more) and of the entity (2 or more).
    max_gap
        Most tokens between the entity and its context's return; fewer where the allow-list is short.

    Raises
    ------
    DataError
        If the allow-list has fewer ids than an entity and two contexts, or a size is out of range.
    """
    check_sizes("entities", 1, n=n, context=context)
    check_sizes("entities", 2, entity=entity)
    check_sizes("entities", 0, max_gap=max_gap, seed=seed)
    needed = 2 * context + entity
    ids = allow_list(ids, needed, "entities")
    max_gap = min(max_gap, len(ids) - needed)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, controls, places, named = [], [], [], []
    for _ in range(n):
        order = rng.permutation(ids)
        before, phrase, fresh, rest = np.split(order, np.cumsum([context, entity, context]))
        gap = rest[: rng.integers(0, max_gap + 1)]
        rows.append(sequence(bos, before, phrase, gap, before))
        controls.append(sequence(bos, before, phrase, gap, fresh))
        start = int(bos is not None) + context
        places.append((start, start + entity - 1, len(rows[-1]) - 1))
        named.append(phrase)
    tokens = pack(rows)
    where = tokens.offsets[:-1, None] + np.array(places)
    marks = {name: np.isin(np.arange(len(tokens.ids)), where[:, i]) for i, name in enumerate(("start", "last", "end"))}
    answers = {name: np.array([phrase[i] for phrase in named]) for i, name in enumerate(("first", "second"))}
    recipe = {"context": context, "entity": entity, "max_gap": max_gap, "seed": seed, "allowed_ids": len(ids)}
    return Stimulus("entities", tokens, bos, pack(controls), recipe, marks, answers)
