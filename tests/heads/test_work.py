"""Killed at any step, work of every kind goes on from there: the same numbers, and no step taken twice."""

import contextlib
import gc
import json
import tracemalloc

import numpy as np
import pytest
import torch

import headlens as hl
from headlens.data import world
from headlens.data.text import Corpus
from headlens.heads import work as working
from headlens.heads.kinds import KINDS, Looks
from headlens.heads.setting import Protocol, Setting
from headlens.heads.work import Checkpoint
from headlens.models import Model
from headlens.tracing.logits import last_logits
from tests.families import CONFIGS, build

SIZES = {"num_samples": 12, "num_prompts": 16, "seq_len": 8, "batch_tokens": 600}
FUNCTIONS = [name for name, kind in KINDS.items() if not isinstance(kind.how, Looks)]


class Killed(Exception):
    pass


def test_steps_are_taken_once_and_arrays_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "SAVE_EVERY", 0)
    taken = []

    def fill(work: Checkpoint, die_in: int | None) -> np.ndarray:
        squares = np.zeros(5)
        for step in work.steps("squares", 5, {"squares": squares}):
            if step == die_in:
                raise Killed
            taken.append(step)
            squares[step] = step**2
        return squares

    with pytest.raises(Killed):
        fill(Checkpoint(tmp_path, {"k": 1}), 3)
    assert fill(Checkpoint(tmp_path, {"k": 1}), None).tolist() == [0, 1, 4, 9, 16]
    assert taken == [0, 1, 2, 3, 4]
    assert fill(Checkpoint(tmp_path, {"k": 1}), 0).tolist() == [0, 1, 4, 9, 16]  # whole: nothing is left to do
    assert fill(Checkpoint(tmp_path, {"k": 2}), None).tolist() == [0, 1, 4, 9, 16]
    assert taken == [0, 1, 2, 3, 4] * 2  # other work does not go on from here


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_kind_that_is_killed_at_any_step_goes_on_from_there(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(working, "SAVE_EVERY", 0)
    model = hl.load("zoo:mistral-small")
    steps: list[tuple[str, int]] = []
    deaths: list[int] = []

    def told(what: str, done: int, _: int) -> None:
        steps.append((what, done))
        if len(steps) in deaths:
            raise Killed  # before this step is saved: it has to be taken again, and no other

    def run(work):
        return hl.heads.score(model, [kind], work=work, progress=told, **SIZES).table

    whole = run(None)
    every, deaths[:] = list(steps), [1, 2, 4]
    steps.clear()
    resumed = None
    while resumed is None:
        with contextlib.suppress(Killed):
            resumed = run(tmp_path)
    assert resumed.equals(whole)
    assert sorted(steps) == sorted(every + [steps[death - 1] for death in deaths if death <= len(steps)])


# --- logits after the last token ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_last_logits_are_the_models_own(family):
    model: Model = hl.load(build(family))
    ids = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    whole = model.forward(ids, mask).logits[torch.arange(3), [6, 3, 0]]
    torch.testing.assert_close(last_logits(model, ids, mask), whole, rtol=1e-5, atol=1e-5)
    assert model.forward(ids, mask).logits.shape[1] == 7  # nothing is left behind


# --- memory -------------------------------------------------------------------------------------------------------


def test_documents_of_a_file_are_never_all_held(tmp_path):
    """What is alive after the stimulus is made does not grow with the documents, but for a number each."""
    model = hl.load("zoo:gpt2-small")
    text = " ".join(document.text for document in world.documents(2, seed=0))
    grown = {}
    for n in (100, 700):
        file = tmp_path / f"{n}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(n)))
        Setting(model, Protocol(num_samples=n), Corpus(file, limit=8)).stimulus("text")  # what is made once
        gc.collect()
        tracemalloc.start()
        setting = Setting(model, Protocol(num_samples=n), Corpus(file, limit=n))
        stimulus = setting.stimulus("text")
        grown[n], _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(stimulus.tokens) == n
    assert (grown[700] - grown[100]) / 600 < 64  # bytes a document, each of them some KB
