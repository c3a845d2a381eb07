"""A universe of heads to show, whose neighbours are known: each kind of head has a direction of its own in every model."""

import numpy as np
import pyarrow as pa
import torch

from headlens._result import Provenance
from headlens.axes import HeadId
from headlens.heads.patterns import AttentionPatterns
from headlens.universe.batches import POSITIONAL
from headlens.universe.decoder import Decoder, Embedded
from headlens.universe.embed import HeadUniverse
from headlens.universe.features import Basis
from headlens.universe.tables import LEFT_BY, SCHEMAS, UniverseStudy
from tests.report.shown_results import causal_attention, quantised

MODELS = {"zoo:gpt2-small": (2, 3), "zoo:llama-small": (3, 2), "org/<b>other</b>": (2, 2)}
FAMILIES = {"zoo:gpt2-small": "GPT-2", "zoo:llama-small": "Llama", "org/<b>other</b>": "Other"}
INDUCTION = {("zoo:gpt2-small", 1, 2), ("zoo:llama-small", 2, 0), ("org/<b>other</b>", 1, 1)}
"""These lie in one direction; all other heads anywhere."""
TEXTS = {
    "zoo:gpt2-small": ("<s>", "The", " cat", " sat", ". The", " cat", " sat"),
    "zoo:llama-small": ("The", " c", "at", " sat", ".", " The", " c", "at", " sat"),
    "org/<b>other</b>": ("<s>", "The", " cat sat", ".", " The", " cat sat"),
}
SIZE = 6


def heads_of(models=MODELS):
    return [HeadId(m, layer, head) for m, shape in sorted(models.items()) for layer, head in np.ndindex(shape)]


def made(names):
    rows = tuple({"name": name, "family": FAMILIES.get(name, "Other"), "revision": None} for name in names)
    return Provenance(rows, {}, 0, "headlens universe fit", {})


def make_decoder(generator, parts=4, width=3, rank=2, hidden=5):
    out = parts + POSITIONAL
    shapes = ((parts, width, rank), (parts, width, rank), (SIZE, out), (SIZE, hidden), (hidden, out), (out,))
    return Decoder(*(torch.randn(shape, generator=generator) for shape in shapes))


def make_universe(heads=None, *, fitted=None, seed=0, order=None):
    """Embeddings at random, but for induction heads, which are alike; `order`: that in which heads stand."""
    heads = heads_of() if heads is None else heads
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(len(heads), SIZE, generator=generator)
    alike = torch.randn(SIZE, generator=generator)
    for i, head in enumerate(heads):
        if tuple(head) in INDUCTION:
            e[i] = 3 * alike + 0.1 * e[i]
    order = list(range(len(heads))) if order is None else order
    models = tuple(sorted({head.model for head in heads}))
    embedded = Embedded(tuple(heads[i] for i in order), e[order], models, torch.zeros(len(models), 2))
    basis = Basis(np.zeros(4), np.ones(4), np.zeros((4, 3)), 2)
    decoder = make_decoder(torch.Generator().manual_seed(1))
    kl = 0.1 * np.arange(len(heads), dtype=np.float64)
    return HeadUniverse(made(models), embedded, decoder, basis, kl[order], models if fitted is None else fitted)


def make_texts(model, *, n=1, seed=0):
    rng = np.random.default_rng(seed)
    tokens = (TEXTS[model], *((f" again{i}",) * 3 for i in range(1, n)))
    attention = [causal_attention(rng, *MODELS[model], len(row)) for row in tokens]
    return AttentionPatterns(made([model]), model, tokens, tuple(map(quantised, attention))), attention


def make_study(heads=None, *, judged=True, **changed):
    heads = heads_of() if heads is None else heads
    positives = [head for head in heads if tuple(head) in INDUCTION]
    rows = []
    for i, head in enumerate(heads):
        told = judged and i % 5 != 4
        u = 0.3 + 0.05 * i
        rows.append(
            head._asdict() | {
                "family": FAMILIES[head.model], "kinds": ["induction"] if head in positives else ["my_kind"] * (i == 0),
                "position_kl": 0.5, "clone_kl": 0.2, "joined_kl": 0.3, "clone_skill": 0.6, "clone_skill_low": 0.5,
                "clone_skill_high": 0.7, "joined_skill": 0.4, "unclonable": u if told else None,
                "unclonable_q": (0.9 - 0.06 * i if told else None), "is_unclonable": told and i >= 15,
                "uncompressible": 0.2 if told else None, "uncompressible_q": 0.99 if told else None,
                "is_uncompressible": False, **{name: u + 0.1 * k for k, name in enumerate(LEFT_BY, 1)},
            }
        )  # fmt: skip
    spaces, queries = [], []
    for split in ("family left out", "heads held out"):
        for space, value in (("phase 2", 0.9), ("random", 0.2)):
            told = {"split": split, "kind": "induction", "space": space, "queries": 3, "prevalence": 0.125}
            for name in ("recall", "mrr", "ap", "f1", "gain", "f1_gain"):
                own = (
                    None
                    if (name.endswith("gain") and space == "phase 2")
                    or (name.startswith("f1") and split != "family left out")
                    else value
                )
                told |= {name: own, f"{name}_low": own and own - 0.1, f"{name}_high": own and own + 0.05}
            spaces.append(told)
            for head in positives:
                others = [other for other in heads if other.model != head.model]
                others.sort(key=lambda other: (other not in positives) if space == "phase 2" else other.head)
                near = [o._asdict() | {"distance": 0.1 * k, "relevant": o in positives} for k, o in enumerate(others)]
                own = {"recall": value, "mrr": 0.5, "ap": value, "prevalence": 0.125, "nearest": near}
                queries.append({"split": split, "kind": "induction", "space": space} | head._asdict() | own)
    methods = [
        {"method": m, "text": t, "heads": 16, "kl": 0.3, "skill": s, "skill_low": s - 0.1, "skill_high": s + 0.1}
        for t in ("held out", "repeats") for m, s in (("clone", 0.6), ("uniform", -0.3))
    ]  # fmt: skip
    few = [
        {"method": m, "documents": n, "heads": 16, "kl": kl, "above": 0.1, "skill": 0.2, "gap": gap}
        for n in (1, 16) for m, kl, gap in (("phase 2", 0.7, None), ("clone", 0.9, -0.2))
    ]  # fmt: skip
    tables = {"heads": rows, "methods": methods, "spaces": spaces, "queries": queries, "few": few} | changed
    return UniverseStudy(made(sorted(MODELS)), {k: _table(tables.get(k, []), k) for k in SCHEMAS})


def _table(rows, name):
    names = SCHEMAS[name].names
    return pa.Table.from_pylist([dict.fromkeys(names) | row for row in rows], SCHEMAS[name])
