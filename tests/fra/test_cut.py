"""A channel that is cut leaves the softmax of the scores less its term; random ones of its size are the yardstick."""

import numpy as np
import pytest
import torch

import headlens as hl
from headlens._errors import DataError
from headlens.fra import CutEffects, cut_effects, resolve
from headlens.fra.cut import Sizes, recomputed_term, term, without
from headlens.models.head import visible
from headlens.tracing.edit import Edit, edit
from headlens.zoo import constructed
from tests.families import build
from tests.fra.made import dictionary
from tests.fra.test_known_truth import dictionary as own_features

IDS = [1, 5, 9, 20, 33, 5, 9, 44, 50, 61, 5, 9]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "mistral", "gpt_oss"])
@torch.no_grad()
def test_attention_is_the_softmax_of_scores_less_the_term(name):
    model = hl.load(build(name))
    found = resolve(model, dictionary(model.d_model, "blocks.1.hook_resid_pre"), IDS, 1, 2)
    channels = [(3, 4), (3, 7), (10, 4)]
    lost = term(found, channels)
    seen = visible(len(IDS), found.window)
    np.testing.assert_allclose(lost[seen], sum(found.channel(i, j) for i, j in channels)[seen], atol=1e-5)
    head, new = model.head(1, 2), without(found, lost)
    u = found.query.sums() @ found.key.sums().T - lost
    np.testing.assert_allclose(head.cap(u)[seen], new[seen], atol=1e-4)

    def put(old):
        changed = old.clone()
        changed[:, 2] = new
        return changed

    with edit(model, Edit("blocks.1.attn.hook_attn_scores", put)):
        (batch,) = hl.capture(model, torch.tensor(IDS), ["blocks.1.attn.hook_pattern"])
    pattern = batch["blocks.1.attn.hook_pattern"][0, 2]
    np.testing.assert_allclose(pattern, head.pattern(head.cap(u), head.visible(len(IDS))), atol=1e-5)
    assert (pattern[~seen] == 0).all(), "no query sees its future"


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@torch.no_grad()
def test_recomputed_norms_answer_to_what_is_gone(name):
    model = hl.load(build(name, dtype=torch.float64))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre", dtype=torch.float64)
    (batch,) = hl.capture(model, torch.tensor(IDS), ["blocks.1.hook_resid_pre"])
    x, head = batch["blocks.1.hook_resid_pre"][0], model.head(1, 2)
    found, parts = resolve(model, own, IDS, 1, 2), own.split(x)
    i, j = int(parts.active.features[0]), int(parts.active.features[-1])
    f = own.encode(x)

    def score(query_x, key_x, q, k):
        return float(head.score(query_x[q], key_x[k], at=(q, k)))

    less_i, less_j = x - f[:, [i]] * own.W_dec[i], x - f[:, [j]] * own.W_dec[j]
    whole = recomputed_term(head, x, parts, [(i, j)])
    for q, k in ((5, 3), (9, 9), (11, 0)):
        by_hand = score(x, x, q, k) - score(less_i, x, q, k) - score(x, less_j, q, k) + score(less_i, less_j, q, k)
        assert float(whole[q, k]) == pytest.approx(by_hand, abs=1e-6)
    assert (whole - term(found, [(i, j)])).abs().max() > 1e-4, "norms do answer"


@torch.no_grad()
def test_with_norms_that_do_nothing_both_terms_are_one():
    c = constructed.build("induction")
    model = hl.load(c.model, tokenizer=c.tokenizer)
    own, features = own_features(c, 1), list(c.features)
    found = resolve(model, own, "cat red fox cat", 1, 0)
    channel = (features.index("token:cat"), features.index("previous:cat"))
    (batch,) = hl.capture(model, torch.tensor(found.ids), ["blocks.1.hook_resid_pre"])
    x = batch["blocks.1.hook_resid_pre"][0]
    whole = recomputed_term(model.head(1, 0), x, own.split(x), [channel])
    np.testing.assert_allclose(whole, term(found, [channel]), atol=0.05)


