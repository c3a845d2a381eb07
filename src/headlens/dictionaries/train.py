"""`hl.dictionaries.train`: learn a dictionary of what a model holds at a site, and say how good it is.

    captured rows -> training documents -> SAELens' trainer -> a SAELens folder -> measured on held-out documents

Nothing is fetched and nothing is sent. Every ~30 seconds all that training depends on is written whole to a work folder
beside `out`; the same call with `resume=True` goes on from there, and ends with the same bytes (on the same kind of
device, with the same versions and number of threads). The finished folder is read by `hl.dictionaries.load` and by
SAELens; its card, under metadata.headlens of cfg.json, holds what was measured.

One store, captured in one pass, serves any number of sites and heads.

Axes: document; row = tokens but BOS; d_in = numbers a row; d_sae = features.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save

from headlens._errors import DataError, OutputError, StoreMismatch
from headlens._files import whole_folder
from headlens._lock import LOCK, only_process
from headlens._result import versions
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.dictionaries.batches import batches, held_out
from headlens.dictionaries.evaluate import DictionaryScores, evaluate
from headlens.dictionaries.files import DTYPES
from headlens.dictionaries.load import load as load_dictionary
from headlens.dictionaries.saelens import CONFIG, SPARSITY, WEIGHTS
from headlens.dictionaries.trainer import Architecture, Plan, Trainer, import_sae_lens, read_about
from headlens.models import Model, load
from headlens.store import ActivationStore, StoredRows, capture_to
from headlens.store.manifest import MANIFEST

SAVE_EVERY = 30.0
"""Seconds between checkpoints."""
SAMPLE_ROWS = 16384
"""Rows that say how to scale, and where to begin."""
MEASURED = 200
"""Held-out documents that a dictionary is measured on, at most."""


def train(
    source: Any,
    corpus: Any,
    site: str,
    *,
    out: str | Path,
    head: int | None = None,
    architecture: Architecture = "topk",
    d_sae: int | None = None,
    k: int = 32,
    l1: float = 1.0,
    tokens: int = 10_000_000,
    batch: int = 4096,
    lr: float = 1e-3,
    seed: int = 0,
    share_held_out: float = 0.1,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **load_options: Any,
) -> Autoencoder:
    """Train a dictionary, write it to the folder `out`, and return it as it is read from there.

    Parameters
    ----------
    source
        Whatever `hl.load` takes.
    corpus
        An `ActivationStore` that holds the site; or what `hl.capture_to` reads, which is then captured beside `out`.
    site
        Such as blocks.3.hook_resid_pre, blocks.3.ln1.hook_normalized, or blocks.3.attn.hook_z with a `head`.
    head
        The one head of a site that has heads; None: all of them, one after the other.
    d_sae
        How many features; None: eight times what a row has numbers.
    k
        Active features of a row: exactly (topk), on average (batchtopk) or aimed at (jumprelu).
    l1
        Penalty on activity, of relu alone.
    tokens
        Rows to learn from, again and again where there are fewer.
    share_held_out
        Of the documents: never trained on, and what the dictionary is measured on.
    dtype
        Precision of the weights on disk; they are read as float32.
    resume
        Go on where the same call was stopped; a finished dictionary is read.
    progress
        Called with the steps done and all of them.

    Raises
    ------
    MissingExtra
        If SAELens is not installed.
    SiteError
        If the model or the store has no such site or head.
    StoreMismatch
        If the store is of another model; or, with `resume`, `out` was begun otherwise.
    DataError
        If an option is out of range, or too few documents are left to train on or to measure with.
    StoreError
        If another process trains to `out`.
    OutputError
        If there is something at `out` already and `resume` is not set, or it cannot be written.
    """
    out = Path(out)
    if out.exists() and not resume:
        raise OutputError(f"{out} is there already: go on with it (resume=True, --resume), or name another folder.")
    _check(architecture, d_sae, k, l1, tokens, batch, lr, seed, share_held_out, dtype)
    import_sae_lens()  # that it is missing should not be found out after a capture
    model, work = load(source, **load_options), out.with_name(f".{out.name}.work")
    with only_process(work, passing=True):
        store = _store(model, corpus, site, work / "activations")
        rows = store.rows(site, head=head)
        d_sae = 8 * rows.width if d_sae is None else d_sae
        if architecture != "relu" and k > d_sae:
            raise DataError(f"k is {k}, and there are only {d_sae} features to be active.")
        plan = Plan(architecture, rows.width, d_sae, k, l1, max(1, tokens // batch), batch, lr, seed)
        away = held_out(store.tokens, share_held_out, seed=seed)
        about = _about(model, rows, plan, dtype, share_held_out, away)
        if out.exists():
            return _finished(out, about)
        trainer = _trained(plan, rows, np.flatnonzero(~away), work / "checkpoint", about, str(model.device), progress)
        made = _written(out, trainer, about, model, [store.tokens[i] for i in np.flatnonzero(away)[:MEASURED]], dtype)
        _clear(work)
    return made


def _clear(work: Path) -> None:
    """Remove what is of no more use, what a kill left half-written included; the lock goes by itself."""
    for part in work.iterdir():
        if part.name != LOCK:
            shutil.rmtree(part, ignore_errors=True)


def _check(
    architecture: str, d_sae: int | None, k: int, l1: float, tokens: int, batch: int, lr: float, seed: int,
    share: float, dtype: str,
) -> None:  # fmt: skip
    if architecture not in ("topk", "batchtopk", "jumprelu", "relu"):
        raise DataError(f"architecture must be topk, batchtopk, jumprelu or relu, not '{architecture}'.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise DataError(f"dtype must be float32, float16 or bfloat16, not '{dtype}'.")
    for name, value in {"d_sae": d_sae, "k": k, "tokens": tokens, "batch": batch}.items():
        if value is not None and value < 1:
            raise DataError(f"{name} must be 1 or more, not {value}.")
    for name, number in {"l1": l1, "lr": lr}.items():
        if not 0 < number < float("inf"):
            raise DataError(f"{name} must be a number above 0, not {number}.")
    if not 0 <= seed < 2**63:
        raise DataError(f"seed must be 0 or more, and below 2**63, not {seed}.")
    if not 0 < share < 1:
        raise DataError(f"share_held_out must be between 0 and 1, not {share}.")


def _store(model: Model, corpus: Any, site: str, folder: Path) -> ActivationStore:
    """Return the store to learn from, captured if it is not there, of this model."""
    if not isinstance(corpus, ActivationStore):
        return capture_to(folder, model, corpus, [site], resume=(folder / MANIFEST).exists())
    theirs, ours = corpus.manifest.settings.model["weights"], model.provenance()["weights"]
    if theirs != ours:
        raise StoreMismatch(
            f"{corpus.path} holds activations of {corpus.manifest.settings.model['name']} (weights {theirs}), and this "
            f"is {model.name} ({ours}): capture them with this model."
        )
    return corpus


def _about(
    model: Model, rows: StoredRows, plan: Plan, dtype: str, share: float, away: np.ndarray
) -> dict[str, Any]:  # fmt: skip
    """Return all that decides how the dictionary comes out: its card, before it is measured."""
    source = rows.source
    documents = {"trained_on": int((~away).sum()), "held_out": int(away.sum()), "share_held_out": share}
    if documents["held_out"] < 2 or not rows.lengths[~away].any():
        raise DataError(
            f"Of {len(away)} documents {documents['held_out']} would be held out and {documents['trained_on']} trained "
            "on: pass more documents, or another share_held_out."
        )
    documents["rows"] = int(rows.lengths[~away].sum())
    corpus = {key: source[key] for key in ("hash", "texts", "max_tokens", "dtype")}
    return {
        "convention": "site",
        "site": rows.site,
        "head": rows.head,
        "weights": source["weights"],
        "model": {key: value for key, value in model.provenance().items() if key != "weights"},
        "training": asdict(plan) | {"documents": documents, "corpus": corpus, "saved_as": dtype},
        "versions": versions() | {"sae-lens": import_sae_lens().__version__},
    }


# --- learning ---------------------------------------------------------------------------------------------


def _trained(
    plan: Plan, rows: StoredRows, documents: np.ndarray, checkpoint: Path, about: dict[str, Any], device: str,
    progress: Callable[[int, int], None] | None,
) -> Trainer:  # fmt: skip
    """Take all steps, from the checkpoint if there is one."""
    sample = next(batches(rows, documents, size=SAMPLE_ROWS, seed=plan.seed))
    trainer = Trainer(plan, sample, device=device)
    if (begun := read_about(checkpoint)) is not None:
        _check_same(begun, about, checkpoint)
        trainer.resume(checkpoint)
    saved = time.monotonic()
    for part in batches(rows, documents, size=plan.batch, seed=plan.seed, skip=trainer.done):
        if trainer.done >= plan.steps:
            break
        loss = trainer.step(part)
        if not loss < float("inf"):  # NaN too
            raise DataError(f"Training diverged at step {trainer.done} (loss {loss}): lower lr, now {plan.lr}.")
        if time.monotonic() - saved >= SAVE_EVERY:
            trainer.save(checkpoint, about)
            saved = time.monotonic()
        if progress is not None:
            progress(trainer.done, plan.steps)
    return trainer


def _check_same(begun: dict[str, Any], about: dict[str, Any], where: Path) -> None:
    """Raise if what was begun is not what is asked for."""
    there, wanted = _flat(begun), _flat(json.loads(json.dumps(about)))
    free = ("model.name", "model.revision")  # which only say where it was found
    changed = [key for key in wanted if there.get(key) != wanted[key] and key not in free and "versions" not in key]
    if changed:
        key = changed[0]
        raise StoreMismatch(
            f"{where} was begun with {key} {there.get(key)}, and this is {wanted[key]}: use the options it was begun "
            "with, or name another folder."
        )


def _flat(said: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in said.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


# --- writing ----------------------------------------------------------------------------------------------


def _written(
    out: Path, trainer: Trainer, about: dict[str, Any], model: Model, ids: list[np.ndarray], dtype: str
) -> Autoencoder:
    """Write the dictionary with what is measured of it, whole or not at all, and return it as it is read."""
    metadata = {
        "model_name": model.name, "hook_name": about["site"], "hook_head_index": about["head"],
        "context_size": about["training"]["corpus"]["max_tokens"], "prepend_bos": model.bos is not None,
        "headlens": about,
    }  # fmt: skip
    with whole_folder(out) as folder:
        trainer.write(folder, metadata)
        held = {name: value.to(DTYPES[dtype]) for name, value in load_file(folder / WEIGHTS).items()}
        (folder / WEIGHTS).unlink()  # it was made for its owner's eyes alone
        (folder / WEIGHTS).write_bytes(save(held))
        scores = evaluate(model, load_dictionary(folder), ids, seed=trainer.plan.seed)
        _write_scores(folder, scores)
    return load_dictionary(out)


def _write_scores(folder: Path, scores: DictionaryScores) -> None:
    """Put what was measured (as the weights are on disk) into cfg.json, and the frequencies beside it."""
    said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    texts = scores.provenance.data["texts"]
    rows = {row.pop("metric"): {key: _number(value) for key, value in row.items()} for row in scores.table.to_pylist()}
    said["metadata"]["headlens"]["measured"] = {"documents": texts["n"], "tokens": texts["tokens"], "metrics": rows}
    (folder / CONFIG).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sparsity = torch.from_numpy(np.log10(scores.frequency + 1e-10)).float()
    (folder / SPARSITY).write_bytes(save({"sparsity": sparsity}))


def _number(value: float | int) -> float | int | None:
    """JSON has no NaN."""
    return None if value != value else value


def _finished(out: Path, about: dict[str, Any]) -> Autoencoder:
    """Read what is at `out`, if this is how it was made."""
    made = load_dictionary(out)
    _check_same(made.card.get("headlens") or {}, about, out)
    return made
