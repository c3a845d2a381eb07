"""The whole study: clone every head, embed them with some left out, and ask whether like finds like.

    texts  -> training and held-out ones, by hash        patterns -> one folder a model and kind of text
    phase 1: clones and their baselines, on held-out texts and on texts of another kind (random words that come again)
    phase 2: a decoder without one family, or without a quarter of the heads of every model; those that were left out
             join with everything else frozen

Nothing is fitted on held-out texts, and labels come from stimuli that nothing was fitted on either.
measured.py makes the tables that are kept (tables.py), and page.py a page of them.

Axes: as in batches.py and retrieval.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens.axes import HeadId
from headlens.models import Model, load
from headlens.universe import baselines
from headlens.universe.batches import Group, grouped
from headlens.universe.clone import Clones, Training, fit_clones, joined
from headlens.universe.decoder import Decoder, Embedded, Shape, fit_decoder, fit_embeddings
from headlens.universe.embed import divergences, in_spreads, terms_of
from headlens.universe.evaluate import POSITION, Reconstruction, reconstruction, reconstruction_rows
from headlens.universe.features import Alignment, Features, fit_features
from headlens.universe.patterns import Patterns, record_patterns, split_texts
from headlens.universe.retrieval import Fold

OURS, CLONE, SYMBOLIC = "phase 2", "clone", "symbolic"
BASIS_TEXTS = 300
"""Texts that the features' basis is fitted on; of more it changes little."""
WHOLE = 24
"""Held-out texts of which every row is kept, for comparisons on words."""
ALL_ROWS = 1 << 20
PARTS_OF_HEADS = 4
"""Every head is held out once, with a quarter of all."""
FEW = (1, 4, 16, 64, 256)
JOINING = Training(epochs=2, rate=0.01, decay=0.3)
"""How decoders are fitted."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Recorded:
    """Patterns of all models on the texts of a study, and the encoder's features of these texts."""

    features: Features
    train: list[Patterns]
    test: list[Patterns]
    other: list[Patterns]
    """On random words that come again."""
    whole: list[Patterns]
    """Every row, on a few held-out texts."""

    @property
    def families(self) -> dict[str, str]:
        return {patterns.model: patterns.family for patterns in self.train}


def record(
    sources: Sequence[Any],
    texts: Sequence[str],
    encoder: Any,
    work: str | Path,
    *,
    alignment: Alignment = "last",
    n_features: int = 256,
    shift: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    **load_options: Any,
) -> Recorded:
    """Run every model, one at a time, over the texts of a study; killed and called again, it goes on where it was.

    Raises
    ------
    DataError
        If there are too few texts, or one is too long for a model or the encoder.
    """
    train, test = split_texts(texts)
    parts = {"train": train, "test": test, "other": repeated_words(train, seed=seed), "whole": test[:WHOLE]}
    reader = load(encoder, **load_options)
    features = fit_features(reader, train[:BASIS_TEXTS], n_features=n_features, alignment=alignment, shift=shift)
    for part in parts.values():
        features.read(part)
    found: dict[str, list[Patterns]] = {name: [] for name in parts}
    for source in sources:
        model = load(source, **load_options)
        for name, part in parts.items():
            kept = {"rows": ALL_ROWS} if name == "whole" else {}
            folder = Path(work) / _folder(model) / name
            found[name].append(record_patterns(model, part, folder, seed=seed, progress=progress, **kept))
    return Recorded(features, **found)


def _folder(model: Model) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in model.name).lstrip(".")


def repeated_words(texts: Sequence[str], *, n: int = 32, length: int = 12, seed: int = 0) -> list[str]:
    """Return texts of another kind: random words of these, a random gap of others, and the first ones again.

    Raises
    ------
    DataError
        If the texts hold too few different words.
    """
    words = sorted({word for text in texts for word in text.split()})
    if len(words) < 3 * length:
        raise DataError(f"The texts hold {len(words)} different words, and {3 * length} are wanted: give more texts.")
    rng = np.random.Generator(np.random.PCG64([seed, 11]))
    made = []
    for _ in range(n):
        gap = int(rng.integers(0, length))
        drawn = [words[i] for i in rng.permutation(len(words))[: length + gap]]
        made.append(" ".join([*drawn, *drawn[:length]]))
    return made


