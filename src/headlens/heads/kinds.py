"""What kinds of head are there? One row each: what it does, how that is measured, and from where on a head is one.

    Looks      attention: where such a head would look (heads/attention.py), on which stimulus, against which null
    a function of a Setting: what a head writes (heads/circuits.py, suppression.py), points at while the model copies
               (heads/retrieval.py), or changes (heads/effects.py)

A head is of a kind from `medium` on, and strongly so from `high` on, where both are compared with score - null, the
false-discovery rate is below 5 % (heads/labels.py has both exactly), and it is of the kinds that this one `needs`. So
an induction head must also copy: others look where it looks, to suppress what they find.

To add a kind: write its function in one of those files, and its row here.

Source: science of each kind in its function's module; thresholds of induction from the study that `heads/exchange/`
reads, of sinks Gu et al. 2024, of successors Gould et al. 2023, of retrieval Wu et al. 2024; others are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from headlens.heads import attention, circuits, effects
from headlens.heads.attention import Aim, between
from headlens.heads.offsets import offset
from headlens.heads.retrieval import retrieval
from headlens.heads.setting import Setting
from headlens.heads.suppression import copy_suppression
from headlens.heads.tally import Measured
from headlens.heads.work import Checkpoint


@dataclass(frozen=True)
class Looks:
    """A kind that shows in attention."""

    aim: Aim
    stimulus: str
    """A row of `setting.STIMULI`."""
    null: Literal["even", "control"] | Aim = "even"
    """Even attention; the same places with the regularity taken out of the sequence; or other places of it."""
    marks: tuple[str, ...] = ()
    """Parts that the stimulus must mark."""


@dataclass(frozen=True)
class Kind:
    """One thing a head can do."""

    short: str
    """A word that fits a cell of the report."""
    shows: Literal["looks", "writes", "does"]
    """In where it looks, in what it writes, or in what the model does with it."""
    definition: str
    how: Looks | Callable[[Setting, Checkpoint], Measured]
    medium: float = 0.35
    high: float = 0.7
    needs: tuple[str, ...] = ()
    """Kinds that a head must be as well."""
    test: Literal["paired", "spread"] = "paired"
    """How its p comes about; see heads/tally.py."""
    by_default: bool = True
    """Whether it is measured when no kind is named."""
    title: str = ""
    """Its name in words, where those are more than the name's."""


def _copying_eigenvalues(setting: Setting, work: Checkpoint | None = None) -> Measured:
    p = setting.protocol
    return circuits.copying_eigenvalues(setting.model, num_samples=p.num_prompts, seed=p.seed, work=work)


def _copying_top1(setting: Setting, work: Checkpoint | None = None) -> Measured:
    p = setting.protocol
    return circuits.copying_top1(setting.model, num_samples=p.num_samples, seed=p.seed, work=work)


def _copying_logits(setting: Setting, work: Checkpoint | None = None) -> Measured:
    p = setting.protocol
    return circuits.copying_logits(setting.model, num_samples=p.num_prompts, seed=p.seed, work=work)


def _copy_suppression(setting: Setting, work: Checkpoint | None = None) -> Measured:
    return copy_suppression(setting.model, setting.stimulus("text").tokens, seed=setting.protocol.seed, work=work)


def _successor(setting: Setting, work: Checkpoint | None = None) -> Measured:
    orders = setting.orders()
    ids, cyclic = [order.ids for order in orders], [order.cyclic for order in orders]
    return circuits.successor(setting.model, ids, cyclic, seed=setting.protocol.seed, work=work)


KINDS: dict[str, Kind] = {
    "previous_token": Kind(
        "Prev", "looks", "attends to the token before",
        Looks(attention.previous_token, "text or random"),
    ),
    "offset": Kind(
        "Offs", "looks", "attends to the token a fixed number of places back, two or more",
        offset,
    ),
    "self": Kind(
        "Self", "looks", "attends to the current token itself",
        Looks(attention.itself, "text or random"),
    ),
    "sink": Kind(
        "Sink", "looks", "parks its attention on the first token",
        Looks(attention.sink, "text or random"), medium=0.3,
    ),
    "delimiter": Kind(
        "Delim", "looks", "attends to punctuation",
        Looks(between(None, "delimiter"), "text", between(None, "elsewhere"), marks=("delimiter", "elsewhere")),
    ),
    "duplicate_token": Kind(
        "Dup", "looks", "attends to earlier copies of the current token",
        Looks(attention.duplicate_token, "repeats", "control"),
    ),
    "induction": Kind(
        "Ind", "looks", "attends to what followed earlier copies of the current token",
        Looks(attention.induction, "repeats", "control"), needs=("copying_logits",),
    ),
    "fixed_gap_induction": Kind(
        "FixInd", "looks", "attends one period back and one on where random tokens repeat at once",
        Looks(attention.one_period_back, "fixed_repeats"), by_default=False, title="Fixed-gap induction",
    ),
    "copying_eigenvalues": Kind(
        "Eig", "writes", "writes what it reads: its output-value circuit has positive eigenvalues",
        _copying_eigenvalues, needs=("copying_top1",), test="spread",
    ),
    "copying_top1": Kind(
        "Top1", "writes", "raises the token that it reads above all others",
        _copying_top1, medium=0.1, high=0.5, title="Copying top-1",
    ),
    "copying_logits": Kind(
        "Copy", "writes", "raises the tokens of a text that it reads above the text's others",
        _copying_logits,
    ),
    "copy_suppression": Kind(
        "Supp", "writes", "lowers the token that it attends to where that is expected anyway",
        _copy_suppression, medium=0.5, high=0.8,
    ),
    "successor": Kind(
        "Succ", "writes", "raises what comes next in an order: Monday, Tuesday",
        _successor, medium=0.5,
    ),
    "name_mover": Kind(
        "Name", "looks", "attends, where a name comes next, to the one that was named once",
        Looks(between("end", "io"), "indirect_objects", between("end", "s1"), marks=("end", "io", "s1")),
        needs=("copying_logits",),
    ),
    "giver_attention": Kind(
        "Giver", "looks", "attends, where a name comes next, to the second mention of the one that was named twice",
        Looks(between("end", "s2"), "indirect_objects", "control", marks=("end", "s2")),
    ),
    "s_inhibition": Kind(
        "S-inh", "does", "keeps name movers from the name that was said twice (causal)",
        effects.s_inhibition, medium=0.05, high=0.2, needs=("giver_attention",), title="S-inhibition",
    ),
    "retrieval": Kind(
        "Retr", "does", "points at what the model copies out of a text",
        retrieval, medium=0.1, high=0.5,
    ),
    "query_focused_retrieval": Kind(
        "Query", "looks", "attends from a question to the sentence that answers it",
        Looks(between("question", "gold"), "needles", "control", marks=("question", "gold")),
        medium=0.1, high=0.35, title="Query-focused retrieval",
    ),
    "entity_end_attention": Kind(
        "End", "looks", "attends, before an entity comes again, to its last token",
        Looks(between("end", "last"), "entities", "control", marks=("end", "last")),
    ),
    "concept_induction": Kind(
        "Conc", "does", "brings on an entity: makes its second token likely before its first is said (causal)",
        effects.concept_induction, medium=0.05, high=0.2,
    ),
    "function_vector": Kind(
        "FV", "does", "carries the relation that examples show into prompts that do not show it (causal)",
        effects.function_vector, medium=0.02, high=0.1,
    ),
}  # fmt: skip
DEFAULT_KINDS = tuple(name for name, kind in KINDS.items() if kind.by_default)
