"""A tiny model that reads words, texts of all lengths, and a store of them in many small shards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import headlens as hl
from tests.cli.conftest import WORDS, word_tokenizer
from tests.families import build

SITES = ["blocks.*.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.attn.hook_k"]


@pytest.fixture(scope="session")
def model() -> hl.Model:
    return hl.load(build("llama"), tokenizer=word_tokenizer())


@pytest.fixture(scope="session")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 60, size=40)]


@pytest.fixture(scope="session")
def small(model, texts) -> dict:
    """What a store of eight or so small shards is made of."""
    return {"model": model, "corpus": texts, "sites": SITES, "dtype": "float32", "shard_bytes": 1 << 17}


@pytest.fixture(scope="session")
def undisturbed(small, tmp_path_factory) -> Path:
    return hl.capture_to(tmp_path_factory.mktemp("store") / "store", **small).path


@pytest.fixture
def store(undisturbed, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "store"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def same(undisturbed) -> Callable[[Path], bool]:
    return lambda folder: contents(folder) == contents(undisturbed)
