"""`headlens probe`: fit a probe and keep it, judge it elsewhere, let it read texts; compare many."""

import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from headlens.cli import _console
from headlens.cli._common import (
    ARGUMENTS,
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
from headlens.cli._probing import (
    AT_ONCE,
    activations,
    as_json,
    by_document,
    captured,
    check_labels,
    check_page,
    check_table,
    check_two,
    estimator_of,
    labelled,
    loaded_model,
    one_site,
    overall,
    print_block,
    print_evaluations,
    print_setting,
    source_of,
    write_answers,
    write_page,
)

probe = App(name="probe", help="What can be read from a model's states? Probes fitted, judged, applied and compared.")

AtLeastOne = Number(gte=1)
Share = Number(gte=0, lt=1)
Field = Annotated[str, Parameter(help="Field or column that holds the text.")]
LabelField = Annotated[str, Parameter(help="Field or column that holds the label.")]
SplitField = Annotated[str | None, Parameter(help="Field that says train, validation or test.")]
GroupField = Annotated[str | None, Parameter(help="Field of groups whose documents stay on one side of a split.")]
Positive = Annotated[str | None, Parameter(help="One label against all others.")]
Limit = Annotated[int | None, Parameter(help="The first documents of each split only.", validator=AtLeastOne)]
Report = Annotated[Path | None, Parameter(help="Write a self-contained HTML page here.")]
Texts = Annotated[int, Parameter(help="Texts that the page shows, token by token.", validator=Number(gte=0))]
Store = Annotated[
    Path | None, Parameter(help="Folder for the activations: made, or gone on with, or used as it is; else temporary.")
]


@probe.command
def fit(
    model: str,
    data: str,
    /,
    *,
    site: Annotated[str, Parameter(help="Where to read, such as blocks.3.hook_resid_post.")],
    out: Annotated[Path, Parameter(help="The folder to keep the probe in.")],
    pooling: Annotated[str, Parameter(help="How tokens become one score: docs/probes.md lists them.")] = "attention",
    heads: Annotated[
        int | None, Parameter(help="Of a pooling that takes several: 8 if not said.", validator=AtLeastOne)
    ] = None,
    method: Annotated[
        Literal["trained", "difference-of-means", "lda", "ridge", "logistic"],
        Parameter(help="trained: by gradients; the others are solved at once, for mean, last, max and absmax."),
    ] = "trained",
    penalty: Annotated[
        str, Parameter(help="How much a trained probe's weights shrink: a number, or cv to choose it.")
    ] = "0",
    optimizer: Annotated[Literal["adamw", "lbfgs"], Parameter(help="Of a trained probe.")] = "adamw",
    steps: Annotated[int, Parameter(help="Of training, at most.", validator=AtLeastOne)] = 1000,
    fpr: Annotated[
        float | None,
        Parameter(help="For a monitor: let at most this share of the first of two classes through, by a threshold set "
                       "on the validation documents. If not said, the likelier class is.", validator=Share),
    ] = None,
    calibration: Annotated[
        Literal["temperature", "platt", "none"], Parameter(help="Made on the validation documents.")
    ] = "temperature",
    controls: Annotated[
        bool, Parameter(help="Fit it to permuted labels and a control task too: three times the training.")
    ] = True,
    store: Store = None,
    max_tokens: Annotated[int | None, Parameter(help="Where texts are cut.", validator=AtLeastOne)] = None,
    template_tokens: Annotated[
        Literal["keep", "drop"], Parameter(help="Whether tokens of the chat template are read.")
    ] = "keep",
    store_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], Parameter(help="Precision to keep activations in.")
    ] = "float16",
    field: Field = "text",
    label_field: LabelField = "label",
    split_field: SplitField = None,
    group_field: GroupField = None,
    positive: Positive = None,
    limit: Limit = None,
    report: Report = None,
    texts: Texts = 20,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """Fit a probe to one site of a model, and say how far it can be trusted.

    It learns from the train documents; the validation ones set its threshold and calibrate it; the figures are of the
    test ones. Where the data do not say which is which, a fifth tests and a fifth of the rest validates.

        headlens probe fit gpt2 reviews.jsonl --site blocks.6.hook_resid_post --out sentiment

    Parameters
    ----------
    model
        A folder, a hub id, or zoo:NAME.
    data
        Labelled texts: .jsonl, .csv, hf:DATASET, or a folder of train, val and test (docs/probes.md).
    """
    from headlens.probes.card import check_probe_target
    from headlens.probes.experiments.judge import fit_and_judge, with_splits

    check_probe_target(out)
    check_page(report)
    estimator = estimator_of(method, pooling, heads, penalty, optimizer, steps, pick_device(device), seed)
    options = {"field": field, "label_field": label_field, "split_field": split_field, "group_field": group_field}
    documents = with_splits(labelled(data, positive=positive, limit=limit, **options), seed=seed)
    check_two(documents, fpr, calibration)
    loaded = loaded_model(model, device, dtype, revision)
    with activations(
        loaded, list(documents.texts), [site], store, quiet, max_tokens=max_tokens, template_tokens=template_tokens,
        dtype=store_dtype,
    ) as acts:  # fmt: skip
        judged = fit_and_judge(
            estimator, acts.rows(one_site(site, acts)), documents, fpr=fpr, calibration=calibration,
            controls=controls, seed=seed, note=lambda said: _console.note(said, quiet),
        )  # fmt: skip
    evaluation = with_command(judged.evaluation)
    judged.probe.save(out, evaluation=evaluation)
    shown = documents.take((documents.splits == "test").nonzero()[0])
    write_page(report, evaluation, judged.probe, loaded, shown, texts)
    if json:
        beside = {name: overall(one) for name, one in judged.baselines.items()}
        selective = None if judged.selectivity is None else vars(judged.selectivity)
        told = {"probe": str(out), **as_json(judged.probe, evaluation)}
        _console.print_json({**told, "baselines": beside, "selectivity": selective})
    else:
        print_evaluations({"probe": evaluation, **judged.baselines}, f"{documents.source}: test")
        print_setting(judged)
        _console.out.print(f"[dim]probe and card:[/] {out.resolve()}", soft_wrap=True, highlight=False)
    return 0


