"""Few texts: the same ones for every method, fits as long as on all texts, and rows whose figures are plain means."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from headlens._errors import DataError
from headlens.axes import HeadId
from headlens.universe import baselines
from headlens.universe.batches import Batch, Group, grouped
from headlens.universe.clone import Training, fit_clones, joined
from headlens.universe.decoder import Shape, decoded, fit_decoder, fit_embeddings
from headlens.universe.embed import divergences
from headlens.universe.evaluate import POSITION, mean_divergences, reconstruction_rows
from headlens.universe.few import as_long, excess, few_rows, few_study
from headlens.universe.patterns import text_order
from headlens.universe.study import CLONE, OURS, SYMBOLIC, Recorded, counts_of, same_models
from tests.universe import made

QUICK = Training(epochs=1)
MODELS = ("zoo:gpt2-small", "zoo:qwen3-small")


@pytest.fixture(scope="module")
def train(shared_patterns):
    return [patterns for patterns in shared_patterns if patterns.model in MODELS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Recorded on nothing but the first documents."""
    return lambda n: made.patterns(
        tmp_path_factory.mktemp(f"first{n}"), names=MODELS, given=text_order(made.texts())[:n]
    )


@pytest.mark.parametrize("n", [1, 5, 16, 18])
def test_the_first_documents_of_a_group_are_as_if_no_others_had_been_recorded(train, alone, n):
    features = made.features()
    for group, other in zip(grouped(train), grouped(alone(n)), strict=True):
        part = group.first(n)
        assert part.n_shards == other.n_shards and part.first(None) is part
        for one, two in zip(part.batches(features), other.batches(features), strict=True):
            for column in fields(Batch):
                a, b = getattr(one, column.name), getattr(two, column.name)
                if isinstance(a, torch.Tensor):  # a model's last digits depend on what it reads beside a text
                    assert a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-3), column.name
                else:
                    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), column.name


def test_first_documents_stay_the_first_in_part_of_the_heads_and_not_on_other_texts(train):
    features, group = made.features(), grouped(train)[0]
    few = group.first(3).only(group.heads[::2])
    (batch,) = few.batches(features)
    assert batch.texts == tuple(text_order(made.texts())[:3]) and len(batch.target) == len(group.heads[::2])
    assert sum(len(batch.texts) for batch in same_models(train, few).batches(features)) == len(made.texts())
    assert same_models(train, few).heads == few.heads
    for n, of, said in (
        (0, group, "1 or more, not 0"),
        (25, group, "1 documents fewer"),
        (5, few, "2 documents fewer"),
    ):
        with pytest.raises(DataError, match=said):
            of.first(n)


def test_heads_join_on_the_documents_that_baselines_are_fitted_on(train):
    features, (group, other) = made.features(), grouped(train)
    decoder, _ = fit_decoder([other], features, shape=Shape(size=4, parts=4, rank=2), training=QUICK)
    new = fit_embeddings(decoder, [group], features, documents=3, steps=4)
    assert torch.equal(new.e, fit_embeddings(decoder, [group.first(3)], features, steps=4).e)
    assert not torch.equal(new.e, fit_embeddings(decoder, [group], features, documents=4, steps=4).e)


def test_fits_on_few_texts_take_at_least_as_many_steps_as_on_all(train):
    group = grouped(train)[0]  # 24 documents, 16 a shard
    for n, epochs in ((1, 10), (16, 10), (17, 5), (24, 5)):
        training = as_long(Training(epochs=5, rate=0.3, decay=0.1, seed=4), group, group.first(n))
        assert training == Training(epochs=epochs, rate=0.3, decay=0.1, seed=4)
    large = {"shards": 57, "documents": 906}
    many = Group(tuple(replace(member, manifest=member.manifest | large) for member in group.members))
    assert as_long(Training(epochs=5), many, many.first(64)).epochs == 72  # 285 steps, 4 an epoch


@pytest.fixture(scope="module")
def recorded(train):
    return Recorded(made.features(), train, train, train, train)


