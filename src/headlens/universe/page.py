"""A study as a page: phase 1 beside its baselines, retrieval and detection beside theirs, few texts, outliers, RSA.

It is made of the tables that a study keeps (tables.py), so a saved one gives the same page. Intervals are of 95 %, over
models where nothing else is said.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headlens.universe.measured import FAMILY, HELD_OUT, OURS, REPEATS
from headlens.universe.tables import LEAST, LEFT_BY, UniverseStudy


def page(study: UniverseStudy) -> str:
    """Return the study as Markdown."""
    spaces = study["spaces"].to_pylist()
    asked = list(dict.fromkeys((row["kind"], row["split"]) for row in spaces))
    parts = [
        "## How well are patterns told?\n\nMedians over heads whose position-only KL exceeds "
        f"{LEAST} nats a row; held-out texts, and random words that come again.\n\n{methods_table(study)}",
        *(
            f"## Does like find like? `{kind}`, {split}\n\n{space_table(_rows(spaces, kind=kind, split=split))}"
            for kind, split in sorted(asked, key=lambda pair: pair[1] != FAMILY)
        ),
        f"## Heads that join, on few texts\n\n{few_table(study)}\n\n{few_text(study)}",
        f"## Outliers\n\n{outlier_table(study)}",
        f"## Dissimilarity over texts\n\n{alike_text(study)}",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def methods_table(study: UniverseStudy) -> str:
    """Return medians of every method on both kinds of text, the best on held-out ones first."""
    rows = study["methods"].to_pylist()
    other = {row["method"]: row for row in _rows(rows, text=REPEATS)}
    told = sorted(_rows(rows, text=HELD_OUT), key=lambda row: row["kl"])
    cells = [
        [row["method"], row["heads"], f"{row['kl']:.3f}", *(_limits(x, "skill") for x in (row, other[row["method"]]))]
        for row in told
    ]
    skill = "skill [95 % over models]"
    return table(["method", "heads", "KL, nats a row", skill, f"{skill}, repeats"], cells)


def space_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return retrieval and detection of one kind in every space, and how much ours is ahead."""
    cells = [
        [
            row["space"], row["queries"], *(_limits(row, what, signed=False) for what in ("recall", "mrr", "ap")),
            _limits(row, "gain"), _limits(row, "f1", signed=False), _limits(row, "f1_gain"),
        ]
        for row in rows
    ]  # fmt: skip
    headings = ["space", "queries", "recall@R", "MRR", "AP", f"AP of {OURS} above it", "F1", f"F1 of {OURS} above it"]
    return f"{table(headings, cells)}\n\nChance (prevalence): {rows[0]['prevalence']:.3f}."


def _limits(row: Mapping[str, Any], what: str, *, signed: bool = True) -> str:
    """A value and its interval; nothing where it was not asked."""
    if row[what] is None:
        return ""
    sign = "+" if signed else ""
    value, low, high = (f"{row[name]:{sign}.2f}" for name in (what, f"{what}_low", f"{what}_high"))
    return f"{value} [{low}, {high}]"


def few_table(study: UniverseStudy) -> str:
    """Return the KL of heads that joined on few texts, and how far it is above that of the most."""
    cells = [
        [row["documents"], f"{row['kl']:.3f}", _limits(row, "above"), _limits(row, "skill")]
        for row in _rows(study["few"].to_pylist(), method=OURS)
    ]
    return table(["texts", "mean KL, nats a row", "share above the most texts", "median skill"], cells)


def few_text(study: UniverseStudy) -> str:
    """Return what is told without a decoder, fitted on the same few texts, and how much phase 2 is ahead of it."""
    rows = study["few"].to_pylist()
    of = {(row["method"], row["documents"]): row for row in rows}
    counts = sorted({row["documents"] for row in rows})
    shown = [f"{n} texts" if n > 1 else "1 text" for n in counts]
    most = {method: of[method, counts[-1]]["kl"] for method in dict.fromkeys(row["method"] for row in rows)}
    methods = sorted(most, key=most.__getitem__)
    kls = [[name, *(f"{of[name, n]['kl']:.3f}; {_limits(of[name, n], 'skill')}" for n in counts)] for name in methods]
    gaps = [[name, *(_limits(of[name, n], "gap") for n in counts)] for name in methods if name != OURS]
    return (
        "Beside what is fitted on the same texts of the same heads without a decoder, in as many steps as on all texts "
        f"(the nearest head is chosen by them). Mean KL; median skill.\n\n{table(['method', *shown], kls)}\n\n"
        f"KL of {OURS} minus theirs, of the same heads: below 0, {OURS} tells more.\n\n"
        f"{table([f'{OURS} minus', *shown], gaps)}"
    )


def outlier_table(study: UniverseStudy, most: int = 12) -> str:
    """Return the heads that are flagged, and those next to be."""
    rows = [row for row in study["heads"].to_pylist() if row["unclonable"] is not None]
    flagged = [row for row in rows if row["is_unclonable"] or row["is_uncompressible"]]
    shown = sorted(rows, key=lambda row: min(row["unclonable_q"], row["uncompressible_q"]))[:most]
    cells = [
        [
            f"{row['model']} L{row['layer']}H{row['head']}",
            f"{row['unclonable']:.2f} [{1 - row['clone_skill_high']:.2f}, {1 - row['clone_skill_low']:.2f}] "
            f"(q {row['unclonable_q']:.3f})",
            *(f"{row[column]:.2f}" for column in LEFT_BY),
            f"{row['uncompressible']:.2f} (q {row['uncompressible_q']:.3f})",
            ", ".join(name for name in ("unclonable", "uncompressible") if row[f"is_{name}"]),
        ]
        for row in shown
    ]  # fmt: skip
    told = sum(min(row[column] for column in LEFT_BY) < row["unclonable"] for row in rows)
    said = (
        f"{len(flagged)} of {len(rows)} heads are flagged at 5 % false discoveries. Beside what phase 1 leaves of a "
        "head stands what baselines leave of it (1 - skill): where one of these leaves less, the head can be told and "
        f"its clone missed it ({told} of {len(rows)}); where all leave more, nothing here tells it better."
    )
    headings = ["head", "1 - skill of phase 1 [95 % over texts]", *LEFT_BY.values(), "lost by phase 2", "flagged"]
    return f"{said}\n\n{table(headings, cells)}"


def alike_text(study: UniverseStudy) -> str:
    """Return how alike the texts' dissimilarities are in heads of a kind, of different families, and in other heads."""
    (facts,) = study["facts"].to_pylist()
    cells = [
        [
            f"`{row['kind']}`", row["pairs"], f"{row['rho']:.2f}", _limits(row, "partial_rho"),
            f"{row['significant']} of {row['pairs']}", f"{_limits(row, 'other_rho')} ({row['other_pairs']} pairs)",
        ]
        for row in study["alike"].to_pylist()
    ]  # fmt: skip
    headings = [
        "kind", "pairs of two families", "mean rho", "without length and shared words", "Mantel p at most .05",
        "a head of another kind, likewise",
    ]  # fmt: skip
    said = f"{facts['texts_compared']} texts.\n\n{table(headings, cells)}"
    if facts["rand_index"] is None:
        return said
    index = f"adjusted Rand index {facts['rand_index']:.2f} ({facts['folds']} folds)"
    return f"{said}\n\nClusters of labelled heads agree with their labels: {index}."


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
