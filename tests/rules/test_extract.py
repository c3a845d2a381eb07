"""What mining says is what its parts say: predictions, examples, figures; saved and loaded; and bad input."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from sklearn import metrics

import headlens as hl
from headlens._errors import DataError, SiteError
from headlens.rules import Rules, extract, observe
from headlens.rules.candidates import by_effect
from headlens.rules.evaluate import best_threshold, judged, unigram
from headlens.rules.exemplars import Examples, Exemplars
from headlens.rules.extract import texts_of
from headlens.rules.matches import Sparse, key_matches, matched
from headlens.rules.mining import Asked, Miner, mine
from headlens.rules.restrict import Rest, Truth, fitted_rest, predicted
from tests.families import build
from tests.fra.made import dictionary
from tests.rules.made import rules_head, world


def random_model(name, n=60, length=24):
    model = hl.load(build(name))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", n=30)
    z = dictionary(model.d_head, "blocks.1.attn.hook_z", n=5, seed=3, head=2)
    rng = np.random.default_rng(0)
    texts = [[1, *rng.integers(4, 60, rng.integers(6, length)).tolist()] for _ in range(n)]
    return model, own, z, texts


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_oss", "mistral"])
def made(request):
    model, own, z, texts = random_model(request.param)
    observed = observe(model, own, {2: z}, texts, 1)
    found = mine(observed, 2, [0, 3], Asked(num_bins=2, examples_per_bin=20, suspects=1, draws=50))
    return observed, own, found


def test_the_corpus_is_what_the_model_did(made):
    observed, *_ = made
    seen, tokens = observed.heads[2], observed.tokens
    miner = Miner(observed, 2, Asked(num_bins=2, examples_per_bin=20))
    examples = miner.exemplars.draw(0, "test")
    truth = miner.truth(examples, miner.direction(0)[0])
    pre = miner.direction(0)[1] + (truth.pattern * truth.writes).sum(-1)
    np.testing.assert_allclose(pre, examples.pre, atol=1e-4 * abs(examples.pre).max())  # exact parts, exact whole
    for e in range(3):
        (batch,) = hl.capture(observed.model, tokens[int(examples.text[e])], ["blocks.1.attn.hook_pattern"])
        q = int(examples.row[e] - examples.start[e])
        own = batch["blocks.1.attn.hook_pattern"][0, 2, q, : q + 1].numpy()
        np.testing.assert_allclose(truth.pattern[e, : q + 1], own, atol=1e-5)
    assert seen.fires.n_rows == len(tokens.ids)


def test_all_pairs_and_all_else_at_its_true_value_are_the_models_head(made):
    """Exact rest: what all pairs leave over is given back at each key; the prediction is then the model's own."""
    observed, *_ = made
    miner = Miner(observed, 2, Asked(num_bins=2, examples_per_bin=20))
    examples = miner.exemplars.draw(0, "mine")
    w, bias = miner.direction(0)
    truth = miner.truth(examples, w)
    zero = np.zeros(10)
    pre = predicted(examples, truth.scores, truth.writes, Rest(zero, zero, 0.0), miner.of, bias)
    np.testing.assert_allclose(pre, examples.pre, atol=1e-4 * abs(examples.pre).max())


def test_matches_are_all_pairs_of_active_features(made):
    observed, *_ = made
    miner = Miner(observed, 2, Asked(num_bins=2, examples_per_bin=5))
    examples = miner.exemplars.draw(0, "mine")
    w, _ = miner.direction(0)
    truth = miner.truth(examples, w)
    active = Sparse.of(observed.active)
    pairs = by_effect("importance", active, truth, miner.seen.maps, w, miner.n_offsets).pairs
    keys = key_matches(active, examples, pairs.local()[1])
    found = np.zeros(examples.distance.shape)
    for some in matched(active, examples, pairs, keys):
        found += np.bincount(some.cell, some.score, found.size).reshape(found.shape)
    dense, maps, of = observed.active.dense().numpy(), miner.seen.maps, miner.of
    for e in range(len(examples)):
        for k in np.flatnonzero(examples.visible[e]):
            q, row = examples.row[e], examples.start[e] + k
            query = torch.from_numpy(maps.constant + dense[q] @ maps.query)
            key = torch.from_numpy(dense[row] @ maps.key)
            if of.rotary is not None:
                query, key = of.rotary(query, int(q - row)), of.rotary(key, 0)
            assert found[e, k] == pytest.approx(float(query @ key), abs=1e-3)


