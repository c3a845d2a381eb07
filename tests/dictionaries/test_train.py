"""Training: what is planted is found, a stop costs nothing, and what comes out is what SAELens reads."""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import headlens as hl
from headlens._errors import DataError, MissingExtra, OutputError, SiteError, StoreError, StoreMismatch
from headlens._lock import only_process
from headlens.dictionaries import evaluate, load, train
from headlens.dictionaries import trainer as trainers
from headlens.dictionaries.trainer import Plan, Trainer
from tests.families import build

training = sys.modules["headlens.dictionaries.train"]  # the attribute of that name is the function
RESID, Z = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
ARCHITECTURES = ["topk", "batchtopk", "jumprelu", "relu"]
FEW = {"d_sae": 64, "k": 4, "tokens": 6 * 128, "batch": 128}


@pytest.fixture(scope="module")
def model():
    return hl.load(build("gpt2"))


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    rng = np.random.default_rng(0)
    corpus = [[1, *rng.integers(3, 97, 20).tolist()] for _ in range(60)]
    folder = tmp_path_factory.mktemp("store") / "acts"
    return hl.capture_to(folder, model, corpus, [RESID, "blocks.1.ln1.hook_normalized", Z])


KILLED = f"""
import os, signal, sys
import headlens as hl
from headlens.dictionaries import trainer, train
from tests.families import build
training = sys.modules["headlens.dictionaries.train"]
training.SAVE_EVERY = 0.0
out, store, (kind, after) = sys.argv[1], sys.argv[2], sys.argv[3].split()
def die(): os.kill(os.getpid(), signal.SIGKILL)
writes, save = [], trainer.save
def half(tensors):
    writes.append(1)
    if kind == "write" and len(writes) == int(after): die()
    return save(tensors)
trainer.save = half
step = lambda done, _: die() if kind == "step" and done == int(after) else None
train(hl.load(build("gpt2")), hl.ActivationStore(store), {RESID!r}, out=out, resume=True, progress=step, **{FEW!r})
"""
"""Train on until a step is done, or a checkpoint is half-written."""


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- without SAELens ---


def test_without_saelens_the_extra_is_named_before_anything_is_done(model, store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headlens\[sae\]'"):
        train(model, store, RESID, out=tmp_path / "sae")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"architecture": "gated"}, "architecture must be topk"),
        ({"k": 0}, "k must be 1 or more"),
        ({"tokens": 0}, "tokens must be 1 or more"),
        ({"lr": float("nan")}, "lr must be a number above 0"),
        ({"l1": -1.0}, "l1 must be a number above 0"),
        ({"share": 1.0}, "share_held_out must be between 0 and 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"dtype": "float64"}, "dtype must be float32"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(DataError, match=says):
        training._check(**{
            "architecture": "topk", "d_sae": 8, "k": 1, "l1": 1.0, "tokens": 1, "batch": 1, "lr": 1.0, "seed": 0,
            "share": 0.1, "dtype": "float32",
        } | options)  # fmt: skip


def test_what_is_there_is_not_overwritten(model, store, tmp_path):
    (tmp_path / "sae").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        train(model, store, RESID, out=tmp_path / "sae")


# --- with it ---


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens")


def _planted(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are sums of 3 of 40 directions, away from 0; and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(n, 40, generator=generator).topk(3).indices
    amounts = torch.zeros(n, 40).scatter_(1, which, 1 + torch.rand(n, 3, generator=generator))
    return 5 * amounts @ directions + 3, directions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planted_directions_are_found(sae_lens, architecture):
    rows, directions = _planted(8192, 1)
    plan = Plan(architecture, 32, 64, 3, 0.3, 500, 512, 4e-3, 0)
    trainer = Trainer(plan, rows[:4096])
    for i in range(plan.steps):
        trainer.step(rows[(i * 512) % 8192 :][:512])
    near = torch.nn.functional.normalize(trainer.sae.W_dec.detach(), dim=-1) @ directions.T
    assert (near.max(0).values > 0.8).float().mean() > 0.9  # of random ones none is that near


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "relu"])
def test_what_is_written_is_what_was_learned_in_the_rows_own_scale(sae_lens, tmp_path, architecture):
    rows, _ = _planted(2048, 1)
    trainer = Trainer(Plan(architecture, 32, 64, 3, 0.3, 20, 512, 4e-3, 0), rows)
    for i in range(4):
        trainer.step(rows[512 * i :][:512])
    scale = 1 / float((rows - rows.mean(0)).square().mean().sqrt())
    with torch.no_grad():
        learned = trainer.sae(rows * scale) / scale
    trainer.write(tmp_path, {})
    assert torch.allclose(load(tmp_path).reconstruct(rows), learned, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("site", "head"), [(RESID, None), (Z, 3)])
