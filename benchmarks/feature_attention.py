"""Feature-resolved attention: all pairs of a text, the first of a long one, and sums over a corpus.

pairs      GPT-2 small's sizes: width 768, 64 a head, 24,576 features, of which 20 or 50 are active at a token
corpus     width 128, 8 heads, 1,024 features, of which 20 are active; texts of 128 tokens, the model run as well
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers as tf

import headlens as hl
from benchmarks import harness, memory, plain_pairs
from benchmarks.subjects import Job
from headlens.dictionaries import Active, Autoencoder, Split
from headlens.dictionaries.dictionary import nonzero
from headlens.fra.pairs import BLOCK, PairValues, all_pairs, sparse_pairs, top_pairs
from headlens.fra.sides import Side, sides
from headlens.models import Head

WIDTH, D_HEAD, FEATURES = 768, 64, 24_576
TOKENS, LONG, MANY = 128, 1024, 50
TEXTS = 64
FASTER = {20: 100, 50: 50}
"""Active features a token: how many times faster than the plain loop."""
KEEPS_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
"""Linux with glibc: what is freed stays with the process; elsewhere these rows repeat the ones before."""


def rows(*, small: bool) -> Iterator[harness.Row]:
    """Measure everything; small sizes only show that it runs."""
    tokens, rounds = (24, 3) if small else (TOKENS, 5)
    for active in FASTER:
        yield from _pairs(active, tokens, rounds)
        yield from _with_kept_memory(active, tokens, rounds)
        yield _pairs_peak(active, tokens)
    yield from _first(96 if small else LONG, 3 if small else 9)
    for rotary in (False, True):
        yield _corpus(4 if small else TEXTS, 3 if small else 7, rotary=rotary)


# --- all pairs of a text --------------------------------------------------------------------------------------------


class Arrays(NamedTuple):
    """What both sides are given."""

    activations: torch.Tensor
    vectors: torch.Tensor
    W_Q: torch.Tensor
    W_K: torch.Tensor


def arrays(active: int, tokens: int) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    activations = torch.zeros(tokens, FEATURES)
    for row in activations:
        row[torch.randperm(FEATURES, generator=generator)[:active]] = torch.rand(active, generator=generator) + 0.1
    vectors, W_Q, W_K = (
        torch.randn(shape, generator=generator) / WIDTH**0.5
        for shape in ((FEATURES, WIDTH), (WIDTH, D_HEAD), (WIDTH, D_HEAD))
    )
    return Arrays(activations, vectors, W_Q, W_K)


def in_factors(given: Arrays) -> tuple[Side, Side]:
    """Project each active feature once; without biases and error, which the plain loop has not."""
    n, f = given.activations.shape
    at, feature = nonzero(given.activations)
    offsets = torch.searchsorted(at, torch.arange(n + 1))
    weights, none = given.activations[at, feature], torch.zeros(n, WIDTH)
    head = Head(
        0, 0, given.W_Q, given.W_K, given.W_K, given.W_K.T, None, None, None, None, None, None, None, None, 1.0, None,
        None, None,
    )  # fmt: skip
    parts = Split(Active(offsets, feature, weights, f), weights, given.vectors, none, none)
    query, key = sides(head, none, parts, normalized=True)
    return query.only(query.source < f), key.only(key.source < f)


def pairs_of(given: Arrays) -> PairValues:
    return all_pairs(*in_factors(given))


def sparse_of(given: Arrays) -> torch.Tensor:
    return sparse_pairs(*in_factors(given), FEATURES)[0]


def _pairs(active: int, tokens: int, rounds: int) -> Iterator[harness.Row]:
    given = arrays(active, tokens)
    found, plain = pairs_of(given), [pair.product for pair in plain_pairs.pairs(*given)]
    harness.agree(found.flat.double().sum().item(), sum(p.double().sum().item() for p in plain), "the sum of all pairs")
    coo, other = sparse_of(given), plain_pairs.sparse(*given)
    if not torch.equal(coo.indices(), other.indices()):
        raise RuntimeError("What is compared is not the same: pairs stand elsewhere in the two sparse tensors.")
    harness.agree(coo.values().abs().sum().item(), other.values().abs().sum().item(), "the sum of their sizes")
    n = len(found.flat)
    del found, plain, coo, other
    what = _named(active, tokens)
    yield harness.ratio(
        f"{what}: all {n / 1e6:.1f} M pairs", lambda: pairs_of(given),
        "the plain loop over pairs of positions", lambda: list(plain_pairs.pairs(*given)),
        bar=1 / FASTER[active], rounds=rounds,
    )  # fmt: skip
    yield harness.ratio(
        f"{what}: as a coalesced sparse tensor", lambda: sparse_of(given),
        "the plain loop, and its pairs made one", lambda: plain_pairs.sparse(*given),
        bar=1 / 40, rounds=rounds,
    )  # fmt: skip


def _named(active: int, tokens: int) -> str:
    return f"one head, {tokens} tokens, {active} active features a token"


def _with_kept_memory(active: int, tokens: int, rounds: int) -> Iterator[harness.Row]:
    """Measure the same in a process that does not give memory back, so that neither side waits for the system's."""
    environment = os.environ | {"GLIBC_TUNABLES": KEEPS_MEMORY}
    for row in json.loads(_in_a_process("pairs", active, tokens, rounds, env=environment)):
        yield harness.Row(**row | {"what": f"{row['what']}, in memory that the process keeps"})