def test_importance_is_the_gradient_with_respect_to_a_mask(made):
    from headlens.rules.candidates import _sizes

    observed, *_ = made
    miner = Miner(observed, 2, Asked(num_bins=2, examples_per_bin=5))
    examples = miner.exemplars.draw(0, "mine")
    w, bias = miner.direction(0)
    truth, active = miner.truth(examples, w), Sparse.of(observed.active)
    pairs = by_effect("importance", active, truth, miner.seen.maps, w, miner.n_offsets).pairs
    keys = key_matches(active, examples, pairs.local()[1])
    sizes = _sizes(active, truth, pairs, keys, by_count=False)
    zero, step = Rest(np.zeros(10), np.zeros(10), 0.0), 1e-4
    for pair in np.argsort(-sizes)[[0, 3, 10]]:
        score, write = np.zeros((2, *examples.distance.shape))
        for some in matched(active, examples, pairs, keys):
            own = some.pair == pair
            np.add.at(score.ravel(), some.cell[own], some.score[own])
            np.add.at(write.ravel(), some.cell[own], some.write[own])
        up, down = (
            predicted(examples, truth.scores + s * score, truth.writes + s * write, zero, _Plain, bias)
            for s in (step, -step)
        )
        slope = (up - down) / (2 * step) * examples.balanced
        if miner.of.softcap is None and miner.of.sink is None:
            wanted = abs(slope[examples.fires].sum()) + abs(slope[~examples.fires].sum())
            assert sizes[pair] == pytest.approx(wanted, rel=1e-3)


class _Plain:
    softcap = None
    sink = None


def test_a_saved_rule_set_predicts_what_was_judged(made, tmp_path):
    observed, _, found = made
    again = Rules.load(found.save(tmp_path / "rules"))
    assert str(again.table.to_pylist()) == str(found.table.to_pylist())  # NaN is no number's equal
    for n in (0, 4, None):
        rule_set = again.rule_set(3, n)
        assert n is None or len(rule_set.rules) == n
        miner = Miner(observed, 2, Asked(num_bins=2, examples_per_bin=20, draws=50))
        test = miner.exemplars.draw(3, "test")
        full = np.empty(len(observed.tokens.ids))
        for i in range(len(observed.tokens)):
            start, stop = observed.tokens.offsets[i : i + 2]
            full[start:stop] = rule_set.predict(observed.active.part(int(start), int(stop)))
        scores = judged(full[test.row], test, rule_set.threshold, draws=2, seed=0)
        rows = [row for row in found.curve(3).to_pylist() if row["predictor"] == "rules"]
        row = rows[-1] if n is None else next(row for row in rows if row["rules"] == n)
        assert scores.value["r2"] == pytest.approx(row["r2"], abs=1e-4, nan_ok=True)


def test_the_curve_has_every_predictor_and_full_is_the_ceiling(made):
    curve = made[2].curve()
    assert set(curve["predictor"].to_pylist()) == {"rules", "key_only", "random", "unigram", "full"}
    rows = {(row["predictor"], row["rules"]): row for row in curve.to_pylist()}
    assert rows["full", None]["r2"] == pytest.approx(1, abs=1e-6)
    assert rows["full", None]["ap"] == pytest.approx(1)
    assert rows["full", None]["spearman"] == pytest.approx(1)


def test_exports(made):
    found = made[2]
    lines = found.to_csv().splitlines()
    assert len(lines) == 1 + sum(len(found.rules(f)) for f in found.features)
    told = json.loads(found.to_json())
    assert [row["feature"] for row in told["features"]] == list(found.features)
    page = found.to_markdown(phrase=lambda feature, rules: f"prose of {feature}, {len(rules)} rules")
    assert "prose of 3" in page and "| full |" in page
    assert isinstance(found.to_table(), pa.Table)


