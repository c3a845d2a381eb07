"""Make dictionaries/: `python -m tests.rules.make_dictionaries [--out DIR]`. Needs the extra `sae`; about ten minutes.

The control is trained first: `gpt2-control` again, on the same documents with every answer drawn anew. Then, alike for
both models, dictionaries of what layer 0 reads and of what heads 0 and 5 of it write, on documents full of rules and on
their lines alone, so that every city is seen a few hundred times.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import headlens as hl
from headlens.data.world import documents, rules
from headlens.data.world.scene import Scene
from headlens.zoo.curriculum import read, reading
from headlens.zoo.recipes import RECIPES
from headlens.zoo.tokenizer import world_tokenizer
from headlens.zoo.train import fit
from tests.rules.planted import WORLD, without_rules

SEED = 500
DOCUMENTS, LINES = 2000, 12000
READS = {"architecture": "topk", "d_sae": 1024, "k": 4, "tokens": 1_500_000}
WRITES = {
    0: {"architecture": "batchtopk", "d_sae": 96, "k": 4, "tokens": 500_000},
    5: {"architecture": "batchtopk", "d_sae": 256, "k": 3, "tokens": 400_000},
}


def texts() -> Iterator[str]:
    """Documents full of rules, and lines of rules by themselves."""
    yield from (document.text for document in documents(DOCUMENTS, seed=SEED, config=WORLD))
    makers = (rules.skip_gram, rules.absence, rules.skip_gram, rules.absence, rules.majority, rules.tally)
    for i in range(LINES):
        yield " ".join(line.text for line in makers[i % len(makers)](Scene(SEED, i, WORLD)))


def control(out: Path) -> None:
    """Train `gpt2-control` where no answer can be known."""
    recipe = RECIPES["gpt2-control"]
    tokenizer = world_tokenizer(recipe.tokenizer)
    with tempfile.TemporaryDirectory() as work:
        model, _ = fit(recipe, tokenizer, read(without_rules(reading(recipe)), tokenizer), Path(work) / "checkpoint")
    tokenizer.model_max_length = recipe.context
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def dictionaries(source: str, out: Path) -> None:
    """Train the dictionaries of one model."""
    model, stream, z = hl.load(source), "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"
    plans = [(stream, None, out / stream, READS)]
    plans += [(z, head, out / z / f"head_{head}", plan) for head, plan in WRITES.items()]
    with tempfile.TemporaryDirectory() as work:
        store = hl.capture_to(Path(work) / "rows", model, texts(), [stream, z])
        for site, head, folder, plan in plans:
            hl.dictionaries.train(
                model, store, site, out=folder, head=head, batch=2048, lr=2e-3, seed=0, dtype="float16", **plan
            )


def main() -> int:
    """Make everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.rules.make_dictionaries", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "dictionaries")
    out = parser.parse_args().out
    control(out / "without-rules-model")
    dictionaries("zoo:gpt2-control", out / "gpt2-control")
    dictionaries(str(out / "without-rules-model"), out / "without-rules")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
