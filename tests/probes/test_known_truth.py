"""Probes on documents whose answer is known: what each pooling can and cannot find, in theory and here.

Figures are those of the theory; "measured" ones were taken with other code.
"""

import math

import numpy as np
import pytest
import torch

from headlens.probes import POOLINGS, Probe, Spec, read_logits, train
from tests.probes.documents import pack, padded, random_documents


def accuracies(trained, rows, y):
    return [
        ((logit > 0) == (y > 0.5)).double().mean().item()
        for logit in read_logits([one.module for one in trained], rows)
    ]


def fitted(documents, specs, **options):
    """Probes trained on nine tenths of the documents, and judged on the last."""
    rows, y = documents
    judging = (torch.arange(len(y)) % 10 == 0).float().expand(len(specs), -1)
    return train(rows, y, specs, 1 - judging, validation=judging, **options)


def chance_of_one_sign(n):
    """How often the sign of one of n is that of their sum."""
    return 0.5 + math.asin(1 / math.sqrt(n)) / math.pi


# --- 1: a marked token carries the label ---


def needles(n, seed, length=64, width=8):
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(n, length, width, generator=generator)
    at = torch.randint(0, length, (n,), generator=generator)
    x[..., 0] = torch.randint(0, 2, (n, length), generator=generator).float() * 2 - 1
    x[..., 1] = 0
    x[torch.arange(n), at, 1] = 1
    return pack(x), (x[torch.arange(n), at, 0] > 0).float()[:, None]


def test_attention_finds_the_needle_and_mean_and_last_do_not():
    specs = [Spec("attention", 1), Spec("attention", 8), Spec("mean"), Spec("last")]
    specs = [Spec(one.pooling, one.n_heads, learning_rate=0.03) for one in specs]
    one, eight, mean, last = accuracies(fitted(needles(1500, 1), specs, steps=300), *needles(2000, 2))
    assert one >= 0.99 and eight >= 0.99
    assert mean == pytest.approx(chance_of_one_sign(64), abs=0.035)  # three standard errors
    assert last == pytest.approx(0.51, abs=0.035)


# --- 2: two markers, both needed ---


