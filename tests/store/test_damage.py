"""Whatever happens to a store, it is found, named, and made good by the same command with resume."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import headlens as hl
from headlens._errors import OutputError, StoreError, StoreMismatch
from headlens.store import faults
from headlens.tracing import capture as real_capture
from tests.families import build
from tests.store.conftest import contents
from tests.test_files import full_disk

HERE = sys.modules["headlens.store.capture_to"]
FIRST, THIRD = "shard-00000.safetensors", "shard-00002.safetensors"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def from_elsewhere(path: Path) -> None:
    """The shard of a store with the same settings and another corpus."""
    flip(path, path.read_bytes().index(b'"corpus":"') + 12)


def from_another_model(path: Path) -> None:
    flip(path, path.read_bytes().index(b'"store":"') + 12)


DAMAGE = {
    "last byte": (lambda path: flip(path, -1), "damaged: its checksum is another"),
    "a row": (lambda path: flip(path, 5000), "damaged: its checksum is another"),
    "length of the head": (lambda path: flip(path, 6), "damaged: its checksum is another"),
    "truncated": (truncate, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated: 0 of"),
    "head only": (lambda path: path.write_bytes(path.read_bytes()[:4096]), "truncated: 4096 of"),
    "too long": (lengthen, "too long"),
    "missing": (Path.unlink, "missing"),
    "another corpus": (from_elsewhere, "foreign: it is not of this store"),
    "another model": (from_another_model, "foreign: it is not of this store"),
    "another shard of this store": (lambda path: shutil.copy(path.parent / FIRST, path), "foreign"),
    "something else": (lambda path: path.write_bytes(b"x" * path.stat().st_size), "damaged"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found_named_and_made_good(how, store, small, same, monkeypatch):
    harm, what = DAMAGE[how]
    harm(store / THIRD)
    found = faults(store)
    assert list(found) == [THIRD] and what in found[THIRD]
    with pytest.raises(StoreError, match=rf"is not whole: {THIRD} is {what}.* resume"):
        hl.ActivationStore(store).verify()
    runs, notes = [], []
    monkeypatch.setattr(HERE, "capture", lambda *a, **k: runs.append(1) or real_capture(*a, **k))
    hl.capture_to(store, **small, resume=True, note=notes.append)
    assert same(store) and runs == [1]  # just that one
    assert len(notes) == 1 and notes[0].startswith(f"{THIRD} is {what}")


def test_a_sound_store_has_no_faults_and_is_left_alone(store, small, monkeypatch, same):
    assert faults(store) == {}
    hl.ActivationStore(store).verify()
    monkeypatch.setattr(HERE, "capture", lambda *_, **__: pytest.fail("a shard was made again"))
    hl.capture_to(store, **small, resume=True)
    assert same(store)


def test_sizes_are_looked_at_on_opening(store):
    truncate(store / FIRST)
    (store / THIRD).unlink()
    with pytest.raises(StoreError, match=rf"{FIRST} is truncated: \d+ of \d+ bytes; {THIRD} is missing"):
        hl.ActivationStore(store)


def test_several_faults_are_all_named(store, small, same):
    truncate(store / FIRST)
    flip(store / THIRD, -1)
    (store / ".shard-00004.safetensors.abc").write_bytes(b"half")
    shutil.copy(store / FIRST, store / "shard-00077.safetensors")
    assert {name: what.split(":")[0] for name, what in faults(store).items()} == {
        FIRST: "truncated",
        THIRD: "damaged",
        ".shard-00004.safetensors.abc": "half-written",
        "shard-00077.safetensors": "not in the manifest",
    }
    hl.capture_to(store, **small, resume=True)
    assert same(store)


def test_a_foreign_shard_beside_the_others_is_named_and_never_removed(store, small):
    stranger = store / "shard-00077.safetensors"
    stranger.write_bytes((store / FIRST).read_bytes())
    from_another_model(stranger)
    assert "foreign" in faults(store)[stranger.name]
    with pytest.raises(StoreError, match="shard-00077.safetensors is not of this store: move it away"):
        hl.capture_to(store, **small, resume=True)
    assert stranger.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "is not the manifest of an activation store"),
        (b'{"name": "my app"}', "is not the manifest of an activation store"),
        (b'{"type": "ActivationStore", "format": 99}', "has format 99 and this version reads 1"),
        (b'{"type": "ActivationStore", "format": 1}', "is damaged"),
    ],
)
def test_manifests_that_cannot_be_read(store, small, content, sentence):
    (store / "manifest.json").write_bytes(content)
    for attempt in (
        lambda: hl.ActivationStore(store),
        lambda: faults(store),
        lambda: hl.capture_to(store, **small),
        lambda: hl.capture_to(store, **small, resume=True),
    ):
        with pytest.raises(StoreError, match=sentence):
            attempt()
    assert (store / FIRST).exists()


# --- places that are taken --------------------------------------------------------------------------------


def test_a_store_is_never_written_over(store, small, same):
    with pytest.raises(StoreError, match="holds a store already: go on with it"):
        hl.capture_to(store, **small)
    assert same(store)


def test_nothing_of_anyone_else_is_touched(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(StoreError, match=r"holds other files \(thesis.tex\)"):
            hl.capture_to(tmp_path, **small, resume=resume)
        with pytest.raises(StoreError, match="is a file: name a folder"):
            hl.capture_to(tmp_path / "thesis.tex", **small, resume=resume)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_two_processes_do_not_write_one_store(small, tmp_path, same):
    place = tmp_path / "s"

    def second(_):
        with pytest.raises(StoreError, match="is being written by another process"):
            hl.capture_to(place, **small, resume=True)

    hl.capture_to(place, **small, progress=second)
    assert same(place)


def test_a_lock_left_by_a_dead_process_holds_no_one(small, tmp_path, same):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".lock").touch()
    hl.capture_to(tmp_path / "s", **small)
    assert same(tmp_path / "s")


# --- going on ---------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def begun(place: Path, small: dict, documents: int = 15) -> Path:
    """A store whose writing was interrupted."""
    done = []

    def stop(n: int) -> None:
        done.append(n)
        if sum(done) > documents:
            raise Stop

    with pytest.raises(Stop):
        hl.capture_to(place, **small, progress=stop)
    return place


def test_an_interrupted_store_goes_on(small, tmp_path, same):
    place = begun(tmp_path / "s", small)
    shards = sorted(place.glob("shard-*"))
    assert 1 < len(shards) < 8
    times = [path.stat().st_mtime_ns for path in shards]
    assert faults(place) == {f"shard-{len(shards):05d}.safetensors": "not written yet, as those after it"}
    with pytest.raises(StoreError, match="is not written yet, as those after it. Capture again with resume"):
        hl.ActivationStore(place)
    hl.capture_to(place, **small, resume=True)
    assert same(place)
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_resume_without_anything_there_begins(small, tmp_path, same):
    hl.capture_to(tmp_path / "s", **small, resume=True)
    assert same(tmp_path / "s")


def test_a_model_is_known_by_its_weights_and_not_by_its_name(small, tmp_path, store, same):
    model = hl.load(build("llama"), tokenizer=small["model"].tokenizer)
    model.hf.config._name_or_path = "elsewhere"
    hl.capture_to(store, **small | {"model": hl.load(model.hf, tokenizer=model.tokenizer)}, resume=True)
    assert same(store)


def other_model(small):
    model = hl.load(build("llama"), tokenizer=small["model"].tokenizer)
    model.hf.model.norm.weight.data += 1
    return {"model": model}


OTHERS = {
    "weights": (other_model, "was captured with model weights"),
    "sites": (
        lambda s: {"sites": ["blocks.0.hook_resid_post"]},
        r"with sites blocks.0.hook_resid_post, .* \(5 in all\)",
    ),
    "dtype": (lambda s: {"dtype": "float16"}, "with dtype float32, and this is float16"),
    "max_tokens": (lambda s: {"max_tokens": 9}, "with max_tokens 128, and this is 9"),
    "template": (lambda s: {"template_tokens": "drop"}, "with template_tokens keep, and this is drop"),
    "batch_tokens": (lambda s: {"batch_tokens": 64}, "with batch_tokens 8192, and this is 64"),
    "shard_bytes": (lambda s: {"shard_bytes": 1 << 20}, "with shard_bytes 131072, and this is 1048576"),
    "corpus": (
        lambda s: {"corpus": [*s["corpus"][:-1], "w1"]},
        r"another corpus: document 3\d, or one after it, differs",
    ),
    "first document": (lambda s: {"corpus": ["w1", *s["corpus"][1:]]}, "another corpus: document 0, or"),
    "shorter corpus": (lambda s: {"corpus": s["corpus"][:5]}, "another corpus"),
    "longer corpus": (lambda s: {"corpus": [*s["corpus"], "w1"]}, "another corpus"),
    "ids": (
        lambda s: {"corpus": hl.data.tokenize(s["corpus"], s["model"].tokenizer)},
        "another corpus: document 0, or",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_work_is_refused_with_the_difference(what, small, store, same):
    change, sentence = OTHERS[what]
    with pytest.raises(StoreMismatch, match=sentence):
        hl.capture_to(store, **small | change(small), resume=True)
    assert same(store)


def test_a_corpus_that_ends_where_a_shard_does_is_shorter_too(small, store, same):
    first = sum(shard.documents for shard in hl.ActivationStore(store).manifest.shards[:3])
    with pytest.raises(StoreMismatch, match=rf"another corpus: document {first}, or one after it"):
        hl.capture_to(store, **small | {"corpus": small["corpus"][:first]}, resume=True)
    assert same(store)


def test_every_file_is_on_the_disk_before_it_is_named(small, tmp_path, monkeypatch):
    """Brought down, renamed, and the folder brought down: each shard, and then the manifest that names it."""
    steps, fsync, replace = [], os.fsync, os.replace

    def down(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def rename(source, target, **named):
        steps.append(Path(target).name)
        replace(source, target, **named)

    monkeypatch.setattr(os, "fsync", down)
    monkeypatch.setattr(os, "replace", rename)
    shards = hl.capture_to(tmp_path / "s", **small).manifest.shards
    expected = []
    for name in [name for shard in shards for name in (shard.file, "manifest.json")] + ["manifest.json"]:
        expected += ["file", name, "folder"]
    assert steps == expected


# --- a full disk ------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(small, tmp_path, same):
    with full_disk(5_000), pytest.raises(OutputError) as caught:
        hl.capture_to(tmp_path / "s", **small)
    assert str(caught.value) == (
        f"{tmp_path / 's'} could not be written: File too large. What was written before is whole: free space, and go "
        "on with resume=True (--resume)."
    )
    hl.capture_to(tmp_path / "s", **small, resume=True)
    assert same(tmp_path / "s")


@pytest.mark.parametrize("after", [0, 1, 4, 5, 9])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_later(call, after, small, tmp_path, same, monkeypatch):
    left = [after]
    real = getattr(os, call)

    def full(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="could not be written: No space left on device. What was written before"):
        hl.capture_to(tmp_path / "s", **small)
    monkeypatch.undo()
    if (tmp_path / "s").exists():
        assert not [path for path in (tmp_path / "s").iterdir() if path.name.startswith(".")]
    hl.capture_to(tmp_path / "s", **small, resume=True)
    assert same(tmp_path / "s")


# --- kill -9 ----------------------------------------------------------------------------------------------

KILL = """
import json, os, pickle, random, shutil, signal, sys, time
import numpy as np, torch
import headlens as hl
from tests.families import build

