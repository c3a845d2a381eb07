"""`headlens heads`: score every head, print or save the table, write the report."""

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

TOP = 2


def heads(
    *models: str,
    corpus: Annotated[str | None, Parameter(help="Texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.")] = None,
    field: Annotated[str, Parameter(help="Field or column of the corpus that holds the text.")] = "text",
    kinds: Annotated[
        list[str] | None,
        Parameter(help="Comma-separated: previous_token, induction, duplicate_token, self, sink.", negative=""),
    ] = None,
    num_samples: Annotated[int, Parameter(help="Sequences per stimulus.")] = 256,
    seq_len: Annotated[int, Parameter(help="Length of the repeated part of random repeats, in tokens.")] = 50,
    max_gap: Annotated[int, Parameter(help="Longest random gap before the repetition.")] = 40,
    max_tokens: Annotated[int, Parameter(help="Where texts are cut, for scores and in the report.")] = 128,
    texts: Annotated[int, Parameter(help="Example texts in the report.", validator=Number(gte=0))] = 4,
    format: Annotated[Literal["table", "json", "parquet"], Parameter(help="parquet needs --out.")] = "table",
    out: Annotated[Path | None, Parameter(help="Save the scores as a result folder here.")] = None,
    report: Annotated[Path | None, Parameter(help="Write a self-contained HTML page here.")] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """What does each head do?

    Scores every head of every model for each kind of head, with a 95 % bootstrap interval over sequences and
    the score that a head without the behaviour would get (null). Induction and duplicate tokens are measured
    on random tokens repeated after a random gap; the other kinds on the corpus, or on random tokens without one.

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME.
    """
    _check_asked(models, out, report, format)
    quieten_transformers()
    from headlens.data import read_texts
    from headlens.heads import attention_patterns, score
    from headlens.heads.measure import Protocol, known_kinds
    from headlens.models import load

    # Before any model is loaded: a mistyped option or corpus should not cost minutes.
    chosen = known_kinds(_console.split(kinds))
    Protocol(num_samples, seq_len, max_gap, max_tokens, seed)
    examples = EXAMPLES if corpus is None else read_texts(corpus, field=field, limit=max(texts, 1))
    where = pick_device(device)
    loaded = [load(name, device=where, dtype=dtype, revision=revision) for name in models]
    with _console.progress(quiet) as progress:
        scores = with_command(
            score(
                loaded,
                chosen,
                corpus=corpus,
                field=field,
                num_samples=num_samples,
                seq_len=seq_len,
                max_gap=max_gap,
                max_tokens=max_tokens,
                seed=seed,
                progress=progress,
            )
        )
    for what, made in scores.provenance.data.items():
        if made.get("length", seq_len) < seq_len and made["name"] == "repeats":
            _console.note(f"{what}: --seq-len cut to {made['length']}, all that vocabulary and context hold", quiet)
    if out is not None:
        scores.save(out)
        _console.note(f"scores: {out / 'table.parquet'}", quiet)
    if report is not None:
        from headlens.report import write_report

        shown = [
            attention_patterns(m, examples[:texts], max_tokens=max_tokens) for m in loaded if texts and m.tokenizer
        ]
        write_report([scores, *shown], report)
    if json or format == "json":
        _console.print_json({"scores": scores.table.to_pylist(), "provenance": scores.provenance.__dict__})
    elif format == "table":
        print_summary(scores)
    if report is not None:
        _console.note(f"report: {report}", quiet)
    return 0


def _check_asked(models: tuple[str, ...], out: Path | None, report: Path | None, format: str) -> None:
    """Raise now what would otherwise be found out when all the work is done."""
    from headlens._errors import DataError, OutputError
    from headlens._files import check_file_target
    from headlens._result import check_result_target

    if not models:
        raise DataError("Name at least one model: a folder, a hub id, or zoo:llama-small.")
    if twice := [name for i, name in enumerate(models) if name in models[:i]]:
        raise DataError(f"{twice[0]} is named twice: name each model once.")
    if format == "parquet" and out is None:
        raise DataError("--format parquet writes a file: say where with --out DIR.")
    if out is not None:
        check_result_target(out)
    if report is not None:
        check_file_target(report)
    if out is not None and report is not None and report.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"--report {report} lies in --out {out}, which holds nothing but scores: put it beside it.")


EXAMPLES = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The key of Ada is red and the key of Tom is blue. The key of Ada is red.",
    "One two three four. One two three four. One two three four.",
]


def print_summary(scores: Any) -> None:
    """Print the strongest heads of each kind, a table per model."""
    from rich.markup import escape
    from rich.table import Table

    from headlens.heads import KINDS

    rows = scores.table.to_pylist()
    for model in dict.fromkeys(row["model"] for row in rows):
        table = Table(title=escape(model), title_justify="left", title_style="bold")
        table.add_column("kind of head")
        for i in range(TOP):
            table.add_column("strongest head [95 %]" if i == 0 else "next", justify="right", no_wrap=True)
        table.add_column("null", justify="right")
        table.add_column("n", justify="right")
        for kind in KINDS:
            own = [row for row in rows if row["model"] == model and row["kind"] == kind]
            if own:
                table.add_row(kind, *_best(own), f"{own[0]['null']:.3f}", str(own[0]["n"]))
        _console.out.print(table)
    _console.out.print(
        "[dim]score: mean share of attention that goes where this kind of head would look.\n"
        "null: the same head's score with nothing repeated, or with even attention.[/]"
    )


def _best(rows: list[dict[str, Any]]) -> list[str]:
    rows.sort(key=lambda row: -row["score"])
    cells = [f"L{r['layer']}H{r['head']} {r['score']:.3f}" for r in rows[:TOP]]
    low, high = rows[0]["low"], rows[0]["high"]
    cells[0] += f" [dim]{'(no interval)' if low != low else f'[{low:.3f}, {high:.3f}]'}[/]"  # NaN: one sequence
    return cells + [""] * (TOP - len(cells))