def two_markers(n, seed, width=8):
    """Half have both, a quarter each one alone: a head that looks at one token can be right in three of four."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for kind in range(n):
        x = torch.randn(int(torch.randint(8, 129, (1,), generator=generator)), width, generator=generator)
        x[:, :2] = 0
        first, second = torch.randperm(len(x), generator=generator)[:2]
        x[first, 0] = 4.0 * (kind % 4 != 2)
        x[second, 1] = 4.0 * (kind % 4 != 3)
        documents.append(x)
    return pack(documents), (torch.arange(n) % 4 < 2).float()[:, None]


def test_both_of_two_markers_need_two_heads():
    specs = [Spec(name, heads, learning_rate=0.03) for name, heads in (("attention", 1), ("attention", 2), ("mean", 1))]
    one, two, mean = accuracies(fitted(two_markers(3000, 1), specs, steps=600), *two_markers(2000, 2))
    assert one <= 0.75 + 0.02
    assert two >= 0.97
    assert mean == pytest.approx(0.63, abs=0.035)


# --- 3: the sign of the last token ---


def signs(n, length, seed, width=4, shortest=None):
    generator = torch.Generator().manual_seed(seed)
    documents = random_documents([length] * n, width, seed, torch.float32)
    if shortest is not None:
        documents = [x[: int(torch.randint(shortest, length + 1, (1,), generator=generator))] for x in documents]
    for x in documents:
        x[:, 0] = x[:, 0].sign()
    return documents, torch.stack([(x[-1, :1] > 0).float() for x in documents])


@pytest.mark.parametrize("length", [32, 512])
def test_heads_find_the_last_token_wherever_padding_stands(length):
    """At every seed: values that start large may have the wrong sign, and then drive the head to the first token."""
    documents, y = signs(300, length, 1, shortest=length // 2)
    seeds = range(6) if length == 32 else (2, 3)
    specs = [Spec("attention", heads, seed=seed, learning_rate=0.03) for heads in (1, 8) for seed in seeds]
    trained = train(pack(documents), y, specs, steps=200)
    fresh, wanted = signs(500, length, 2, shortest=length // 2)
    assert min(accuracies(trained, pack(fresh), wanted)) >= 0.99


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_lone_head_finds_the_last_token_of_padded_arrays(side):
    documents, y = signs(400, 64, 1, shortest=20)
    X, mask = padded(documents, side)
    probe = Probe("attention", n_heads=1, learning_rate=0.02, steps=150, validation_fraction=0.0)
    probe.fit(X, y[:, 0].numpy(), mask=mask)
    fresh, wanted = signs(500, 64, 2, shortest=20)
    X, mask = padded(fresh, side)
    assert probe.score(X, wanted[:, 0].numpy(), mask=mask) >= 0.99


def test_without_slopes_the_last_token_is_one_of_many():
    rows, y = (lambda documents, y: (pack(documents), y))(*signs(1000, 32, 1))
    fresh, wanted = signs(2000, 32, 2)
    specs = [Spec("attention", 2, slopes=False), Spec("mean"), Spec("last")]
    without, mean, last = accuracies(fitted((rows, y), specs, steps=150), pack(fresh), wanted)
    assert without == pytest.approx(chance_of_one_sign(32), abs=0.06)
    assert mean == pytest.approx(chance_of_one_sign(32), abs=0.04)
    assert last >= 0.99


# --- 4: where the mean is best ---


def gaussians(n, seed, length=16, width=8):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator).float()
    x = torch.randn(n, length, width, generator=generator)
    x[..., 0] += (2 * y - 1)[:, None] * 1.6449 / math.sqrt(length)  # Phi(1.6449) = .95
    return pack(x), y[:, None]


def test_where_the_mean_is_best_attention_comes_within_a_hundredth_and_the_maximum_does_not():
    rows, y = gaussians(8000, 2)
    bayes = ((rows.rows[:, 0].view(8000, 16).sum(1, keepdim=True) > 0) == (y > 0)).double().mean().item()
    assert bayes == pytest.approx(0.95, abs=0.008)
    specs = [Spec("mean"), Spec("attention", 1), Spec("attention", 8), Spec("max")]
    mean, one, eight, highest = accuracies(fitted(gaussians(8000, 1), specs, steps=500), rows, y)
    assert min(mean, one, eight) >= bayes - 0.01
    assert highest <= 0.8


def middles(n, seed, length=200, width=16):
    """Five marked tokens in the middle of a long document say the class; elsewhere it is noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator).float()
    x = torch.randn(n, length, width, generator=generator)
    at = 60 + torch.rand(n, 80, generator=generator).argsort(1)[:, :5]
    x[torch.arange(n)[:, None], at, 0] = (2 * y - 1)[:, None]
    x[torch.arange(n)[:, None], at, 1] = 5.0
    return pack(x), y[:, None]


def test_heads_see_the_middle_of_a_long_document():
    """From steep slopes alone they never do, and learn the few documents' first and last tokens by heart."""
    specs = [Spec("attention", heads) for heads in (1, 2, 8)]
    one, two, eight = accuracies(fitted(middles(1500, 1), specs, steps=300), *middles(500, 2))
    assert min(one, two) >= 0.9 and eight >= 0.97


# --- 5: documents longer than those it was trained on ---