def test_another_seed_or_order_of_features_changes_nothing_that_it_should_not(made):
    observed, _, found = made
    alone = mine(observed, 2, [3], Asked(num_bins=2, examples_per_bin=20, suspects=1, draws=50))
    assert alone.table["rules"][0].as_py() == found.table["rules"][1].as_py()
    assert str(alone.table["curve"][0].as_py()) == str(found.table["curve"][1].as_py())


# --- figures ----------------------------------------------------------------------------------------------


def examples_of(pre, activation, weight, texts=None):
    n = len(pre)
    rows = np.arange(n)
    return Examples(rows, rows, rows if texts is None else texts, weight, pre, activation, None)


def test_weighted_figures_are_those_of_copies():
    rng = np.random.default_rng(0)
    pre, said = rng.normal(size=40).round(1), rng.normal(size=40).round(1)
    activation, copies = np.maximum(pre - 0.5, 0), rng.integers(1, 5, 40)
    own = judged(said, examples_of(pre, activation, copies.astype(float)), 0.2, draws=2, seed=0).value
    y, p, g = (np.repeat(one, copies) for one in (activation > 0, said, pre))
    assert own["ap"] == pytest.approx(metrics.average_precision_score(y, p))
    assert own["f1"] == pytest.approx(metrics.f1_score(y, p > 0.2))
    assert own["precision"] == pytest.approx(metrics.precision_score(y, p > 0.2))
    assert own["recall"] == pytest.approx(metrics.recall_score(y, p > 0.2))
    assert own["r2"] == pytest.approx(metrics.r2_score(g, p))
    assert own["spearman"] == pytest.approx(stats.spearmanr(p, g).statistic)


def test_the_threshold_has_the_best_f1():
    rng = np.random.default_rng(1)
    pre, said = rng.normal(size=60), rng.normal(size=60).round(1)
    weight = rng.exponential(size=60) * np.where(pre > 0, 0.1, 3)
    for weights in (np.ones(60), weight):
        threshold = best_threshold(said, examples_of(pre, np.maximum(pre, 0), weights))
        best, *every = (
            metrics.f1_score(pre > 0, said > t, sample_weight=weights) for t in (threshold, *said, *(said - 1e-6))
        )
        assert best == pytest.approx(max(every))


