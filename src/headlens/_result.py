"""What a method returns: a frozen answer that knows where it came from, can be tabled, saved and loaded.

On disk a result is a folder: `manifest.json` (type, format, provenance), `table.parquet`, and
`arrays.safetensors` where the answer holds more than a table.
"""

import importlib.metadata
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headlens._errors import ResultError
from headlens._files import whole_folder

MANIFEST, TABLE, ARRAYS = "manifest.json", "table.parquet", "arrays.safetensors"
_VERSIONED = ("headlens", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Provenance:
    """What a result came from; nothing in it depends on when or where it was made."""

    models: tuple[dict[str, Any], ...] = ()
    """Per model: name, revision, family, dtype, weights and tokenizer hash, BOS policy."""
    data: dict[str, Any] = field(default_factory=dict)
    """Stimuli and corpora by name: how each was made, and its content hash."""
    seed: int | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numbers a result depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Result:
    """Base of all answers. A subclass adds fields and says how they become a table and arrays."""

    provenance: Provenance

    format: ClassVar[int] = 1

    def to_table(self) -> pa.Table:
        """The answer as an Arrow table, one row per answer, plain column names."""
        raise NotImplementedError

    def to_frame(self) -> Any:
        """The table as a pandas DataFrame where pandas is installed, else the Arrow table itself."""
        table = self.to_table()
        try:
            import pandas  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return table
        return table.to_pandas()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    @classmethod
    def _restore(cls, provenance: Provenance, table: pa.Table, arrays: dict[str, np.ndarray]) -> "Result":
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write the result to the folder `path`, whole or not at all, and return it.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        ResultError
            If `path` holds something other than a saved result; it is not overwritten.
        """
        path = Path(path)
        check_result_target(path)
        manifest = {"type": type(self).__name__, "format": self.format, "provenance": asdict(self.provenance)}
        with whole_folder(path) as folder:
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
            pq.write_table(self.to_table(), folder / TABLE, compression="zstd")
            if arrays := self._arrays():
                from safetensors.numpy import save

                # As bytes: on a full disk `save_file` raises an error of its own instead of OSError.
                (folder / ARRAYS).write_bytes(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """Read back what `save` wrote.

        Raises
        ------
        ResultError
            If `path` holds no result, a damaged one, or one of another type or format.
        """
        path = Path(path)
        manifest = read_manifest(path)
        kind = manifest["type"]
        if kind != cls.__name__:
            raise ResultError(f"{path} holds a {kind}, not a {cls.__name__}. Call {kind}.load instead.")
        if manifest["format"] != cls.format:
            raise ResultError(
                f"{path} has format {manifest['format']} and this version reads {cls.format}: make it again."
            )
        try:
            table = pq.read_table(path / TABLE)
            arrays = _read_arrays(path / ARRAYS)
            saved = manifest["provenance"]
            provenance = Provenance(**{**saved, "models": tuple(saved["models"])})
            return cls._restore(provenance, table, arrays)
        except Exception as error:  # whatever a reader of damaged bytes can raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ResultError(f"{path} is damaged ({reason}): make it again.") from error


def check_result_target(path: str | Path) -> None:
    """Raise if saving a result at `path` would destroy something that `Result.save` did not write.

    Raises
    ------
    ResultError
        If `path` is a file, or a folder that holds anything but a saved result.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        read_manifest(path)  # its content, since other programs write a manifest.json too
    except ResultError:
        raise ResultError(f"{path} exists and is not a saved headlens result: name another folder.") from None
    if others := sorted({entry.name for entry in path.iterdir()} - {MANIFEST, TABLE, ARRAYS}):
        raise ResultError(f"{path} holds other files beside a result ({', '.join(others[:3])}): name another folder.")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what the folder of a result says of itself: type, format and provenance.

    Raises
    ------
    ResultError
        If it is no result.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path} holds no headlens result: there is no {MANIFEST} in it.") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path / MANIFEST} cannot be read ({error}): make the result again.") from error
    if not isinstance(manifest, dict) or not {"type", "format", "provenance"} <= manifest.keys():
        raise ResultError(f"{path / MANIFEST} is not the manifest of a headlens result.")
    return manifest


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    from safetensors.numpy import load_file

    return load_file(path)
