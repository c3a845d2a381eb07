"""`headlens capture`: write the activations of a corpus to a store, go on with one, or check one."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from headlens.cli import _console
from headlens.cli._common import Debug, Device, Dtype, Json, Quiet, Revision, pick_device, quieten_transformers

AtLeastOne = Number(gte=1)


def capture(
    model: str | None = None,
    corpus: str | None = None,
    /,
    *,
    sites: Annotated[
        list[str] | None,
        Parameter(help="Comma-separated: blocks.LAYER.NAME, or blocks.*.NAME for every layer.", negative=""),
    ] = None,
    out: Annotated[Path | None, Parameter(help="The folder of the store.")] = None,
    resume: Annotated[
        bool, Parameter(negative="", help="Go on with the store in --out; make again what of it is missing or damaged.")
    ] = False,
    check: Annotated[
        Path | None, Parameter(help="Read this store, compare every byte with its checksum, and do nothing else.")
    ] = None,
    store_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], Parameter(help="Precision to keep activations in.")
    ] = "float16",
    num_docs: Annotated[int | None, Parameter(help="The first documents only.", validator=AtLeastOne)] = None,
    max_tokens: Annotated[
        int | None, Parameter(help="Where texts are cut; as long as the model can read.", validator=AtLeastOne)
    ] = None,
    template_tokens: Annotated[
        Literal["keep", "drop"], Parameter(help="Whether tokens of the chat template have rows.")
    ] = "keep",
    field: Annotated[str, Parameter(help="Field or column of the corpus that holds the text.")] = "text",
    batch_tokens: Annotated[
        int, Parameter(help="Tokens that go through the model at once.", validator=AtLeastOne)
    ] = 8192,
    shard_mb: Annotated[int, Parameter(help="Size of a shard; one is held in memory.", validator=AtLeastOne)] = 256,
    dtype: Dtype = "float32",
    device: Device = "auto",
    revision: Revision = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.run
) -> int:  # fmt: skip
    """Keep what a model computes over a corpus, for probes to read.

    Runs the model once and writes a row per token and site to a folder of safetensors shards, each with a checksum.
    However it ends (a kill, a full disk), the same command with --resume goes on from there.

        headlens capture gpt2 texts.jsonl --sites "blocks.*.hook_resid_post" --out acts
        headlens capture --check acts

    --check exits 1 where a shard is missing, truncated, damaged, half-written or of another store, and names it.

    Parameters
    ----------
    model
        A folder, a hub id, or zoo:NAME.
    corpus
        Texts: .jsonl, .csv, .txt, a folder, or hf:DATASET.
    """
    from headlens._errors import DataError

    if check is not None:
        return _check(check, json)
    if model is None or corpus is None or sites is None or out is None:
        raise DataError("Name a model, a corpus, --sites and --out; or a store to --check.")
    quieten_transformers()
    from headlens.data.text import Corpus
    from headlens.models import load
    from headlens.store import capture_to
    from headlens.store.manifest import check_store_target

    check_store_target(out, resume=resume)
    texts = Corpus(corpus, field, num_docs)
    total = _count(texts)
    loaded = load(model, device=pick_device(device), dtype=dtype, revision=revision)
    with _console.progress(quiet) as bar:
        store = capture_to(
            out, loaded, texts, _console.split(sites) or [], dtype=store_dtype, max_tokens=max_tokens,
            template_tokens=template_tokens, batch_tokens=batch_tokens, shard_bytes=shard_mb << 20, resume=resume,
            progress=_Counted(bar, total), note=lambda said: _console.note(said, quiet),
        )  # fmt: skip
    if json:
        _console.print_json(_summary(store))
    else:
        _print(store)
    return 0


def _count(texts: Any) -> int | None:
    """How many documents there are, having read all: a line that cannot be read should not cost hours."""
    return texts.limit if str(texts.source).startswith("hf:") else sum(1 for _ in texts)


class _Counted:
    """Progress over documents; where nobody knows how many there are, the end stays one document away."""

    def __init__(self, bar: Any, total: int | None) -> None:
        self.bar, self.total, self.done = bar, total, 0

    def __call__(self, more: int) -> None:
        self.done += more
        self.bar("documents", self.done, self.total or self.done + 1)


def _check(path: Path, json: bool) -> int:
    from rich.markup import escape

    from headlens.store import faults

    found = faults(path)
    if json:
        _console.print_json({"store": str(path), "whole": not found, "faults": found})
        return 1 if found else 0
    for file, what in found.items():
        _console.out.print(f"[bold red]{escape(file)}[/] is {escape(what)}", soft_wrap=True)
    if found:
        _console.out.print("To make these again: the command that wrote the store, with --resume.")
    else:
        _console.out.print(f"[bold green]whole[/]: {escape(str(path))}", soft_wrap=True)
    return 1 if found else 0


def _summary(store: Any) -> dict[str, Any]:
    return {
        "store": str(store.path),
        **store.manifest.totals,
        "sites": store.manifest.settings.sites,
        "dtype": store.manifest.settings.dtype,
        "shards": len(store.manifest.shards),
        "bytes": sum(shard.bytes for shard in store.manifest.shards),
        "hash": store.hash,
        "texts": store.text_hash,
        "model": store.manifest.settings.model,
    }


def _print(store: Any) -> None:
    about = _summary(store)
    limit, megabytes = store.manifest.settings.max_tokens, about["bytes"] / 1e6
    cut = f" ({about['cut']:,} cut at {limit} tokens)" if about["cut"] else ""
    _console.out.print(f"{about['documents']:,} documents{cut}, {about['tokens']:,} tokens, {about['rows']:,} rows")
    _console.out.print(
        f"{len(store.sites)} sites in {about['dtype']}, {megabytes:,.1f} MB in {about['shards']:,} shards:"
    )
    _console.out.print(f"  {store.path.resolve()}", soft_wrap=True, markup=False)
