"""Sums over a corpus are the sums of what `resolve` says of each text; and all of them are the model's scores."""

import sys

import numpy as np
import pytest
import torch

import headlens as hl
from headlens._errors import DataError, SiteError
from headlens.fra import ChannelStats, channel_sums, channels, resolve
from headlens.models.head import visible
from tests.families import build
from tests.fra.made import crosscoder, dictionary

TEXTS = [[1, 5, 9, 20, 33, 5, 9, 44], [1, 50, 61, 5], [1, 9, 9, 20, 7, 61, 5, 9, 44, 50, 3]]
FAMILIES = ["gpt2", "opt", "gpt_neo", "llama", "mistral", "qwen3", "olmo2", "gemma2", "gpt_oss", "gptj"]


def slow(model, own, layer, head, skip=()):
    """Every pair of every text, one by one."""
    n = own.d_sae + 4
    found = {name: np.zeros((n, n)) for name in ("total", "attended", "count", "absolute", "far", "weight", "largest")}
    score_sum, n_pairs = 0.0, 0
    for ids in TEXTS:
        fa = resolve(model, own, ids, layer, head)
        seen = visible(len(ids), fa.window).numpy()
        sums = fa.sums().numpy()
        for q in range(len(ids)):
            for k in range(q + 1):
                if not seen[q, k] or ids[q] in skip or ids[k] in skip:
                    continue
                score_sum, n_pairs = score_sum + sums[q, k], n_pairs + 1
                pair = fa.pair(q, k)
                at = np.ix_(pair.query_sources, pair.key_sources)
                found["total"][at] += pair.product
                found["attended"][at] += pair.product * float(fa.pattern[q, k])
                found["absolute"][at] += abs(pair.product)
                found["count"][at] += 1
                found["weight"][at] += abs(pair.scaling)
                found["far"][at] += abs(pair.scaling) * (q - k)
                larger = abs(pair.product) > abs(found["largest"][at])
                found["largest"][at] = np.where(larger, pair.product, found["largest"][at])
    return found, score_sum, n_pairs


