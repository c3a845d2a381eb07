"""`headlens universe`: clone patterns from an encoder's states, put all heads in one space, see who is near whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from headlens.cli import _console
from headlens.cli._common import (
    Debug,
    Device,
    Dtype,
    Json,
    Quiet,
    Seed,
    check_page,
    pick_device,
    quieten_transformers,
    with_command,
)

universe = App(name="universe", help="Which head of another model is like it? All heads of all models in one space.")


@Parameter(name="*")
@dataclass(frozen=True)
class Reading:
    """What every command reads, and where it runs."""

    encoder: Annotated[
        str, Parameter(help="Whose states the patterns are told from: a folder, a hub id, or zoo:NAME.")
    ] = "zoo:neox-small"
    corpus: Annotated[str, Parameter(help="world, or texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.")] = "world"
    field: Annotated[str, Parameter(help="Field or column of the corpus that holds the text.")] = "text"
    docs: Annotated[int, Parameter(help="The first texts of the corpus only.", validator=Number(gte=8))] = 1200
    max_chars: Annotated[
        int, Parameter(help="Where texts are cut: every model reads the same.", validator=Number(gte=8))
    ] = 300
    alignment: Annotated[
        Literal["last", "mean"],
        Parameter(help="Encoder states a token is shown: the last that has ended, or the mean of those that overlap."),
    ] = "last"
    shift: Annotated[bool, Parameter(help="Whether a token is shown the first state of the one before it.")] = True
    work: Annotated[Path, Parameter(help="Folder of recorded patterns: the same command goes on from there.")] = Path(
        "universe"
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    seed: Seed = 0
    quiet: Quiet = False

    @property
    def loading(self) -> dict[str, Any]:
        """As `hl.load` takes it."""
        return {"device": pick_device(self.device), "dtype": self.dtype}


READING = Reading()
Epochs = Annotated[int, Parameter(help="How often every text is gone through.", validator=Number(gte=1))]
Report = Annotated[Path | None, Parameter(help="Write a self-contained HTML page here.")]
NEIGHBOURS = 3
LABELS = ["induction", "previous_token", "duplicate_token", "sink", "self"]
LABELLED_ON = 64
"""Sequences of random tokens, and texts."""


@universe.command
def clone(
    *models: str,
    rank: Annotated[int, Parameter(help="Of the query and key maps.", validator=Number(gte=1))] = 16,
    epochs: Epochs = 5,
    out: Annotated[Path | None, Parameter(help="Save the table as a result folder here.")] = None,
    reading: Reading = READING,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Phase 1: can a head's pattern be told from what an encoder knows of the text?

    Fits one low-rank map a head, all heads that read alike at once, and prints how it does on held-out texts beside
    what knows less: position, the mean pattern, the nearest head of another family, symbols, the wrong text.

        headlens universe clone zoo:gpt2-small zoo:llama-small --encoder zoo:neox-small

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME.
    """
    recorded = _recorded(models, reading, out)
    from headlens.universe.clone import Training
    from headlens.universe.study import clone_study

    with _console.progress(reading.quiet) as progress:
        training = Training(epochs=epochs, decay=0.3, seed=reading.seed)
        _, held_out, other = clone_study(recorded, rank=rank, training=training, progress=progress)
    if out is not None:
        with_command(held_out).save(out)
        _console.note(f"result: {out}", reading.quiet)
    if json:
        _console.print_json({"held_out": held_out.table.to_pylist(), "other": other.table.to_pylist()})
    else:
        _print_rows("held-out texts", held_out.summary())
        _print_rows("random words that come again", other.summary())
    return 0


