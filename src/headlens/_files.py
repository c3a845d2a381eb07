"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from headlens._errors import OutputError


@contextlib.contextmanager
def _staged(target: Path, make: Callable[[Path], Path]) -> Iterator[Path]:
    """Yield a fresh path beside `target`; on success rename it over, on failure remove it."""
    made: list[Path] = []
    try:
        place = target.resolve()  # what a link points to is replaced, not the link
        place.parent.mkdir(parents=True, exist_ok=True)
        made.append(make(place))
        yield made[0]
        _replace(made[0], place)
        made.clear()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{target} could not be written: {reason}. Nothing was left behind; free space or name another place."
        ) from error
    finally:
        for temporary in made:
            _remove(temporary)


@contextlib.contextmanager
def whole_file(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `target` only when the block ends well.

    Raises
    ------
    OutputError
        If the file cannot be written (a full disk, a missing right); the old file, if any, stays.
    """
    target = Path(target)
    check_file_target(target)

    def make(place: Path) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        os.close(handle)
        Path(name).chmod(0o666 & ~_umask())
        return Path(name)

    with _staged(target, make) as path:
        yield path


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Like `whole_file`, for a folder: `target` is replaced in one step when the block ends well."""
    target = Path(target)
    with _staged(target, lambda place: Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))) as path:
        path.chmod(0o777 & ~_umask())
        yield path


def check_file_target(target: str | Path) -> None:
    """Raise if no file can ever be put at `target`, so that long work need not end in finding out.

    Raises
    ------
    OutputError
        If `target` is a folder, or a device, pipe or socket (a rename would put an ordinary file in its place).
    """
    target = Path(target)
    if target.is_dir():
        raise OutputError(f"{target} is a folder and a file is wanted: name a file in it.")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} is a device, pipe or socket: name an ordinary file.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(temporary: Path, target: Path) -> None:
    if target.is_dir() and temporary.is_dir():
        # A folder cannot be renamed over a full one: move the old one aside first, drop it last.
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(aside / target.name)
        try:
            temporary.rename(target)
        except BaseException:  # an interruption too: the old folder must not go with `aside`
            (aside / target.name).rename(target)
            raise
        finally:
            _remove(aside)
    else:
        temporary.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
