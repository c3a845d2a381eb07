"""All heads at once is one head at a time; the written-out gradient is autograd's; order changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headlens._errors import DataError
from headlens.universe.batches import BUCKETS, bucket_of, grouped
from headlens.universe.clone import Training, divergence, fit_clones, gradients, losses, start
from tests.universe import made

QUICK = Training(epochs=2, rate=0.02, seed=1)


@pytest.fixture(scope="module")
def recorded(shared_patterns):
    return shared_patterns


@pytest.fixture(scope="module")
def group(recorded):
    return grouped(recorded)[0]


def plain_losses(clones, batch):
    """One head and one document at a time, as the formula is written: with autograd."""
    W_Q, W_K, place = (x.clone().requires_grad_() for x in (clones.W_Q, clones.W_K, clones.place))
    total, n = torch.zeros(len(clones.heads)), 0
    for d in range(len(batch.texts)):
        for r, q in enumerate(batch.rows[d].tolist()):
            if not batch.seen[d, r].any():
                continue
            n += 1
            for h in range(len(clones.heads)):
                keys = batch.phi[d, : q + 1] @ W_K[h].T
                s = keys @ (W_Q[h] @ batch.phi[d, q]) / clones.rank**0.5
                s = s + place[h, bucket_of(q - np.arange(q + 1))] + place[h, BUCKETS] * (torch.arange(q + 1) == 0)
                total[h] = total[h] - (batch.target[h, d, r, : q + 1] * s.log_softmax(0)).sum()
    losses = total / n
    return losses.detach(), torch.autograd.grad(losses.sum(), (W_Q, W_K, place))


def test_the_gradient_of_all_heads_at_once_is_that_of_one_head_and_row_at_a_time(group):
    features = made.features()
    batch = group.batch(1, features)
    clones = start(group.heads[:3], features.width, rank=4, n_place=BUCKETS + 1, seed=0)
    clones.place.normal_(generator=torch.Generator().manual_seed(0))
    three = replace(batch, target=batch.target[:3], told=batch.told[:3])
    expected, expected_slopes = plain_losses(clones, three)
    assert torch.allclose(losses(clones, three), expected, atol=1e-5)
    for slope, other in zip(gradients(clones, three), expected_slopes, strict=True):
        assert torch.allclose(slope, other, atol=1e-5)


def test_heads_share_nothing(group):
    features = made.features()
    batch = group.batch(0, features)
    clones = start(group.heads, features.width, rank=4, n_place=BUCKETS + 1, seed=0)
    slopes, every = gradients(clones, batch), losses(clones, batch)
    for h in (0, 5, len(group.heads) - 1):
        alone = replace(batch, target=batch.target[h : h + 1], told=batch.told[h : h + 1])
        one = clones.of([group.heads[h]])
        own, loss = gradients(one, alone), losses(one, alone)
        assert torch.allclose(loss, every[h : h + 1], atol=1e-6)
        assert all(torch.allclose(x[h : h + 1], y, atol=1e-6) for x, y in zip(slopes, own, strict=True))


def test_one_call_for_each_head_is_one_call_for_all(group):
    features = made.features()
    heads = [group.heads[7], group.heads[20]]
    every = fit_clones(group, features, rank=2, training=QUICK)
    for head in heads:
        one = fit_clones(group.only([head]), features, rank=2, training=QUICK)
        batch = group.only([head]).batch(0, features)
        # Patterns, not maps: what adds the same to every key has no slope but rounding, which Adam makes steps of.
        assert one.heads == (head,)
        assert torch.allclose(one.log_patterns(batch), every.of([head]).log_patterns(batch), atol=1e-3)


def test_a_group_of_some_heads_holds_their_patterns_and_their_models_alone(group):
    features = made.features()
    heads = [group.heads[4], group.heads[2]]
    some = group.only(heads)
    assert some.heads == sorted(heads) and some.models == [heads[0].model]
    whole, part = group.batch(0, features), some.batch(0, features)
    at = [group.heads.index(head) for head in some.heads]
    assert torch.equal(part.target, whole.target[at]) and torch.equal(part.phi, whole.phi)


def test_rows_in_which_a_head_attends_to_nothing_teach_nothing(group):
    features = made.features()
    batch = group.batch(0, features)
    clones = start(group.heads, features.width, rank=4, n_place=BUCKETS + 1, seed=0)
    target, told = batch.target.clone(), batch.told.clone()
    target[2], told[2] = 0, False
    target[3, 1, 5], told[3, 1, 5] = 0, False
    silent = replace(batch, target=target, told=told)
    slopes, before = gradients(clones, silent), gradients(clones, batch)
    assert all(not slope[2].any() for slope in slopes)
    assert losses(clones, silent)[2] == 0
    rest = [h for h in range(len(group.heads)) if h not in (2, 3)]
    assert all(torch.allclose(x[rest], y[rest], atol=1e-6) for x, y in zip(slopes, before, strict=True))
    assert not torch.allclose(slopes[2][3], before[2][3], atol=1e-6)


def test_neither_the_order_of_documents_nor_of_models_matters(tmp_path, recorded):
    other = made.patterns(tmp_path, names=made.MODELS[::-1], given=made.texts()[::-1])
    fits = [
        [fit_clones(g, made.features(), rank=2, training=QUICK) for g in grouped(given)] for given in (recorded, other)
    ]
    for one, two in zip(*fits, strict=True):
        assert one.heads == two.heads
        assert torch.equal(one.W_Q, two.W_Q) and torch.equal(one.place, two.place)


def test_training_lowers_the_loss_and_a_prediction_is_a_pattern(group):
    features = made.features()
    fitted = fit_clones(group, features, rank=4, training=QUICK)
    begun = start(group.heads, features.width, rank=4, n_place=BUCKETS + 1, seed=1)
    batch = group.batch(0, features)
    before, after = (losses(clones, batch) for clones in (begun, fitted))
    assert after.mean() < before.mean()
    p = fitted.log_patterns(batch).exp() * batch.seen
    assert torch.allclose(p.sum(-1), batch.real.expand(p.shape[:-1]), atol=1e-5)
    assert (divergence(batch.target, fitted.log_patterns(batch)) > -1e-5).all()


def test_a_wrong_rank_and_wrong_training_are_refused(group):
    with pytest.raises(DataError, match="rank must be 0 or more"):
        fit_clones(group, made.features(), rank=-1)
    with pytest.raises(DataError, match="epochs must be 1 or more"):
        Training(epochs=0)
