"""`headlens rules`: what makes the features that a head writes fire?"""

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
    check_page,
    pick_device,
    quieten_transformers,
    with_command,
)

AtLeastOne = Number(gte=1)
LABEL_TEXTS = 500
"""Texts in which labels are looked for."""
SHOWN_TOKENS = 12
RESULTS = ("result", "labels")
"""What --output-dir keeps for programs; labels are what input features are."""


def rules(
    model: str,
    dictionary: str,
    z_dictionary: str | None = None,
    /,
    *,
    corpus: Annotated[str, Parameter(help="Texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.")],
    layer: Annotated[int, Parameter(help="The head's layer, from 0.", validator=Number(gte=0))],
    head: Annotated[int, Parameter(help="Its number, from 0.", validator=Number(gte=0))],
    features: Annotated[
        list[str] | None, Parameter(help="Output features by number: 3,17; else some are drawn.", negative="")
    ] = None,
    num_features: Annotated[int, Parameter(help="Output features that are drawn.", validator=AtLeastOne)] = 100,
    method: Annotated[
        Literal["importance", "magnitude", "unigram", "cooccurrence"],
        Parameter(help="How pairs are ranked: what they do; weights alone, as published; key features alone; company."),
    ] = "importance",
    max_length: Annotated[int, Parameter(help="Tokens of a text that are read.", validator=Number(gte=2))] = 64,
    num_bins: Annotated[int, Parameter(help="Strengths that examples are drawn of.", validator=AtLeastOne)] = 4,
    examples_per_bin: Annotated[int, Parameter(help="Examples of each strength.", validator=AtLeastOne)] = 25,
    min_count: Annotated[int, Parameter(help="Texts in which a feature fires, at least.", validator=AtLeastOne)] = 30,
    max_count: Annotated[int | None, Parameter(help="And at most; all.", validator=AtLeastOne)] = None,
    top: Annotated[int, Parameter(help="Rules to print of each feature.", validator=AtLeastOne)] = 5,
    num_docs: Annotated[int | None, Parameter(help="The first documents only.", validator=AtLeastOne)] = None,
    field: Annotated[str, Parameter(help="Field or column of the corpus that holds the text.")] = "text",
    labels: Annotated[
        str | None, Parameter(help="What input features are: .json, .jsonl, .csv, .parquet; else their top tokens.")
    ] = None,
    sae_id: Annotated[str | None, Parameter(help="Which dictionary of a release or of a folder of them.")] = None,
    z_sae_id: Annotated[str | None, Parameter(help="The same of z.")] = None,
    output_dir: Annotated[
        Path | None, Parameter(help="Write the result here, and rules.csv, rules.json, rules.md beside it.")
    ] = None,
    report: Annotated[Path | None, Parameter(help="Write a self-contained HTML page here.")] = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """Which input features make a head's output features fire?

    Prints, for each feature that the head writes, the rules that predict it best (what a key holds, seen from what the
    query holds, and how much that moves it), what suppresses it, what it counts, and where it fires:

        headlens rules zoo:gpt2-small zoo:gpt2-small --layer 1 --head 2 --corpus texts.jsonl

    Rules are found on one half of the texts, chosen on a quarter and judged on the last, beside baselines.

    Parameters
    ----------
    model
        A folder, a hub id, or zoo:NAME.
    dictionary
        Of what the head reads (blocks.LAYER.hook_resid_pre or blocks.LAYER.ln1.hook_normalized): a SAELens folder, a
        folder of several by site, zoo:NAME, or with --sae-id a published release.
    z_dictionary
        Of what it writes (blocks.LAYER.attn.hook_z), this head's or that of all heads; else where DICTIONARY is.
    """
    chosen = _features(features)
    _check_output(output_dir)
    check_page(report, *([] if output_dir is None else [output_dir / name for name in RESULTS]))
    quieten_transformers()
    from headlens.data.text import Corpus
    from headlens.fra import label_features, read_labels
    from headlens.models import load
    from headlens.rules import extract

    own = _dictionary(dictionary, sae_id, [f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.ln1.hook_normalized"])
    z = _dictionary(z_dictionary or dictionary, z_sae_id, [f"blocks.{layer}.attn.hook_z"], head)
    named = None if labels is None else read_labels(labels)
    if named is not None:
        named.check(own.d_sae)
    loaded = load(model, device=pick_device(device), dtype=dtype, revision=revision)
    _check_head(loaded, layer, head)
    texts = list(Corpus(corpus, field, num_docs))
    with _console.progress(quiet) as bar:
        found = extract(
            loaded, own, z, texts, layer, head, chosen, method=method, num_features=num_features,
            max_length=max_length, num_bins=num_bins, examples_per_bin=examples_per_bin, min_count=min_count,
            max_count=max_count, seed=seed, progress=bar,
        )  # fmt: skip
        found = with_command(found)
        seen = label_features(loaded, own, texts[:LABEL_TEXTS], layer, max_tokens=max_length)
    named = seen if named is None else named.filled(seen)
    if output_dir is not None:
        _write(found, named, output_dir)
        _console.note(f"rules: {output_dir}", quiet)
    if report is not None:
        from headlens.report import write_report

        write_report([found, named], report)
        _console.note(f"report: {report}", quiet)
    if json:
        import json as plain

        _console.print_json(plain.loads(found.to_json(named)))
    else:
        for feature in found.features:
            _print_feature(found, feature, named, top)
        _print_curve(found)
    return 0


def _features(said: list[str] | None) -> list[int] | None:
    from headlens._errors import DataError

    parts = _console.split(said)
    if parts is None:
        return None
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise DataError(f"--features {','.join(parts)} must be output features by number: 3,17.")
    return list(dict.fromkeys(map(int, parts)))


def _check_head(model: Any, layer: int, head: int) -> None:
    from headlens._errors import DataError

    for what, asked, n in (("layer", layer, model.n_layers), ("head", head, model.n_heads)):
        if asked >= n:
            raise DataError(f"{model.name} has {n} {what}s: --{what} must be from 0 to {n - 1}, not {asked}.")


def _dictionary(source: str, sae_id: str | None, sites: list[str], head: int | None = None) -> Any:
    """A dictionary by its id; or, of several in one place, the first of these sites that is there."""
    from headlens import dictionaries
    from headlens._errors import DataError

    if sae_id is not None or (not source.startswith("zoo:") and (Path(source) / "cfg.json").is_file()):
        return dictionaries.load(source, sae_id, dtype="float32")
    errors = []
    for site in sites:
        for one in (head, None) if head is not None else (None,):
            try:
                return dictionaries.load(source, site, head=one, dtype="float32")
            except DataError as error:
                errors.append(error)
    raise errors[0]


def _check_output(folder: Path | None) -> None:
    from headlens._errors import OutputError
    from headlens._result import check_result_target

    if folder is None:
        return
    if folder.is_file():
        raise OutputError(f"--output-dir {folder} is a file: name a folder.")
    for name in RESULTS:
        check_result_target(folder / name)


def _write(found: Any, named: Any, folder: Path) -> None:
    from headlens._files import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, result in zip(RESULTS, (found, named), strict=True):
        result.save(folder / name)
    texts = {"csv": found.to_csv(named), "json": found.to_json(named), "md": found.to_markdown(named)}
    for ending, text in texts.items():
        with whole_file(folder / f"rules.{ending}") as file:
            file.write_text(text, encoding="utf-8")


# --- printing ---------------------------------------------------------------------------------------------


def _print_feature(found: Any, feature: int, named: Any, top: int) -> None:
    row = found.table.slice(found.features.index(feature), 1).to_pylist()[0]
    _console.out.print(
        f"[bold]Output feature {feature}[/]  fires at {row['positions']:,} positions of {row['texts']:,} texts"
    )
    some = list(zip(found.rules(feature), row["coverage"], strict=True))
    for rule, coverage in sorted(some, key=lambda one: -abs(one[0].effect) * one[1])[:top]:
        _console.out.print(f"  {_plain(rule.text(named.name))}   [dim]{100 * coverage:.0f} % of where it fires[/]")
    for absence in found.absences(feature):
        _console.out.print(f"  absence: {_plain(absence.text(named.name))}")
    for count in found.counts(feature):
        _console.out.print(f"  count: {_plain(count.text(named.name))}")
    for one in found.agreement(feature):
        _console.out.print(f"  made texts: {_plain(_agreed(one, named))}")
    for one in row["exemplars"][:2]:
        tokens = "".join(one["tokens"][-SHOWN_TOKENS:])
        _console.out.print(f"  [dim]{one['activation']:.2f}[/] {_plain(tokens)}", soft_wrap=True)
    _console.out.print()


def _agreed(one: Any, named: Any) -> str:
    """What the feature did on texts made to match a rule, and on texts made not to."""
    rule = one.rule.text(named.name).rsplit(" -> ", 1)[0]
    if not one.n:
        return f"{rule}: no text could be made"
    fires = f"fires in {100 * one.matching:.0f} % that match, {100 * one.without_key:.0f} % without the key"
    if one.without_query == one.without_query:  # NaN: the rule names no query
        fires += f", {100 * one.without_query:.0f} % without the query"
    return f"{rule}: {fires}; agreement {one.right.mean:.2f} [{one.right.low:.2f}, {one.right.high:.2f}], n = {one.n}"


def _print_curve(found: Any) -> None:
    from rich.table import Table

    table = Table(title=f"mean over {len(found.features)} features, test texts", title_justify="left")
    table.add_column("predictor")
    for name in ("rules", "precision", "recall", "F1", "AP", "Spearman", "R2"):
        table.add_column(name, justify="right")
    for row in found.curve().to_pylist():
        numbers = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1", "ap", "spearman", "r2")]
        table.add_row(row["predictor"], "" if row["rules"] is None else f"{row['rules']:,}", *numbers)
    _console.out.print(table)


def _plain(text: str) -> str:
    """Text from elsewhere for a terminal: no markup, no code that it would obey."""
    from rich.markup import escape

    return escape(_console.one_line(text))
