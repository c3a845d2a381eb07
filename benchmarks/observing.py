"""Observing what all heads attend to, ours against the plain loop: the same model, tokens, passes and figures.

Models are loaded before. `hl.heads.score` is called as anyone would call it, so nulls, intervals, provenance and the
table are in its time. Batches are of one sequence, as in the loop. Both sides' numbers are compared before either is
timed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

import headlens as hl
from benchmarks import harness, plain_loop, subjects
from benchmarks.subjects import Job, Size
from headlens.data import stimuli
from headlens.data.stimuli import Stimulus
from headlens.heads import HeadScores

KINDS = (*plain_loop.BY_POSITION, *plain_loop.BY_MASK)


def rows(size: Size) -> Iterator[harness.Row]:
    """Time, then peak memory."""
    one, two, offset = passes(size)
    plain_one, plain_two, plain_offset = plain_passes(size)
    check(one(), *plain_one())
    check(two(), *plain_two())
    check(offset(), plain_offset())
    what = f"{', '.join(KINDS)}; value-weighted; {size}"
    loop = "output_attentions and the plain loop"
    for name, ours, theirs, against in (
        (f"score {what}: nulls from even attention", one, plain_one, f"{loop}, one forward pass each"),
        (f"score {what}: nulls from a control", two, plain_two, f"{loop}, two forward passes each"),
        (f"score offset; {size}", offset, plain_offset, f"{loop}, two forward passes each"),
    ):
        yield harness.ratio(name, ours, against, theirs, bar=1.15, rounds=size.rounds)
    for job, other, name in (("observe", "loop", "the first of these"), ("offset", "offset_loop", "offset")):
        ours, theirs = (harness.peak_megabytes(job, size) for job in (job, other))
        yield harness.Row(
            f"{name}: peak memory beyond the model", loop, f"{ours:.0f} of {theirs:.0f} MB = {ours / theirs:.3f} x",
            "0.2 x", ours <= 0.2 * theirs,
        )  # fmt: skip


def passes(size: Size) -> tuple[Job, Job, Job]:
    """Return our observation with nulls from even attention, with those from a control, and of offsets."""
    model = hl.load(subjects.gpt2_small(size))
    shown = subjects.repeats(size)
    even = replace(shown, control=None)

    def score(stimulus: Stimulus) -> HeadScores:
        return hl.heads.score(model, KINDS, stimulus=stimulus, batch_tokens=size.tokens)

    def offset() -> HeadScores:
        return hl.heads.score(model, ["offset"], num_samples=2, seq_len=size.tokens // 2, batch_tokens=size.tokens)

    return lambda: score(even), lambda: score(shown), offset


def plain_passes(size: Size) -> tuple[Job, Job, Job]:
    """Return the same of the plain loop."""
    hf = subjects.gpt2_small(size)
    hf.set_attn_implementation("eager")  # no other returns patterns
    shown = subjects.repeats(size)
    assert shown.control is not None
    own, control = torch.from_numpy(shown.tokens[0]), torch.from_numpy(shown.control[0])
    delimiter, elsewhere = (torch.from_numpy(shown.marks[name]) for name in ("delimiter", "elsewhere"))

    def observe(*nulls: torch.Tensor) -> list[plain_loop.Scores]:
        masks = plain_loop.masks_of(own, delimiter, elsewhere)  # made in each call, as ours are
        controlled = {name: masks[name] for name in plain_loop.CONTROLLED}
        return [plain_loop.observe(hf, own, masks), *(plain_loop.observe(hf, ids, controlled) for ids in nulls)]

    random = stimuli.plain(np.arange(50257), n=2, length=size.tokens, bos=None, seed=0).tokens
    two = [torch.from_numpy(row) for row in random]
    return observe, lambda: observe(control), lambda: plain_loop.offset(hf, *two)


def check(ours: HeadScores, own: plain_loop.Scores, control: plain_loop.Scores | None = None) -> None:
    """Raise unless both sides say the same of every head."""
    for row in ours.to_table().to_pylist():
        kind, at = row["kind"], (row["layer"], row["head"])
        harness.agree(row["score"], own[kind, *at], (kind, *at))
        if kind == "induction":
            harness.agree(row["weighted"], own["weighted induction", *at], ("weighted induction", *at))
        if kind == "delimiter":
            harness.agree(row["null"], own["elsewhere", *at], ("elsewhere", *at))
        if control is not None and kind in plain_loop.CONTROLLED:
            harness.agree(row["null"], control[kind, *at], (f"null of {kind}", *at))
