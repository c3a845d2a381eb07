"""What does a store hold, of which model, made how, and is all of it there?

    manifest.json                what is below: settings, totals, and each shard's size, contents and SHA-256
    shard-00000.safetensors      some documents: tokens, and rows of every site (store/shard.py)

Every file is written under a temporary name, brought down to the disk and renamed, shards before the manifest that
names them. So at any moment the manifest names only whole shards, and what it does not name can be made again.
Nothing in a store depends on when, where or in how many runs it was written.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from headlens._errors import StoreError
from headlens._files import whole_file
from headlens._lock import LOCK
from headlens.store.shard import file_hash, read_header

MANIFEST = "manifest.json"
TYPE, FORMAT = "ActivationStore", 1
FOREIGN = "foreign: it is not of this store"
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
_TEMPORARY = re.compile(r"\.(manifest\.json|shard-\d{5,}\.safetensors)\..+")
_SAME_MODEL = ("dtype", "config", "weights", "tokenizer", "bos")
"""What of a model's provenance decides the rows; its name and revision only say where it was found."""


@dataclass(frozen=True)
class Settings:
    """All that decides, with the corpus, what a store holds."""

    model: Mapping[str, Any]
    """`Model.provenance()`."""
    dtype: str
    """float16, bfloat16 or float32."""
    sites: Mapping[str, list[int]]
    """Site -> shape of a row: [d_model], or [heads, d_head]."""
    max_tokens: int
    """Where documents were cut, BOS included."""
    template_tokens: str
    """keep or drop: whether special tokens and those of the chat template have rows. BOS and padding never have."""
    batch_tokens: int
    shard_bytes: int

    def same(self) -> dict[str, Any]:
        """What must agree where one run goes on with the work of another."""
        model = {f"model {key}": self.model.get(key) for key in _SAME_MODEL}
        return model | {key: value for key, value in asdict(self).items() if key != "model"}

    @property
    def key(self) -> str:
        """Digest of all that must agree."""
        return hashlib.sha256(json.dumps(self.same(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Shard:
    """One line of the manifest."""

    file: str
    bytes: int
    sha256: str
    documents: int
    tokens: int
    rows: int
    cut: int
    """Documents that were longer than `max_tokens`."""
    corpus: str
    """Digest of the documents: ids, spans, and which tokens have rows."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    settings: Settings
    versions: Mapping[str, str]
    """Of the packages that the store was begun with."""
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    texts: str | None = None
    """`hl.data.texts_hash` of the whole corpus, once it is complete; None for a corpus of token ids."""
    totals: Mapping[str, int] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Digest of all that the store holds."""
        said = json.dumps([self.settings.key, *(shard.sha256 for shard in self.shards)])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def with_shard(self, index: int, shard: Shard) -> "Manifest":
        """Return the manifest with shard `index` added or replaced."""
        return replace(self, shards=(*self.shards[:index], shard, *self.shards[index + 1 :]))

    def finished(self, texts: str | None) -> "Manifest":
        """Return the manifest of a store that lacks nothing."""
        totals = {what: sum(getattr(s, what) for s in self.shards) for what in ("documents", "tokens", "rows", "cut")}
        return replace(self, complete=True, texts=texts, totals=totals)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`, down to the disk."""
        said = {"type": TYPE, "format": FORMAT} | asdict(self)
        with whole_file(folder / MANIFEST) as path, path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(said, indent=1, ensure_ascii=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        settle(folder)


def settle(folder: Path) -> None:
    """Bring renames in `folder` down to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and needs none of this
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises
    ------
    StoreError
        If there is none, or it is damaged, of something else, or of another format.
    """
    path = folder / MANIFEST
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{folder} holds no activation store: there is no {MANIFEST} in it.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): make the store again in another folder.") from error
    if not isinstance(said, dict) or said.pop("type", None) != TYPE:
        raise StoreError(f"{path} is not the manifest of an activation store.")
    if (version := said.pop("format", None)) != FORMAT:
        raise StoreError(f"{path} has format {version} and this version reads {FORMAT}: make the store again.")
    try:
        settings, shards = Settings(**said.pop("settings")), tuple(Shard(**shard) for shard in said.pop("shards"))
        return Manifest(settings, shards=shards, **said)
    except (TypeError, KeyError) as error:
        raise StoreError(f"{path} is damaged ({error}): make the store again in another folder.") from error


def faults(folder: str | Path, *, checksums: bool = True) -> dict[str, str]:
    """Return what is wrong with a store: file -> what it is; empty where nothing is.

    Parameters
    ----------
    checksums
        Read every byte; otherwise only sizes are looked at.

    Raises
    ------
    StoreError
        If the folder holds no store, or its manifest is damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    found = {shard.file: wrong for shard in manifest.shards if (wrong := _fault(folder, manifest, shard, checksums))}
    for path in unlisted(folder, manifest):
        found[path.name] = "half-written" if _TEMPORARY.fullmatch(path.name) else _unlisted(path, manifest)
    if not manifest.complete:
        found[shard_name(len(manifest.shards))] = "not written yet, as those after it"
    return found


def _fault(folder: Path, manifest: Manifest, shard: Shard, checksums: bool) -> str | None:
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size == shard.bytes and not (checksums and file_hash(path) != shard.sha256):
            return None
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if is_own(path, manifest, shard) is False:
        return FOREIGN
    if size < shard.bytes:
        return f"truncated: {size} of {shard.bytes} bytes"
    return f"too long: {size} bytes and not {shard.bytes}" if size > shard.bytes else "damaged: its checksum is another"


def _unlisted(path: Path, manifest: Manifest) -> str:
    return "not in the manifest" if is_own(path, manifest) else FOREIGN


def is_own(path: Path, manifest: Manifest, shard: Shard | None = None) -> bool | None:
    """Whether a shard says that it belongs to this store (and place); None where it cannot be read."""
    try:
        note = read_header(path).note
    except StoreError:
        return None
    wanted = {"store": manifest.settings.key} | ({} if shard is None else {"corpus": shard.corpus})
    return all(note.get(key) == value for key, value in wanted.items())


def unlisted(folder: Path, manifest: Manifest) -> list[Path]:
    """Return files that look like a store's and are not in its manifest."""
    listed = {shard.file for shard in manifest.shards}
    return [
        path
        for path in sorted(folder.iterdir())
        if _TEMPORARY.fullmatch(path.name) or (_SHARD.fullmatch(path.name) and path.name not in listed)
    ]


def _others(folder: Path) -> list[str]:
    """Return names of what no store has in its folder."""
    names = sorted(path.name for path in folder.iterdir())
    ours = (_SHARD.fullmatch, _TEMPORARY.fullmatch, (MANIFEST, LOCK).__contains__)
    return [name for name in names if not any(is_ours(name) for is_ours in ours)]


def check_store_target(folder: Path, *, resume: bool) -> None:
    """Raise if a store cannot be written to `folder` without harm to what is there.

    Raises
    ------
    StoreError
        If it holds other files; or a store, and `resume` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: name a folder.")
    if not folder.exists():
        return
    if others := _others(folder):
        raise StoreError(f"{folder} holds other files ({', '.join(others[:3])}): name another folder.")
    if not resume and (folder / MANIFEST).exists():
        read_manifest(folder)  # of something else, perhaps
        raise StoreError(
            f"{folder} holds a store already: go on with it (resume=True, --resume), or name another folder."
        )


def in_words(found: Mapping[str, str]) -> str:
    """Return faults as one line."""
    return "; ".join(f"{file} is {what}" for file, what in found.items())
