"""`headlens verify`: the parity report."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

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


def verify(
    model: str,
    /,
    *,
    tokens: Annotated[int, Parameter(help="Length of the test sequences.", validator=Number(gte=1))] = 64,
    out: Annotated[Path | None, Parameter(help="Save the full report (a row per head and quantity) here.")] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Are this model's heads read right?

    For every layer and head, recomputes attention scores, patterns, z, the attention block's output and the
    residual stream from headlens' own head, and compares them with the model's forward pass. Exits 1 where
    any differs by more than rounding.

    Parameters
    ----------
    model
        A folder, a hub id, or zoo:NAME.
    """
    if out is not None:
        from headlens._result import check_result_target

        check_result_target(out)
    quieten_transformers()
    from headlens.tracing import verify as run

    report = with_command(
        run(model, n_tokens=tokens, seed=seed, device=pick_device(device), dtype=dtype, revision=revision)
    )
    if out is not None:
        report.save(out)
    if json:
        _console.print_json(_summary(report))
    else:
        _print(report, quiet)
    return 0 if report.passed else 1


def _summary(report: Any) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "worst": report.worst(),
        "failed": [row for row in report.table.to_pylist() if not row["passed"]],
        "provenance": report.provenance.__dict__,
    }


def _print(report: Any, quiet: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from headlens.tracing.verify import QUANTITIES

    rows = report.table.to_pylist()
    about = report.provenance.models[0]
    table = Table(title=f"{escape(about['name'])} ({about['family']}, {about['dtype']})", title_justify="left")
    table.add_column("layer", justify="right")
    for name in QUANTITIES[:-1]:
        table.add_column(name, justify="right")
    by_layer: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["layer"] is not None:
            by_layer[row["layer"]][row["quantity"]].append(row)
    for layer, quantities in sorted(by_layer.items()):
        table.add_row(str(layer), *(_cell(quantities[name]) for name in QUANTITIES[:-1]))
    if not quiet:
        _console.out.print(table)
        _console.out.print("[dim]Largest relative error over the layer's heads.[/]")
    (logits,) = (row for row in rows if row["quantity"] == "logits")
    equal = "equal to transformers' eager attention, bit for bit" if logits["passed"] else "DIFFER from transformers'"
    _console.out.print(f"logits while capturing: {equal}")
    failed = [row for row in rows if not row["passed"]]
    if failed:
        worst = max(failed, key=lambda row: row["error"] if row["error"] == row["error"] else float("inf"))
        _console.out.print(
            f"[bold red]parity fails[/]: {len(failed)} of {len(rows)} checks; worst is {worst['quantity']} of "
            f"layer {worst['layer']}, head {worst['head']}: {worst['error']:.3g} (bound {worst['bound']:.0e})"
        )
    else:
        _console.out.print(f"[bold green]parity holds[/]: {len(rows)} checks passed")


def _cell(rows: list[dict[str, Any]]) -> str:
    errors = [row["error"] for row in rows]
    worst = float("nan") if any(e != e for e in errors) else max(errors)
    text = "exact" if worst == 0 else f"{worst:.1e}"
    return text if all(row["passed"] for row in rows) else f"[bold red]{text}[/]"
