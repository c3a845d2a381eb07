"""Files that hold dictionaries, read without believing or running what is in them.

Tensors come from safetensors, or from `torch.load` with `weights_only`, and then only if there is nothing but
tensors. Nothing is sized by what a config says: sizes come from the tensors, and the config is compared with them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headlens._errors import DataError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_config(path: Path) -> dict[str, Any]:
    """Return what a JSON file of options says.

    Raises
    ------
    DataError
        If it is not there, cannot be read, or is no JSON object.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"There is no {path.name} in {path.parent}, which says what the dictionary is.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({_first_line(error)}): fetch it again.") from error
    if not isinstance(said, dict):
        raise DataError(f"{path} is not the config of a dictionary: it holds a {type(said).__name__}, not options.")
    return said


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises
    ------
    DataError
        If it is not there, cut short or damaged, or holds other things than floating-point numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"There is no {path.name} in {path.parent}: a dictionary is its config and its weights.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or cut short ({_first_line(error)}): fetch it again.") from error
    return _checked(path, tensors)


def read_pt(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `torch.save` wrote of a state dict; nothing else in it is made.

    Raises
    ------
    DataError
        If it is not there or damaged, or holds anything but floating-point tensors by name.
    """
    if not path.is_file():
        raise DataError(f"There is no {path.name} in {path.parent}: a dictionary is its config and its weights.")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader of damaged or hostile bytes can raise
        raise DataError(
            f"{path} is damaged, or holds other things than tensors; nothing in it was run ({_first_line(error)}). "
            "Where it was made, save the state dict alone."
        ) from error
    return _checked(path, tensors)


def _checked(path: Path, tensors: Any) -> dict[str, Tensor]:
    if not isinstance(tensors, Mapping):
        raise DataError(f"{path} holds a {type(tensors).__name__} and no tensors by name: save the state dict alone.")
    for name, value in tensors.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
        if not isinstance(name, str) or not plain or value.is_meta:
            raise DataError(
                f"{path} holds {name!s:.40}, which is no plain tensor of floating-point numbers: save the state dict "
                "alone."
            )
    return {name: value.detach() for name, value in tensors.items()}


def dtype_of(name: Any, where: str) -> torch.dtype:
    """Return the precision that a config names.

    Raises
    ------
    DataError
        If there is none of that name.
    """
    found = name if isinstance(name, torch.dtype) else DTYPES.get(str(name).removeprefix("torch."))
    if found is None or found not in DTYPES.values():
        raise DataError(f"{where} has the dtype {name!r:.40}; it must be one of {', '.join(DTYPES)}.")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
