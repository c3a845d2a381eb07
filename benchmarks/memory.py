"""Jobs whose peak memory is measured, each alone in its process: python -m benchmarks.memory JOB [SIZE]."""

import sys
from collections.abc import Callable
from itertools import accumulate

import torch

import headlens as hl
from benchmarks import observing, subjects
from benchmarks.subjects import Job, Size
from headlens.tracing.capture import Sites

CORPUS, LENGTH = 4, 1024
HEADS = 16
PATTERN_MB = HEADS * LENGTH * LENGTH * 4 / 2**20  # one layer, one sequence


def plain(_: Size) -> Job:
    """Run the corpus through transformers' eager attention."""
    hf = subjects.gpt2(HEADS)
    hf.set_attn_implementation("eager")

    @torch.no_grad()
    def run() -> None:
        for row in subjects.ids(CORPUS, LENGTH):
            hf(row[None], use_cache=False)

    return run


def fold(_: Size) -> Job:
    """The same, folding every layer's pattern into its mean attention to the first token."""
    return _captures({"blocks.*.attn.hook_pattern": lambda pattern, batch: pattern[..., 0].mean(-1)})


def keep(_: Size) -> Job:
    """The same without a reducer, for contrast: a batch then holds the patterns of all layers."""
    return _captures(["blocks.*.attn.hook_pattern"])


def _captures(sites: Sites) -> Job:
    model = hl.load(subjects.gpt2(HEADS))

    def run() -> None:
        for _ in hl.capture(model, subjects.ids(CORPUS, LENGTH), sites, batch_tokens=LENGTH):
            pass

    return run


def peak(job: Job) -> float:
    """Return the most memory that tensors took up at once while `job` ran, in MB, beyond those there before.

    From torch's own record of allocations: a process' resident size also counts fragments and imports.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(nbytes for _, nbytes in changes)) / 2**20


JOBS: dict[str, Callable[[Size], Job]] = {
    "plain": plain,
    "fold": fold,
    "keep": keep,
    "observe": lambda size: observing.passes(size)[0],
    "loop": lambda size: observing.plain_passes(size)[0],
    "offset": lambda size: observing.passes(size)[2],
    "offset_loop": lambda size: observing.plain_passes(size)[2],
}

if __name__ == "__main__":
    print(peak(JOBS[sys.argv[1]](Size(*map(int, sys.argv[2:])))))
