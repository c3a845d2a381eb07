"""A file or folder is the old one or the new one, whatever happens in between, and nothing lies beside it."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from headlens._errors import OutputError
from headlens._files import check_file_target, whole_file, whole_folder


@pytest.fixture
def place(tmp_path):
    """A folder of its own, in which nothing but the target may be found."""
    path = tmp_path / "place"
    path.mkdir()
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@contextmanager
def full_disk(free: int):
    """Let no file grow beyond `free` bytes: every write to a disk fails, in any library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(path: Path, content: str) -> None:
    """Write `content` to a file, or into a folder."""
    (path / "inside" if path.is_dir() else path).write_text(content)


def content(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
class TestWhole:
    def test_makes_a_new_one(self, whole, place):
        with whole(place / "new") as path:
            fill(path, "new")
        assert content(place / "new") == "new" and names(place) == ["new"]

    def test_replaces_the_old_one(self, whole, place):
        for text in ("old", "new"):
            with whole(place / "it") as path:
                fill(path, text)
        assert content(place / "it") == "new" and names(place) == ["it"]

    def test_makes_the_folders_above(self, whole, place):
        with whole(str(place / "a" / "b" / "it")) as path:
            fill(path, "new")
        assert content(place / "a" / "b" / "it") == "new"

    def test_the_target_is_untouched_until_the_end(self, whole, place):
        with whole(place / "it") as path:
            fill(path, "old")
        with whole(place / "it") as path:
            fill(path, "new")
            assert content(place / "it") == "old"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_exception_leaves_the_old_one(self, whole, place, error):
        with whole(place / "it") as path:
            fill(path, "old")
        with pytest.raises(error), whole(place / "it") as path:
            fill(path, "new")
            raise error
        assert content(place / "it") == "old" and names(place) == ["it"]

    def test_a_full_disk_leaves_the_old_one_and_names_the_target(self, whole, place):
        with whole(place / "it") as path:
            fill(path, "old")
        failed = pytest.raises(OutputError, match=r"place/it could not be written: File too large")
        with failed as caught, full_disk(100), whole(place / "it") as path:
            fill(path, "new" * 1000)
        assert isinstance(caught.value.__cause__, OSError)
        assert content(place / "it") == "old" and names(place) == ["it"]

    def test_no_space_says_so(self, whole, place):
        failed = pytest.raises(OutputError, match="No space left on device. Nothing was left behind")
        with failed, whole(place / "it"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert names(place) == []

    def test_a_file_in_the_way_of_a_folder_above(self, whole, place):
        (place / "file").write_text("mine")
        with pytest.raises(OutputError), whole(place / "file" / "it") as path:
            fill(path, "new")
        assert content(place / "file") == "mine" and names(place) == ["file"]

    def test_rights_are_those_of_any_new_file(self, whole, place):
        before = os.umask(0o027)
        try:
            with whole(place / "it") as path:
                fill(path, "new")
        finally:
            assert os.umask(before) == 0o027  # it was read, and put back
        allowed = 0o640 if whole is whole_file else 0o750
        assert stat.S_IMODE((place / "it").stat().st_mode) == allowed

    def test_a_link_stays_and_what_it_points_to_is_replaced(self, whole, place):
        with whole(place / "real") as path:
            fill(path, "old")
        (place / "link").symlink_to(place / "real")
        with whole(place / "link") as path:
            fill(path, "new")
        assert (place / "link").is_symlink() and content(place / "real") == "new"
        assert names(place) == ["link", "real"]


KILLED = """
import os, signal, sys
from pathlib import Path
from headlens._files import {whole}
with {whole}(sys.argv[1]) as path:
    (path / "inside" if path.is_dir() else path).write_text("new" * 10)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_kill_leaves_the_old_one(whole, place):
    with whole(place / "it") as path:
        fill(path, "old")
    script = KILLED.format(whole=whole.__name__)
    done = subprocess.run([sys.executable, "-c", script, place / "it"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(place / "it") == "old"
    # What no one could remove is hidden, and named after what it was to become.
    assert all(name.startswith(".it.") for name in names(place) if name != "it")


def test_a_folder_is_replaced_not_merged(place):
    for name in ("first", "second"):
        with whole_folder(place / "it") as path:
            (path / name).write_text(name)
    assert names(place / "it") == ["second"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_moved_in_leaves_the_old_one(place, monkeypatch, error):
    with whole_folder(place / "it") as path:
        fill(path, "old")
    rename = Path.rename

    def failing(self, target):
        if self.name.startswith(".it.") and Path(target) == (place / "it").resolve():
            raise error
        return rename(self, target)

    with pytest.raises((OutputError, KeyboardInterrupt)), whole_folder(place / "it") as path:
        fill(path, "new")
        monkeypatch.setattr(Path, "rename", failing)
    assert content(place / "it") == "old" and names(place) == ["it"]


def test_a_folder_does_not_replace_a_file(place):
    (place / "it").write_text("mine")
    with pytest.raises(OutputError, match="Not a directory"), whole_folder(place / "it") as path:
        fill(path, "new")
    assert content(place / "it") == "mine" and names(place) == ["it"]


class TestCheckFileTarget:
    def test_a_folder_is_no_file(self, place):
        with pytest.raises(OutputError, match="is a folder and a file is wanted: name a file in it"):
            check_file_target(place)

    def test_a_pipe_is_not_replaced(self, place):
        os.mkfifo(place / "pipe")
        with pytest.raises(OutputError, match="is a device, pipe or socket"), whole_file(place / "pipe"):
            pytest.fail("the block must not be entered")
        assert (place / "pipe").is_fifo() and names(place) == ["pipe"]

    @pytest.mark.parametrize("name", ["new", "old", "there/is/none"])
    def test_anything_else_may_become_a_file(self, place, name):
        (place / "old").write_text("old")
        assert check_file_target(place / name) is None
        assert names(place) == ["old"]
