"""What the commands of `headlens probe` share: activations for a while, checks before long work, tables and files."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from headlens.cli import _console
from headlens.cli._common import pick_device, quieten_transformers

AT_ONCE = 256
"""Texts that `apply` reads together."""
METRICS = (
    ("auroc", None), ("ap", None), ("accuracy", None), ("f1", None), ("ece", None), ("tpr_at_fpr", 0.01),
    ("tpr_at_fpr", 0.05),
)  # fmt: skip
"""Those that a table shows, with the FPR that is allowed."""


def estimator_of(
    method: str, pooling: str, heads: int | None, penalty: str, optimizer: Any, steps: int, device: str, seed: int
) -> Any:
    from headlens._errors import DataError
    from headlens.probes import linear
    from headlens.probes.estimator import Probe
    from headlens.probes.training.pooling import POOLINGS

    if pooling not in POOLINGS or pooling == "token":
        offered = ", ".join(name for name in POOLINGS if name != "token")
        raise DataError(f"--pooling {pooling} is no pooling of documents; there are {offered}.")
    if heads is not None and not POOLINGS[pooling].several_heads:
        raise DataError(f"--heads goes with poolings of several heads, and {pooling} has one: leave it out.")
    if method == "trained":
        return Probe(
            pooling, n_heads=heads, penalty=_penalty(penalty), optimizer=optimizer, steps=steps, device=device,
            seed=seed,
        )  # fmt: skip
    for option, said, usual in (("penalty", penalty, "0"), ("optimizer", optimizer, "adamw"), ("steps", steps, 1000)):
        if said != usual:
            raise DataError(f"--{option} goes with --method trained, and {method} is solved at once: leave it out.")
    kinds = {"difference-of-means": "DifferenceOfMeans", "lda": "LDA", "ridge": "Ridge", "logistic": "Logistic"}
    if pooling not in ("mean", "last", "max", "absmax"):
        raise DataError(f"--method {method} takes --pooling mean, last, max or absmax, not {pooling}.")
    return getattr(linear, kinds[method])(pooling)


def _penalty(penalty: str) -> Any:
    from headlens._errors import DataError

    if penalty == "cv":
        return penalty
    try:
        return float(penalty)
    except ValueError:
        raise DataError(f"--penalty {penalty} must be a number, or cv.") from None


def labelled(data: str, **options: Any) -> Any:
    from headlens.data.labelled import read_labelled

    return read_labelled(data, **options)


def loaded_model(model: str, device: str, dtype: Any, revision: str | None) -> Any:
    quieten_transformers()
    from headlens.models import load

    return load(model, device=pick_device(device), dtype=dtype, revision=revision)


def one_site(site: str, acts: Any) -> str:
    from headlens._errors import DataError

    if "*" in site:
        raise DataError(f"--site {site} names several sites: name one, or compare them with headlens probe sweep.")
    return site if site in acts.sites else acts.sites[0]


@contextmanager
def activations(
    model: Any, texts: list[str], sites: list[str], store: Path | None, quiet: bool, **options: Any
) -> Iterator[Any]:
    """Capture texts to a store: the one that is named, or one that goes when all is done."""
    from headlens.store import capture_to
    from headlens.store.manifest import MANIFEST

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _console.progress(quiet) as bar:
        place, done = Path(folder) / "store" if store is None else store, 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            bar("capture", done, len(texts))

        yield capture_to(
            place, model, texts, sites, resume=(place / MANIFEST).exists(), progress=tell,
            note=lambda said: _console.note(said, quiet), **options,
        )  # fmt: skip


def source_of(kept: Any, path: Path) -> Any:
    from headlens._errors import DataError

    if kept.source_ is None or "site" not in kept.source_:
        raise DataError(f"{path} was fitted to bare arrays: it does not say which model and site it reads.")
    return kept.source_


def captured(source: Any) -> dict[str, Any]:
    """Capture as the probe's own documents were."""
    mask = source["token_mask"]["template_tokens"]
    return {"max_tokens": source["max_tokens"], "dtype": source["dtype"], "template_tokens": mask}