def test_intervals_are_over_texts_and_narrow_with_their_number():
    rng = np.random.default_rng(2)
    pre = rng.normal(size=400)
    said, activation = pre + rng.normal(size=400), np.maximum(pre, 0)
    width = {}
    for name, texts in (("many", np.arange(400)), ("few", np.arange(400) // 40)):
        found = judged(said, examples_of(pre, activation, np.ones(400), texts), 0.0, draws=300, seed=0)
        assert found.low["ap"] < found.value["ap"] < found.high["ap"]
        width[name] = found.high["r2"] - found.low["r2"]
    one = judged(said, examples_of(pre, activation, np.ones(400), np.zeros(400, int)), 0.0, draws=50, seed=0)
    assert one.low["ap"] == one.high["ap"] and width["many"] > 0


def test_who_says_nothing_is_not_precise():
    examples = examples_of(np.array([1.0, -1]), np.array([1.0, 0]), np.ones(2))
    assert judged(np.zeros(2), examples, 1.0, draws=2, seed=0).value["precision"] == 0


def test_unigram_is_the_mean_at_a_token():
    found = unigram(np.array([3, 3, 5]), np.array([1.0, 2.0, 6.0]), np.array([3, 9]))
    np.testing.assert_allclose(found, [(1 + 2 + 3) / 3, 3])


def test_examples_stand_for_the_whole_part():
    _, model, own, z = rules_head()
    texts = [hl.data.tokenize([t], model.tokenizer, bos=model.bos)[0].tolist() for t in world(200)]
    observed = observe(model, own, {0: z}, texts, 0)
    drawer = Exemplars(observed, 0, num_bins=3, examples_per_bin=4, seed=0)
    for part, number in (("mine", 0), ("select", 1), ("test", 2)):
        examples = drawer.draw(0, part)
        assert (drawer.part[examples.text] == number).all()
        inside = (drawer.part == number)[drawer.text_of]
        assert examples.weight.sum() == pytest.approx(inside.sum())
        fired = np.intersect1d(drawer.fires_at(0)[0], np.flatnonzero(inside))
        assert examples.weight[examples.fires].sum() == pytest.approx(len(fired))
        assert (examples.fires == np.isin(examples.row, fired)).all()
        assert ((examples.pre > 0) == examples.fires).all()


def test_a_constant_for_every_query_is_no_part_of_the_rest():
    """What softmax does not see must not move the means."""
    model, own, z, texts = random_model("gpt2", n=20)
    miner = Miner(observe(model, own, {2: z}, texts, 1), 2, Asked(num_bins=2, examples_per_bin=20))
    examples = miner.exemplars.draw(0, "mine")
    w, bias = miner.direction(0)
    truth = miner.truth(examples, w)
    shift = np.random.default_rng(0).normal(size=(len(examples), 1)) * 50
    moved = Truth(examples, truth.scores + shift, truth.writes, truth.pattern)
    nothing = np.zeros(examples.distance.shape)
    one, other = (fitted_rest(t, nothing, nothing, miner.of, bias) for t in (truth, moved))
    np.testing.assert_allclose(one.beta, other.beta, atol=1e-8)


# --- bad input --------------------------------------------------------------------------------------------


def test_bad_input_is_told():
    _, model, own, z = rules_head()
    texts = world(60)
    with pytest.raises(DataError, match="fires in 1000"):
        extract(model, own, z, texts, 0, 0, min_count=1000)
    with pytest.raises(DataError, match="0 to 2"):
        extract(model, own, z, texts, 0, 0, 7)
    with pytest.raises(DataError, match="never fires"):
        extract(model, own, z, ["never speaks"] * 20, 0, 0, 0)
    with pytest.raises(DataError, match="part of the corpus is empty"):
        extract(model, own, z, ["Paris speaks"] * 30, 0, 0, 0)
    with pytest.raises(SiteError):
        extract(model, z, own, texts, 0, 0)
    with pytest.raises(SiteError, match="head 0"):
        extract(model, own, replace(z, head=1), texts, 0, 0)
    with pytest.raises(SiteError, match="blocks.1"):
        extract(model, own, replace(z, site="blocks.1.attn.hook_z"), texts, 0, 0)
    with pytest.raises(DataError, match="one output feature at least"):
        extract(model, own, z, texts, 0, 0, [])
    with pytest.raises(DataError, match="max_length"):
        extract(model, own, z, texts, 0, 0, max_length=1)
    found = extract(model, own, z, texts, 0, 0, 1, suspects=0)
    with pytest.raises(DataError, match="not mined"):
        found.rules(2)
    with pytest.raises(DataError, match="ask for one"):
        found.rule_set(1, 3)
    assert found.features == (1,) and found.absences(1) == [] and found.counts(1) == [] and found.agreement(1) == []


def test_fewer_exemplars_than_asked_for_are_all_that_there_are():
    _, model, own, z = rules_head()
    found = extract(model, own, z, world(60), 0, 0, 1, suspects=0, examples_per_bin=10**6)
    observed = observe(model, own, {0: z}, texts_of(model, world(60), 64), 0)
    drawer = Exemplars(observed, 0, num_bins=4, examples_per_bin=10**6, seed=0)
    (row,) = found.table["examples"].to_pylist()
    assert row == [len(drawer._of_part[p]) for p in range(3)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "mistral", "qwen3"])
@pytest.mark.parametrize("head", [2, None])
def test_a_context_read_by_itself_is_what_the_model_has_there(name, head):
    model, own, z, texts = random_model(name, n=20)
    z = z if head is not None else dictionary(model.n_heads * model.d_head, "blocks.1.attn.hook_z", n=5, seed=3)
    observed = observe(model, own, {2: z}, texts, 1)
    replacements = Miner(observed, 2, Asked()).replacements
    starts, lengths = observed.tokens.offsets[:-1], observed.tokens.lengths
    last = np.concatenate([starts + lengths - 1, starts + 2])
    pre, activation = replacements.read([replacements.context(int(row)) for row in last], 3)
    own_pre = observed.heads[2].reader(torch.from_numpy(observed.heads[2].z[last]))[:, 3].numpy()
    np.testing.assert_allclose(pre, own_pre, atol=1e-5 * abs(own_pre).max())
    np.testing.assert_allclose(activation, observed.heads[2].fires.dense().numpy()[last, 3], atol=1e-5)
