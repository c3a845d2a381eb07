"""One way to measure: pairs interleaved in one process, medians of their ratios, memory in fresh processes.

A single time says more about what else the machine was doing than about the code. So each row compares
two callables, run in turn A B A B ..., and quotes the median of the ratios A/B pair by pair with its
quartiles. Peak memory is that of the tensors, beyond the loaded model's, in a process that does that one thing only.
"""

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.subjects import FULL, Job, Size

ROUNDS = 21


@dataclass(frozen=True)
class Row:
    """One measured line of the table."""

    what: str
    against: str
    measured: str
    bar: str
    holds: bool


def ratio(
    what: str, ours: Job, against: str, theirs: Job, bar: float | None, rounds: int = ROUNDS, shared_by: int = 1
) -> Row:
    """Time two callables in turn and return the median ratio ours / theirs; without a bar, for contrast.

    Where ours does the work of several, its time is `shared_by` them.
    """
    for _ in range(2):  # warm-up: caches, lazy imports, allocator
        ours(), theirs()
    gc.collect()
    gc.disable()  # a collection in one of a pair would be counted as its cost
    try:
        ratios = [_seconds(ours) / shared_by / _seconds(theirs) for _ in range(rounds)]
    finally:
        gc.enable()
    low, middle, high = statistics.quantiles(ratios, n=4)
    measured = f"{middle:.3f} x ({low:.3f} to {high:.3f}, {rounds} pairs)"
    if bar is None:
        return Row(what, against, measured, "for contrast", True)
    return Row(what, against, measured, f"{bar:.3g} x", middle <= bar)


def _seconds(run: Job) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def agree(ours: float, theirs: float, what: object) -> None:
    """Raise unless two numbers are the same, so that no row compares different things."""
    if not abs(ours - theirs) <= 1e-6 + 1e-4 * abs(theirs):
        raise RuntimeError(f"What is compared is not the same: {what} is {ours} here and {theirs} there.")


def command_seconds(what: str, command: list[str], bar: float, rounds: int = 11) -> Row:
    """Time whole processes and return the median wall time."""
    times = []
    for i in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times += [time.perf_counter() - start] if i else []
    low, middle, high = statistics.quantiles(times, n=4)
    return Row(
        what, "whole process", f"{middle:.3f} s ({low:.3f} to {high:.3f}, {rounds} runs)", f"{bar} s", middle <= bar
    )


def peak_megabytes(job: str, size: Size = FULL) -> float:
    """Return the peak memory of the tensors, beyond the model, of a fresh process that runs a job of `memory.py`."""
    command = [sys.executable, "-m", "benchmarks.memory", job, *map(str, size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine() -> str:
    """Return one line that says where the figures come from."""
    import torch

    import headlens

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), headlens {headlens.__version__}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def to_markdown(rows: list[Row]) -> str:
    """Return the table that docs/benchmarks.md shows."""
    head = "| what | against | measured | bar | holds |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {r.what} | {r.against} | {r.measured} | {r.bar} | {'yes' if r.holds else '**no**'} |\n" for r in rows
    )
