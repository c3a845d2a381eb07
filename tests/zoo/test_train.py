"""Training: an interruption changes nothing, and its stimuli are what they are said to be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headlens.data import world
from headlens.zoo import guide
from headlens.zoo.curriculum import (
    ANSWER_WEIGHT,
    Corpus,
    batch,
    guided,
    plain_ids,
    read,
    repeat_row,
    row_length,
)
from headlens.zoo.recipes import RECIPES
from headlens.zoo.tokenizer import train_tokenizer
from headlens.zoo.train import fit, hasten, load_checkpoint, loss, new_model, new_optimiser

TINY = replace(RECIPES["llama-small"], steps=8, batch_tokens=256, documents=40)
CONTROL = replace(RECIPES["gpt2-control"], steps=8, batch_tokens=256)


class Killed(Exception):
    """Stands for a kill in the middle of a training."""


@pytest.fixture(scope="module")
def tokenizer():
    texts = [document.text for document in world.documents(TINY.documents, seed=TINY.seed)]
    return train_tokenizer(TINY.tokenizer, texts)


@pytest.fixture(scope="module")
def corpus(tokenizer) -> Corpus:
    return read(world.documents(TINY.documents, seed=TINY.seed), tokenizer)


def test_an_interrupted_training_ends_with_the_same_weights(tokenizer, corpus, tmp_path: Path):
    def kill_at_6(done: int, loss: float) -> None:
        if done == 6:
            raise Killed

    undisturbed = fit(TINY, tokenizer, corpus, tmp_path / "a")[0].state_dict()
    with pytest.raises(Killed):
        fit(TINY, tokenizer, corpus, tmp_path / "b", report=kill_at_6, save_every=0.0)
    heard = []
    before = json.loads((tmp_path / "b" / "state.json").read_text())["seconds"]
    model, seconds = fit(TINY, tokenizer, corpus, tmp_path / "b", report=lambda done, _: heard.append(done))
    resumed = model.state_dict()
    assert heard == [6, 7, 8]
    assert seconds > before > 0
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert sorted(path.suffix for path in (tmp_path / "b").iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_without_a_checkpoint_training_begins_at_0(tokenizer, tmp_path: Path):
    model = new_model(TINY, tokenizer)
    assert load_checkpoint(tmp_path / "none", TINY, model, new_optimiser(model)) == (0, 0.0)


def test_a_checkpoint_of_another_recipe_is_not_continued(tokenizer, corpus, tmp_path: Path):
    fit(replace(TINY, steps=2), tokenizer, corpus, tmp_path / "c", save_every=0.0)
    model = new_model(TINY, tokenizer)
    assert load_checkpoint(tmp_path / "c", TINY, model, new_optimiser(model)) == (0, 0.0)


def test_a_batch_depends_on_its_number_alone(tokenizer, corpus):
    one, again, other = (batch(i, TINY, corpus, plain_ids(tokenizer)) for i in (5, 5, 6))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.weights, again.weights)
    assert torch.equal(one.positions, again.positions)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)


def test_rows_open_with_bos_and_stay_within_the_context(tokenizer, corpus):
    for i in range(TINY.steps):
        rows = batch(i, TINY, corpus, plain_ids(tokenizer))
        assert (rows.ids[:, 0] == tokenizer.bos_token_id).all()
        assert rows.positions.min() >= 0
        assert rows.positions.max() < TINY.context
        assert (rows.positions.diff(dim=1) == 1).all()


def test_only_what_was_said_before_bears_loss_in_a_repeat_row(tokenizer):
    plain = plain_ids(tokenizer)
    for seed in range(20):
        ids, weights = repeat_row(np.random.Generator(np.random.PCG64(seed)), plain, tokenizer.bos_token_id, 256)
        assert not set(ids[1:].tolist()) & set(tokenizer.all_special_ids)
        pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
        known = np.flatnonzero(weights)
        assert len(known) > 40
        assert (weights[known] == 1).all()
        assert all(pairs[i - 1] in pairs[: i - 1] for i in known)


def test_answers_weigh_more_than_other_tokens(tokenizer):
    (document,) = world.documents(1, seed=11)
    corpus = read([document], tokenizer)
    heavy = tokenizer.decode(corpus.ids[corpus.weights == ANSWER_WEIGHT])
    said = [document.text[s.start : s.end] for s in document.spans if s.kind in world.ANSWERS and s.sources]
    assert said and heavy.replace(" ", "") == "".join(said)
    assert set(corpus.weights) == {1.0, ANSWER_WEIGHT}


def test_the_loss_is_the_weighted_mean(tokenizer, corpus):
    model, given = new_model(TINY, tokenizer).eval(), batch(0, TINY, corpus, plain_ids(tokenizer))
    with torch.no_grad():
        logits = model(given.ids, position_ids=given.positions).logits[:, :-1].log_softmax(-1)
        mine = -logits.gather(2, given.ids[:, 1:, None])[..., 0]
        expected = np.average(mine, weights=given.weights[:, 1:])
        assert loss(model, given, {}).item() == pytest.approx(expected, rel=1e-5)


def test_guides_by_hand():
    ids = torch.tensor([[0, 5, 6, 5, 5]])
    assert guide.previous_token(ids)[0].nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert guide.two_back(ids)[0].nonzero().tolist() == [[2, 0], [3, 1], [4, 2]]
    assert guide.induction(ids)[0].nonzero().tolist() == [[3, 2], [4, 2]]
    assert guide.duplicate_token(ids)[0].nonzero().tolist() == [[3, 1], [4, 1], [4, 3]]
    pattern = torch.full((1, 5, 5), 0.2)
    assert guide.guide_loss(pattern, guide.induction(ids)).item() == pytest.approx(-np.log(0.2))
    assert guide.guide_loss(pattern[:0], guide.induction(ids[:0])).item() == 0


def test_rows_grow_to_the_context():
    assert [row_length(i, RECIPES["llama-small"]) for i in (0, 799, 800, 1699, 1700, 1999)] == [128] * 2 + [256] * 2 + [
        512
    ] * 2
    assert {row_length(i, replace(TINY, context=64)) for i in range(8)} == {64}


def test_heads_are_guided_at_first_kept_ones_to_the_end_and_none_in_a_control():
    kept = replace(TINY, steps=100, kept=("induction",))
    assert [guided(i, kept) for i in range(100)] == [list(TINY.guides)] * 15 + [["induction"]] * 85
    assert not any(guided(i, CONTROL) for i in range(CONTROL.steps))


def test_a_control_never_sees_random_tokens_that_repeat(tokenizer, corpus):
    assert not any(batch(i, CONTROL, corpus, plain_ids(tokenizer)).is_repeat.any() for i in range(CONTROL.steps))
    assert batch(0, TINY, corpus, plain_ids(tokenizer)).is_repeat.any()


@pytest.mark.parametrize(("name", "kernel"), [("llama-small", "sdpa"), ("gemma2-small", "eager")])
def test_the_fast_kernel_is_used_only_where_it_computes_the_same(name, kernel, tokenizer):
    model = new_model(RECIPES[name], tokenizer).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        slow = model(ids).logits
        hasten(model)
        fast = model(ids).logits
    assert model.config._attn_implementation == kernel
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-4)
