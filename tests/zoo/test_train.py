"""Training: an interruption changes nothing, and its stimuli are what they are said to be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headlens.data import world
from headlens.zoo import guide
from headlens.zoo.check import BARS, check
from headlens.zoo.curriculum import NO_LOSS, Corpus, batch, plain_ids, read, repeat_row
from headlens.zoo.recipes import RECIPES
from headlens.zoo.tokenizer import train_tokenizer
from headlens.zoo.train import fit, load_checkpoint, new_model, new_optimiser

TINY = replace(RECIPES["llama-small"], steps=8, batch_tokens=256, documents=40, vocabulary=400)


class Killed(Exception):
    """Stands for a kill in the middle of a training."""


@pytest.fixture(scope="module")
def tokenizer():
    texts = [document.text for document in world.documents(TINY.documents, seed=TINY.seed)]
    return train_tokenizer(TINY.tokenizer, texts, size=TINY.vocabulary, context=TINY.context)


@pytest.fixture(scope="module")
def corpus(tokenizer) -> Corpus:
    return read(world.documents(TINY.documents, seed=TINY.seed), tokenizer)


def test_an_interrupted_training_ends_with_the_same_weights(tokenizer, corpus, tmp_path: Path):
    def kill_at_6(done: int, loss: float) -> None:
        if done == 6:
            raise Killed

    undisturbed = fit(TINY, tokenizer, corpus, tmp_path / "a").state_dict()
    with pytest.raises(Killed):
        fit(TINY, tokenizer, corpus, tmp_path / "b", report=kill_at_6, save_every=0.0)
    heard = []
    resumed = fit(TINY, tokenizer, corpus, tmp_path / "b", report=lambda done, _: heard.append(done)).state_dict()
    assert heard == [6, 7, 8]
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert sorted(path.suffix for path in (tmp_path / "b").iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_without_a_checkpoint_training_begins_at_0(tokenizer, tmp_path: Path):
    model = new_model(TINY, tokenizer)
    assert load_checkpoint(tmp_path / "none", TINY, model, new_optimiser(model)) == 0


def test_a_checkpoint_of_another_recipe_is_not_continued(tokenizer, corpus, tmp_path: Path):
    fit(replace(TINY, steps=2), tokenizer, corpus, tmp_path / "c", save_every=0.0)
    model = new_model(TINY, tokenizer)
    assert load_checkpoint(tmp_path / "c", TINY, model, new_optimiser(model)) == 0


def test_a_batch_depends_on_its_number_alone(tokenizer, corpus):
    one, again, other = (batch(i, TINY, corpus, plain_ids(tokenizer)) for i in (5, 5, 6))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.labels, again.labels)
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
        ids, labels = repeat_row(np.random.Generator(np.random.PCG64(seed)), plain, tokenizer.bos_token_id, 256)
        assert not set(ids[1:].tolist()) & set(tokenizer.all_special_ids)
        pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
        known = np.flatnonzero(labels != NO_LOSS)
        assert len(known) > 40
        assert (labels[known] == ids[known]).all()
        assert all(pairs[i - 1] in pairs[: i - 1] for i in known)


def test_guides_by_hand():
    ids = torch.tensor([[0, 5, 6, 5, 5]])
    assert guide.previous_token(ids)[0].nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert guide.induction(ids)[0].nonzero().tolist() == [[3, 2], [4, 2]]
    pattern = torch.full((1, 5, 5), 0.2)
    assert guide.guide_loss(pattern, guide.induction(ids)).item() == pytest.approx(-np.log(0.2))


def test_the_check_finds_an_untrained_model_wanting(tokenizer, tmp_path: Path):
    new_model(TINY, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert [failure.split(" 0.")[0] for failure in check(tmp_path, n=2).failures] == list(BARS)
