"""`hl.heads.score`: run models over stimuli, fold every pattern as it appears, and table what heads do.

Per sequence and head a kind gives one number (heads/kinds.py); the table holds its mean over sequences, a
95 % bootstrap interval over sequences, and its null:

    induction, duplicate_token      the same head, the same places, with nothing repeated there (control)
    all others                      attention spread evenly over what the query sees (analytic)

Memory: one layer's patterns for one batch, and one number per kind, sequence and head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from headlens._errors import DataError, ModelError
from headlens._result import Provenance, versions
from headlens._statistics import bootstrap_mean
from headlens.data.stimuli import Stimulus, passages, plain, repeats
from headlens.data.text import read_texts, texts_hash
from headlens.data.tokens import Tokens, ordinary_ids
from headlens.heads.kinds import KINDS, Targets, target_mass, uniform_mass
from headlens.heads.scores import SCHEMA, HeadScores
from headlens.models import Model, load
from headlens.tracing.capture import Batch, capture

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many sequences are done, and how many there are."""


@dataclass(frozen=True)
class Protocol:
    """How heads are measured; everything that changes a number is here."""

    num_samples: int = 256
    """Sequences per stimulus."""
    seq_len: int = 50
    """Tokens of the repeated part."""
    max_gap: int = 40
    """Longest random gap between a part and its repetition."""
    max_tokens: int = 128
    """Where texts are cut, BOS included."""
    seed: int = 0
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        least = {
            "num_samples": (self.num_samples, 1),
            "seq_len": (self.seq_len, 2),
            "max_gap": (self.max_gap, 0),
            "max_tokens": (self.max_tokens, 4),
            "seed": (self.seed, 0),
            "batch_tokens": (self.batch_tokens, 1),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise DataError(f"{name} must be {bound} or more, not {value}.")


def score(
    models: Any,
    kinds: Sequence[str] | None = None,
    *,
    corpus: str | Path | Sequence[str] | None = None,
    field: str = "text",
    stimulus: Stimulus | None = None,
    num_samples: int = 256,
    seq_len: int = 50,
    max_gap: int = 40,
    max_tokens: int = 128,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    **load_options: Any,
) -> HeadScores:
    """Score every head of one or more models for each kind.

    Parameters
    ----------
    models
        One model or a list, each named as `hl.load` takes it; `load_options` go there.
    kinds
        Names from `hl.heads.KINDS`; None for all.
    corpus, field
        For the kinds that are measured on text: a list of texts, or what `hl.data.read_texts` reads. Without one
        they are measured on random tokens, and the provenance says so.
    stimulus
        Measure every kind on these sequences instead; nulls come from its control where it has one.
    num_samples, seq_len, max_gap, max_tokens, seed
        See `Protocol`. `seq_len` shrinks, and is recorded so, where the vocabulary or context is too small.

    Raises
    ------
    DataError
        If a kind is unknown, a number is out of range, no model or one name twice is given, or the corpus or random
        tokens cannot be read by a model.
    ModelError
        If a model's attention is NaN.
    """
    names = known_kinds(kinds)
    protocol = Protocol(num_samples, seq_len, max_gap, max_tokens, seed, batch_tokens)
    texts, origin = (None, "") if corpus is None or stimulus is not None else _texts(corpus, field, num_samples)
    tables, described, data = [], [], {}
    for source in [models] if isinstance(models, (str, Model)) or not isinstance(models, Sequence) else models:
        model = load(source, **load_options)
        model.check_causal("kinds of heads are defined for causal models")
        if any(model.name == other["name"] for other in described):
            raise DataError(f"Two of the models are called {model.name}: their rows could not be told apart.")
        stimuli = _stimuli(model, names, texts, stimulus, protocol)
        for one in stimuli:
            tables.append(_score_on(model, stimuli[one], one, protocol, progress))
            data[f"{model.name}: {', '.join(one)}"] = stimuli[one].provenance()
        described.append(model.provenance())
    if not tables:
        raise DataError("There is no model to score: the list is empty.")
    if texts is not None:
        data["corpus"] = {"source": origin, "documents": len(texts), "hash": texts_hash(texts)}
    order = [("model", "ascending"), ("kind", "ascending"), ("layer", "ascending"), ("head", "ascending")]
    table = pa.concat_tables(tables).sort_by(order)
    return HeadScores(Provenance(tuple(described), data, seed, "", versions()), table)


def known_kinds(kinds: Sequence[str] | None) -> list[str]:
    """Return the kinds asked for, each once; None asks for all.

    Raises
    ------
    DataError
        If one is unknown, or none is asked for.
    """
    names = list(KINDS) if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise DataError(f"'{', '.join(unknown)}' is no kind of head; the kinds are {', '.join(KINDS)}.")
    return list(dict.fromkeys(names))


def _texts(corpus: str | Path | Sequence[str], field: str, n: int) -> tuple[list[str], str]:
    """Return the texts, and where they came from."""
    if isinstance(corpus, (str, Path)):
        return read_texts(corpus, field=field, limit=n), str(corpus)
    return list(corpus)[:n], "a list of texts"


def _stimuli(
    model: Model, names: list[str], texts: list[str] | None, stimulus: Stimulus | None, p: Protocol
) -> dict[tuple[str, ...], Stimulus]:
    """Return what each group of kinds is measured on."""
    if stimulus is not None:
        return {tuple(names): stimulus}
    groups: dict[tuple[str, ...], Stimulus] = {}
    if on_repeats := tuple(k for k in names if KINDS[k].stimulus == "repeats"):
        groups[on_repeats] = repeat_stimulus(model, p)
    if on_text := tuple(k for k in names if KINDS[k].stimulus == "text"):
        if texts is None:
            groups[on_text] = _random_tokens(model, p)
        else:
            limit = min(p.max_tokens, model.n_ctx)
            groups[on_text] = passages(texts, model.tokenizer, bos=model.bos, max_tokens=limit)
    return groups


def repeat_stimulus(model: Model, p: Protocol) -> Stimulus:
    """Return repeats that fit the model's vocabulary and context; the gap shrinks before the repeated part."""
    ids = allowed_ids(model)
    room = model.n_ctx - (model.bos is not None)
    length = min(p.seq_len, len(ids) // 2, room // 2)
    if length < 2:
        raise DataError(f"{model.name} reads {room} tokens of {len(ids)} ordinary ids: too few to repeat any.")
    max_gap = min(p.max_gap, room - 2 * length)
    return repeats(ids, n=p.num_samples, length=length, max_gap=max_gap, bos=model.bos, seed=p.seed)


def _random_tokens(model: Model, p: Protocol) -> Stimulus:
    ids = allowed_ids(model)
    length = min(2 * p.seq_len, len(ids), model.n_ctx - 1)
    return plain(ids, n=p.num_samples, length=length, bos=model.bos, seed=p.seed)


def allowed_ids(model: Model) -> np.ndarray:
    """Return the ids random stimuli draw from: ordinary tokens of the model's own vocabulary."""
    special = [i for i in (model.bos, model.config.bos_token_id, model.config.eos_token_id) if isinstance(i, int)]
    ids = ordinary_ids(model.tokenizer, model.vocab_size, special)
    if not len(ids):
        raise DataError(f"The tokenizer of {model.name} has no ordinary token: its vocabulary is missing or empty.")
    return ids


def _score_on(
    model: Model, stimulus: Stimulus, names: tuple[str, ...], p: Protocol, progress: Progress | None
) -> pa.Table:
    own = _per_sequence(model, stimulus, stimulus.tokens, names, p, progress)
    null = _nulls(model, stimulus, names, p, progress)
    rows = []
    for i, name in enumerate(names):
        values = own[i]
        whole = ~np.isnan(values).any((1, 2))  # sequences in which no row has a target say nothing
        if not whole.any():
            raise DataError(f"No sequence of the stimulus has a target for {name}: use longer texts, or repeats.")
        mean, low, high = bootstrap_mean(values[whole], seed=p.seed)
        rows.append(_rows(model.name, name, mean, low, high, null[i][whole].mean(0), int(whole.sum())))
    return pa.concat_tables(rows)


def _per_sequence(
    model: Model,
    stimulus: Stimulus,
    read: Tokens,
    names: tuple[str, ...],
    p: Protocol,
    progress: Progress | None,
) -> Float[np.ndarray, "kind sequence layer head"]:
    """Score `read` at the targets of the stimulus' own tokens (they differ for a control)."""
    found = np.empty((len(names), len(read), model.n_layers, model.n_heads))
    marked = _TargetsOf(stimulus, names)

    def fold(pattern: Tensor, batch: Batch) -> Tensor:
        return torch.stack([target_mass(pattern, targets) for targets in marked(batch)])

    done = 0
    for batch in capture(model, read, {"blocks.*.attn.hook_pattern": fold}, batch_tokens=p.batch_tokens):
        for layer in range(model.n_layers):
            found[:, batch.index, layer] = batch[f"blocks.{layer}.attn.hook_pattern"].cpu().numpy()
        _check_attention(model, found[:, batch.index], marked(batch))
        done += len(batch.index)
        if progress is not None:
            what = "control" if read is stimulus.control else stimulus.name
            progress(f"{model.name}: {what}", done, len(read))
    return found


def _check_attention(
    model: Model, found: Float[np.ndarray, "kind sequence layer head"], targets: list[Targets]
) -> None:
    aimed = torch.stack([t.any((1, 2)) for t in targets]).cpu().numpy()  # elsewhere NaN means: no target
    lost = np.argwhere(np.isnan(found) & aimed[:, :, None, None])
    if len(lost):
        layer, head = lost[0, 2:]
        raise ModelError(
            f"The attention of layer {layer}, head {head} of {model.name} is NaN: its numbers overflow "
            f"{str(model.dtype).removeprefix('torch.')}. Load it in a wider dtype."
        )


class _TargetsOf:
    """Targets of each kind for a batch, made once and shared by all layers."""

    def __init__(self, stimulus: Stimulus, names: tuple[str, ...]) -> None:
        self.stimulus, self.names = stimulus, names
        self._batch: Batch | None = None
        self._targets: list[Targets] = []

    def __call__(self, batch: Batch) -> list[Targets]:
        if batch is not self._batch:
            ids = torch.zeros_like(batch.ids)
            for row, index in enumerate(batch.index):
                sequence = self.stimulus.tokens[index]
                ids[row, : len(sequence)] = torch.from_numpy(sequence)
            self._targets = [KINDS[name].targets(ids, batch.mask, self.stimulus.bos) for name in self.names]
            self._batch = batch
        return self._targets


def _nulls(
    model: Model, stimulus: Stimulus, names: tuple[str, ...], p: Protocol, progress: Progress | None
) -> Float[np.ndarray, "kind sequence layer head"]:
    null = np.empty((len(names), len(stimulus.tokens), model.n_layers, model.n_heads))
    controlled = [i for i, name in enumerate(names) if stimulus.control is not None and _needs_control(name)]
    if controlled:
        assert stimulus.control is not None
        chosen = tuple(names[i] for i in controlled)
        null[controlled] = _per_sequence(model, stimulus, stimulus.control, chosen, p, progress)
    for i in set(range(len(names))) - set(controlled):
        null[i] = _uniform(model, stimulus, names[i])[:, :, None]
    return null


def _needs_control(name: str) -> bool:
    # A positional kind has the same targets whatever the tokens are: taking out repeats says nothing about it.
    return KINDS[name].stimulus == "repeats"


def _uniform(model: Model, stimulus: Stimulus, name: str) -> Float[np.ndarray, "sequence layer"]:
    windows = [model.family.window(model.attention_module(layer)) for layer in range(model.n_layers)]
    null = np.empty((len(stimulus.tokens), model.n_layers))
    for i, sequence in enumerate(stimulus.tokens):
        ids = torch.from_numpy(sequence)[None]
        targets = KINDS[name].targets(ids, torch.ones_like(ids, dtype=torch.bool), stimulus.bos)
        by_window = {window: float(uniform_mass(targets, window)) for window in set(windows)}
        null[i] = [by_window[window] for window in windows]
    return null


def _rows(
    model: str, kind: str, mean: np.ndarray, low: np.ndarray, high: np.ndarray, null: np.ndarray, n: int
) -> pa.Table:
    layers, heads = np.indices(mean.shape)
    columns = {
        "model": np.full(mean.size, model),
        "layer": layers.ravel(),
        "head": heads.ravel(),
        "kind": np.full(mean.size, kind),
        "score": mean.ravel(),
        "low": low.ravel(),
        "high": high.ravel(),
        "null": null.ravel(),
        "n": np.full(mean.size, n),
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)
