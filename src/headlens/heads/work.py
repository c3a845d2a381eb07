"""A folder that remembers how far long work has come, so that a kill costs half a minute and no sample twice.

    WORK/KEY/state.safetensors      running sums of a pass over a stimulus, and how many sequences they hold
    WORK/KEY/measured.safetensors   what a kind measured, once it is whole

KEY is a digest of all that decides the numbers (model, protocol, stimulus, kinds), so that other work never goes on
from here.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from headlens._files import whole_folder
from headlens.heads.tally import HeadTally, Measured

SAVE_EVERY = 30.0
"""Seconds between checkpoints."""


class Checkpoint:
    """Where one piece of work keeps what it has; without a folder nowhere."""

    def __init__(self, work: Path | None, what: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = None if work is None else work / digest
        self._saved = time.monotonic()

    def restore(self, tallies: Mapping[str, HeadTally]) -> int:
        """Put back what was saved into `tallies`; return how many sequences that is."""
        state = self._load("state.safetensors")
        if state is None:
            return 0
        for name, tally in tallies.items():
            tally.restore({key.split("/", 1)[1]: state[key] for key in state if key.split("/", 1)[0] == name})
        return state["done"].item()

    def save(self, tallies: Mapping[str, HeadTally], done: int) -> None:
        """Save the tallies of `done` sequences, if it is time to."""
        if self.folder is None or time.monotonic() - self._saved < SAVE_EVERY:
            return
        state = {f"{name}/{key}": value for name, tally in tallies.items() for key, value in tally.state().items()}
        self._write("state.safetensors", state | {"done": np.array(done)})
        self._saved = time.monotonic()

    def measured(self) -> Measured | None:
        """Return what was measured before, if it was whole."""
        found = self._load("measured.safetensors")
        if found is None:
            return None
        detail = json.loads(bytes(found["detail"]).decode())
        return Measured(found["own"], found["null"], None, {(la, h): text for la, h, text in detail} or None)

    def keep(self, measured: Measured) -> None:
        """Keep what a kind measured."""
        if self.folder is None:
            return
        detail = json.dumps([[*at, text] for at, text in (measured.detail or {}).items()]).encode()
        arrays = {"own": measured.own, "null": np.ascontiguousarray(measured.null)}
        self._write("measured.safetensors", arrays | {"detail": np.frombuffer(detail, np.uint8)})

    def _load(self, name: str) -> dict[str, np.ndarray] | None:
        if self.folder is None or not (self.folder / name).is_file():
            return None
        return load_file(self.folder / name)

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        assert self.folder is not None
        with whole_folder(self.folder) as new:
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, new / name)