torch.set_num_threads(1)
place, kills, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = hl.load(build("llama"))
rng = np.random.default_rng(0)
documents = [[1, *rng.integers(3, 97, n)] for n in rng.integers(1, 60, 40)]
sites = ["blocks.*.hook_resid_post", "blocks.1.attn.hook_z"]

def capture(folder):
    hl.capture_to(folder, model, documents, sites, dtype="float32", shard_bytes=1 << 17, resume=True)

def contents(folder):
    return {name: open(f"{folder}/{name}", "rb").read() for name in sorted(os.listdir(folder))}

def killed_at_event(folder, n):
    '''Run in a fork that is killed when it touches the folder for the n-th time; whether it was.'''
    child = os.fork()
    if child == 0:
        count = [0]
        def hook(event, arguments):
            if event.startswith(("open", "os.")) and any(folder in str(a) for a in arguments):
                count[0] += 1
                if count[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        capture(folder)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

def killed_at_time(folder, delay):
    child = os.fork()
    if child == 0:
        capture(folder)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

capture(f"{place}/undisturbed")
start = time.perf_counter()
capture(f"{place}/again")
duration = time.perf_counter() - start
wanted = contents(f"{place}/undisturbed")
draw, found, files = random.Random(int(sys.argv[4])), [], []
for i in range(kills):
    folder = f"{place}/{i}"
    if how == "event":
        was = killed_at_event(folder, i + 1)
    else:
        while not (was := killed_at_time(folder, draw.uniform(0, duration))):
            shutil.rmtree(folder)  # it had ended: the machine is faster now than when the duration was taken
            duration *= 0.95
        if i % 3 == 0:
            killed_at_time(folder, draw.uniform(0, duration))
    there = os.listdir(folder) if os.path.exists(folder) else []
    files.append([len([n for n in there if n.startswith("shard")]), any(n.startswith(".s") for n in there)])
    capture(folder)
    found.append([was, contents(folder) == wanted])
    shutil.rmtree(folder)
    if how == "event" and not was:
        break
print(json.dumps({"found": found, "files": files, "duration": duration, "shards": len(wanted) - 1}))
"""


def kill(tmp_path: Path, n: int, how: str, seed: int = 0) -> dict:
    program = [sys.executable, "-c", KILL, str(tmp_path), str(n), how, str(seed)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_random_moments(tmp_path):
    outcome = kill(tmp_path, 5, "time")
    assert all(equal for _, equal in outcome["found"])
    assert [was for was, _ in outcome["found"]] == [True] * 5


@pytest.mark.slow
def test_killed_at_fifty_random_moments(tmp_path):
    outcome = kill(tmp_path, 50, "time", seed=1)
    assert all(equal for _, equal in outcome["found"])
    assert [was for was, _ in outcome["found"]] == [True] * 50
    assert len({n for n, _ in outcome["files"]}) >= 5  # early and late


@pytest.mark.slow
def test_killed_whenever_the_folder_is_touched(tmp_path):
    """Before every file that is opened, renamed or removed: all the windows between two steps."""
    outcome = kill(tmp_path, 1000, "event")
    killed = [was for was, _ in outcome["found"]]
    assert all(killed[:-1]) and not killed[-1]  # until none is left
    assert all(equal for _, equal in outcome["found"])
    assert len(killed) > 6 * outcome["shards"]
    assert any(half for _, half in outcome["files"])  # a temporary shard was left, too
