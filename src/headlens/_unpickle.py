"""Which pickles can be read without running what is in them? Those of numbers, arrays and plain containers.

A pickle is a program for a stack machine. Three of its instructions reach outside: a global is looked up by
name, called with arguments (REDUCE), and given a state (BUILD). Here a name looks nothing up: it either is in
`ADMITTED`, and stands for a function of this file, or is refused. Only these functions are called, and only
what they return is given a state. The instructions for objects, extension codes and persistent ids are
refused, so that no import, no constructor and no method of anything else takes place:

    numpy arrays, scalars, dtypes     from their bytes, after their sizes are checked; plain numbers only
                                      (neither object nor structured dtypes, whose bytes may be pointers)
    None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset

numpy's own unpickling functions are not called either: a forged dtype or state would reach C code that
trusts it. No length is believed before the file is seen to be that long.

headlens reads pickles that others left behind, and never writes one.
"""

import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from headlens._errors import DataError

_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c(8|16))")
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_SAYS_WHY = (EOFError, ValueError, pickle.UnpicklingError)


def load(path: str | Path) -> Any:
    """Return what a pickle holds, if that is numbers, arrays and plain containers; arrays are read-only.

    Raises
    ------
    DataError
        If the file cannot be read or is damaged, or holds anything else; the message names it, and nothing
        of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _finished(_Unpickler(_Bounded(file)).load(), {})
    except _Refused as refused:
        raise DataError(
            f"{path} holds {refused}, and only numbers, arrays and plain containers are read from a pickle. "
            "Nothing in it was run. Where it was made, save it as JSON or as arrays."
        ) from None
    except FileNotFoundError:
        raise DataError(f"There is no file at {path}.") from None
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}.") from error
    except MemoryError:
        raise DataError(f"{path} does not fit into memory: read it on a larger machine.") from None
    except Exception as error:  # whatever a stack machine can come to with a damaged program
        said = str(error).strip().split("\n")[0] if isinstance(error, _SAYS_WHY) else ""
        reason = said or "its instructions make no sense"
        raise DataError(f"{path} is not a pickle, or a damaged one ({reason}): make it again.") from error


class _Refused(Exception):
    """What was refused, as it stands in a message."""


class _Bounded:
    """A file that never reads, and so never makes room for, more than is left of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, n: int) -> bytes:
        if n > self._size - self._file.tell():
            raise EOFError("it ends in the middle")
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends in the middle")
        return line


# --- what the admitted names stand for --------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    """An admitted name; `make` is called in its stead."""

    name: str
    make: Callable[..., Any] | None


class _Dtype:
    """A dtype in the making: its state is its byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:  # noqa: ARG002
        if type(code) is not str or not _NUMBERS.fullmatch(code):
            raise _Refused(f"an array of dtype {code!r:.40}")
        self.numpy = np.dtype(code)

    def restore(self, state: Any) -> None:
        _version, order, *structure = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in structure[:3]):
            raise _Refused("an array of a structured dtype")
        self.numpy = self.numpy.newbyteorder(order)


class _Array:
    """An array in the making: its state is its shape, dtype, order and bytes."""

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:  # noqa: ARG002
        if kind is not _NDARRAY:
            raise _Refused("an array of a type of its own")
        self.numpy: np.ndarray | None = None

    def restore(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.numpy = _array_of(content, dtype, shape, "F" if fortran else "C")


def _array_of(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Return the array of `shape` whose numbers are `content`."""
    if type(dtype) is not _Dtype or type(content) is not bytes:
        raise _Refused("an array whose content is not the bytes of numbers")
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("an array has no shape")
    flat = np.frombuffer(content, dtype.numpy)
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, content: Any) -> Any:
    return _array_of(content, dtype, (), "C")[()]


def _latin1(text: Any, encoding: Any) -> bytes:
    """What old protocols write for bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _Refused("_codecs.encode of something other than bytes")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """What old protocols write for b''; a size, which would make room for as many, is not taken."""
    return b""


_NDARRAY = _Global("numpy.ndarray", None)

ADMITTED: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global("numpy.dtype", _Dtype),
    ("_codecs", "encode"): _Global("_codecs.encode", _latin1),
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Global("_reconstruct", _Array)
    ADMITTED[f"{_core}.multiarray", "scalar"] = _Global("scalar", _scalar)
    ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Global("_frombuffer", _array_of)
for _builtins in ("builtins", "__builtin__"):  # old protocols know no instruction for these
    ADMITTED[_builtins, "bytes"] = _Global("bytes", _no_bytes)
    for _type in (set, frozenset, complex):
        ADMITTED[_builtins, _type.__name__] = _Global(_type.__name__, _type)


# --- the machine ------------------------------------------------------------------------------------------

_HARMLESS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES UNICODE BINUNICODE BINUNICODE8
    SHORT_BINUNICODE TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST APPEND APPENDS DICT EMPTY_DICT SETITEM
    SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
"""
_REFUSED = {
    "a persistent id": ("PERSID", "BINPERSID"),
    "an extension code": ("EXT1", "EXT2", "EXT4"),
    "an object": ("OBJ", "NEWOBJ", "NEWOBJ_EX"),
    "a buffer that is kept elsewhere": ("NEXT_BUFFER", "READONLY_BUFFER"),
}
_Machine: Any = vars(pickle)["_Unpickler"]  # the one in Python: unlike the one in C, all of it can be replaced


class _Unpickler(_Machine):
    """The machine, with nothing but harmless instructions and the four below."""

    def find_class(self, module: str, name: str) -> _Global:
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        return ADMITTED[module, name]

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if type(called) is not _Global or called.make is None or type(arguments) is not tuple:
            raise _Refused("a call of something that is no function")
        self.append(called.make(*arguments))

    def build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if type(built) not in (_Dtype, _Array):
            raise _Refused(f"a {type(built).__name__} with a state of its own")
        built.restore(state)

    def inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        raise _Refused(f"an object of {module}.{name}")

    def bytearray8(self) -> None:
        (n,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(n))  # the machine's own makes room before it looks

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **{code: _Machine.dispatch[code] for code in (getattr(pickle, name)[0] for name in _HARMLESS.split())},
        pickle.REDUCE[0]: reduce,
        pickle.BUILD[0]: build,
        pickle.INST[0]: inst,
        pickle.BYTEARRAY8[0]: bytearray8,
    }


def _refusal(what: str) -> Callable[[_Unpickler], None]:
    def refuse(machine: _Unpickler) -> None:  # noqa: ARG001
        raise _Refused(what)

    return refuse


for _what, _names in _REFUSED.items():
    _Unpickler.dispatch |= {getattr(pickle, name)[0]: _refusal(_what) for name in _names}


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Return `value` with arrays in place of those in the making; each shared part is finished once."""
    if isinstance(value, _PLAIN) or type(value) is np.ndarray:
        return value
    if id(value) in done:
        if done[id(value)] is _UNDER_WAY:
            raise ValueError("a container holds itself")
        return done[id(value)]
    done[id(value)] = _UNDER_WAY
    match value:
        case _Array(numpy=np.ndarray()) | _Dtype():
            found = value.numpy
        case dict():
            found = {_finished(key, done): _finished(held, done) for key, held in value.items()}
        case list() | tuple() | set() | frozenset():
            found = type(value)(_finished(held, done) for held in value)
        case _Global():
            raise _Refused(f"the name {value.name}")
        case _:
            raise ValueError("an array has no content")
    done[id(value)] = found
    return found


_UNDER_WAY = object()
