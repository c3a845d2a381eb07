"""Numbers, names and arrays as a page has them: short enough to travel, exact enough to look at."""

import base64
import math
import zlib
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from jaxtyping import Float32, Int16, Int32, UInt8

Packed = (
    UInt8[np.ndarray, "*axes"] | Int16[np.ndarray, "*axes"] | Int32[np.ndarray, "*axes"] | Float32[np.ndarray, "*axes"]
)


def pack(entries: Packed) -> str:
    """An array as text: base64 of its zlib-compressed bytes."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(entries).tobytes())).decode("ascii")


def short_names(models: list[str]) -> list[str]:
    """Names for the page: of a path only its last part, because a page travels and a path does not.

    Provenance keeps the whole path. Two paths that end alike are told apart by a number.
    """
    shown: list[str] = []
    for name in models:
        short = PureWindowsPath(name).name if _is_path(name) else name
        number = sum(other == short or other.startswith(f"{short} (") for other in shown)
        shown.append(f"{short} ({number + 1})" if number else short)
    return shown


def _is_path(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name.startswith((".", "~"))


def shown(number: float | None) -> float | None:
    """Six digits are more than the page shows; a missing or infinite score is null."""
    if number is None or not math.isfinite(number):
        return None
    return float(f"{number:.6g}")
