"""`headlens demo`: verify and score the shipped models, and write a page to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headlens._files import check_file_target
from headlens.cli import _console
from headlens.cli._common import Debug, Quiet, Seed, quieten_transformers, with_command

N_TEXTS = 2
N_DOCUMENTS = 128
KINDS = (
    "previous_token", "offset", "self", "sink", "duplicate_token", "induction", "copying_logits", "copy_suppression",
    "retrieval",
)  # fmt: skip
"""What is told apart in the short time of a demo; `headlens heads` measures all."""


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
    from headlens.heads import atlas, attention_patterns, head_circuits
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
        found = with_command(atlas(models, KINDS, corpus=texts, seed=seed, progress=progress))
    longest = sorted(texts, key=len, reverse=True)[:N_TEXTS]
    patterns = [attention_patterns(model, longest, max_tokens=256) for model in models]
    title = "The zoo: small models, side by side, and what their heads do"
    page = write_report([found, *patterns, *map(head_circuits, models)], out, title=title)
    print_side_by_side(found.table.to_pylist(), found.kinds)
    _console.out.print("\nThe same as a page, with every head's attention to look at:")
    _console.out.print(f"  {page.resolve()}", soft_wrap=True, markup=False)
    return 0


def _failure(row: dict[str, Any]) -> str:
    place = "" if row["layer"] is None else f" of layer {row['layer']}"
    place += "" if row["head"] is None else f", head {row['head']}"
    return f"{row['quantity']}{place} ({row['error']:.1e}, bound {row['bound']:.1e})"


def print_side_by_side(rows: list[dict[str, Any]], kinds: Sequence[str]) -> None:
    """Print the strongest head of each kind, a row per kind and a column per model."""
    from rich.markup import escape
    from rich.table import Table

    for some in _few(list(dict.fromkeys(row["model"] for row in rows))):
        table = Table("", *(escape(model.removeprefix("zoo:")) for model in some))
        for kind in kinds:
            own = [[row for row in rows if (row["model"], row["kind"]) == (model, kind)] for model in some]
            table.add_row(kind, *(_strongest(of_kind) for of_kind in own))
        _console.out.print(table)
    _console.out.print(
        "[dim]The head of each model that stands out most: its score, 1 at most, and which head it is.\n"
        "Bold: it is of the kind. (headlens heads measures more kinds, with intervals.)[/]"
    )


def _few(models: list[str]) -> list[list[str]]:
    """As many models side by side as the terminal has room for."""
    n = max(1, (_console.out.width - 20) // (max(len(model.removeprefix("zoo:")) for model in models) + 3))
    return [models[i : i + n] for i in range(0, len(models), n)]


def _strongest(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["score"] - row["null"])
    cell = f"{best['score']:.2f} L{best['layer']}H{best['head']}"
    return f"[bold]{cell}[/]" if best["level"] in ("medium", "high") else f"[dim]{cell}[/]"
