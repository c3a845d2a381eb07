"""`headlens heads`: measure every head, print or save the atlas, write the report."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from headlens.cli import _console
from headlens.cli._common import (
    Debug,
    Device,
    Dtype,
    Json,
    Quiet,
    Revision,
    Seed,
    pick_device,
    quieten_transformers,
    with_command,
)

ROOMY = 100
"""Columns of a terminal that has room for the second strongest head as well."""
Threshold = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


def heads(
    *models: str,
    corpus: Annotated[str | None, Parameter(help="Texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.")] = None,
    field: Annotated[str, Parameter(help="Field or column of the corpus that holds the text.")] = "text",
    kinds: Annotated[
        list[str] | None,
        Parameter(help="Comma-separated, such as induction,sink; all are listed in docs/heads.md.", negative=""),
    ] = None,
    num_samples: Annotated[int, Parameter(help="Sequences of random tokens, and texts.")] = 256,
    seq_len: Annotated[int, Parameter(help="Length of the repeated part of random repeats, in tokens.")] = 50,
    max_gap: Annotated[int, Parameter(help="Longest random gap before the repetition.")] = 40,
    max_tokens: Annotated[int, Parameter(help="Where texts are cut, for scores and in the report.")] = 128,
    num_prompts: Annotated[int, Parameter(help="Prompts of each sort (names, needles, tasks ...).")] = 32,
    batch_size: Annotated[
        int | None,
        Parameter(help="Repeats that go through the model at once; as many as 8192 tokens hold.",
                  validator=Number(gte=1)),
    ] = None,
    high_threshold: Annotated[Threshold, Parameter(help="From here on a head is strongly an induction head.")] = 0.7,
    medium_threshold: Annotated[Threshold, Parameter(help="From here on a head is an induction head.")] = 0.35,
    texts: Annotated[int, Parameter(help="Example texts in the report.", validator=Number(gte=0))] = 4,
    format: Annotated[Literal["table", "json", "parquet"], Parameter(help="parquet needs --out.")] = "table",
    out: Annotated[Path | None, Parameter(help="Save the atlas as a result folder here.")] = None,
    save_individual: Annotated[
        bool, Parameter(negative="", help="Save each model's atlas in a folder of its own in --out.")
    ] = False,
    study: Annotated[Path | None, Parameter(help="Write induction scores as the seed study's JSON here.")] = None,
    print_reports: Annotated[
        bool, Parameter(negative="", help="Print counts, percentiles, layers and strongest heads as well.")
    ] = False,
    report: Annotated[Path | None, Parameter(help="Write a self-contained HTML page here.")] = None,
    work: Annotated[
        Path | None, Parameter(help="Folder for work in progress: after a kill the same command goes on from there.")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """What does each head do?

    Measures every head of every model for each kind of head: where it looks, what it writes, what changes without it.
    Each score comes with a 95 % bootstrap interval, the score that a head without the behaviour would get (null), and
    a level: high, medium or low, at a false-discovery rate of 5 %.

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME.
    """
    _check_asked(models, out, report, format, save_individual=save_individual)
    quieten_transformers()
    from headlens.data import read_texts
    from headlens.heads import atlas, attention_patterns, head_circuits
    from headlens.heads.labels import thresholds
    from headlens.heads.measure import known_kinds
    from headlens.heads.setting import Protocol
    from headlens.models import load

    # Before any model is loaded: a mistyped option or corpus should not cost minutes.
    chosen = None if kinds is None else known_kinds(_console.split(kinds))
    at_once = 8192 if batch_size is None else batch_size * (2 * seq_len + max_gap + 1)
    Protocol(num_samples, seq_len, max_gap, max_tokens, num_prompts, seed, at_once)
    induction = (medium_threshold, high_threshold)
    changed = {"induction": induction, "fixed_gap_induction": induction}
    thresholds(changed)
    examples = EXAMPLES if corpus is None else read_texts(corpus, field=field, limit=max(texts, 1))
    where = pick_device(device)
    loaded = [load(name, device=where, dtype=dtype, revision=revision) for name in models]
    with _console.progress(quiet) as progress:
        found = with_command(
            atlas(
                loaded, chosen, changed=changed, corpus=corpus, field=field, num_samples=num_samples, seq_len=seq_len,
                max_gap=max_gap, max_tokens=max_tokens, num_prompts=num_prompts, seed=seed, batch_tokens=at_once,
                work=work, progress=progress,
            )
        )  # fmt: skip
    if out is not None:
        _save(found, out, individually=save_individual)
        _console.note(f"scores: {out / 'table.parquet' if not save_individual else out}", quiet)
    if study is not None:
        from headlens.heads.exchange import write_study

        write_study(found, study, high=high_threshold, medium=medium_threshold)
        _console.note(f"study: {study}", quiet)
    if report is not None:
        from headlens.report import write_report

        shown = [
            attention_patterns(m, examples[:texts], max_tokens=max_tokens) for m in loaded if texts and m.tokenizer
        ]
        circuits = [head_circuits(m) for m in loaded]
        write_report([found, *shown, *circuits], report)
    _say_what_differs(found, seq_len, quiet)
    if json or format == "json":
        _console.print_json({"scores": found.table.to_pylist(), "provenance": found.provenance.__dict__})
    elif format == "table":
        print_summary(found)
        if print_reports:
            _print_reports(found)
    if report is not None:
        _console.note(f"report: {report}", quiet)
    return 0


def _check_asked(
    models: tuple[str, ...], out: Path | None, report: Path | None, format: str, *, save_individual: bool
) -> None:
    """Raise now what would otherwise be found out when all the work is done."""
    from headlens._errors import DataError, OutputError
    from headlens._files import check_file_target
    from headlens._result import check_result_target

    if not models:
        raise DataError("Name at least one model: a folder, a hub id, or zoo:llama-small.")
    if twice := [name for i, name in enumerate(models) if name in models[:i]]:
        raise DataError(f"{twice[0]} is named twice: name each model once.")
    if out is None and (format == "parquet" or save_individual):
        option = "--save-individual" if save_individual else "--format parquet"
        raise DataError(f"{option} writes files: say where with --out DIR.")
    if out is not None:
        for target in [_folder_of(out, name) for name in models] if save_individual else [out]:
            check_result_target(target)
    if report is not None:
        check_file_target(report)
    if out is not None and report is not None and report.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"--report {report} lies in --out {out}, which holds nothing but scores: put it beside it.")


def _folder_of(out: Path, model: str) -> Path:
    """A folder for one model: its name with all that a path would read into it taken out."""
    return out / "".join(c if c.isalnum() or c in "._-" else "_" for c in model).lstrip(".")


def _save(found: Any, out: Path, *, individually: bool) -> None:
    if not individually:
        found.save(out)
        return
    for model in found.models:
        found.of(model).save(_folder_of(out, model))


def _say_what_differs(found: Any, seq_len: int, quiet: bool) -> None:
    for what, made in found.provenance.data.items():
        if made.get("name") == "repeats" and made["length"] < seq_len:
            _console.note(f"{what}: --seq-len cut to {made['length']}, all that vocabulary and context hold", quiet)
        if what.endswith(": not measured"):
            _console.note(f"{what}: {', '.join(made)} ({next(iter(made.values()))})", quiet)


EXAMPLES = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The key of Ada is red and the key of Tom is blue. The key of Ada is red.",
    "One two three four. One two three four. One two three four.",
]


def print_summary(found: Any) -> None:
    """Print the strongest heads of each kind, a table per model."""
    from rich.markup import escape
    from rich.table import Table

    rows, shown = found.table.to_pylist(), 2 if _console.out.width >= ROOMY else 1
    for model in found.models:
        table = Table(title=escape(model), title_justify="left", title_style="bold")
        table.add_column("kind of head", no_wrap=True)
        table.add_column("heads", justify="right")
        for i in range(shown):
            table.add_column("strongest head [95 %]" if i == 0 else "next", justify="right", no_wrap=True)
        table.add_column("null", justify="right")
        table.add_column("n", justify="right")
        for kind in found.kinds:
            own = [row for row in rows if row["model"] == model and row["kind"] == kind]
            if own:
                _add(table, kind, own, shown)
        _console.out.print(table)
    _console.out.print(
        "[dim]score: mean share of attention that goes where such a head would look, of what it writes, or\n"
        "of what changes without it. null: what a head without the behaviour would score. heads: how many are\n"
        "of the kind (5 % false discoveries); bold: this one is. docs/heads.md says how each is measured.[/]",
        soft_wrap=True,
    )


def _add(table: Any, kind: str, rows: list[dict[str, Any]], shown: int) -> None:
    labelled = sum(row["level"] in ("medium", "high") for row in rows)
    rows.sort(key=lambda row: row["null"] - row["score"])
    table.add_row(kind, str(labelled or ""), *_best(rows, shown), f"{rows[0]['null']:.3f}", str(rows[0]["n"]))


def _best(rows: list[dict[str, Any]], shown: int) -> list[str]:
    cells = []
    for row in rows[:shown]:
        cell = f"L{row['layer']}H{row['head']} {row['score']:.3f}"
        cells.append(f"[bold]{cell}[/]" if row["level"] in ("medium", "high") else cell)
    low, high = rows[0]["low"], rows[0]["high"]
    cells[0] += f" [dim]{'(no interval)' if low != low else f'[{low:.3f}, {high:.3f}]'}[/]"  # NaN: one sequence
    return cells + [""] * (shown - len(cells))


def _print_reports(found: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    from headlens.heads import summary

    for what in (summary.counts, summary.distribution, summary.layers, summary.depths, summary.top):
        rows = what(found)
        table = Table(title=what.__name__, title_justify="left", title_style="bold")
        for name in rows.column_names:
            table.add_column(name, justify="left" if rows[name].type == "string" else "right")
        for row in rows.to_pylist():
            table.add_row(*(escape(_shown(value)) for value in row.values()))
        _console.out.print(table)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
