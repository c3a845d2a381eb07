"""Jobs whose peak memory is measured, each alone in its process: python -m benchmarks.memory JOB."""

import sys
from collections.abc import Callable
from itertools import accumulate

import torch

import headlens as hl
import headlens.tracing  # in every job: what is compared is the run, not the imports
from benchmarks import subjects

CORPUS, LENGTH = 4, 1024
HEADS = 16
PATTERN_MB = HEADS * LENGTH * LENGTH * 4 / 2**20  # one layer, one sequence


def plain() -> None:
    """Run the corpus through transformers' eager attention."""
    hf = subjects.gpt2(HEADS)
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        for row in subjects.ids(CORPUS, LENGTH):
            hf(row[None], use_cache=False)


def fold() -> None:
    """The same, folding every layer's pattern into its mean attention to the first token."""
    model = hl.load(subjects.gpt2(HEADS))
    sites = {"blocks.*.attn.hook_pattern": lambda pattern, batch: pattern[..., 0].mean(-1)}
    for _ in hl.capture(model, subjects.ids(CORPUS, LENGTH), sites, batch_tokens=LENGTH):
        pass


def keep() -> None:
    """The same without a reducer, for contrast: a batch then holds the patterns of all layers."""
    model = hl.load(subjects.gpt2(HEADS))
    for _ in hl.capture(model, subjects.ids(CORPUS, LENGTH), ["blocks.*.attn.hook_pattern"], batch_tokens=LENGTH):
        pass


def peak(job: Callable[[], None]) -> float:
    """Return the most memory that tensors took up at once while `job` ran, in MB.

    From torch's own record of allocations: a process' resident size also counts fragments and imports.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(nbytes for _, nbytes in changes)) / 2**20


JOBS = {"plain": plain, "fold": fold, "keep": keep}

if __name__ == "__main__":
    print(peak(JOBS[sys.argv[1]]))