def test_what_is_written_is_what_saelens_reads(sae_lens, model, store, tmp_path, architecture, site, head):
    made = train(model, store, site, head=head, out=tmp_path / "sae", architecture=architecture, dtype="float16", **FEW)
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    x = store.read(site, [0, 1], head=head).float()
    with torch.no_grad():
        assert torch.equal(made.encode(x), theirs.encode(x))
        assert torch.equal(made.reconstruct(x), theirs.decode(theirs.encode(x)))
    assert (made.site, made.head, made.model, made.convention) == (site, head, model.name, "site")
    assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.hook_head_index) == (site, head)
    if architecture == "topk":
        assert made.k == 4 and int((made.encode(x) != 0).sum(-1).max()) <= 4
    assert made.card["headlens"]["weights"] == model.provenance()["weights"]
    assert not [path for path in tmp_path.iterdir() if path.name != "sae"]


def test_the_card_says_what_evaluate_says_of_the_documents_held_out(sae_lens, model, store, tmp_path):
    made = train(model, store, Z, head=2, out=tmp_path / "sae", share_held_out=0.3, dtype="float16", **FEW)
    card = made.card["headlens"]
    away = training.held_out(store.tokens, 0.3, seed=0)
    documents = card["training"]["documents"]
    assert documents["held_out"] == away.sum() and documents["trained_on"] == (~away).sum()
    scores = evaluate(model, load(tmp_path / "sae"), [store.tokens[i] for i in np.flatnonzero(away)], seed=0)
    for row in scores.table.to_pylist():
        assert card["measured"]["metrics"][row["metric"]]["value"] == row["value"]
    assert made.log_frequency is not None
    assert np.allclose(10 ** made.log_frequency.numpy(), scores.frequency, atol=1e-6)


def test_held_out_documents_are_never_trained_on(sae_lens, model, store, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "batches", lambda rows, documents, **o: seen.append(documents) or _batches(rows, documents, **o)
    )
    train(model, store, RESID, out=tmp_path / "sae", share_held_out=0.4, **FEW)
    away = np.flatnonzero(training.held_out(store.tokens, 0.4, seed=0))
    assert len(seen) == 2 and all(not np.isin(documents, away).any() for documents in seen)


_batches = training.batches


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_stop_costs_nothing(sae_lens, model, store, tmp_path, monkeypatch, architecture, after):
    monkeypatch.setattr(trainers, "DEAD_AFTER", 256)  # two steps: dead features are taught within six
    monkeypatch.setattr(trainers, "WARM_UP", 0.6)
    options = {"architecture": architecture, **FEW}
    train(model, store, RESID, out=tmp_path / "whole", **options)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)  # after every step

    def stop(done: int, _: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, store, RESID, out=tmp_path / "cut", progress=stop, **options)
    assert not (tmp_path / "cut").exists()
    steps = []
    train(
        model, store, RESID, out=tmp_path / "cut", resume=True, progress=lambda done, _: steps.append(done), **options
    )
    assert steps == list(range(after + 1, 7))
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


@pytest.mark.slow
def test_a_kill_costs_nothing(sae_lens, model, store, tmp_path):
    """A real one, SIGKILL, at each of two steps and while a checkpoint is written."""
    train(model, store, RESID, out=tmp_path / "whole", **FEW)
    for when in ("step 2", "write 2", "step 5"):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(store.path), when])
        assert killed.returncode == -signal.SIGKILL, when
        assert not (tmp_path / "cut").exists()
    train(model, store, RESID, out=tmp_path / "cut", resume=True, **FEW)
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".cut")]


