"""Measure everything, print it, and write docs/benchmarks.md: python -m benchmarks.

    python -m benchmarks small observing      the parts named, at a size that only shows that they run; writes nothing
    python -m benchmarks observing peers      the parts named, at full size; writes nothing

Parts: capture idle fold observing peers probes fra rules universe start. The stores of probes take 16 GB of disk.
"""

import sys
from pathlib import Path

import torch

import headlens as hl
from benchmarks import feature_attention, harness, memory, observing, peers, probing, rules, subjects, universe

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NOTES = """\
Rows on scores: random weights and random tokens, one sequence at a time; both sides run the same number of forward
passes unless the row says otherwise, and their numbers are compared before they are timed. The plain loop keeps
all patterns, takes diagonals and masks head by head, and computes no logits. Memory is what tensors take up beyond
the loaded model, from torch's record of allocations. TransformerLens stands in its own environment, beside the
same torch. Probes: the plain implementation is autograd and AdamW on padded float32, started alike; losses are compared
after 1 and 10 steps. Stores hold random float16 rows; a sweep surveys them, makes 16 steps, judges and reads out.
Pairs of features: both sides start from the same activations, vectors and projections, all random; once more in a
process that keeps the memory it frees, since the system may take longer to hand it out than all arithmetic takes.
"""


def main(arguments: list[str]) -> None:
    size = subjects.SMALL if "small" in arguments else subjects.FULL
    parts = {
        "capture": capture_costs,
        "idle": idle_costs,
        "fold": fold_memory,
        "observing": lambda: observing.rows(size),
        "peers": lambda: peers.rows(size),
        "probes": lambda: probing.rows(small=size is subjects.SMALL),
        "fra": lambda: feature_attention.rows(small=size is subjects.SMALL),
        "rules": lambda: rules.rows(small=size is subjects.SMALL),
        "universe": lambda: universe.rows(small=size is subjects.SMALL),
        "start": start_up,
    }
    chosen = [part for part in parts if part in arguments] or list(parts)
    rows = [row for part in chosen for row in parts[part]()]
    table = harness.to_markdown(rows)
    print(table)
    if not arguments:
        PAGE.write_text(
            "# What it costs\n\nMeasured by `make bench`: pairs run in turn in one process, medians (and quartiles) "
            "of their ratios; memory from fresh processes.\n\n"
            f"{table}\n{NOTES}\nMachine: {harness.machine()}.\n",
            encoding="utf-8",
        )
        print(f"written to {PAGE.relative_to(PAGE.parents[1])}")
    sys.exit(not all(row.holds for row in rows))


def capture_costs():
    """Capture six kinds of site at every layer, against transformers' eager attention doing nothing else."""
    ids = subjects.ids()
    for build in (subjects.gpt2, subjects.llama):
        hf, other = build(), build()
        model = hl.load(hf)
        other.set_attn_implementation("eager")
        names = [f"blocks.*.{site}" for site in subjects.SITES]
        yield harness.ratio(
            f"capture {len(names)} kinds of site, {model.family.title}, {subjects.BATCH} x {subjects.TOKENS} tokens, "
            f"{sum(p.numel() for p in hf.parameters()) / 1e6:.0f} M parameters",
            lambda model=model, names=names: list(hl.capture(model, ids, names)),
            "plain eager forward",
            lambda other=other: forward(other, ids),
            bar=1.25,
        )


def idle_costs():
    """A model that was loaded, captured from and edited, and is now left alone, against one never touched."""
    ids = subjects.ids()
    for build in (subjects.gpt2, subjects.llama):
        hf, other = build(), build()
        model = hl.load(hf)
        list(hl.capture(model, ids, ["blocks.*.attn.hook_pattern"]))
        yield harness.ratio(
            f"idle {model.family.title}",
            lambda hf=hf: forward(hf, ids),
            "the same model never loaded by headlens",
            lambda other=other: forward(other, ids),
            bar=1.02,
            rounds=41,
        )


def forward(hf: torch.nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        hf(ids, use_cache=False)


def fold_memory():
    """Fold a reducer over a corpus: what it holds beyond a plain forward, in units of one layer's pattern."""
    plain = harness.peak_megabytes("plain")
    for job, bar in (("fold", 1.0), ("keep", None)):
        extra = harness.peak_megabytes(job) - plain
        layers = extra / memory.PATTERN_MB
        yield harness.Row(
            f"{job} patterns of {memory.CORPUS} x {memory.LENGTH} tokens, 8 layers x {memory.HEADS} heads: peak memory",
            "plain eager forward",
            f"{extra:+.0f} MB = {layers:+.2f} layers' patterns of {memory.PATTERN_MB:.0f} MB",
            "for contrast" if bar is None else f"{bar:.0f} layer",
            bar is None or layers <= bar,
        )


def start_up():
    yield harness.command_seconds("import headlens", [sys.executable, "-c", "import headlens"], bar=0.3)
    command = str(Path(sys.executable).with_name("headlens"))
    yield harness.command_seconds("headlens --help", [command, "--help"], bar=0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
