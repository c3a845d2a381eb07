"""A folder that remembers how far long work has come, so that a kill costs half a minute and no sample twice.

    WORK/KEY/state.safetensors      running sums of a pass over a stimulus, and how many sequences they hold
    WORK/KEY/LOOP.safetensors       arrays that a loop fills step by step, and how many steps it has taken
    WORK/KEY/measured.safetensors   what a kind measured, once it is whole

KEY is a digest of all that decides the numbers (model, protocol, stimulus, kinds), so that other work never goes on
from here.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from headlens._files import whole_file
from headlens.heads.tally import HeadTally, Measured

SAVE_EVERY = 30.0
"""Seconds between checkpoints."""


class Checkpoint:
    """Where one piece of work keeps what it has, and tells how far it is; without a folder it keeps nothing."""

    def __init__(
        self,
        work: Path | None = None,
        what: Mapping[str, Any] | None = None,
        tell: Callable[[str, int, int], None] | None = None,
    ) -> None:
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = None if work is None else work / digest
        self._saved = time.monotonic()
        self._tell = tell

    # --- a pass over a stimulus ---

    def restore(self, tallies: Mapping[str, HeadTally]) -> int:
        """Put back what was saved into `tallies`; return how many sequences that is."""
        state = self._load("state")
        if state is None:
            return 0
        for name, tally in tallies.items():
            tally.restore({key.split("/", 1)[1]: state[key] for key in state if key.split("/", 1)[0] == name})
        return state["done"].item()

    def save(self, tallies: Mapping[str, HeadTally], done: int) -> None:
        """Save the tallies of `done` sequences, if it is time to."""
        if self._due():
            state = {f"{name}/{key}": value for name, tally in tallies.items() for key, value in tally.state().items()}
            self._write("state", state | {"done": np.array(done)})

    # --- a loop ---

    def steps(self, loop: str, n: int, arrays: Mapping[str, np.ndarray]) -> Iterator[int]:
        """Yield the steps 0 to n - 1 of a loop that fills `arrays` in place, without those taken before a kill.

        What a step does must depend on its number alone (its random numbers too), and on nothing that an earlier one
        left anywhere but in `arrays`.
        """
        saved, done = self._load(loop), 0
        if saved is not None:
            done = saved["done"].item()
            for name, array in arrays.items():
                array[...] = saved[name]
        for step in range(done, n):
            yield step
            if self._tell is not None:
                self._tell(loop, step + 1, n)
            if self._due() or (step + 1 == n and self.folder is not None):
                self._write(loop, {**arrays, "done": np.array(step + 1)})

    # --- what a kind measured ---

    def measured(self) -> Measured | None:
        """Return what was measured before, if it was whole."""
        found = self._load("measured")
        if found is None:
            return None
        detail = json.loads(bytes(found["detail"]).decode())
        return Measured(found["own"], found["null"], None, {(la, h): text for la, h, text in detail} or None)

    def keep(self, measured: Measured) -> None:
        """Keep what a kind measured."""
        if self.folder is None:
            return
        detail = json.dumps([[*at, text] for at, text in (measured.detail or {}).items()]).encode()
        arrays = {"own": measured.own, "null": measured.null, "detail": np.frombuffer(detail, np.uint8)}
        self._write("measured", arrays)

    def _due(self) -> bool:
        return self.folder is not None and time.monotonic() - self._saved >= SAVE_EVERY

    def _load(self, name: str) -> dict[str, np.ndarray] | None:
        if self.folder is None or not (file := self.folder / f"{name}.safetensors").is_file():
            return None
        return load_file(file)

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        assert self.folder is not None
        with whole_file(self.folder / f"{name}.safetensors") as new:
            save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, new)
        self._saved = time.monotonic()
