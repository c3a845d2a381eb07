"""`headlens report`: saved results as one page."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headlens.cli import _console
from headlens.cli._common import Debug, Device, Dtype, Quiet, check_page, pick_device, quieten_transformers

TEXTS = [
    "The key of Ada is red and the key of Tom is blue. The key of Ada is red.",
    "When Mary and John went to the store, John gave a drink to Mary.",
    "One two three four. One two three four. One two three four.",
]
MAX_TOKENS = 72
"""A pattern of more has cells that are too small to tell apart, several side by side."""


def report(
    *results: Path,
    out: Annotated[Path, Parameter(help="Write the page here.")],
    title: Annotated[str | None, Parameter(help="Its title; else what it shows.")] = None,
    text: Annotated[
        list[str] | None, Parameter(help="A text that heads of a universe are shown on; may be repeated.", negative="")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Write one self-contained HTML page of saved results.

        headlens report rules/ --out rules.html
        headlens report heads-of-three study-of-three --out universe.html

    Heads of a universe are shown on a few texts. For that their models are loaded, one at a time; one that cannot be
    is left out, and the page says so.

    Parameters
    ----------
    results
        Folders of results, or folders that hold some, such as what `headlens rules --output-dir` keeps.
    """
    from headlens._errors import DataError
    from headlens._result import MANIFEST
    from headlens.report import write_report
    from headlens.report.saved import read_results

    if not results:
        raise DataError("Name at least one folder of a saved result.")
    check_page(out, *(folder for folder in results if (folder / MANIFEST).is_file()))
    found = [one for folder in results for one in read_results(folder)]
    missing = _without_patterns(found)
    if missing:
        quieten_transformers()
        found += patterns_of(missing, text or TEXTS, device=device, dtype=dtype, quiet=quiet)
    write_report(found, out, title=title)
    _console.note(f"report: {out}", quiet)
    return 0


def _without_patterns(results: Iterable[Any]) -> list[str]:
    """Models of a universe whose patterns are not among the results."""
    from headlens.heads.patterns import AttentionPatterns
    from headlens.universe import HeadUniverse

    results = list(results)
    there = {one.model for one in results if isinstance(one, AttentionPatterns)}
    wanted = [name for one in results if isinstance(one, HeadUniverse) for name in one.embedded.models]
    return [name for name in dict.fromkeys(wanted) if name not in there]


def patterns_of(models: Sequence[str], texts: Sequence[str], *, device: str, dtype: str, quiet: bool) -> list[Any]:
    """Return the patterns of each model on some texts, one model in memory at a time; of one that fails, a note."""
    from headlens._errors import HeadlensError
    from headlens.heads.patterns import attention_patterns

    found = []
    with _console.progress(quiet) as progress:
        for done, name in enumerate(models):
            progress("patterns to show", done, len(models))
            try:
                found.append(
                    attention_patterns(name, texts, max_tokens=MAX_TOKENS, device=pick_device(device), dtype=dtype)
                )
            except HeadlensError as error:
                _console.note(f"{name} is shown without patterns: {error}", quiet)
        progress("patterns to show", len(models), len(models))
    return found