def clone_study(
    recorded: Recorded, *, rank: int = 16, training: Training | None = None, progress: Progress | None = None
) -> tuple[Clones, Reconstruction, Reconstruction]:
    """Return clones of all heads, and how they and the baselines do on held-out texts, and on those of another kind."""
    training = training or Training()
    features, groups = recorded.features, grouped(recorded.train)
    fitted = [fits_of(group, features, rank=rank, training=training, progress=progress) for group in groups]
    every = joined([own[CLONE] for own in fitted])
    held_out, other = [], []
    for group, own in zip(groups, fitted, strict=True):
        methods = methods_of(group, features, own, every, recorded.families)
        methods["sentence MLP"] = baselines.sentence_mlp(group, features)
        held_out += reconstruction_rows(same_models(recorded.test, group), features, methods)
        other += reconstruction_rows(same_models(recorded.other, group), features, methods)
    provenance = provenance_of(recorded, training.seed, rank=rank, epochs=training.epochs)
    return every, reconstruction(held_out, provenance), reconstruction(other, provenance)


def fits_of(
    group: Group, features: Features, *, rank: int, training: Training, progress: Progress | None = None
) -> dict[str, Clones]:
    """Return clones of all heads of a group, and the fits of less than a text: position alone, and with symbols."""
    quick = Training(epochs=max(1, training.epochs // 2), rate=0.02, decay=0.0, seed=training.seed)
    return {
        CLONE: fit_clones(group, features, rank=rank, training=training, progress=progress),
        POSITION: fit_clones(group, features, rank=0, training=quick),
        SYMBOLIC: fit_clones(group, features, rank=0, symbols=True, training=quick),
    }


def methods_of(
    group: Group,
    features: Features,
    fitted: Mapping[str, Clones],
    every: Clones,
    families: Mapping[str, str],
    *,
    shards: int = 2,
) -> dict[str, baselines.Predictor]:
    """Return clones and baselines of a group's heads, by name.

    Parameters
    ----------
    every
        Clones that the nearest head is chosen from, by the first `shards` shards of the group.
    """
    chosen, _ = baselines.nearest(group, features, every, families, shards=shards)
    return {name: own.log_patterns for name, own in fitted.items()} | {
        "uniform": baselines.uniform,
        "sink": baselines.sink(group, features),
        "mean pattern": baselines.mean_pattern(group, features),
        "nearest head": chosen,
        "shuffled texts": baselines.shuffled(fitted[CLONE]),
    }


def provenance_of(recorded: Recorded, seed: int, **options: Any) -> Provenance:
    """What results of a study came from."""
    manifests = [patterns.manifest for patterns in sorted(recorded.train, key=lambda p: p.model)]
    texts = {key: manifests[0][key] for key in ("texts", "documents", "rows", "seed")}
    data = {"features": recorded.features.described(), "patterns": texts, "options": options}
    return Provenance(tuple(m["model"] for m in manifests), data, seed, "", versions())


def same_models(patterns: Sequence[Patterns], group: Group) -> Group:
    """Return the same models and heads, in the same order, on other texts, and on all of them."""
    named = {member.model: member for member in patterns}
    return Group(tuple(named[model] for model in group.models), group.chosen)


def counts_of(recorded: Recorded, few: Sequence[int] = FEW) -> list[int]:
    """Return the numbers of texts that heads join on, of which there may be fewer."""
    there = int(recorded.train[0].manifest["documents"])
    return sorted({min(n, there) for n in few})


@dataclass(frozen=True)
class Joined:
    """Heads that joined a decoder which was fitted without them."""

    folds: tuple[Fold, ...]
    kl: dict[HeadId, float]
    """On held-out texts, nats a row: of all heads, the joined ones among them."""
    other_kl: dict[HeadId, float]
    """On texts of another kind."""
    few: list[dict[str, Any]]
    """head, documents, kl: of the joined heads, fitted on fewer texts."""

    @property
    def joined(self) -> tuple[HeadId, ...]:
        return tuple(head for fold in self.folds for head in fold.left_out)


def leave_one_family_out(
    recorded: Recorded,
    *,
    training: Training | None = None,
    few: Sequence[int] = FEW,
    shape: Shape | None = None,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Joined]:
    """Fit a decoder without each family in turn, and let the family's heads join.

    Parameters
    ----------
    only
        Families that are left out; None for all.

    Raises
    ------
    DataError
        If there are fewer than two families, or not those named.
    """
    families = sorted(set(recorded.families.values()))
    if len(families) < 2:
        raise DataError(f"All models are of the family {families[0]}: a study needs two or more.")
    if unknown := sorted(set(only or ()) - set(families)):
        raise DataError(f"No model is of the family {unknown[0]}; there are {', '.join(families)}.")
    families = families if only is None else sorted(set(only))
    found, training = [], training or JOINING
    for family in families:
        others = grouped([p for p in recorded.train if p.family != family])
        mine = grouped([p for p in recorded.train if p.family == family])
        said = f"without {family}"
        found.append(_joined(recorded, others, mine, said, training, few, shape or Shape(), progress))
    return found


def leave_heads_out(
    recorded: Recorded, *, training: Training | None = None, progress: Progress | None = None
) -> list[Joined]:
    """Fit a decoder without a quarter of the heads of every model, four times, and let these join."""
    groups, training = grouped(recorded.train), training or JOINING
    heads = sorted(head for group in groups for head in group.heads)
    rng = np.random.Generator(np.random.PCG64([training.seed, 17]))
    part = {head: int(n) for head, n in zip(heads, rng.permutation(len(heads)) % PARTS_OF_HEADS, strict=True)}
    found = []
    for n in range(PARTS_OF_HEADS):
        mine, others = (
            [kept for g in groups if (kept := g.only([h for h in g.heads if (part[h] == n) == out])).heads]
            for out in (True, False)
        )
        found.append(_joined(recorded, others, mine, f"without heads, part {n + 1}", training, (), Shape(), progress))
    return found


def _joined(
    recorded: Recorded,
    others: Sequence[Group],
    mine: Sequence[Group],
    said: str,
    training: Training,
    few: Sequence[int],
    shape: Shape,
    progress: Progress | None,
) -> Joined:
    features = recorded.features

    def told(name: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"{said}: {name}", done, total)

    decoder, embedded = fit_decoder(others, features, shape=shape, training=training, progress=told)
    counts = counts_of(recorded, few or FEW[-1:])
    joining = {"known": embedded, "own": shape.own, "seed": training.seed}
    joins = {n: fit_embeddings(decoder, mine, features, documents=n, **joining) for n in counts}
    new = joins[counts[-1]]
    rows = []
    for n, joined_heads in joins.items() if few else ():
        found = divergences(decoder, joined_heads, [same_models(recorded.test, group) for group in mine], features)
        rows += [{"head": head, "documents": n, "kl": kl} for head, kl in found.items()]
    kls = []
    for texts in (recorded.test, recorded.other):
        kl = divergences(decoder, embedded, [same_models(texts, group) for group in others], features)
        kls.append(kl | divergences(decoder, new, [same_models(texts, group) for group in mine], features))
    return Joined(folds_of(recorded.families, decoder, embedded, new), kls[0], kls[1], rows)


def folds_of(families: Mapping[str, str], decoder: Decoder, embedded: Embedded, new: Embedded) -> tuple[Fold, ...]:
    """Return the space of a decoder: for each family of heads that joined, these and the fitted heads of others."""
    old, joined_terms = terms_of(decoder, embedded.e), terms_of(decoder, new.e)
    known, places = in_spreads(old, old), in_spreads(joined_terms, old)
    folds = []
    for family in sorted({families[head.model] for head in new.heads}):
        mine = [i for i, head in enumerate(new.heads) if families[head.model] == family]
        others = [i for i, head in enumerate(embedded.heads) if families[head.model] != family]
        sides = tuple(embedded.heads[i] for i in others), tuple(new.heads[i] for i in mine)
        folds.append(Fold(family, sides[0], known[others], sides[1], places[mine]))
    return tuple(folds)


def labelled(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[HeadId]]:
    """Return which heads are of which kind, from the rows of a `HeadAtlas`."""
    found: dict[str, set[HeadId]] = {}
    for row in rows:
        if row["level"] in ("medium", "high"):
            found.setdefault(row["kind"], set()).add(HeadId(row["model"], row["layer"], row["head"]))
    return found


def whole_texts(recorded: Recorded) -> list[str]:
    """Return the texts of which every row was kept, in order."""
    return [text for shard in recorded.whole[0].shards() for text in shard.texts]