def test_cutting_an_association_ends_it_and_no_other():
    """cat -> red is cut; dog -> sun, in the same text, is not."""
    c = constructed.build("induction")
    model = hl.load(c.model, tokenizer=c.tokenizer)
    own, features = own_features(c, 1), list(c.features)
    text = "cat red fox blue cat fox"  # <bos> 0, cat 1, red 2, fox 3, blue 4, cat 5, fox 6
    found = resolve(model, own, text, 1, 0)
    channel = (features.index("token:cat"), features.index("previous:cat"))
    head = model.head(1, 0)
    after = head.pattern(without(found, term(found, [channel])), head.visible(7))
    assert found.pattern[5, 2] > 0.999 and after[5, 2] < 1e-6 and after[5, 0] > 0.999
    np.testing.assert_allclose(after[6], found.pattern[6], atol=1e-6)
    told = cut_effects(model, own, [text], 1, 0, [channel], draws=5)
    rows = told.to_table().to_pylist()
    assert [row["draw"] for row in rows] == [-1, 0, 1, 2, 3, 4]
    assert rows[0]["pattern"] == pytest.approx(1 / 7, abs=1e-3)  # one query of seven looks elsewhere
    other = (features.index("token:fox"), features.index("previous:fox"))
    twin = cut_effects(model, own, [text], 1, 0, [other], draws=1).to_table().to_pylist()[0]
    assert twin["pattern"] == pytest.approx(1 / 7, abs=1e-3)


def test_random_channels_are_others_of_nearly_the_same_size():
    model = hl.load(build("llama"))
    found = resolve(model, dictionary(model.d_model, "blocks.1.hook_resid_pre"), IDS, 1, 2)
    sizes = Sizes.of(found)
    for i, j in ((3, 4), (10, 4)):
        seen = visible(len(IDS), found.window)
        assert sizes.of_channel(i, j) == pytest.approx(float(found.channel(i, j)[seen].abs().sum()), rel=1e-4)
    channels = [(int(sizes.i[k]), int(sizes.j[k])) for k in (100, 400, 600)]
    drawn = sizes.matched(channels, np.random.default_rng(0))
    assert not set(drawn) & set(channels) and len(set(drawn)) == 3
    for one, other in zip(channels, drawn, strict=True):
        place = [int(np.flatnonzero((sizes.i == a) & (sizes.j == b))[0]) for a, b in (one, other)]
        assert abs(place[0] - place[1]) <= 23
    assert sizes.matched(channels, np.random.default_rng(0)) == drawn


@pytest.mark.parametrize("norms", ["frozen", "recomputed"])
def test_effects_of_a_text_are_those_of_running_it_alone(norms, tmp_path):
    model = hl.load(build("gpt2"))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre")
    texts = [IDS, IDS[:7], [1, 60, 61]]
    found = cut_effects(model, own, texts, 1, 2, [(3, 4), (10, 4)], draws=3, norms=norms, seed=1)
    rows = found.to_table().to_pylist()
    alone = cut_effects(model, own, texts[:1], 1, 2, [(3, 4), (10, 4)], draws=3, norms=norms, seed=1)
    for a, b in zip(rows, alone.to_table().to_pylist(), strict=False):
        assert a == pytest.approx(b, abs=1e-6)
    assert rows[0]["pattern"] > 0 and rows[0]["output"] > 0 and rows[0]["loss"] != 0
    again = cut_effects(model, own, texts, 1, 2, [(3, 4), (10, 4)], draws=3, norms=norms, seed=1)
    assert again.to_table().equals(found.to_table())
    told = {row["effect"]: row for row in found.summary().to_pylist()}
    own_rows = [row for row in rows if row["draw"] == -1]
    assert told["loss"]["own"] == pytest.approx(np.mean([row["loss"] for row in own_rows]))
    assert told["loss"]["n"] == len(own_rows)
    assert CutEffects.load(found.save(tmp_path / "cut")).to_table().equals(found.to_table())


def test_refusals():
    model = hl.load(build("gpt2"))
    own = dictionary(model.d_model, "blocks.1.hook_resid_pre")
    with pytest.raises(DataError, match="one pair"):
        cut_effects(model, own, [IDS], 1, 2, [])
    own.b_enc[5] = -1e6
    with pytest.raises(DataError, match="None of the channels occurs"):
        cut_effects(model, own, [IDS], 1, 2, [(5, 5)])
    normalized = dictionary(model.d_model, "blocks.1.ln1.hook_normalized")
    with pytest.raises(DataError, match="recomputed for a dictionary of hook_resid_pre"):
        cut_effects(model, normalized, [IDS], 1, 2, [(1, 2)], norms="recomputed")
