"""One shard of a store: a safetensors file of some documents, written in one go and never changed.

    token_offsets, row_offsets   document + 1      where each document's tokens and rows begin
    ids, spans, kept             token             every token that went through the model, and whether it has rows
    blocks.3.hook_resid_post     row width         a site: its rows, one for each kept token

Any safetensors reader reads it. It is written here and not by that package because the same content must give the
same bytes (its metadata is shuffled), and a full disk must be an OSError.

Source: the safetensors format (8 bytes of length, a JSON header, the numbers without gaps).
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headlens._errors import StoreError

_TYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _TYPES.items()}
_PAGE = 4096
"""The numbers begin on a page of memory: a mapped row is aligned whatever its type."""
_LARGEST_HEADER = 1 << 26
BLOCK = 1 << 20


class Place(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Byte of the file at which it begins."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """What the head of a shard says."""

    note: Mapping[str, str]
    places: Mapping[str, Place]


def write_shard(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> tuple[int, str]:
    """Write a shard to `path`, down to the disk; return its size in bytes and its SHA-256.

    Tensors are written in the order given, which must be from wide numbers to narrow ones.
    """
    header: dict[str, object] = {"__metadata__": dict(note)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(len(head) + 8) % _PAGE)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(head).to_bytes(8, "little"), head, *map(_bytes, tensors.values())):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(head) + end, digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    if not tensor.numel():  # torch makes no view of nothing
        return memoryview(b"")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_header(path: Path) -> Header:
    """Read the head of a shard.

    Raises
    ------
    StoreError
        If the file has none that can be read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            said = dict(json.loads(file.read(min(length, _LARGEST_HEADER))))
        note = dict(said.pop("__metadata__", {}))
        places = {name: _place(one, 8 + length) for name, one in said.items()}
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: its head is not that of a safetensors file.") from error
    return Header(note, places)


def _place(said: Mapping[str, Any], begin: int) -> Place:
    place = Place(_TYPES[said["dtype"]], tuple(said["shape"]), begin + said["data_offsets"][0])
    if begin + said["data_offsets"][1] != place.start + place.size:
        raise ValueError("a tensor that is longer or shorter than its shape")
    return place


def map_file(path: Path, size: int) -> mmap.mmap:
    """Map a whole shard of `size` bytes into memory.

    A private mapping: whoever writes into it by mistake changes a copy of the page, and never the file.

    Raises
    ------
    StoreError
        If the file cannot be opened or mapped, or is of another size.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: a file shorter than that
        raise StoreError(f"{path} could not be read: {getattr(error, 'strerror', None) or error}.") from error


def tensor_at(mapped: mmap.mmap, place: Place) -> Tensor:
    """Return one tensor of a mapped shard, which stays mapped as long as the tensor lives."""
    if not place.size:
        return torch.zeros(place.shape, dtype=place.dtype)
    count = math.prod(place.shape)
    return torch.frombuffer(mapped, dtype=place.dtype, count=count, offset=place.start).view(place.shape)


def read_tensor(path: Path, place: Place) -> Tensor:
    """Read one tensor of a shard into memory, without mapping the file."""
    tensor = torch.empty(place.shape, dtype=place.dtype)
    if place.size:
        with path.open("rb") as file:
            file.seek(place.start)
            file.readinto(_bytes(tensor))
    return tensor


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
