"""The seed study's pickles: attention maps, or distances between them. Only arrays and plain containers are let in.

Axes: layer, head. Source: github.com/loftusa/attendome.
"""

import math
from pathlib import Path

import numpy as np

from headlens import _unpickle
from headlens._errors import DataError
from headlens.heads.exchange.fields import called


def read_legacy_maps(path: str | Path) -> dict[tuple[int, int], np.ndarray]:
    """Return the arrays of one of the study's pickles by (layer, head); nothing in it is run.

    Either maps, (n, T * T) per head: n texts, one flattened T by T pattern each, rows of padding included; or
    distances between texts, a vector of n (n - 1) / 2 per head. Arrays are read-only, and their values are not
    checked. The study cut texts by each model's tokenizer, so maps of two models may be of different texts.

    Raises
    ------
    DataError
        If the file is no pickle of a dict per layer of arrays per head (objects, as `--format pickle` writes them, are
        refused by name), or the arrays are of neither shape, or not alike for all heads.
    """
    path = Path(path)
    layers = _unpickle.load(path)
    if not isinstance(layers, dict) or not layers or not all(isinstance(heads, dict) for heads in layers.values()):
        raise DataError(f"{path} must hold a dict of layers, and in each a dict of heads; it holds {called(layers)}.")
    maps = {(layer, head): array for layer, heads in layers.items() for head, array in heads.items()}
    if not maps:
        raise DataError(f"{path} holds layers without heads.")
    shape = None
    for (layer, head), array in maps.items():
        where = f"{path}, layer {layer!r:.20}, head {head!r:.20}"
        if type(layer) is not int or type(head) is not int or layer < 0 or head < 0:
            raise DataError(f"{where}: layers and heads are whole numbers from 0.")
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else called(array)
            raise DataError(f"{where} holds {what}, and not an array of floating-point numbers.")
        shape = array.shape if shape is None else shape
        if array.shape != shape:
            raise DataError(f"{where} has shape {array.shape}, and the first head {shape}: all must be alike.")
    _check_map_shape(shape or (), path)
    return maps


def _check_map_shape(shape: tuple[int, ...], path: Path) -> None:
    match shape:
        case (n, size):
            if not n or not size or math.isqrt(size) ** 2 != size:
                raise DataError(f"{path}: heads have shape {shape}, and maps are (texts, T * T) for a T of 1 or more.")
        case (size,):
            n = (1 + math.isqrt(1 + 8 * size)) // 2
            if not size or n * (n - 1) // 2 != size:
                raise DataError(
                    f"{path}: heads have {size} distances, which is n (n - 1) / 2 for no n. The study's --compute_rdm "
                    "writes n / 2 of them, of the texts two by two, under the same name: compute them from maps."
                )
        case _:
            raise DataError(f"{path}: heads have shape {shape}, which is neither (texts, T * T) nor (pairs,).")
