"""`headlens world`: write a corpus whose labels are known, as JSON lines."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from headlens.cli import _console
from headlens.cli._common import Debug, Json, Quiet, Seed

REPEATS = "repeats"
"""What --without calls all knobs by which something comes back."""
EXAMPLES = 2
REPORT_EVERY = 100
"""Documents between two reports of progress."""


def world(
    *,
    docs: Annotated[int, Parameter(help="How many documents, of 24-200 words each.", validator=Number(gte=1))] = 1000,
    out: Annotated[Path, Parameter(help="The .jsonl file to write.")] = Path("out/world.jsonl"),
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative="",
            help="NAME=SHARE, comma-separated: knobs to set, e.g. facts=0.3,tasks=0. Wins over --without.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        Parameter(negative="", help="Comma-separated: knobs to switch off; `repeats`: all by which something returns."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Write a corpus whose regularities and labels are known.

    Short documents in plain English, drawn from a seeded grammar. Each line of the file is one of them:
    text; spans (kind, start and end in characters, and sources: the earlier spans that this one follows from);
    the labels topic, author, sentiment and needle; and nats, -ln of the probability of what was drawn.
    The same seed gives the same bytes, and more documents begin with the same ones.

    What is planted, and the knob that sets its share of the utterances (the rest is plain text):

    - again, word for word: sentence_repeats, list_repeats, name_repeats, facts
    - again, in other words: concepts, tables
    - found out from the text before: indirect_objects, tasks, ordinals, brackets
    - known, suppressed, counted: skip_grams, absences, counts
    - labels: topics and authors (shares of plain text), sentiments and needles (shares of documents)

    A corpus, a control in which nothing comes back by design, and one with nothing but facts in plain text:

        headlens world --docs 5000 --out world.jsonl
        headlens world --docs 5000 --out control.jsonl --without repeats
        headlens world --without repeats,ordinals,brackets,skip_grams,absences,counts --set facts=0.5
    """
    _check_suffix(out)
    config = _config(_console.split(set_) or [], _console.split(without) or [])
    summary = _write(out, docs, seed, config, quiet)
    if json:
        _console.print_json({"file": str(out), **summary.as_dict(), "seed": seed, "config": asdict(config)})
    else:
        print_summary(summary, out)
    return 0


def _write(out: Path, docs: int, seed: int, config: Any, quiet: bool) -> "Summary":
    """Write the file, and return what is in it."""
    from headlens._files import whole_file
    from headlens.data.world import documents

    summary = Summary()
    with whole_file(out) as path, path.open("w", encoding="utf-8") as file, _console.progress(quiet) as progress:
        for i, document in enumerate(documents(docs, seed=seed, config=config), 1):
            file.write(dumps(_row(document)) + "\n")
            summary.add(document)
            if i % REPORT_EVERY == 0 or i == docs:
                progress("documents", i, docs)
    return summary


def _check_suffix(out: Path) -> None:
    from headlens._errors import OutputError

    if out.suffix != ".jsonl":
        raise OutputError(f"--out {out} must end in .jsonl, by which headlens knows what it reads.")


def _config(settings: list[str], without: list[str]) -> Any:
    """The config that `without` and then `settings` make of the default."""
    from headlens.data.world import WITHOUT_REPEATS, WorldConfig

    returning = [knob for knob, share in asdict(WorldConfig()).items() if share and not getattr(WITHOUT_REPEATS, knob)]
    shares = {}
    for name in without:
        shares |= dict.fromkeys(returning if name == REPEATS else [_knob(name)], 0.0)
    for setting in settings:
        name, _, share = setting.partition("=")
        shares[_knob(name)] = _share(setting, share)
    return WorldConfig(**shares)


def _knob(name: str) -> str:
    from headlens._errors import DataError
    from headlens.data.world.config import KNOBS

    if name not in KNOBS:
        raise DataError(f"'{name}' is no knob of the world; its knobs are {', '.join(KNOBS)}.")
    return name


def _share(setting: str, share: str) -> float:
    from headlens._errors import DataError

    try:
        return float(share)
    except ValueError:
        raise DataError(f"--set {setting} must be NAME=SHARE with a number, e.g. facts=0.3.") from None


def _row(document: Any) -> dict[str, Any]:
    """One line of the file. nats are rounded, for logarithms may differ between machines in their last bit."""
    spans = [asdict(span) for span in document.spans]
    return {"text": document.text, "spans": spans, **asdict(document.labels), "nats": round(document.nats, 6)}


@dataclass
class Summary:
    """What was written, counted as it is written."""

    documents: int = 0
    words: int = 0
    nats: float = 0.0
    spans: Counter[str] = field(default_factory=Counter)
    """Kind -> spans."""
    known: Counter[str] = field(default_factory=Counter)
    """Kind -> spans that have sources."""
    examples: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Kind of answer -> the sentence with the first of this kind: before it, it, and after it."""

    def add(self, document: Any) -> None:
        """Count one document."""
        from headlens.data.world import ANSWERS

        self.documents += 1
        self.words += len(document.text.split())
        self.nats += document.nats
        for span in document.spans:
            self.spans[span.kind] += 1
            self.known[span.kind] += bool(span.sources)
            if len(self.examples) < EXAMPLES and span.sources and span.kind in ANSWERS:
                self.examples.setdefault(span.kind, _in_sentence(document.text, span.start, span.end))

    def as_dict(self) -> dict[str, Any]:
        """The counts, for a machine."""
        spans = {kind: {"n": n, "with_sources": self.known[kind]} for kind, n in self.spans.most_common()}
        return {"documents": self.documents, "words": self.words, "nats": round(self.nats, 6), "spans": spans}


def _in_sentence(text: str, start: int, end: int) -> tuple[str, str, str]:
    """The sentence around `text[start:end]`, cut there."""
    before = re.split(r'[.?]"? ', text[:start])[-1]
    after = re.split(r'(?<=[.?])"? ', text[end:])[0]
    return before, text[start:end], after


def print_summary(summary: Summary, out: Path) -> None:
    """Print how much of what was written, and where to look at it."""
    from rich.table import Table
    from rich.text import Text

    table = Table("planted", "spans", "with sources")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, n in summary.spans.most_common():
        table.add_row(kind, f"{n:,}", f"{summary.known[kind]:,}")
    _console.out.print(table)
    _console.out.print("[dim]sources: earlier spans of the document that this one follows from.[/]\n")
    for kind, (before, answer, after) in summary.examples.items():
        sentence = Text.assemble(f"  {kind}: {before}", (answer, "bold"), after)  # its brackets are no markup
        _console.out.print(sentence, soft_wrap=True)
    size = f"{summary.documents:,} documents, {summary.words:,} words, {summary.nats / summary.words:.2f} nats a word"
    _console.out.print(f"\n{size}:")
    _console.out.print(f"  {out.resolve()}", soft_wrap=True, markup=False)