@universe.command
def fit(
    *models: str,
    out: Annotated[Path, Parameter(help="Save the universe as a result folder here.")],
    size: Annotated[int, Parameter(help="Numbers a head.", validator=Number(gte=1))] = 64,
    epochs: Epochs = 3,
    report: Report = None,
    reading: Reading = READING,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Phase 2: put every head of these models in one space, and print who is next to whom.

        headlens universe fit zoo:gpt2-small zoo:llama-small zoo:qwen3-small --out heads-of-three

    `headlens.universe.HeadUniverse.load` opens what is saved; `.add(model, texts)` lets another model join.

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME.
    """
    check_page(report, out)
    recorded = _recorded(models, reading, out)
    from headlens.universe.clone import Training
    from headlens.universe.decoder import Shape
    from headlens.universe.embed import fit_universe

    with _console.progress(reading.quiet) as progress:
        training = Training(epochs=epochs, rate=0.01, decay=0.3, seed=reading.seed)
        shape = Shape(size=size)
        found = fit_universe(recorded.train, recorded.features, shape=shape, training=training, progress=progress)
    with_command(found).save(out)
    _console.note(f"universe: {out}", reading.quiet)
    if report is not None:
        _write_page(report, [with_command(found), _labels(models, reading)], recorded, reading)
    rows = [
        {"head": str(head), "kl": float(kl), "nearest": _near(found, head)}
        for head, kl in zip(found.heads, found.kl, strict=True)
    ]
    if json:
        _console.print_json({"heads": rows})
    else:
        _print_rows("nearest heads of other models", rows)
    return 0


@universe.command(name="eval")
def evaluate(
    *models: str,
    kinds: Annotated[
        list[str],
        Parameter(help="Which heads are looked for, comma-separated; all are listed in docs/heads.md.", negative=""),
    ] = LABELS,
    epochs: Epochs = 5,
    out: Annotated[Path | None, Parameter(help="Write the study as Markdown here; else it is printed.")] = None,
    save: Annotated[Path | None, Parameter(help="Save the study's tables as a result folder here.")] = None,
    report: Annotated[
        Path | None, Parameter(help="Write an HTML page here: the study, and a map of all heads.")
    ] = None,
    reading: Reading = READING,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """The whole study, with one family left out at a time: does an induction head find those of other families?

    Labels come from `headlens heads`, on random tokens and on texts of the world that the study does not read. Families
    are those of the models' architectures; the encoder's own model is best left out.

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME; of two families or more.
    """
    from headlens._files import whole_file

    check_page(report, save)
    from headlens.heads.measure import known_kinds

    looked_for = known_kinds(_console.split(kinds))
    recorded = _recorded(models, reading, save)
    from headlens.universe.clone import Training
    from headlens.universe.measured import studied
    from headlens.universe.page import page

    with _console.progress(reading.quiet) as progress:
        training = Training(epochs=epochs, decay=0.3, seed=reading.seed)
        labels = _labels(models, reading, looked_for).table.to_pylist()
        found = studied(recorded, labels, training=training, progress=progress)
    if save is not None:
        with_command(found).save(save)
        _console.note(f"study: {save}", reading.quiet)
    if report is not None:
        from headlens.universe.embed import fit_universe

        with _console.progress(reading.quiet) as progress:
            space = fit_universe(recorded.train, recorded.features, progress=progress)
        _write_page(report, [with_command(space), with_command(found)], recorded, reading)
    if out is None:
        print(page(found))
        return 0
    with whole_file(out) as file:
        file.write_text(page(found), encoding="utf-8")
    _console.note(f"page: {out}", reading.quiet)
    return 0


@universe.command
def ablate(
    *models: str,
    kind: Annotated[str, Parameter(help="Heads of which kind are looked for.")] = "induction",
    leave_out: Annotated[list[str] | None, Parameter(help="Families that are left out; all, if none is named.")] = None,
    reading: Reading = READING,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """What phase 2 owes to its parts: the study's families left out, with one part of the decoder changed at a time.

        headlens universe ablate zoo:gpt2-small zoo:llama-small zoo:qwen3-small --docs 400

    Parameters
    ----------
    models
        Folders, hub ids, or zoo:NAME; of three families or more that have heads of the kind.
    """
    from headlens.heads.measure import known_kinds

    looked_for = known_kinds([kind])
    recorded = _recorded(models, reading, None)
    from headlens.universe.ablations import ablations

    with _console.progress(reading.quiet) as progress:
        labels = _labels(models, reading, looked_for).table.to_pylist()
        rows = ablations(recorded, labels, kind, only=leave_out, seed=reading.seed, progress=progress)
    if json:
        _console.print_json({"ablations": rows})
    else:
        _print_rows(f"families left out: {kind}", rows)
    return 0


def _labels(models: tuple[str, ...], reading: Reading, kinds: Sequence[str] = LABELS) -> Any:
    """What heads are of; by another seed, since kinds that are measured on text would be on texts of the study's."""
    from headlens.heads import atlas
    from headlens.models import load

    loaded = [load(name, **reading.loading) for name in models]
    return atlas(loaded, kinds, num_samples=LABELLED_ON, seed=reading.seed + 1)


def _write_page(report: Path, results: list[Any], recorded: Any, reading: Reading) -> None:
    """Write results with patterns of every model on some texts, one of them held out."""
    from headlens.cli.report import TEXTS, patterns_of
    from headlens.report import write_report
    from headlens.universe.study import whole_texts

    names = [patterns.model for patterns in recorded.train]
    texts = [*TEXTS, whole_texts(recorded)[0]]
    shown = patterns_of(names, texts, device=reading.device, dtype=reading.dtype, quiet=reading.quiet)
    write_report([*results, *shown], report)
    _console.note(f"report: {report}", reading.quiet)


def _recorded(models: tuple[str, ...], reading: Reading, out: Path | None) -> Any:
    """Run every model, one at a time, over the same texts."""
    from headlens._errors import DataError
    from headlens._result import check_result_target

    if not models:
        raise DataError("Name at least one model: a folder, a hub id, or zoo:llama-small.")
    if twice := [name for i, name in enumerate(models) if name in models[:i]]:
        raise DataError(f"{twice[0]} is named twice: name each model once.")
    if out is not None:
        check_result_target(out)
    quieten_transformers()
    from headlens.data import read_texts, world
    from headlens.universe.study import record

    if reading.corpus == "world":
        texts = [document.text for document in world.documents(reading.docs, seed=reading.seed)]
    else:
        texts = read_texts(reading.corpus, field=reading.field, limit=reading.docs)
    cut = [text[: reading.max_chars] for text in texts]
    with _console.progress(reading.quiet) as progress:
        return record(
            models,
            cut,
            reading.encoder,
            reading.work,
            alignment=reading.alignment,
            shift=reading.shift,
            seed=reading.seed,
            progress=progress,
            **reading.loading,
        )


def _near(found: Any, head: Any) -> str:
    near = found.neighbours(head, NEIGHBOURS, other_models=True).to_pylist()
    return ", ".join(f"{row['model']}:L{row['layer']}H{row['head']} {row['distance']:.2f}" for row in near)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    _console.out.print(table)