def marked(n, length, seed, label=None, width=16, size=6.0):
    """A positive document has one token far out along the first axis; all others are noise."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % 2).float() if label is None else torch.full((n,), label)
    x = torch.randn(n, length, width, generator=generator)
    at = torch.randint(0, length, (n,), generator=generator)
    x[torch.arange(n), at, 0] += size * y
    return pack(x), y[:, None]


def test_attention_dilutes_with_length_as_predicted_and_a_maximum_misses_nothing():
    """A token whose key stands k above keys of spread sd holds half the attention among exp(k - sd^2 / 2) others."""
    specs = [Spec("attention", 1, slopes=False), Spec("multimax", 1)]
    attention, highest = (one.module for one in fitted(marked(3000, 32, 1), specs, steps=250))
    noise, _ = marked(200, 64, 3, label=0.0)
    needle = torch.randn(400, 16, generator=torch.Generator().manual_seed(5))
    needle[:, 0] += 6.0
    with torch.no_grad():
        keys, found = (attention.keys_and_scores(x, torch.zeros(len(x)).long())[0] for x in (noise.rows, needle))
    half = math.exp(found.mean() - keys.mean() - keys.var() / 2)

    lengths = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    missed = {}
    for length in lengths:
        rows, _ = marked(max(40, min(400, 200_000 // length)), length, 7, label=1.0)
        missed[length] = [(logit <= 0).double().mean().item() for logit in read_logits([attention, highest], rows)]
    assert missed[32][0] <= 0.05
    assert missed[8192][0] >= 0.7
    crossing = next(n for n in lengths if missed[n][0] >= 0.5)
    assert half / 3 <= crossing / math.sqrt(2) <= half * 3  # it lies between that length and the one before
    assert max(one for _, one in missed.values()) == 0


def test_attention_used_as_a_maximum_says_yes_to_everything_until_its_threshold_is_moved():
    documents, y = marked(3000, 32, 1)
    probe = Probe("attention", n_heads=1, slopes=False, steps=250).fit(documents, y[:, 0].long().numpy())
    maximum = probe.with_pooling("multimax")
    noise, _ = marked(400, 32, 8, label=0.0)
    assert probe.predict(noise).mean() <= 0.05
    assert maximum.predict(noise).mean() >= 0.95
    maximum.threshold_ = float(np.quantile(maximum.decision_function(noise), 0.99))
    fresh, _ = marked(400, 32, 9, label=0.0)
    assert maximum.predict(fresh).mean() <= 0.04


# --- 6: how documents are handed over changes nothing ---


@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "token"])
@pytest.mark.parametrize("hidden", [{}, {"before": (6,), "after": (4,)}])
def test_packed_padded_alone_and_streamed_are_the_same(pooling, hidden):
    documents = random_documents(np.random.default_rng(0).integers(1, 60, 40).tolist(), 5, dtype=torch.float32)
    y = np.array([float(x[:, 0].mean() > 0) for x in documents])
    probe = Probe(pooling, steps=20, **hidden).fit([x.numpy() for x in documents], y)
    before = [x.clone() for x in documents]
    packed = probe.decision_function(documents)
    empty = torch.zeros(1, 5)[:0]
    for side in ("left", "right"):
        X, mask = padded([*documents, empty], side)
        again = X.clone()
        scores = probe.decision_function(X, mask=mask)
        np.testing.assert_allclose(scores[:-1], packed, atol=1e-5)
        assert scores[-1] == pytest.approx(probe.module_.bias.item())  # all masked
        assert torch.equal(X, again)
    np.testing.assert_allclose([probe.decision_function([x])[0] for x in documents], packed, atol=1e-5)
    for x, score in zip(documents[:6], packed, strict=False):
        stream = probe.stream()
        scores = [stream.update(row) for row in x]
        prefixes = probe.decision_function([x[: n + 1] for n in range(len(x))])
        np.testing.assert_allclose(scores, prefixes, atol=1e-5)
        assert scores[-1] == pytest.approx(score, abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(documents, before, strict=True))
    twin = Probe(pooling, steps=20, **hidden).fit([x.numpy() for x in documents], y)
    assert twin.decision_function(documents).tobytes() == packed.tobytes()
