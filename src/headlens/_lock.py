"""One process at a time: a lock of the operating system on a file in a folder, which ends however the process ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from headlens._errors import OutputError, StoreError

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two processes apart
    fcntl = None

LOCK = ".lock"
"""Name of the file."""


@contextlib.contextmanager
def only_process(folder: Path, *, passing: bool = False) -> Iterator[None]:
    """Make and hold a folder; one that was not there, or is `passing`, is removed if it is empty at the end.

    Raises
    ------
    StoreError
        If another process holds it.
    OutputError
        If it cannot be made.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise OutputError(f"{folder} could not be written: {error.strerror or error}. Name another folder.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            (folder / LOCK).unlink()
        os.close(lock)
        if new or passing:
            with contextlib.suppress(OSError):  # it holds something, as it should
                folder.rmdir()


def _lock(folder: Path) -> int:
    """Open and lock the lock file; the system frees it whatever ends this process."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise StoreError(f"{folder} is being written by another process: wait, or name another folder.") from None
        except FileNotFoundError:
            pass
        os.close(handle)  # whoever held it has just removed it: another file has the name now