def test_two_do_not_train_to_one_folder(sae_lens, model, store, tmp_path):
    with only_process(tmp_path / ".out.work"), pytest.raises(StoreError, match="another process"):
        train(model, store, RESID, out=tmp_path / "out", **FEW)
    train(model, store, RESID, out=tmp_path / "out", **FEW)


def test_a_finished_dictionary_is_read_and_not_trained_again(sae_lens, model, store, tmp_path):
    made = train(model, store, RESID, out=tmp_path / "sae", **FEW)
    before = _files(tmp_path / "sae")
    again = train(
        model, store, RESID, out=tmp_path / "sae", resume=True, progress=lambda *_: pytest.fail("it trains"), **FEW
    )
    assert again.digest == made.digest and _files(tmp_path / "sae") == before
    with pytest.raises(StoreMismatch, match=r"begun with training\.k 4, and this is 5"):
        train(model, store, RESID, out=tmp_path / "sae", resume=True, **FEW | {"k": 5})


def test_a_checkpoint_of_other_options_is_refused(sae_lens, model, store, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, store, RESID, out=tmp_path / "sae", progress=stop, **FEW)
    with pytest.raises(StoreMismatch, match=r"training\.lr"):
        train(model, store, RESID, out=tmp_path / "sae", resume=True, lr=1e-2, **FEW)


def test_texts_are_captured_beside_and_removed_at_the_end(sae_lens, store, tmp_path):
    model = hl.load("zoo:gpt2-small")
    texts = [document.text for document in itertools.islice(hl.data.world.documents(30, seed=11), 30)]
    made = train(model, texts, Z, head=0, out=tmp_path / "sae", share_held_out=0.2, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    assert made.card["headlens"]["training"]["corpus"]["texts"] == hl.data.texts_hash(texts)
    hl.dictionaries.check_site(made, model, 1, 0, at="z")


def test_seeds_differ_and_are_all_there_is_of_chance(sae_lens, model, store, tmp_path):
    one = train(model, store, RESID, out=tmp_path / "a", **FEW)
    torch.manual_seed(123)  # what others do with the world's generator is theirs
    before = torch.random.get_rng_state()
    same = train(model, store, RESID, out=tmp_path / "b", **FEW)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same.digest == one.digest
    assert train(model, store, RESID, out=tmp_path / "c", seed=1, **FEW).digest != one.digest


def test_what_cannot_be_trained_is_refused(sae_lens, model, store, tmp_path):
    with pytest.raises(SiteError, match="does not hold"):
        train(model, store, "blocks.2.hook_resid_pre", out=tmp_path / "sae", **FEW)
    with pytest.raises(SiteError, match="head 4 was asked for"):
        train(model, store, Z, head=4, out=tmp_path / "sae", **FEW)
    with pytest.raises(StoreMismatch, match="capture them with this model"):
        train(hl.load(build("gpt2", seed=1)), store, RESID, out=tmp_path / "sae", **FEW)
    with pytest.raises(DataError, match="k is 65, and there are only 64"):
        train(model, store, RESID, out=tmp_path / "sae", **FEW | {"k": 65})
    with pytest.raises(DataError, match="would be held out"):
        train(model, store, RESID, out=tmp_path / "sae", share_held_out=1e-9, **FEW)
    with pytest.raises(DataError, match="diverged at step"):
        train(model, store, RESID, out=tmp_path / "sae", lr=1e30, **FEW)
    assert not (tmp_path / "sae").exists()


def test_the_config_is_json_that_names_no_place(sae_lens, model, store, tmp_path):
    train(model, store, RESID, out=tmp_path / "sae", **FEW)
    text = (tmp_path / "sae" / "cfg.json").read_text()
    assert json.loads(text) and "NaN" not in text and str(tmp_path) not in text and str(store.path) not in text
