import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens.probes.training.pooling import POOLINGS, Packing, Seen, attended_windows, decayed_windows, pool_rows

LENGTHS = [3, 0, 1, 50, 7]


def naive(name, s, k, setting):
    """One document, one column, as the formula says it, token by token."""
    n, w = len(s), int(setting)
    if n == 0:
        return s.sum()
    windows = [slice(max(0, t - w + 1), t + 1) for t in range(n)]
    if name == "mean":
        return s.mean()
    if name == "last":
        return s[-1]
    if name in ("max", "multimax"):
        return s.max()
    if name == "absmax":
        return s[s.abs().argmax()]
    if name == "softmax":
        return (torch.softmax(s / setting, 0) * s).sum()
    if name == "attention":
        return (torch.softmax(k, 0) * s).sum()
    if name == "tanh":
        return (torch.tanh(k) * s).sum()
    if name == "rolling_attention":
        return torch.stack([(torch.softmax(k[at], 0) * s[at]).sum() for at in windows]).max()
    if name == "rolling_mean_max":
        return torch.stack([s[at].mean() for at in windows]).max()
    averages = [s[0]]
    for one in s[1:]:
        averages.append(setting * one + (1 - setting) * averages[-1])
    return torch.stack(averages).max()


def pooled(name, s, k, at, setting):
    return at.sum(POOLINGS[name].weights(Seen(s, k, at, setting)) * s)


def columns(lengths, seed=0, n=3):
    generator = torch.Generator().manual_seed(seed)
    s, k = (torch.randn(sum(lengths), n, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), (3 * k).requires_grad_(), Packing(torch.tensor(lengths))


NAMES = [name for name in POOLINGS if name != "token"]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_every_pooling_is_its_formula_and_so_is_its_gradient(name, lengths, seed):
    s, k, at = columns(lengths, seed)
    setting = POOLINGS[name].setting
    got = pooled(name, s, k, at, setting)
    splits = zip(s[..., 0].split(lengths), k[..., 0].split(lengths), strict=True)
    wanted = torch.stack([torch.stack([naive(name, a[:, c], b[:, c], setting) for c in range(3)]) for a, b in splits])
    torch.testing.assert_close(got[..., 0], wanted)

    out = torch.randn(wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(seed))
    for mine, theirs in zip(
        torch.autograd.grad((got[..., 0] * out).sum(), [s, k], allow_unused=True),
        torch.autograd.grad((wanted * out).sum(), [s, k], allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros_like(s)
        torch.testing.assert_close(zero if mine is None else mine, zero if theirs is None else theirs)


@pytest.mark.parametrize("setting", [1, 2, 7, 200])
@pytest.mark.parametrize("name", ["rolling_attention", "rolling_mean_max"])
def test_windows_of_any_width_and_documents_shorter_than_one(name, setting):
    s, k, at = columns(LENGTHS)
    splits = zip(s[..., 0].split(LENGTHS), k[..., 0].split(LENGTHS), strict=True)
    wanted = [[naive(name, a[:, c], b[:, c], setting).item() for c in range(3)] for a, b in splits]
    np.testing.assert_allclose(pooled(name, s, k, at, setting)[..., 0].detach(), wanted, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.001, 0.3, 1.0])
def test_an_average_forgets_as_slowly_as_it_is_told(alpha):
    s, k, at = columns([700, 1])
    wanted = [[naive("ema", a[:, c], a[:, c], alpha).item() for c in range(3)] for a in s[..., 0].split([700, 1])]
    np.testing.assert_allclose(pooled("ema", s, k, at, alpha)[..., 0].detach(), wanted, atol=1e-12)


def test_windows_far_below_the_largest_key_still_count():
    """Scaled by the largest key of the document instead of the window's own, these would be 0 / 0."""
    keys = torch.tensor([0.0, 1.0, 500.0, 1000.0])[:, None, None]
    scores = torch.tensor([8.0, 8.0, -1.0, -1.0])[:, None, None]
    at = Packing(torch.tensor([4]))
    assert attended_windows(scores, keys, at, 2).flatten().tolist() == pytest.approx([8, 8, -1, -1])
    assert pooled("rolling_attention", scores, keys, at, 2).item() == pytest.approx(8)


def test_decayed_windows_do_not_reach_into_other_documents():
    x = torch.ones(6, 1, 1, dtype=torch.float64)
    sums = decayed_windows(x, Packing(torch.tensor([2, 4])), 3, decay=0.5).flatten()
    assert sums.tolist() == [1, 1.5, 1, 1.5, 1.75, 1.75]


@pytest.mark.parametrize("name", NAMES)
def test_a_document_without_rows_pools_to_zero_and_disturbs_no_other(name):
    s, k, _ = columns([4, 5])
    with_empty = pooled(name, s, k, Packing(torch.tensor([0, 4, 0, 5, 0])), POOLINGS[name].setting)
    without = pooled(name, s, k, Packing(torch.tensor([4, 5])), POOLINGS[name].setting)
    torch.testing.assert_close(with_empty[[1, 3]], without)
    assert not with_empty[[0, 2, 4]].any()


def test_the_largest_of_negative_scores_is_negative():
    """With padding, or with a document that starts from 0, it would be 0."""
    s = -1 - torch.rand(9, 2, 1)
    at = Packing(torch.tensor([4, 5]))
    for name in ("max", "multimax", "rolling_mean_max", "ema", "rolling_attention"):
        assert (pooled(name, s, s, at, POOLINGS[name].setting) <= -1).all()


def test_absmax_chooses_among_tokens_feature_by_feature_and_keeps_the_sign():
    rows = torch.tensor([[1.0, -9.0], [-3.0, 2.0], [0.5, 0.5]])
    got, at = pool_rows(POOLINGS["absmax"], rows, Packing(torch.tensor([2, 0, 1])))
    assert got.tolist() == [[-3.0, -9.0], [0.5, 0.5]]
    assert at.lengths.tolist() == [1, 0, 1]


def test_of_equal_scores_the_first_wins_alone():
    s = torch.tensor([1.0, 2.0, 2.0, 2.0])[:, None, None]
    weights = POOLINGS["max"].weights(Seen(s, s, Packing(torch.tensor([4]))))
    assert weights.flatten().tolist() == [0, 1, 0, 0]


def test_softmax_of_keys_of_any_size():
    keys = torch.tensor([1e4, 1e4 - 1, -1e4])[:, None, None]
    weights = POOLINGS["attention"].weights(Seen(keys, keys, Packing(torch.tensor([2, 1]))))
    np.testing.assert_allclose(weights.flatten(), [0.7310586, 0.2689414, 1], atol=1e-6)