def test_every_baseline_is_fitted_on_each_number_of_texts(recorded, alone, monkeypatch):
    chosen_on, nearest = set(), baselines.nearest

    def spied(group, *given, shards):
        chosen_on.add((group.documents, shards))
        return nearest(group, *given, shards=shards)

    monkeypatch.setattr(baselines, "nearest", spied)
    features = recorded.features
    every = [fit_clones(group, features, rank=2, training=QUICK) for group in grouped(recorded.train)]
    told = few_study(recorded, joined(every), few=(2, 999), rank=2, training=QUICK)
    assert list(told) == [
        CLONE, POSITION, SYMBOLIC, "uniform", "sink", "mean pattern", "nearest head", "shuffled texts",
    ]  # fmt: skip
    heads = {head for patterns in recorded.train for head in patterns.heads}
    for by_count in told.values():
        assert sorted(by_count) == [2, 24] == counts_of(recorded, (2, 999))
        assert all(kl.keys() == heads and np.isfinite(list(kl.values())).all() for kl in by_count.values())
    assert told["uniform"][2] == told["uniform"][24] and told["shuffled texts"][24] != told[CLONE][24]
    assert chosen_on == {(2, 1), (24, 2)}
    for name in (CLONE, "sink", "mean pattern"):
        assert np.mean(list(told[name][24].values())) < np.mean(list(told[name][2].values()))
    # The clone of two texts is that of a recording of these two alone, gone through as often.
    for group, test in zip(grouped(alone(2)), grouped(recorded.train), strict=True):
        own = fit_clones(group, features, rank=2, training=Training(epochs=2))
        expected = mean_divergences(test, features, {CLONE: own.log_patterns})[CLONE]
        assert {head: told[CLONE][2][head] for head in expected} == pytest.approx(expected, rel=1e-4)


def test_mean_divergences_are_those_of_reconstruction_and_of_the_decoder(train):
    features, (group, other) = made.features(), grouped(train)
    fit = fit_clones(group, features, rank=2, training=QUICK)
    rows = reconstruction_rows(group, features, {POSITION: fit.log_patterns})
    found = mean_divergences(group, features, {POSITION: fit.log_patterns})[POSITION]
    assert list(found.values()) == pytest.approx([row["kl"] for row in rows])
    decoder, embedded = fit_decoder([other], features, shape=Shape(size=4, parts=4, rank=2), training=QUICK)
    own = mean_divergences(other, features, {"ours": lambda batch: decoded(decoder, embedded, batch)})["ours"]
    assert divergences(decoder, embedded, [other], features) == pytest.approx(own)


HEADS = [HeadId(f"m{i}", layer, 0) for i in range(5) for layer in range(i + 1)]


def test_rows_of_few_texts_are_plain_means_paired_by_head():
    rng = np.random.default_rng(0)
    told = {
        name: {n: {head: float(0.2 + rng.random()) for head in HEADS} for n in (1, 4)} for name in (OURS, CLONE, "sink")
    }
    silent = HEADS[3]
    for by_count in told.values():
        for kl in by_count.values():
            kl[silent] = np.nan
    position = {head: 0.05 if head == HEADS[0] else 1.5 for head in HEADS}
    rows = few_rows(told, position)
    assert [(row["documents"], row["method"]) for row in rows] == [(n, name) for n in (1, 4) for name in told]
    kept = [head for head in HEADS if head != silent]
    for row in rows:
        kl, ours = told[row["method"]][row["documents"]], told[OURS][row["documents"]]
        assert row["heads"] == len(kept) and row["kl"] == pytest.approx(np.mean([kl[h] for h in kept]))
        assert row["skill"] == pytest.approx(np.median([1 - kl[h] / 1.5 for h in kept if h != HEADS[0]]))
        assert ("gap" in row) == (row["method"] != OURS)
        if "gap" in row:
            assert row["gap"] == pytest.approx(np.mean([ours[h] - kl[h] for h in kept]))
            assert row["gap_low"] <= row["gap"] <= row["gap_high"]
        if row["documents"] == 4:
            assert row["above"] == row["above_low"] == row["above_high"] == 0


def test_the_share_above_the_most_texts_is_of_sums_over_all_heads():
    full = {head: 1.0 + head.layer for head in HEADS}
    assert excess({head: 1.3 * kl for head, kl in full.items()}, full) == pytest.approx((0.3, 0.3, 0.3))
    found, low, high = excess({head: kl + (head.model == "m0") for head, kl in full.items()}, full)
    assert found == pytest.approx(1 / sum(full.values())) and low == 0 < high