def check_labels(documents: Any, kept: Any) -> None:
    """Raise before the model is loaded where a label is none of the probe's."""
    from headlens._errors import DataError

    if not hasattr(kept, "classes_"):
        raise DataError("This probe predicts numbers, and eval judges probes of classes.")
    unseen = sorted(set(map(str, documents.labels.tolist())) - set(map(str, kept.classes_.tolist())))
    if unseen:
        there = ", ".join(map(str, kept.classes_.tolist()))
        how = ": name the label that it was fitted to find, --positive LABEL" if kept.classes_.dtype == bool else ""
        raise DataError(f"{documents.source} has the label {unseen[0]}, and this probe knows {there}{how}.")


def check_two(documents: Any, fpr: float | None, calibration: str) -> None:
    """Raise before the model is loaded where an option goes with two classes and there are more."""
    from headlens._errors import DataError

    n_classes = len(set(documents.labels.tolist()))
    option = "--fpr" if fpr is not None else "--calibration platt" if calibration == "platt" else None
    if n_classes > 2 and option is not None:
        raise DataError(
            f"{option} goes with two classes, and {documents.source} has {n_classes}: leave it out, or name one of "
            "them with --positive."
        )


def check_page(report: Path | None) -> None:
    from headlens._files import check_file_target

    if report is not None:
        check_file_target(report)


def check_table(out: Path) -> None:
    from headlens._errors import OutputError

    if out.suffix not in (".jsonl", ".parquet"):
        raise OutputError(f"--out {out} must end in .jsonl or .parquet.")


def write_page(report: Path | None, evaluation: Any, kept: Any, model: Any, documents: Any, texts: int) -> None:
    if report is None:
        return
    import numpy as np

    from headlens.probes.readings import readings
    from headlens.report import write_report

    shown: list[Any] = [evaluation]
    if texts:
        some = documents.take(np.arange(min(texts, len(documents))))
        limit = kept.source_["max_tokens"]
        shown.append(readings(kept, model, some.texts, labels=some.labels.tolist(), max_tokens=limit))
    write_report(shown, report)


# --- answers ----------------------------------------------------------------------------------------------


def by_document(rows: list[dict[str, Any]], texts: list[str], first: int, *, tokens: bool) -> Iterator[dict[str, Any]]:
    """Yield an answer for each document from the rows of its tokens."""
    of: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["document"], []).append(row)
    for i, text in enumerate(texts):
        own = of[i]
        head = own[0]
        said = {name: head[name] for name in ("score", "probability", "towards", "prediction", "cut")}
        parts = {"tokens": [{name: row[name] for name in ("token", "start", "end", "contribution")}
                            for row in own if row["position"] is not None]}  # fmt: skip
        yield {"document": first + i, "text": text, **said, **(parts if tokens else {})}


def write_answers(answers: Iterator[dict[str, Any]], out: Path | None) -> None:
    from headlens._files import whole_file

    if out is None:
        for answer in answers:
            print(json.dumps(_console._finite(answer), ensure_ascii=True))
        return
    with whole_file(out) as path:
        if out.suffix == ".jsonl":
            with path.open("w", encoding="utf-8") as file:
                for answer in answers:
                    file.write(json.dumps(_console._finite(answer), ensure_ascii=True) + "\n")
        else:
            _write_parquet(answers, path)


