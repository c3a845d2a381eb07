import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from headlens._errors import DataError
from headlens.probes.training import objective, survey
from headlens.probes.training.apply import read_logits
from headlens.probes.training.module import ProbeModule, Shape, start
from headlens.probes.training.pooling import POOLINGS
from headlens.probes.training.train import Spec, train
from headlens.store.rows import ArrayRows
from tests.probes.documents import pack, padded, random_documents

N, WIDTH = 60, 6
LENGTHS = np.random.default_rng(0).integers(1, 12, N).tolist()
DOCUMENTS = random_documents(LENGTHS, WIDTH)
ROWS = pack(DOCUMENTS)
MEANS = torch.stack([one.mean(0) for one in DOCUMENTS])
Y = (MEANS[:, :1] + MEANS[:, 1:2] > 0).double()
MANY = [
    *(Spec("attention", 2, seed=i, penalty=0.1 * i) for i in range(3)),
    Spec("attention", 2, before=(7,)), Spec("attention", 3, after=(5,), slopes=False), Spec("tanh", 2),
    Spec("rolling_attention", 2, setting=3.0), Spec("multimax", 3, standardize=False), Spec("ema"), Spec("mean"),
    Spec("mean", before=(4, 3)), Spec("last", after=(3,)), Spec("absmax"), Spec("softmax"), Spec("rolling_mean_max"),
    Spec("max"),
]  # fmt: skip


def same(a: ProbeModule, b: ProbeModule, **tolerance) -> None:
    for mine, theirs in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        torch.testing.assert_close(dict([mine]), dict([theirs]), **tolerance)


def loss_of(module: ProbeModule, rows=ROWS, y=Y, weights=None) -> float:
    own = objective.LOSSES["logistic"](read_logits([module], rows)[0][:, None], y[:, None])[:, 0]
    return np.average(own, weights=weights).item()


# --- the same as a plain implementation ---


class Plain(torch.nn.Module):
    """The published probe: separate maps of padded rows, softmax over tokens, autograd."""

    def __init__(self, width, n_heads, first):
        super().__init__()
        self.q = torch.nn.Linear(width, n_heads, bias=False)
        self.v = torch.nn.Linear(width, n_heads, bias=False)
        self.slopes = torch.nn.Parameter(first["slopes"].clone())
        self.bias = torch.nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            self.q.weight.copy_(first["query"])
            self.v.weight.copy_(first["value"])

    def forward(self, x, mask):
        position = torch.arange(x.shape[1], dtype=x.dtype)
        keys = self.q(x) + position[None, :, None] * self.slopes
        weights = keys.masked_fill(~mask[..., None], -math.inf).softmax(1)
        return (weights * self.v(x)).sum((1, 2)) + self.bias