def _pairs_peak(active: int, tokens: int) -> harness.Row:
    megabytes, peak = pairs_of(arrays(active, tokens)).flat.nbytes / 2**20, _peak("pairs", active, tokens)
    return harness.Row(
        f"{_named(active, tokens)}: peak memory", f"the result, {megabytes:.0f} MB",
        f"{peak:.0f} MB = {peak / megabytes:.2f} x", "2 x", peak <= 2 * megabytes,
    )  # fmt: skip


# --- the first pairs of a long text ---------------------------------------------------------------------------------


def random_sides(tokens: int) -> tuple[Side, Side]:
    generator, n = torch.Generator().manual_seed(0), tokens * MANY
    source = torch.stack([torch.randperm(FEATURES, generator=generator)[:MANY].sort().values for _ in range(tokens)])
    offsets = torch.arange(0, n + 1, MANY)
    query, key = (torch.randn(n, D_HEAD, generator=generator) for _ in range(2))
    return (
        Side(offsets, source.flatten(), torch.ones(n), query),
        Side(offsets, source.flatten(), torch.ones(n), key),
    )


def bare_products(query: Side, key: Side) -> None:
    """Multiply blocks of `BLOCK` values that hold what is seen, and drop them."""
    wide, n = int(BLOCK**0.5), len(query.source)
    for start in range(0, n, wide):
        for other in range(0, min(start + wide, n), 2 * wide):
            query.vector[start : start + wide] @ key.vector[other : min(other + 2 * wide, start + wide)].T


def _first(tokens: int, rounds: int) -> Iterator[harness.Row]:
    two = random_sides(tokens)
    what = f"{_named(MANY, tokens)}: the first 1000 pairs"
    yield harness.ratio(
        what,
        lambda: top_pairs(*two, 1000),
        "the bare matrix products",
        lambda: bare_products(*two),
        bar=4,
        rounds=rounds,
    )
    peak = _peak("first", MANY, tokens)
    yield harness.Row(f"{what}: peak memory", "1 GB", f"{peak:.0f} MB", "1000 MB", peak <= 1000)


# --- sums over a corpus ---------------------------------------------------------------------------------------------


def _corpus(texts: int, rounds: int, *, rotary: bool) -> harness.Row:
    sizes = {"vocab_size": 2000, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    if rotary:
        config = tf.LlamaConfig(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=8, intermediate_size=256, **sizes
        )
        model = hl.load(tf.LlamaForCausalLM(config).eval())
    else:
        model = hl.load(tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=128, n_layer=2, n_head=8, **sizes)).eval())
    vectors = torch.nn.functional.normalize(torch.randn(1024, 128), dim=1)
    dictionary = Autoencoder(
        W_enc=vectors.T.contiguous(), b_enc=torch.zeros(1024), W_dec=vectors, b_dec=torch.zeros(128), activation="topk",
        k=20, site="blocks.1.hook_resid_pre",
    )  # fmt: skip
    ids = torch.randint(1, 2000, (texts, TOKENS)).tolist()

    def run() -> None:
        hl.fra.channels(model, dictionary, ids, 1)

    run()
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        rates.append(texts * TOKENS / (time.perf_counter() - start))
    low, middle, high = statistics.quantiles(rates, n=4)
    bar = 1000 if rotary else 5000
    return harness.Row(
        f"sums of all channels of 8 heads over {texts} texts of {TOKENS} tokens, width 128, 1024 features, "
        f"{'rotary' if rotary else 'no rotary'}",
        "-", f"{middle:,.0f} tokens/s ({low:,.0f} to {high:,.0f}, {rounds} runs)", f"{bar:,} tokens/s", middle >= bar,
    )  # fmt: skip


# --- in processes of their own --------------------------------------------------------------------------------------


def _peak(job: str, active: int, tokens: int) -> float:
    return float(_in_a_process("peak", job, active, tokens))


def _in_a_process(*arguments: object, **options: Any) -> str:
    command = [sys.executable, "-m", "benchmarks.feature_attention", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def _job(name: str, active: int, tokens: int) -> Job:
    if name == "pairs":
        given = arrays(active, tokens)
        return lambda: pairs_of(given)
    two = random_sides(tokens)
    return lambda: top_pairs(*two, 1000)


if __name__ == "__main__":
    if sys.argv[1] == "peak":
        print(memory.peak(_job(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps([vars(row) for row in _pairs(*map(int, sys.argv[2:]))]))
