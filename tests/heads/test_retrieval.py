"""Retrieval counts each token of a needle once, where the head points at it while the model writes it."""

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.data import pack
from headlens.heads.kinds import KINDS
from headlens.heads.retrieval import copied_share, write_on
from headlens.heads.setting import Protocol, Setting
from tests.families import build

IDS = np.array([1, 30, 31, 10, 11, 12, 40, 10, 11, 12, 41])  # a needle at 3-5, and a distractor's copy of it at 7-9
NEEDLE = np.isin(np.arange(len(IDS)), [3, 4, 5])


@pytest.mark.parametrize(
    ("attended", "written", "share"),
    [
        ([3, 4, 5], [10, 11, 12], 1.0),
        ([3, 3, 3], [10, 11, 12], 1 / 3),  # only ever looks at the start
        ([7, 8, 9], [10, 11, 12], 0.0),  # looks at the distractor
        ([3, 4, 5, 3, 4, 5], [10, 11, 12, 10, 11, 12], 1.0),  # said twice, counted once
        ([3, 4, 5], [10, 12, 11], 1 / 3),  # looks at the needle, and other tokens are written
        ([0, 0, 0], [1, 1, 1], 0.0),
    ],
)
def test_shares_by_hand(attended, written, share):
    assert copied_share(np.array([attended]), IDS, np.array(written), NEEDLE)[0] == pytest.approx(share)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_writing_on_is_transformers_greedy_generation(family):
    hf = build(family)
    model, rng = hl.load(hf), np.random.default_rng(0)
    tokens = pack([np.append([1], rng.integers(5, 90, n)) for n in (4, 9, 6)])
    for batch_tokens in (1, 10**6):
        for ids, longer in zip(tokens, write_on(model, tokens, 5, batch_tokens=batch_tokens), strict=True):
            given = torch.tensor(ids.tolist())[None]
            theirs = hf.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=5, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
            assert longer.tolist() == theirs[0].tolist()


def test_the_induction_head_of_a_model_that_copies_retrieves_and_the_controls_do_not():
    measured = {
        name: KINDS["retrieval"].how(Setting(hl.load(f"zoo:{name}"), Protocol(num_prompts=16)))
        for name in ("gpt2-small", "gpt2-control")
    }
    own, null = measured["gpt2-small"].own.mean(0), measured["gpt2-small"].null.mean(0)
    assert np.unravel_index(own.argmax(), own.shape) == (1, 2) and own.max() > 0.8
    assert null.max() < 0.2
    assert measured["gpt2-control"].own.mean(0).max() < 0.2
