"""Probes: trained together against one at a time; what a sweep reads of a store; what memory a large store takes.

probes    N = 1024 documents of up to 128 tokens, a quarter of them real, d = 1024, 8 heads, float32
stores    a sweep of 18 probes over 1, 4 and 16 GB of float16, in a process whose data are limited to 2 GB
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import harness, plain_probe
from headlens import ActivationStore
from headlens.probes.sweep import sweep
from headlens.probes.training.adamw import _rate_factor
from headlens.probes.training.module import start
from headlens.probes.training.train import Spec, train
from headlens.store.manifest import Manifest, Settings, Shard, shard_name
from headlens.store.rows import ArrayRows, Rows
from headlens.store.shard import write_shard

DOCUMENTS, TOKENS, WIDTH, HEADS, TOGETHER, STEPS = 1024, 128, 1024, 8, 20, 8
GB = (1, 4, 16)
LIMIT = 2**31
SITE = "blocks.0.hook_resid_post"


def rows(*, small: bool) -> Iterator[harness.Row]:
    """Measure both; small sizes only show that everything runs."""
    yield from _together(64 if small else DOCUMENTS, 3 if small else 9)
    yield from _stores((0.05, 0.1) if small else GB)


# --- together --------------------------------------------------------------------------------------------------------


def _together(n: int, rounds: int) -> Iterator[harness.Row]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, TOKENS // 2, (n,), generator=generator)  # a quarter of the padded tokens, on average
    lengths[0] = TOKENS
    packed = torch.randn(int(lengths.sum()), WIDTH, generator=generator)
    y = (torch.rand(n, generator=generator) < 0.5).float()
    mask = torch.arange(TOKENS) < lengths[:, None]
    padded = torch.zeros(n, TOKENS, WIDTH)
    padded[mask] = packed
    ours = ArrayRows(packed, np.cumsum([0, *lengths.tolist()]))
    specs = [Spec("attention", HEADS, seed=i, standardize=False) for i in range(TOGETHER)]
    first = start(specs[0].shape(WIDTH, 1), 0)

    def together(steps: int = STEPS) -> float:
        return train(ours, y[:, None], specs, steps=steps, batch=n)[0].loss

    def alone(steps: int = STEPS) -> float:
        return plain_probe.train(padded, mask, y, first, lambda step: 0.01 * _rate_factor(step, steps), steps)

    for steps in (1, 10):
        harness.agree(together(steps), alone(steps), f"the loss after {steps} steps")
    yield harness.ratio(
        f"{TOGETHER} attention probes of {HEADS} heads trained together, {n} x {TOKENS} tokens "
        f"({float(mask.float().mean()):.0%} real), d = {WIDTH}: per probe and step",
        together,
        "a plain padded implementation, one probe",
        alone,
        bar=1 / 15,
        rounds=rounds,
        shared_by=TOGETHER,
    )


# --- stores ----------------------------------------------------------------------------------------------------------


def _stores(sizes: tuple[float, ...]) -> Iterator[harness.Row]:
    for gb in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder) / "store", gb)
            megabytes, n_read = _swept(folder, "many")
            if gb == sizes[0]:
                ratio = n_read / _swept(folder, "one")[1]
                what = f"rows of a store of {gb} GB read by a sweep of {3 * len(MANY) * 2} probes"
                yield harness.Row(what, "by a sweep of one", f"{ratio:.3f} x", "1 x", ratio <= 1.001)
        yield harness.Row(
            f"a sweep of {3 * len(MANY) * 2} probes over a store of {gb} GB: peak memory of the process",
            "2048 MB, a limit on its data",
            f"{megabytes:.0f} MB resident, mapped file included",
            "2048 MB",
            megabytes <= LIMIT / 2**20,
        )


def _swept(folder: str, probes: str) -> tuple[float, float]:
    """Peak memory in MB of a process of its own, and the rows that it read."""
    command = [sys.executable, "-m", "benchmarks.probing", f"{folder}/store", probes]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The sweep ended with status {done.returncode}: {done.stderr[-2000:]}")
    megabytes, n_read = map(float, done.stdout.split())
    return megabytes, n_read


MANY = ("attention", "multimax", "rolling_attention")


class Counted:
    """Rows that count what is read of them."""

    def __init__(self, of: Rows) -> None:
        self.of, self.lengths, self.width, self.source, self.n_read = of, of.lengths, of.width, None, 0

    def read(self, documents: np.ndarray) -> torch.Tensor:
        found = self.of.read(documents)
        self.n_read += len(found)
        return found


def sweep_within_limit(folder: str, probes: str) -> None:
    """Sweep over a store with the process' data limited; print its peak memory and how many rows it read."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    counted = Counted(ActivationStore(folder).rows())
    n = len(counted.lengths)
    y = np.random.default_rng(0).integers(0, 2, n)
    split = np.array(["train", "train", "validation", "test"])[np.arange(n) % 4]
    many = probes == "many"
    sweep(
        counted, y, split=split, poolings=MANY if many else MANY[:1], heads=(2,), steps=16, batch=256,
        penalties=(0.0, 0.1) if many else (0.0,), seeds=(0, 1, 2) if many else (0,),
    )  # fmt: skip
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, counted.n_read)


def write_store(folder: Path, gb: float, *, tokens: int = 64) -> None:
    """Write a store of random float16 rows, shard by shard."""
    folder.mkdir(parents=True)
    shard_bytes = min(2**28, int(gb * 2**30))
    n_rows = shard_bytes // (WIDTH * 2) // tokens * tokens
    settings = Settings(
        {"name": "random", "revision": None, "weights": "random", "tokenizer": None, "bos": None, "dtype": "float16"},
        "float16", {SITE: [WIDTH]}, TOKENS, "keep", 8192, shard_bytes,
    )  # fmt: skip
    manifest = Manifest(settings, {})
    offsets = torch.arange(0, n_rows + 1, tokens)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n_rows, WIDTH, generator=generator).half()
    for i in range(max(1, round(gb * 2**30 / shard_bytes))):
        tensors = {
            "token_offsets": offsets, "row_offsets": offsets, "ids": torch.zeros(n_rows, dtype=torch.int32),
            "kept": torch.ones(n_rows, dtype=torch.bool), SITE: values.roll(i, 0),
        }  # fmt: skip
        size, digest = write_shard(folder / shard_name(i), tensors, {"store": settings.key, "corpus": str(i)})
        shard = Shard(shard_name(i), size, digest, len(offsets) - 1, n_rows, n_rows, 0, str(i))
        manifest = manifest.with_shard(i, shard)
    manifest.finished(None).save(folder)


if __name__ == "__main__":
    sweep_within_limit(*sys.argv[1:])