def _write_parquet(answers: Iterator[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(answer: dict[str, Any]) -> dict[str, Any]:  # Arrow holds UTF-8, which has no word for half a character
        return {**answer, "text": answer["text"].encode("utf-8", "replace").decode("utf-8")}

    token = pa.struct(
        [("token", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("contribution", pa.float64())]
    )
    schema = pa.schema(
        [("document", pa.int64()), ("text", pa.string()), ("score", pa.float64()), ("probability", pa.float64()),
         ("towards", pa.string()), ("prediction", pa.string()), ("cut", pa.bool_()), ("tokens", pa.list_(token))]
    )  # fmt: skip
    first = next(answers)
    schema = schema if "tokens" in first else schema.remove(schema.get_field_index("tokens"))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        some = [first]
        while some:
            writer.write_table(pa.Table.from_pylist(list(map(arrow, some)), schema))
            some = list(islice(answers, AT_ONCE))


# --- tables -----------------------------------------------------------------------------------------------


def overall(evaluation: Any) -> list[dict[str, Any]]:
    return [row for row in evaluation.table.to_pylist() if row["tokens_from"] is None]


def as_json(kept: Any, evaluation: Any) -> dict[str, Any]:
    return {
        "classes": evaluation.classes,
        "threshold": kept.threshold_,
        "threshold_set": kept.threshold_set_,
        "metrics": evaluation.table.to_pylist(),
        "provenance": evaluation.provenance.__dict__,
    }


def print_evaluations(evaluations: dict[str, Any], title: str) -> None:
    """Print a line for each metric: the first evaluation with its interval, and what stands beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    first, *others = evaluations
    for name in ("", first, "95 %", *others):
        narrowest = max(map(len, ("0.000", *name.split())))  # headings break between words
        table.add_column(name, justify="right" if name else "left", width=narrowest if name in others else None)
    found = {who: {(row["metric"], row["at"]): row for row in overall(one)} for who, one in evaluations.items()}
    for metric, at in METRICS:
        if (metric, at) in found[first]:
            row, *beside = (rows.get((metric, at)) for rows in found.values())
            name = metric if at is None else f"tpr at fpr {at:g}"
            table.add_row(name, f"[bold]{_value(row)}[/]", _ends(row), *map(_value, beside))
    _console.out.print(f"[bold]{escape(_console.one_line(title))}[/]", soft_wrap=True)
    _console.out.print(table)
    said = evaluations[first].provenance.data
    line = f"{overall(evaluations[first])[0]['n']:,} documents"
    if said.get("entropy_ratio") is not None:
        line += f"; attention spreads over {said['entropy_ratio']:.2f} of log(tokens): 0 is one token, 1 all alike"
    _console.out.print(f"[dim]{line}[/]", soft_wrap=True)


def _value(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["value"] != row["value"] else f"{row['value']:.3f}"


def _ends(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["low"] != row["low"] else f"[dim]\\[{row['low']:.3f}, {row['high']:.3f}][/]"


def print_setting(judged: Any) -> None:
    """Say what the figures rest on: selectivity, and the threshold."""
    from rich.markup import escape

    found, kept = judged.selectivity, judged.probe
    if found is not None:
        _console.out.print(
            f"[dim]selectivity {found.value:+.3f} \\[{found.low:.3f}, {found.high:.3f}]: accuracy {found.task:.3f}, "
            f"and {found.control:.3f} where labels are drawn for a rare word of each document[/]",
            soft_wrap=True,
        )  # fmt: skip
    chosen = kept.threshold_set_
    if chosen is not None:
        first = escape(_console.one_line(str(kept.classes_.tolist()[0])))
        _console.out.print(
            f"[dim]threshold {kept.threshold_:.3f} (raw score): of {chosen['n']} validation documents at most "
            f"{100 * chosen['fpr']:g} % of those of {first} lie above it. accuracy and f1 are at it, and the "
            "baselines' at theirs.[/]",
            soft_wrap=True,
        )  # fmt: skip


def print_block(block: Any) -> None:
    """Print a table whole; where the terminal is narrow, without its intervals, and then some columns at a time."""
    from rich.markup import escape

    head, *rows = [[_console.one_line(cell) for cell in row] for row in block.table]
    width, every = _console.out.width, range(1, len(head))
    if _width(_columns(block, head, rows, every)) > width:
        rows = [[cell.split(" [")[0] for cell in row] for row in rows]
    _console.out.print(f"[bold]{escape(block.title)}[/]", soft_wrap=True)
    while every:
        n = len(every)
        while n > 1 and _width(_columns(block, head, rows, every[:n])) > width:
            n -= 1
        table = _columns(block, head, rows, every[:n])
        _console.out.print(table, soft_wrap=_width(table) > width)  # one column may be too wide by itself
        every = every[n:]
    _console.out.print(f"[dim]{escape(block.text)}[/]\n")


def _columns(block: Any, head: list[str], rows: list[list[str]], some: Iterable[int]) -> Any:
    """A table of the first column, which says what a line is, and of some others."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    some = list(some)
    for j in (0, *some):
        table.add_column(escape(head[j]), no_wrap=len(some) > 1 or j == 0)
    for i, row in enumerate(rows):
        cells = [f"[bold]{escape(row[j])}[/]" if (i, j) in block.strong else escape(row[j]) for j in (0, *some)]
        table.add_row(*cells)
    return table


def _width(table: Any) -> int:
    from rich.measure import Measurement

    roomy = _console.out.options.update(width=10_000)
    return Measurement.get(_console.out, roomy, table).maximum