@pytest.mark.parametrize("seed", [0, 3])
def test_losses_and_weights_equal_those_of_a_plain_padded_probe(seed):
    steps, rate, penalty = 40, 0.03, 0.5
    specs = [Spec("attention", 4, seed=s, learning_rate=rate, penalty=penalty, standardize=False) for s in (seed, 9)]
    ours = train(ROWS, Y, specs, steps=steps, batch=N)[0]

    plain = Plain(WIDTH, 4, start(Shape(WIDTH, n_heads=4), seed)).double()
    optimizer = torch.optim.AdamW(
        [{"params": [plain.q.weight, plain.v.weight], "weight_decay": penalty},
         {"params": [plain.slopes, plain.bias], "weight_decay": 0.0}], lr=rate,
    )  # fmt: skip
    warm = round(0.05 * steps)
    factor = [
        s / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / (steps - warm)))
        for s in range(1, steps + 1)
    ]
    x, mask = padded(DOCUMENTS, "right", fill=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor[step]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(plain(x, torch.as_tensor(mask)), Y[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ours.loss == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(ours.module.query, plain.q.weight)
    torch.testing.assert_close(ours.module.value, plain.v.weight)
    torch.testing.assert_close(ours.module.slopes, plain.slopes)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_lbfgs_on_means_is_logistic_regression_at_every_penalty(n_classes):
    rng = np.random.default_rng(n_classes)
    y = (MEANS.numpy() @ rng.normal(size=(WIDTH, n_classes)) + 0.3 * rng.normal(size=(N, n_classes))).argmax(1)
    targets = torch.eye(n_classes, dtype=torch.float64)[y]
    loss = "softmax" if n_classes > 2 else "logistic"
    targets = targets if n_classes > 2 else targets[:, 1:]
    specs = [Spec("mean", penalty=p) for p in (0.01, 0.1, 1.0)]
    scaled = StandardScaler().fit_transform(MEANS.numpy())
    for one in train(ROWS, targets, specs, loss=loss, optimizer="lbfgs", tolerance=1e-9):
        wanted = LogisticRegression(C=1 / (N * one.spec.penalty), tol=1e-12, max_iter=10_000).fit(scaled, y)
        got = read_logits([one.module], ROWS)[0].squeeze(1) if n_classes == 2 else read_logits([one.module], ROWS)[0]
        np.testing.assert_allclose(got, wanted.decision_function(scaled), atol=1e-5)
        assert one.converged


def test_lbfgs_of_numbers_is_ridge_regression():
    y = MEANS[:, :2] + 0.1 * MEANS[:, 2:4] + 3
    specs = [Spec("mean", penalty=0.2, standardize=False)]
    (one,) = train(ROWS, y, specs, loss="squared", optimizer="lbfgs", tolerance=1e-10)
    wanted = Ridge(alpha=N * 0.2).fit(
        MEANS.numpy(), y.numpy()
    )  # our loss: the mean over outputs, and a half beside w^2
    np.testing.assert_allclose(read_logits([one.module], ROWS)[0], wanted.predict(MEANS.numpy()), atol=1e-6)


@pytest.mark.parametrize("pooling", ["attention", "multimax", "tanh"])
def test_lbfgs_goes_lower_than_adamw_goes(pooling):
    spec = Spec(pooling, 2, penalty=0.0)
    low, high = (train(ROWS, Y, [spec], optimizer=o, steps=300)[0] for o in ("lbfgs", "adamw"))
    assert low.loss < high.loss
    assert low.loss == pytest.approx(loss_of(low.module))


# --- many together ---


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_no_probe_depends_on_its_company(optimizer):
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(len(MANY), N, generator=generator)
    weights, judging = seen * (seen > 0.3), (seen <= 0.3).float()
    options = {"optimizer": optimizer, "steps": 25, "batch": 16, "patience": 4}
    held_out = judging if optimizer == "adamw" else None
    together = train(ROWS, Y, MANY, weights, validation=held_out, **options)
    for i, spec in enumerate(MANY):
        own = None if held_out is None else held_out[i : i + 1]
        (alone,) = train(ROWS, Y, [spec], weights[i : i + 1], validation=own, **options)
        assert (alone.spec, alone.steps, alone.converged) == (spec, together[i].steps, together[i].converged)
        same(alone.module, together[i].module, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_the_same_seed_gives_the_same_bytes(optimizer):
    first, again = (train(ROWS, Y, MANY, optimizer=optimizer, steps=10, batch=16, seed=4) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        same(one.module, other.module, rtol=0, atol=0)


def test_a_document_of_weight_0_is_not_there():
    """Not even in the mean and scale that rows are standardised by."""
    kept = np.arange(0, N, 2)
    weights = torch.zeros(1, N)
    weights[0, kept] = 1
    spoilt = pack([one if i % 2 == 0 else 1e3 * one for i, one in enumerate(DOCUMENTS)])
    spec = Spec("attention", 2)
    (one,) = train(spoilt, Y, [spec], weights, optimizer="lbfgs", steps=30)
    (other,) = train(pack([DOCUMENTS[i] for i in kept]), Y[kept], [spec], optimizer="lbfgs", steps=30)
    same(one.module, other.module, rtol=1e-5, atol=1e-7)


def test_weights_count_as_so_many_copies():
    weights = torch.ones(1, N)
    weights[0, :5] = 3
    copies = [*range(N), *range(5), *range(5)]
    spec = Spec("multimax", 2, standardize=False, penalty=0.01)
    (one,) = train(ROWS, Y, [spec], weights, optimizer="lbfgs", steps=20)
    (other,) = train(pack([DOCUMENTS[i] for i in copies]), Y[copies], [spec], optimizer="lbfgs", steps=20)
    same(one.module, other.module, rtol=1e-5, atol=1e-7)


def test_every_probe_may_have_targets_of_its_own():
    both = torch.stack([Y, 1 - Y])
    specs = [Spec("mean", penalty=0.1), Spec("mean", penalty=0.1)]
    one, other = train(ROWS, both, specs, optimizer="lbfgs")
    torch.testing.assert_close(one.module.value, -other.module.value, atol=1e-4, rtol=0)


class Counted(ArrayRows):
    """Rows that know how often each document was read."""

    def read(self, documents):
        SEEN.update(int(i) for i in documents)
        return super().read(documents)


SEEN = Counter()


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_each_row_is_read_once_a_step_for_all_probes(optimizer):
    rows = Counted(ROWS.rows, ROWS.offsets)
    SEEN.clear()
    train(rows, Y, MANY, optimizer=optimizer, steps=4, batch=N)
    once = 1 + 4  # to look at them (where documents are pooled as well), and for each step
    assert set(SEEN.values()) == {once, once + 1}  # the first, once more for its type
    assert SEEN[0] == once + 1


def test_how_rows_are_cut_into_chunks_changes_nothing(monkeypatch):
    whole = train(ROWS, Y, MANY, optimizer="lbfgs", steps=6)
    monkeypatch.setattr(objective, "CHUNK", 40 * WIDTH)
    monkeypatch.setattr(survey, "CHUNK", 40 * WIDTH)
    monkeypatch.setattr(survey, "KEPT", 0)  # pooled anew at every read
    for one, other in zip(whole, train(ROWS, Y, MANY, optimizer="lbfgs", steps=6), strict=True):
        same(one.module, other.module, rtol=1e-6, atol=1e-9)


# --- standardisation ---


@pytest.mark.parametrize("pooling", ["attention", "tanh", "multimax", "rolling_attention", "mean", "ema", "token"])
@pytest.mark.parametrize("before", [(), (5,)])
def test_standardisation_is_folded_into_the_weights(pooling, before):
    """Trained on rows standardised by hand, a probe says the same."""
    far = [one * torch.tensor([1, 10, 0.1, 1, 5, 0]).double() + 40 for one in DOCUMENTS]
    rows = pack(far)
    x = torch.cat([one.mean(0, keepdim=True) for one in far]) if pooling == "mean" and not before else rows.rows
    by_hand = (rows.rows - x.mean(0)) / torch.where(x.std(0) > 0, x.std(0, correction=0), 1.0)
    y = Y if pooling != "token" else (rows.rows[:, :1] > 40).double()
    heads = 2 if POOLINGS[pooling].several_heads else 1
    specs = [Spec(pooling, heads, before=before, standardize=s) for s in (True, False)]
    (one,) = train(rows, y, specs[:1], steps=15)
    (other,) = train(ArrayRows(by_hand, rows.offsets), y, specs[1:], steps=15)
    got = read_logits([one.module], rows)[0]
    wanted = read_logits([other.module], ArrayRows(by_hand, rows.offsets))[0]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_moments_of_features_far_from_zero_are_exact_in_single_precision():
    """Squares of numbers near 1000 would lose a spread of 0.01: activations have such features."""
    rows = (1000 + 0.01 * ROWS.rows).float()
    moments = survey.Moments(torch.ones(1, N, dtype=torch.bool), WIDTH)
    moments.add(rows, np.arange(N), objective.Packing(torch.tensor(LENGTHS)))
    mean, scale = moments.mean_and_scale()
    np.testing.assert_allclose(mean[0], rows.double().mean(0), rtol=1e-7)
    np.testing.assert_allclose(1 / scale[0], rows.double().std(0, correction=0), rtol=1e-3)


def test_half_precision_rows_train_in_single_precision():
    half = ArrayRows(ROWS.rows.half(), ROWS.offsets)
    wide = ArrayRows(half.rows.float(), ROWS.offsets)
    for one, other in zip(*(train(rows, Y.float(), MANY, steps=5, batch=20) for rows in (half, wide)), strict=True):
        assert one.module.value.dtype is torch.float32
        same(one.module, other.module, rtol=0, atol=0)


# --- early stopping ---


def test_a_probe_comes_back_as_it_was_at_its_best():
    """Restored by a real copy: the parameters went on changing after it was taken."""
    judging = (torch.arange(N) % 3 == 0).float().expand(2, -1)
    noise = torch.randint(0, 2, (N, 1), generator=torch.Generator().manual_seed(0)).double()  # nothing to be learned
    specs = [Spec("attention", 2, learning_rate=0.2), Spec("attention", 2, learning_rate=0.0)]
    one, still = train(ROWS, noise, specs, 1 - judging, validation=judging, steps=200, patience=8, batch=N)
    assert one.loss == pytest.approx(loss_of(one.module, y=noise, weights=judging[0]))
    assert one.converged and one.steps < 100
    (longer,) = train(ROWS, noise, specs[:1], 1 - judging[:1], steps=one.steps + 100, batch=N)
    assert loss_of(longer.module, y=noise, weights=judging[0]) > one.loss
    assert (still.steps, still.converged) == (2, True)  # never better than at the first look


def test_probes_without_validation_take_all_steps_beside_those_that_stop():
    judging = torch.zeros(2, N)
    judging[0, ::3] = 1
    noise = torch.randint(0, 2, (N, 1), generator=torch.Generator().manual_seed(0)).double()
    specs = [Spec("attention", 2, learning_rate=0.2)] * 2
    stopped, went_on = train(ROWS, noise, specs, 1 - judging, validation=judging, steps=200, patience=5, batch=N)
    assert stopped.steps < went_on.steps == 200
    assert not went_on.converged


# --- targets ---


def test_tokens_with_labels_of_their_own():
    y = (ROWS.rows[:, :1] > 0).double()
    known = (torch.arange(len(y)) % 3 > 0).double()
    spoilt = torch.where(known[:, None] > 0, y, 1 - y)
    one, other = (
        train(ROWS, x, [Spec("token", penalty=0.01)], importance=known, optimizer="lbfgs")[0] for x in (y, spoilt)
    )
    same(one.module, other.module, rtol=0, atol=0)
    assert ((read_logits([one.module], ROWS)[0] > 0) == y.bool()).double().mean() > 0.9
    (alone,) = train(ArrayRows(ROWS.rows[known > 0], np.arange(int(known.sum()) + 1)), y[known > 0],
                     [Spec("token", penalty=0.01, standardize=False)], optimizer="lbfgs")  # fmt: skip
    (within,) = train(ROWS, y, [Spec("token", penalty=0.01, standardize=False)], importance=known, optimizer="lbfgs")
    same(alone.module, within.module, rtol=1e-5, atol=1e-8)


def test_soft_labels_are_matched_where_they_can_be():
    y = torch.where(MEANS[:, :1] > 0, 0.8, 0.3)
    rows = ArrayRows((MEANS[:, :1] > 0).double(), np.arange(N + 1))
    (one,) = train(rows, y, [Spec("mean")], optimizer="lbfgs", tolerance=1e-8)
    torch.testing.assert_close(read_logits([one.module], rows)[0].sigmoid(), y.double(), atol=1e-5, rtol=0)


# --- refusals ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_activations_that_are_no_numbers_are_found_and_named(bad, pooling):
    documents = [one.clone() for one in DOCUMENTS]
    documents[7][0, 3] = bad
    with pytest.raises(DataError, match="Document 7 holds NaN"):
        train(pack(documents), Y, [Spec(pooling)])
    (one,) = train(ROWS, Y, [Spec(pooling)], steps=2)
    with pytest.raises(DataError, match="Document 7 holds NaN"):
        read_logits([one.module], pack(documents))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": Y[1:]}, "targets must have a row for each of the 60 documents"),
        ({"targets": Y * math.nan}, "Targets hold NaN"),
        ({"specs": []}, "no probe to train"),
        ({"specs": [Spec("token"), Spec("mean")]}, "train them apart"),
        ({"weights": torch.zeros(1, N)}, "no document to train on"),
        ({"weights": torch.ones(1, N - 1)}, "weights must be"),
        ({"weights": -torch.ones(1, N)}, "at least 0"),
        ({"validation": torch.ones(1, N), "optimizer": "lbfgs"}, "does not stop early"),
        ({"rows": pack([*DOCUMENTS[:-1], DOCUMENTS[0][:0]])}, "Document 59 has no rows"),
        ({"importance": torch.zeros(N)}, "importance of all its targets is 0"),
        ({"importance": torch.ones(3)}, "importance must be"),
        ({"specs": [Spec("max", 2)]}, "n_heads must be 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message):
    whole = {"rows": ROWS, "targets": Y, "specs": [Spec("mean")]} | change
    with pytest.raises(DataError, match=message):
        train(**whole)


def test_nothing_that_is_handed_over_changes():
    rows, y, weights = ROWS.rows.clone(), Y.clone(), torch.ones(len(MANY), N)
    train(ROWS, Y, MANY, weights, steps=3, batch=16)
    assert torch.equal(rows, ROWS.rows) and torch.equal(y, Y) and bool((weights == 1).all())
