"""What the zoo's models make of the world's wording: those that know it answer, and only where there is an answer."""

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.data import indirect_objects, needles, pad, tasks

N = 100
MAKERS = {"io": indirect_objects, "first": needles, "target": tasks}


def right(model, stimulus, tokens, answer: str) -> float:
    """Share of sequences after which the model's first choice is the answer."""
    ids, mask = pad(tokens, range(len(tokens)))
    with torch.no_grad():
        logits = model.hf(input_ids=torch.from_numpy(ids)).logits
    choice = logits[torch.arange(len(ids)), mask.sum(1) - 1].argmax(-1).numpy()
    return float(np.mean(choice == stimulus.answers[answer]))


@pytest.mark.parametrize("answer", MAKERS)
@pytest.mark.parametrize("name", ["gpt2-small", "neox-small", "olmo2-small"])
def test_models_that_know_the_world_answer(name, answer):
    model = hl.load(f"zoo:{name}")
    stimulus = MAKERS[answer](model.tokenizer, n=N, bos=model.bos, seed=0, language="world")
    assert stimulus.tokens.lengths.max() <= model.n_ctx
    least = {"io": 0.95, "first": 0.95, "target": 0.6}[answer]
    assert right(model, stimulus, stimulus.tokens, answer) >= least
    if answer != "target":  # what the pairs shown are about still tells much of the answer
        assert right(model, stimulus, stimulus.control, answer) <= 0.6


@pytest.mark.parametrize("answer", ["io", "first"])
def test_a_model_that_never_saw_anything_come_again_does_not(answer):
    model = hl.load("zoo:gpt2-control")
    stimulus = MAKERS[answer](model.tokenizer, n=N, bos=model.bos, seed=0, language="world")
    assert right(model, stimulus, stimulus.tokens, answer) <= 0.2
