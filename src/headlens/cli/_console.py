"""Where output goes: answers to stdout, everything else (progress, notes, errors) to stderr."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, which here means that a check did not pass


out = _Output(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    """Print one error sentence to stderr."""
    err.print(f"[bold red]error[/]: {escape(one_line(message))}", soft_wrap=True)


def note(message: str, quiet: bool = False) -> None:
    """Print one line of progress to stderr."""
    if not quiet:
        err.print(escape(one_line(message)), soft_wrap=True)


def one_line(message: str) -> str:
    """Return `message` without line breaks or codes that a terminal would obey: it may quote a file or a path."""
    words = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)


def print_json(value: Any) -> None:
    """Print `value` to stdout as JSON that a machine can read (NaN and infinity become null)."""
    print(json.dumps(_finite(value), ensure_ascii=True, indent=2))  # ASCII can be written whatever the encoding


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield `report(what, done, total)`, shown as one bar per `what` on stderr."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def split(values: list[str] | None) -> list[str] | None:
    """Return a list option given comma-separated, repeated, or both."""
    return None if values is None else [part for value in values for part in value.split(",") if part]
