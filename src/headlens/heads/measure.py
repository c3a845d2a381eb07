"""`hl.heads.score`: measure what every head of some models does, and table it.

For each head and kind (heads/kinds.py): the mean over samples, a 95 % bootstrap interval over samples, the null (what
a head without the behaviour would score on the same samples), the score weighted by what keys write where it is one of
attention, and a one-sided p.

Memory: one layer's patterns for one batch, and about a thousand numbers per kind and head, however many documents of a
file are read; random sequences and prompts are held, 8 bytes a token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from headlens._errors import DataError
from headlens._result import Provenance, versions
from headlens._statistics import Resampling
from headlens.data.stimuli import Stimulus
from headlens.data.text import Corpus
from headlens.heads.kinds import DEFAULT_KINDS, KINDS, Looks
from headlens.heads.observe import observe
from headlens.heads.scores import HeadScores
from headlens.heads.setting import Progress, Protocol, Setting
from headlens.heads.tally import HeadTally
from headlens.heads.work import Checkpoint
from headlens.models import Model, load


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
    num_prompts: int = 32,
    seed: int = 0,
    batch_tokens: int = 8192,
    work: str | Path | None = None,
    progress: Progress | None = None,
    **load_options: Any,
) -> HeadScores:
    """Measure every head of one or more models for each kind.

    Parameters
    ----------
    models
        One model or a list, each named as `hl.load` takes it; `load_options` go there.
    kinds
        Names from `hl.heads.KINDS`. None for all that these models can be measured for; the provenance says which were
        left out, and why.
    corpus, field
        For the kinds that are measured on text: a list of texts, or what `hl.data.read_texts` reads. Without one,
        models of the zoo read the text world; of others, previous tokens, self and sink are measured on random tokens.
    stimulus
        Measure these sequences instead, for the kinds of attention that they have the marks and the control for.
    num_samples, seq_len, max_gap, max_tokens, num_prompts, seed
        See `Protocol`. `seq_len` shrinks, and is recorded so, where the vocabulary or context is too small.
    work
        A folder: killed and called again with the same arguments, the work goes on from there, to the same numbers.

    Raises
    ------
    DataError
        If a kind is unknown, a number is out of range, no model or one name twice is given, the corpus cannot be read,
        or a model cannot be measured for a kind that was named.
    ModelError
        If a model's attention is NaN.
    """
    names = known_kinds(kinds)
    protocol = Protocol(num_samples, seq_len, max_gap, max_tokens, num_prompts, seed, batch_tokens)
    texts = None if corpus is None or stimulus is not None else Corpus(corpus, field, num_samples)
    tables, described, data = [], [], {"protocol": asdict(protocol)}
    for source in [models] if isinstance(models, (str, Model)) or not isinstance(models, Sequence) else models:
        model = load(source, **load_options)
        model.check_causal("kinds of heads are defined for causal models")
        if any(model.name == other["name"] for other in described):
            raise DataError(f"Two of the models are called {model.name}: their rows could not be told apart.")
        described.append(model.provenance())
        measuring = _Measuring(Setting(model, protocol, texts, progress), described[-1], work, stimulus)
        tables.append(measuring.table(names, every=kinds is None))
        data |= measuring.data
    if not tables:
        raise DataError("There is no model to score: the list is empty.")
    if texts is not None:
        data["corpus"] = texts.described
    order = [("model", "ascending"), ("kind", "ascending"), ("layer", "ascending"), ("head", "ascending")]
    return HeadScores(Provenance(tuple(described), data, seed, "", versions()), pa.concat_tables(tables).sort_by(order))


def known_kinds(kinds: Sequence[str] | None) -> list[str]:
    """Return the kinds asked for, each once; None asks for all that are measured by default.

    Raises
    ------
    DataError
        If one is unknown, or none is asked for.
    """
    names = list(DEFAULT_KINDS) if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise DataError(f"'{', '.join(unknown)}' is no kind of head; the kinds are {', '.join(KINDS)}.")
    return list(dict.fromkeys(names))


class _Measuring:
    """All kinds of one model; what they were measured on, and which could not be, is in `data`."""

    def __init__(
        self, setting: Setting, described: Mapping[str, Any], work: str | Path | None, stimulus: Stimulus | None
    ) -> None:
        self.setting, self.described, self.given = setting, described, stimulus
        self.work = None if work is None else Path(work)
        self.data: dict[str, Any] = {}

    def table(self, names: Sequence[str], *, every: bool) -> pa.Table:
        """Return a row per head and kind; with `every`, kinds that cannot be measured are left out."""
        model, skipped = self.setting.model.name, {}

        def attempt(name: str, work: Callable[[str], Any]) -> Any:
            try:
                return work(name)
            except DataError as error:
                if not every:
                    raise
                skipped[name] = str(error)
                return None

        if self.given is None and self.setting.texts is not None:
            self.setting.stimulus("text")  # a corpus that was given and cannot be read is no reason to leave it out
        looking = {name: attempt(name, self._stimulus) for name in names if isinstance(KINDS[name].how, Looks)}
        tallies: dict[str, HeadTally] = {}
        for stimulus in {id(found): found for found in looking.values() if found is not None}.values():
            tallies |= self._observed(stimulus, [name for name, found in looking.items() if found is stimulus])
        for name in names:
            if name not in looking and (measured := attempt(name, self._measured)) is not None:
                tallies[name] = measured
        tables = [table for name in tallies if (table := attempt(name, partial(self._table, tallies))) is not None]
        if skipped:
            self.data[f"{model}: not measured"] = skipped
        if not tables:
            raise DataError(f"{model} can be measured for none of these kinds: {next(iter(skipped.values()))}")
        return pa.concat_tables(tables)

    def _table(self, tallies: Mapping[str, HeadTally], name: str) -> pa.Table:
        if not tallies[name].n:
            raise DataError(f"No sequence of the stimulus has a target for {name}: use longer texts, or repeats.")
        return tallies[name].table(self.setting.model.name, name)

    def _stimulus(self, name: str) -> Stimulus:
        """What a kind of attention is measured on."""
        how = KINDS[name].how
        assert isinstance(how, Looks)
        if self.given is None:
            return self.setting.stimulus(how.stimulus)
        if missing := [mark for mark in how.marks if mark not in self.given.marks]:
            raise DataError(f"{name} needs sequences with the marks {', '.join(missing)}.")
        return self.given

    def _observed(self, stimulus: Stimulus, names: Sequence[str]) -> dict[str, HeadTally]:
        looks = {name: self._fitting(name, stimulus) for name in names}
        self.data[f"{self.setting.model.name}: {', '.join(names)}"] = stimulus.provenance()
        return observe(self.setting, stimulus, looks, self._checkpoint(stimulus.provenance(), names))

    def _fitting(self, name: str, stimulus: Stimulus) -> Looks:
        """A kind's way to look; of given sequences without a control, against even attention."""
        how = KINDS[name].how
        assert isinstance(how, Looks)
        return Looks(how.aim, how.stimulus) if how.null == "control" and stimulus.control is None else how

    def _measured(self, name: str) -> HeadTally:
        setting, kind = self.setting, KINDS[name]
        assert not isinstance(kind.how, Looks)
        if self.given is not None:
            raise DataError(f"{name} is no kind of attention: it cannot be measured on given sequences.")
        shown = {"text": None if setting.texts is None else setting.texts.described["hash"]}
        checkpoint = self._checkpoint(shown, [name])
        measured = checkpoint.measured()
        if measured is None:
            measured = kind.how(setting, checkpoint)
            checkpoint.keep(measured)
        tally = HeadTally((setting.model.n_layers, setting.model.n_heads), kind.test)
        tally.add_all(measured, Resampling(len(measured.own), seed=setting.protocol.seed))
        self.data[f"{setting.model.name}: {name}"] = {"samples": tally.n, "test": kind.test}
        return tally

    def _checkpoint(self, shown: Mapping[str, Any], names: Sequence[str]) -> Checkpoint:
        protocol = asdict(self.setting.protocol)
        what = {"model": self.described, "protocol": protocol, "shown": shown, "kinds": names}
        label = names[0]
        return Checkpoint(self.work, what, lambda loop, done, n: self.setting.tell(f"{label}, {loop}", done, n))