@pytest.mark.parametrize("site", ["hook_resid_pre", "ln1.hook_normalized"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sums_are_those_of_single_texts(name, site):
    model = hl.load(build(name, dtype=torch.float64))
    if site.startswith("ln1") and model.family.pre_norm is None:
        pytest.skip("no norm before its heads")
    own = dictionary(model.d_model, f"blocks.1.{site}", n=12, dtype=torch.float64)
    stats = channels(model, own, TEXTS, 1, heads=(2, 0), extremes=True)
    for h, head in enumerate((2, 0)):
        wanted, score_sum, n_pairs = slow(model, own, 1, head)
        size = abs(wanted["total"]).max()
        for what in ("total", "attended", "absolute", "largest"):
            np.testing.assert_allclose(getattr(stats, what)[h], wanted[what], atol=1e-6 * size)
        np.testing.assert_array_equal(stats.count, wanted["count"])
        there = wanted["count"] > 0
        np.testing.assert_allclose(stats.distance[there], wanted["far"][there] / wanted["weight"][there], atol=1e-5)
        assert np.isnan(stats.distance[~there]).all()
        assert stats.score_sum[h] == pytest.approx(score_sum, abs=1e-6 * size)
        assert stats.total[h].sum() == pytest.approx(score_sum, abs=1e-5 * size)
        assert (stats.n_pairs, stats.n_queries) == (n_pairs, sum(map(len, TEXTS)))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_neither_blocks_nor_features_that_never_occur_matter(name, sparse, monkeypatch):
    monkeypatch.setattr(channel_sums, "QUERIES", 4)
    monkeypatch.setattr(channel_sums, "SPARSE", sparse and channel_sums.SPARSE)
    model = hl.load(build(name, dtype=torch.float64))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=60, dtype=torch.float64, activation="topk", k=1)
    stats, (wanted, _, _) = channels(model, own, TEXTS, 1, heads=[2]), slow(model, own, 1, 2)
    assert (wanted["count"][:60, :60].max(0) > 0).sum() < 30
    for what in ("total", "attended"):
        np.testing.assert_allclose(getattr(stats, what)[0], wanted[what], atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_that_are_skipped_count_on_neither_side(name):
    model = hl.load(build(name, dtype=torch.float64))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=12, dtype=torch.float64)
    stats = channels(model, own, TEXTS, 1, heads=[1], skip=(1, 9))
    wanted, score_sum, n_pairs = slow(model, own, 1, 1, skip=(1, 9))
    np.testing.assert_allclose(stats.total[0], wanted["total"], atol=1e-6)
    np.testing.assert_allclose(stats.attended[0], wanted["attended"], atol=1e-6)
    np.testing.assert_array_equal(stats.count, wanted["count"])
    assert stats.n_pairs == n_pairs and stats.score_sum[0] == pytest.approx(score_sum, abs=1e-6)


def test_activations_below_zero_weigh_distances_by_their_size():
    model = hl.load(build("llama", dtype=torch.float64))
    own = dictionary(
        model.d_model, "blocks.1.hook_resid_pre", n=12, dtype=torch.float64, activation="abstopk", k=4
    )  # fmt: skip
    stats, (wanted, _, _) = channels(model, own, TEXTS, 1, heads=[2]), slow(model, own, 1, 2)
    np.testing.assert_allclose(stats.total[0], wanted["total"], atol=1e-6)
    there = wanted["count"] > 0
    np.testing.assert_array_equal(stats.count, wanted["count"])
    np.testing.assert_allclose(stats.distance[there], wanted["far"][there] / wanted["weight"][there], atol=1e-5)


def test_a_crosscoder_of_several_sites_too():
    model = hl.load(build("llama", dtype=torch.float64))
    sites = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")
    own = crosscoder(model.d_model, sites, sites[1], n=12, dtype=torch.float64)
    stats = channels(model, own, TEXTS, 1, heads=[2])
    wanted, score_sum, _ = slow(model, own, 1, 2)
    np.testing.assert_allclose(stats.total[0], wanted["total"], atol=1e-6)
    assert stats.score_sum[0] == pytest.approx(score_sum, abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_batches_and_company_change_nothing(name, monkeypatch):
    model = hl.load(build(name, dtype=torch.float64))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=12, dtype=torch.float64)
    done = []
    whole = channels(model, own, iter(TEXTS), 1, progress=done.append)
    small = channels(model, own, TEXTS, 1, batch_tokens=1)
    assert done == [1, 2, 3] and whole.heads == (0, 1, 2, 3)
    for what in ("total", "attended"):
        np.testing.assert_allclose(getattr(whole, what), getattr(small, what), atol=1e-6)
    for rows, block in ((1, 3), (12, 100)):  # each text alone, queries three by three; two texts and one
        monkeypatch.setattr(channel_sums, "ROWS", rows)
        monkeypatch.setattr(channel_sums, "QUERIES", block)
        parted = channels(model, own, TEXTS, 1)
        for what in ("total", "attended", "count", "distance", "score_sum"):
            np.testing.assert_allclose(getattr(whole, what), getattr(parted, what), atol=1e-6)
        assert (parted.n_pairs, parted.n_queries) == (whole.n_pairs, whole.n_queries)
    one = channels(model, own, TEXTS, 1, heads=[2])
    np.testing.assert_allclose(one.total[0], whole.total[2], atol=1e-6)


def test_the_channels_that_stand_out(tmp_path):
    model = hl.load(build("llama", dtype=torch.float64))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=12, dtype=torch.float64)
    stats = channels(model, own, TEXTS, 1, extremes=True)
    count = stats.count[:12, :12]
    for by, values in {
        "mean": stats.total / np.maximum(stats.count, 1), "total": stats.total, "largest": stats.largest,
        "absolute": stats.absolute / np.maximum(stats.count, 1), "attended": stats.attended / stats.n_queries,
    }.items():  # fmt: skip
        told = np.where(count >= 10, np.abs(values[:, :12, :12]), 0)
        rows = stats.top(5, by=by).to_pylist()
        np.testing.assert_allclose([abs(r["value"]) for r in rows], np.sort(told.ravel())[::-1][:5])
        assert all(r["value"] == values[r["head"], r["query_feature"], r["key_feature"]] for r in rows)
        assert all(r["head"] == 3 for r in stats.top(5, by=by, head=3).to_pylist())
    assert stats.top(5, least_count=10**6).num_rows == 0
    back = ChannelStats.load(stats.save(tmp_path / "stats"))
    assert back.top(9, by="largest").equals(stats.top(9, by="largest")) and back.heads == stats.heads
    for bad in ("odd", "absolute"):
        with pytest.raises(DataError, match="by must|extremes=True"):
            channels(model, own, TEXTS, 1).top(by=bad)


def test_refusals(monkeypatch):
    model = hl.load(build("gpt2"))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=12)
    with pytest.raises(DataError, match="no text"):
        channels(model, own, [], 1)
    with pytest.raises(DataError, match="at least"):
        channels(model, own, TEXTS, 1, heads=[])
    with pytest.raises(SiteError, match="reads"):
        channels(model, own, TEXTS, 2)
    with pytest.raises(DataError, match="head must be one of 1"):
        channels(model, own, TEXTS, 1, heads=[1]).top(head=2)
    monkeypatch.setattr(sys.modules[channels.__module__], "LIMIT", 10_000)
    with pytest.raises(DataError, match="16 x 16 channels of 4 heads take"):
        channels(model, own, TEXTS, 1)
