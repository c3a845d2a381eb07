"""Rules of a real model: `python -m benchmarks.real_rules MODEL CORPUS [--layer L --heads H ...]` prints a table.

It trains dictionaries on the first texts of the corpus, of what the layer reads and of what each of some heads writes,
finds rules of some of their features on later texts, and prints how well so many rules do, beside the baselines.
Training needs the extra `sae`. No text is both trained on and mined.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

import headlens as hl
from headlens.data.text import Corpus
from headlens.rules import Rules, mine, observe
from headlens.rules.extract import pick, texts_of
from headlens.rules.results import mean_curve

SHOWN = (0, 4, 16, 64, 256, 1024, 4096)


def table(found: Sequence[Rules]) -> str:
    """The mean curve, as Markdown: F1 and AP with intervals over features."""
    curve = mean_curve([row["curve"] for one in found for row in one.to_table().to_pylist()])
    lines = ["| predictor | rules | F1 | AP | Spearman | R² |", "|---|---|---|---|---|---|"]
    for row in curve.to_pylist():
        if row["rules"] is not None and row["rules"] not in SHOWN:
            continue
        cells = [f"{row[m]:.3f} [{row[f'{m}_low']:.3f}, {row[f'{m}_high']:.3f}]" for m in ("f1", "ap")]
        cells += [f"{row[m]:.3f}" for m in ("spearman", "r2")]
        number = "" if row["rules"] is None else f"{row['rules']:,}"
        lines.append(f"| {row['predictor']} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreed(found: Sequence[Rules]) -> str:
    """How often features did what the text of their first rules says."""
    tried = [one for rules in found for feature in rules.features for one in rules.agreement(feature) if one.n]
    n = sum(one.n for one in tried)
    if not n:
        return "No rule could be tried on made texts."
    means = [
        sum(one.n * value for one in tried if (value := getattr(one, name)) == value)
        / max(sum(one.n for one in tried if getattr(one, name) == getattr(one, name)), 1)
        for name in ("matching", "without_key", "without_query")
    ]
    right = sum(one.n * one.right.mean for one in tried) / n
    return (
        f"{len(tried)} rules on {n:,} made texts: fires in {means[0]:.3f} of those that match, in {means[1]:.3f} "
        f"without the key, in {means[2]:.3f} without the query; agreement {right:.3f}."
    )


def main() -> int:
    """Train, mine, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_rules", description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--heads", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--features", type=int, default=100, help="of all heads together, whose rules are found")
    parser.add_argument("--train-texts", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=700_000, help="that each dictionary learns from")
    parser.add_argument("--reads", type=int, nargs=2, default=(512, 12), help="features, and how many are active")
    parser.add_argument("--writes", type=int, nargs=2, default=(160, 3), help="the same of what the head writes")
    options = parser.parse_args()
    model = hl.load(options.model)
    texts = list(islice(Corpus(options.corpus), options.train_texts + options.texts))
    first, rest = texts[: options.train_texts], texts[options.train_texts :]
    sites = f"blocks.{options.layer}.hook_resid_pre", f"blocks.{options.layer}.attn.hook_z"
    with tempfile.TemporaryDirectory() as folder:
        store = hl.capture_to(Path(folder) / "rows", model, first, list(sites))
        made = [
            hl.dictionaries.train(
                model, store, site, out=Path(folder) / str(head) / site, head=head, d_sae=d_sae, k=k,
                tokens=options.tokens, batch=1024, lr=2e-3,
            )
            for site, head, (d_sae, k) in [
                (sites[0], None, options.reads), *((sites[1], head, options.writes) for head in options.heads)
            ]
        ]  # fmt: skip
        for one in made:
            told = one.card["headlens"]["measured"]["metrics"]
            values = ", ".join(f"{what} {told[what]['value']:.3g}" for what in ("l0", "fvu", "recovered"))
            print(f"{one}: {values}", flush=True)
    own, *z = made
    observed = observe(model, own, dict(zip(options.heads, z, strict=True)), texts_of(model, rest, 64), options.layer)
    found = []
    for i, head in enumerate(options.heads):
        n = len(range(i, options.features, len(options.heads)))
        found.append(mine(observed, head, pick(observed, head, None, n, 30, None, 0)))
    n = sum(len(one.features) for one in found)
    absences = sum(len(one.absences(f)) for one in found for f in one.features)
    counts = sum(len(one.counts(f)) for one in found for f in one.features)
    print(f"{n} features, {len(rest):,} texts; {absences} absences, {counts} counts confirmed\n")
    print(table(found), agreed(found), sep="\n\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
