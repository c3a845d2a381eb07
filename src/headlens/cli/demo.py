"""`headlens demo`: verify and score the shipped models, and write a page to look at."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headlens._files import check_file_target
from headlens.cli import _console
from headlens.cli._common import Debug, Quiet, Seed, quieten_transformers, with_command

N_TEXTS = 2
N_DOCUMENTS = 128


def demo(
    *,
    out: Annotated[Path, Parameter(help="The page to write.")] = Path("out/demo.html"),
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Take a tour of the shipped models: what their heads do, side by side, as a table and as a page.

    Needs no network and takes under two minutes on two cores.
    """
    check_file_target(out)
    quieten_transformers()
    from headlens import zoo
    from headlens.data import world
    from headlens.heads import attention_patterns, score
    from headlens.models import load
    from headlens.report import write_report
    from headlens.tracing import verify

    models = [load(f"zoo:{name}") for name in zoo.names()]
    for model in models:
        failed = [row for row in verify(model, seed=seed).table.to_pylist() if not row["passed"]]
        parity = "holds" if not failed else "FAILS: " + ", ".join(map(_failure, failed))
        _console.note(f"{model.name}: {model.n_layers} layers x {model.n_heads} heads, parity {parity}", quiet)
    texts = [document.text for document in world.documents(N_DOCUMENTS, seed=seed + 1)]
    with _console.progress(quiet) as progress:
        scores = with_command(score(models, corpus=texts, seed=seed, progress=progress))
    longest = sorted(texts, key=len, reverse=True)[:N_TEXTS]
    page = write_report([scores, *(attention_patterns(m, longest, max_tokens=256) for m in models)], out,
                        title="The zoo: small models, side by side, and what their heads do")  # fmt: skip
    print_side_by_side(scores.table.to_pylist())
    _console.out.print("\nThe same as a page, with every head's attention to look at:")
    _console.out.print(f"  {page.resolve()}", soft_wrap=True, markup=False)
    return 0


def _failure(row: dict[str, Any]) -> str:
    place = "" if row["layer"] is None else f" of layer {row['layer']}"
    place += "" if row["head"] is None else f", head {row['head']}"
    return f"{row['quantity']}{place} ({row['error']:.1e}, bound {row['bound']:.1e})"


def print_side_by_side(rows: list[dict[str, Any]]) -> None:
    """Print the strongest head of each kind, a row per model and a column per kind."""
    from rich.markup import escape
    from rich.table import Table

    kinds = dict.fromkeys(row["kind"] for row in rows)
    table = Table("model", *(kind.replace("_", "\n") for kind in kinds))
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [[row for row in rows if (row["model"], row["kind"]) == (model, kind)] for kind in kinds]
        table.add_row(escape(model.removeprefix("zoo:")), *(_strongest(of_kind) for of_kind in own))
    _console.out.print(table)
    _console.out.print(
        "[dim]The strongest head of each kind: the share of its attention that goes where\n"
        "such a head would look, and which head it is. Dim: not more than its null.[/]"
    )


def _strongest(rows: list[dict[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["score"])
    cell = f"{best['score']:.2f} L{best['layer']}H{best['head']}"
    return cell if best["low"] > best["null"] else f"[dim]{cell}[/]"