@probe.command(name="eval")
def eval_(
    fitted: Path,
    data: str,
    /,
    *,
    model: Annotated[str | None, Parameter(help="Where its model lies, if not where the card says.")] = None,
    out: Annotated[Path | None, Parameter(help="Save the evaluation as a result folder here.")] = None,
    store: Store = None,
    split: Annotated[str | None, Parameter(help="Documents of this split only: train, validation or test.")] = None,
    field: Field = "text",
    label_field: LabelField = "label",
    split_field: SplitField = None,
    group_field: GroupField = None,
    positive: Positive = None,
    limit: Limit = None,
    report: Report = None,
    texts: Texts = 20,
    dtype: Dtype = "float32",
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """Judge a kept probe on other data than it was fitted to.

    Parameters
    ----------
    fitted
        The folder of a probe.
    data
        Labelled texts, as for fit.
    """
    from headlens._result import check_result_target
    from headlens.probes.card import load
    from headlens.probes.experiments.judge import judge

    if out is not None:
        check_result_target(out)
    check_page(report)
    kept = load(fitted)
    options = {"field": field, "label_field": label_field, "split_field": split_field, "group_field": group_field}
    documents = labelled(data, positive=positive, limit=limit, split=split, **options)
    check_labels(documents, kept)
    source = source_of(kept, fitted)
    loaded = loaded_model(model or source["model"], device, dtype, None if model else source["revision"])
    with activations(loaded, list(documents.texts), [source["site"]], store, quiet, **captured(source)) as acts:
        rows = acts.rows(source["site"], head=source["head"])
        evaluation = with_command(judge(kept, rows, documents, seed=seed, said={"split": split}))
    if out is not None:
        evaluation.save(out)
        _console.note(f"evaluation: {out}", quiet)
    write_page(report, evaluation, kept, loaded, documents, texts)
    if json:
        _console.print_json(as_json(kept, evaluation))
    else:
        print_evaluations({"probe": evaluation}, documents.source)
    return 0


@probe.command
def apply(
    fitted: Path,
    corpus: str,
    /,
    *,
    model: Annotated[str | None, Parameter(help="Where its model lies, if not where the card says.")] = None,
    out: Annotated[Path | None, Parameter(help="A .jsonl or .parquet file; printed as JSON lines if not said.")] = None,
    tokens: Annotated[bool, Parameter(negative="", help="Also what each token adds to the score.")] = False,
    field: Field = "text",
    num_docs: Annotated[int | None, Parameter(help="The first documents only.", validator=AtLeastOne)] = None,
    report: Report = None,
    texts: Texts = 20,
    dtype: Dtype = "float32",
    device: Device = "auto",
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """Let a kept probe read texts: a line each, with its score, probability and answer.

    Texts are read a few at a time, so that a corpus may be larger than memory.

    Parameters
    ----------
    fitted
        The folder of a probe.
    corpus
        Texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.
    """
    from headlens._files import check_file_target
    from headlens.data.text import Corpus
    from headlens.probes.card import load
    from headlens.probes.readings import readings

    if out is not None:
        check_table(out)
        check_file_target(out)
    check_page(report)
    kept = load(fitted)
    source = source_of(kept, fitted)
    documents = iter(Corpus(corpus, field, num_docs))
    first = list(islice(documents, AT_ONCE))  # before the model is loaded: a mistyped field should cost nothing
    loaded = loaded_model(model or source["model"], device, dtype, None if model else source["revision"])

    def answers() -> Iterator[dict[str, Any]]:
        done, some = 0, first
        while some:
            read = readings(kept, loaded, some, max_tokens=source["max_tokens"])
            if report is not None and not done:
                shown = readings(kept, loaded, some[:texts], max_tokens=source["max_tokens"])
                pages.append(with_command(shown))
            yield from by_document(read.table.to_pylist(), some, done, tokens=tokens)
            done += len(some)
            bar("texts", done, done + 1 if len(some) == AT_ONCE else done)
            some = list(islice(documents, AT_ONCE))

    pages: list[Any] = []
    with _console.progress(quiet) as bar:
        write_answers(answers(), out)
    if report is not None:
        from headlens.report import write_report

        write_report(pages, report)
        _console.note(f"report: {report}", quiet)
    if out is not None:
        _console.note(f"scores: {out}", quiet)
    return 0


@probe.command
def sweep(
    experiment: Path,
    /,
    *,
    out: Annotated[Path, Parameter(help="The folder of stores and results.")],
    only: Annotated[
        list[str] | None, Parameter(help="Comma-separated names of sets, models or data sets.", negative="")
    ] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Train probes of many kinds on many sites, models and data sets, as a file says.

    However it ends, the same command goes on from there: what is finished is skipped.

    Parameters
    ----------
    experiment
        A .toml or .yaml file: docs/probes.md has one.
    """
    from headlens.probes.experiments.experiment import read_experiment
    from headlens.probes.experiments.pieces import run

    said = read_experiment(experiment)
    quieten_transformers()
    with _console.progress(quiet) as bar:
        pieces = run(
            said, out, only=_console.split(only) or (), device=pick_device(device), progress=bar,
            command=shlex.join(["headlens", *ARGUMENTS.get()]), note=lambda said: _console.note(said, quiet),
        )  # fmt: skip
    if json:
        _console.print_json([{**piece._asdict(), "folder": str(out / piece.folder)} for piece in pieces])
    else:
        _console.out.print(f"{len(pieces)} pieces are done. To compare them:")
        _console.out.print(f"  headlens probe compare {out}", soft_wrap=True, markup=False)
    return 0


@probe.command
def compare(
    runs: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder for tables (Parquet, Markdown) and a page of plots.")] = None,
    metric: Annotated[
        Literal["auroc", "accuracy", "ap", "f1", "log_loss", "ece", "brier"], Parameter(help="What to compare by.")
    ] = "auroc",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:
    """Compare what a sweep trained: pooling against pooling, wins and ties, numbers of heads, entropy.

    Parameters
    ----------
    runs
        The folder that a sweep wrote.
    """
    from headlens.probes.experiments.compare import compare as compared
    from headlens.probes.experiments.comparison_text import blocks, check_comparison_target, save_comparison
    from headlens.probes.experiments.pieces import read_pieces

    if out is not None:
        check_comparison_target(out)
    found = compared(read_pieces(runs), metric=metric)
    if out is not None:
        from headlens.report.comparison_page import comparison_page

        save_comparison(found, out, page=comparison_page(found))
        _console.note(f"comparison: {out}", quiet)
    if json:
        tables = {"values": found.values, "gains": found.gains, "controls": found.controls}
        _console.print_json({name: table.to_pylist() for name, table in tables.items()})
    else:
        for block in blocks(found):
            print_block(block)
    return 0
