"""Small patterns and features that tests share: two random models of different tokenizers, and constructed heads."""

import functools
from pathlib import Path

import numpy as np

import headlens as hl
from headlens.data import world
from headlens.universe.features import fit_features
from headlens.universe.patterns import record_patterns
from headlens.zoo import constructed

MODELS = ("zoo:gpt2-small", "zoo:gpt2-twin", "zoo:qwen3-small")
ENCODER = "zoo:neox-small"


@functools.cache
def texts(n=24, cut=120):
    return tuple(document.text[:cut] for document in world.documents(n, seed=3))


@functools.cache
def load(name):
    return hl.load(name)


@functools.cache
def features(n_features=48):
    return fit_features(load(ENCODER), list(texts()), n_features=n_features)


def patterns(folder: Path, names=MODELS, given=None, **options):
    given = texts() if given is None else given
    return [record_patterns(load(name), given, folder / name.split(":")[1], **options) for name in names]


def silence(patterns, head):
    """Rewrite recorded patterns so that one head attends to nothing."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    at = patterns.heads.index(head)
    for path in patterns.path.glob("shard-*"):
        with safe_open(path, framework="np") as file:
            held, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        held["weights"][at] = 0
        save_file(held, path, metadata=said)


@functools.cache
def construction(name):
    c = constructed.build(name)
    return hl.load(c.model, tokenizer=c.tokenizer), c


def repeats(words, n, *, length=12, seed=0, most=12):
    """Texts: random words, a random gap of others, and the words again."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        drawn = [str(words[i]) for i in rng.permutation(len(words))[: length + int(rng.integers(0, most))]]
        made.append(" ".join([*drawn, *drawn[:length]]))
    return made
