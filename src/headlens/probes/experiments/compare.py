"""Does attention beat mean and last token, and where does it not? The table of a study, from the pieces of `run`.

    value     of every pooling at every site, with a 95 % interval over documents
    gain      of one pooling over another at the same site, from the same draws of documents
    verdict   "win" where the gain's interval lies above 0, "loss" where it lies below, else "tie"
    higher    how often the value is higher, sure or not: what studies without intervals count as a win
    entropy   H(attention) / log(tokens), mean over heads and documents: 0 one token, 1 all alike

Sites of one model share documents, so that their verdicts are no independent trials: a tally counts, it does not test.

Axes: cell = (set, data, model, site); config = (pooling, n_heads, optimizer).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headlens._errors import DataError, OutputError, ResultError
from headlens._files import whole_folder
from headlens.probes.experiments.pieces import Piece
from headlens.probes.experiments.text_sweep import RIVALS, beside
from headlens.probes.sweep import Sweep
from headlens.probes.training.pooling import POOLINGS

FILES = ("values.parquet", "gains.parquet", "comparison.md", "comparison.html")
CELL = ("set", "data", "model", "site", "layer")
_CONFIG = ("pooling", "n_heads", "optimizer")
AGAINST = ("mean", "last", "bag_of_words")
"""What attention is held against in words."""


class Pair(NamedTuple):
    """How one config fared against another, over all cells that have both."""

    name: str
    other: str
    cells: int
    wins: int
    ties: int
    losses: int
    higher: int
    gain: float
    """Mean over cells."""


@dataclass(frozen=True)
class Comparison:
    """The values of all configs in all cells, and the gains of each over each."""

    metric: str
    values: pa.Table
    """A row for each cell and config: `CELL`, config, its name, value, low, high, n, entropy."""
    gains: pa.Table
    """A row for each cell and two configs: `CELL`, both configs, both names, gain, low, high, verdict."""

    @property
    def names(self) -> list[str]:
        """Configs by the names that tables have for them, rivals first."""
        found = dict.fromkeys(self.values["name"].to_pylist())
        return sorted(found, key=lambda name: name not in RIVALS)

    @property
    def cells(self) -> list[tuple[Any, ...]]:
        return list(dict.fromkeys(zip(*(self.values[name].to_pylist() for name in CELL), strict=True)))

    def pairs(self) -> list[Pair]:
        """Return how each config fared against each other, both ways round."""
        found: dict[tuple[str, str], list[tuple[float, str]]] = {}
        for row in self.gains.to_pylist():
            name, other, gain = row["name"], row["other_name"], row["gain"]
            found.setdefault((name, other), []).append((gain, row["verdict"]))
            found.setdefault((other, name), []).append((-gain, _TURNED[row["verdict"]]))
        return [_pair(*names, outcomes) for names, outcomes in found.items()]

    def heads(self) -> pa.Table:
        """Return a row for each pooling of several heads, data set and number of heads."""
        rows = [row for row in self.values.to_pylist() if _several(row["pooling"])]
        groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["pooling"], row["optimizer"], row["data"], row["n_heads"]), []).append(row)
        fewest = {key[:3]: min(k[3] for k in groups if k[:3] == key[:3]) for key in groups}
        outcomes = self._outcomes()
        table = []
        for key in sorted(groups):
            own = groups[key]
            base = [_cell(row) for row in own]
            name, one = own[0]["name"], fewest[key[:3]]
            first = next(row["name"] for row in groups[(*key[:3], one)])
            against = [outcomes[cell, name, first] for cell in base if (cell, name, first) in outcomes]
            entropy = [row["entropy"] for row in own if row["entropy"] is not None]
            said = Counter(verdict for _, verdict in against)
            table.append(
                {"pooling": key[0], "optimizer": key[1], "data": key[2], "n_heads": key[3], "cells": len(own),
                 "value": float(np.mean([row["value"] for row in own])), "over": one,
                 "gain": float(np.mean([gain for gain, _ in against])) if against else None,
                 "wins": said["win"], "ties": said["tie"], "losses": said["loss"],
                 "entropy": float(np.mean(entropy)) if entropy else None}
            )  # fmt: skip
        return pa.Table.from_pylist(table) if table else pa.table({"pooling": pa.array([], pa.string())})

    def verdicts(self, name: str, other: str) -> dict[str, list[tuple[Any, ...]]]:
        """Return the cells in which one config wins, ties and loses against another."""
        found: dict[str, list[tuple[Any, ...]]] = {"win": [], "tie": [], "loss": []}
        for (cell, a, b), (_, verdict) in self._outcomes().items():
            if (a, b) == (name, other):
                found[verdict].append(cell)
        return found

    def _outcomes(self) -> dict[tuple[tuple[Any, ...], str, str], tuple[float, str]]:
        found = {}
        for row in self.gains.to_pylist():
            cell, name, other = _cell(row), row["name"], row["other_name"]
            found[cell, name, other] = row["gain"], row["verdict"]
            found[cell, other, name] = -row["gain"], _TURNED[row["verdict"]]
        return found


_TURNED = {"win": "loss", "loss": "win", "tie": "tie"}


def compare(pieces: Mapping[Piece, Sweep], *, metric: str = "auroc") -> Comparison:
    """Return what the finished pieces of an experiment come to, every site beside what its texts say by themselves.

    Raises
    ------
    DataError
        If there is no such metric, or a piece and its texts are of other documents.
    ResultError
        If no piece is of a model.
    """
    optimizers = {config.optimizer for sweep in pieces.values() for config in sweep.configs if config.optimizer}
    values, gains = [], []
    for piece, sweep in pieces.items():
        if piece.model is None:
            continue
        rivals = pieces.get(Piece(piece.set, piece.data, None, ""))
        both = beside(sweep, [] if rivals is None else [rivals])
        place = {"set": piece.set, "data": piece.data, "model": piece.model}
        values += [place | row | {"name": _name(row, optimizers)} for row in both.summary((metric,)).to_pylist()]
        for row in both.differences(metric).to_pylist():
            other = {name: row[f"other_{name}"] for name in _CONFIG}
            gains.append(place | row | {"name": _name(row, optimizers), "other_name": _name(other, optimizers)})
    if not values:
        raise ResultError("No piece of these runs is of a model yet: run headlens probe sweep again, it goes on.")
    if all(np.isnan(row["value"]) for row in values):
        raise DataError(f"No piece has a value of {metric}: name another metric.")
    both = [
        pa.Table.from_pylist(rows) if rows else pa.table({"name": pa.array([], pa.string())})
        for rows in (values, gains)
    ]
    return Comparison(metric, *both)


def _name(config: Mapping[str, Any], optimizers: set[str]) -> str:
    """The name that a table has for a config: attention-8, mean, mean (lbfgs) where there are several optimizers."""
    pooling = config["pooling"]
    heads = f"-{config['n_heads']}" if _several(pooling) else ""
    which = f" ({config['optimizer']})" if len(optimizers) > 1 and config["optimizer"] else ""
    return f"{pooling}{heads}{which}"


def _several(pooling: str) -> bool:
    return pooling in POOLINGS and POOLINGS[pooling].several_heads


def _cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def _pair(name: str, other: str, outcomes: Sequence[tuple[float, str]]) -> Pair:
    said = Counter(verdict for _, verdict in outcomes)
    gains = [gain for gain, _ in outcomes]
    higher = sum(gain > 0 for gain in gains)
    return Pair(name, other, len(gains), said["win"], said["tie"], said["loss"], higher, float(np.mean(gains)))


# --- as text ----------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Something to read: a title, a sentence or two, and a table, its first line the names of columns."""

    title: str
    text: str
    table: list[list[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    """Places of the table, counted without its first line, that stand out."""


def blocks(comparison: Comparison) -> list[Block]:
    """Return what Markdown, a page and a terminal show."""
    return [
        block for block in (_values(comparison), _in_words(comparison), _tally(comparison), _heads(comparison)) if block
    ]


def _values(comparison: Comparison) -> Block:
    names, rows = comparison.names, {}
    for row in comparison.values.to_pylist():
        rows.setdefault(_cell(row), {})[row["name"]] = row
    sets = len({cell[0] for cell in rows}) > 1
    table, strong = [[*(["set"] if sets else []), "data", "model", "site", "n", *names]], set()
    for i, (cell, own) in enumerate(rows.items()):
        places = [cell[0]] if sets else []
        told = {name: row["value"] for name, row in own.items() if row["value"] == row["value"]}
        best = _best(told, comparison.metric)
        n = str(next(iter(own.values()))["n"])
        table.append(
            [*places, cell[1], cell[2], _short_site(cell[3]), n, *(_interval(own.get(name)) for name in names)]
        )
        strong |= {(i, len(places) + 4 + j) for j, name in enumerate(names) if name in best}
    means = []
    for name in names:
        have = [own[name]["value"] for own in rows.values() if name in own]
        means.append(f"{np.mean(have):.3f}" if len(have) == len(rows) else "")
    table.append([*([""] if sets else []), "mean of all", "", "", "", *means])
    text = (
        f"{comparison.metric} on documents that neither trained a probe nor chose anything for it; 95 % bootstrap "
        "intervals over documents. In bold the best of each line."
    )
    return Block("Every pooling at every site", text, table, frozenset(strong))


def _best(told: Mapping[str, float], metric: str) -> list[str]:
    if not told:
        return []
    top = (min if metric in ("log_loss", "ece", "brier") else max)(told.values())
    return [name for name, value in told.items() if value == top]


def _in_words(comparison: Comparison) -> Block | None:
    pooling = dict(zip(*(comparison.values[name].to_pylist() for name in ("name", "pooling")), strict=True))
    attention = [name for name in comparison.names if pooling[name] == "attention"]
    lines = []
    for name in attention:
        for other in comparison.names:
            if pooling[other] not in AGAINST:
                continue
            pair = next((one for one in comparison.pairs() if (one.name, one.other) == (name, other)), None)
            if pair is not None:
                found = comparison.verdicts(name, other)
                lines.append([name, other, f"{pair.gain:+.3f}", *(_cells(found[kind]) for kind in ("win", "loss")),
                              str(len(found["tie"]))])  # fmt: skip
    if not lines:
        return None
    text = "Surely: the 95 % interval of the gain, over the same draws of documents for both, does not hold 0."
    return Block(
        "Where attention is better, and where it is not", text,
        [["", "against", "mean gain", "surely better", "surely worse", "undecided"], *lines],
    )  # fmt: skip


def _cells(cells: Sequence[tuple[Any, ...]]) -> str:
    """How many cells, and where they are: "3: emotion minilm 0, 3; stance stories 4"."""
    where: dict[str, list[str]] = {}
    for _, data, model, site, layer in cells:
        where.setdefault(f"{data} {model}", []).append(_short_site(site) if layer is None else str(layer))
    shown = "; ".join(f"{place} layer {', '.join(dict.fromkeys(layers))}" for place, layers in where.items())
    return f"{len(cells)}{f': {shown}' if cells else ''}"


def _tally(comparison: Comparison) -> Block:
    found = {(pair.name, pair.other): pair for pair in comparison.pairs()}
    names = comparison.names
    table = [["", *(f"v. {name}" for name in names)]]
    for name in names:
        pairs = [found.get((name, other)) for other in names]
        table.append(
            [name, *("" if p is None else f"{p.wins}-{p.ties}-{p.losses} ({p.higher}/{p.cells})" for p in pairs)]
        )
    text = (
        "How often the line wins, ties and loses against the column, by intervals; in brackets how often its value is "
        "higher, as studies without intervals count. Sites of one model share documents: this counts, it is no test."
    )
    return Block("Pooling against pooling", text, table)


def _heads(comparison: Comparison) -> Block | None:
    rows = comparison.heads().to_pylist()
    if not rows:
        return None
    table = [["pooling", "data", "heads", comparison.metric, "gain over fewest", "wins-ties-losses", "entropy ratio"]]
    for row in rows:
        first = row["n_heads"] == row["over"] or row["gain"] is None
        table.append([
            row["pooling"], row["data"], str(row["n_heads"]), f"{row['value']:.3f}",
            "" if first else f"{row['gain']:+.3f}", "" if first else f"{row['wins']}-{row['ties']}-{row['losses']}",
            "" if row["entropy"] is None else f"{row['entropy']:.2f}",
        ])  # fmt: skip
    text = "Means over models and sites. Entropy ratio: 0 where a head attends to one token, 1 where to all alike."
    return Block("How many heads", text, table)


def _short_site(site: str) -> str:
    return site.removeprefix("blocks.").replace(".hook_", " ").replace(".attn", " attn")


def _interval(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] != row["value"]:
        return ""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown document."""
    parts = [f"# Poolings compared by {comparison.metric}"]
    for block in blocks(comparison):
        parts += [f"## {block.title}", block.text, "\n".join(_lines(block))]
    return "\n\n".join(parts) + "\n"


def _lines(block: Block) -> Iterator[str]:
    head, *rows = block.table
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---'] * len(head))}|"
    for i, row in enumerate(rows):
        cells = [f"**{_plain(cell)}**" if (i, j) in block.strong else _plain(cell) for j, cell in enumerate(row)]
        yield f"| {' | '.join(cells)} |"


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|")


# --- as files ---------------------------------------------------------------------------------------------


def save_comparison(comparison: Comparison, path: str | Path, *, page: str | None = None) -> Path:
    """Write values, gains, Markdown and, where one is given, the page to the folder `path`, whole or not at all.

    Raises
    ------
    OutputError
        If `path` holds other files, or cannot be written.
    """
    path = Path(path)
    check_comparison_target(path)
    with whole_folder(path) as folder:
        pq.write_table(comparison.values, folder / FILES[0], compression="zstd")
        pq.write_table(comparison.gains, folder / FILES[1], compression="zstd")
        (folder / FILES[2]).write_text(markdown(comparison), encoding="utf-8")
        if page is not None:
            (folder / FILES[3]).write_text(page, encoding="utf-8")
    return path


def check_comparison_target(path: Path) -> None:
    """Raise if a comparison at `path` would take the place of something else.

    Raises
    ------
    OutputError
        If `path` is a file, or a folder of other things.
    """
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= set(FILES):
        return
    if path.exists():
        raise OutputError(f"{path} exists and is no comparison: name another folder.")
