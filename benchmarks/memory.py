"""Jobs whose peak memory is measured, each alone in its process: python -m benchmarks.memory JOB."""

import resource
import sys

import torch

import headlens as hl
from benchmarks import subjects

CORPUS, LENGTH = 64, 512
PATTERN_MB = 8 * LENGTH * LENGTH * 4 / 2**20  # one layer, one sequence


def plain() -> None:
    """Run the corpus through transformers' eager attention."""
    hf = subjects.gpt2()
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        for row in subjects.ids(CORPUS, LENGTH):
            hf(row[None], use_cache=False)


def fold() -> None:
    """The same, folding every layer's pattern into its mean attention to the first token."""
    model = hl.load(subjects.gpt2())
    sites = {"blocks.*.attn.hook_pattern": lambda pattern, batch: pattern[..., 0].mean(-1)}
    for _ in hl.capture(model, subjects.ids(CORPUS, LENGTH), sites, batch_tokens=LENGTH):
        pass


JOBS = {"plain": plain, "fold": fold}

if __name__ == "__main__":
    JOBS[sys.argv[1]]()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
