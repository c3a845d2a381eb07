"""Arrays and plain containers come back from a pickle as they went in; of anything else nothing is run."""

import collections
import contextlib
import copyreg
import datetime
import io
import itertools
import operator
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headlens import _unpickle
from headlens._errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
NUMBERS = ("b1", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16")


def load(content: bytes, folder: Path):
    path = folder / "some.pkl"
    path.write_bytes(content)
    return _unpickle.load(path)


def same(a, b) -> bool:
    """Equal in type, shape, dtype and value, NaN included."""
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


numbers = st.sampled_from([order + code for code in NUMBERS for order in "<>"]).map(np.dtype)
arrays = numbers.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
plain = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary() | numbers
)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.integers())
values = st.recursive(
    plain | arrays | arrays.map(np.asfortranarray) | arrays.map(np.transpose) | st.frozensets(keys) | st.sets(keys),
    lambda held: st.lists(held) | st.tuples(held, held) | st.dictionaries(keys, held),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(value=values, protocol=st.sampled_from(PROTOCOLS))
def test_numbers_arrays_and_containers_come_back_in_every_protocol(tmp_path_factory, value, protocol):
    assert same(load(pickle.dumps(value, protocol), tmp_path_factory.getbasetemp()), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", NUMBERS)
def test_scalars_come_back(tmp_path, protocol, kind):
    value = np.dtype(kind).type(1)
    assert same(load(pickle.dumps([value], protocol), tmp_path), [value])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_arrays_come_back_whatever_the_order_of_their_axes(tmp_path, protocol, axes):
    value = np.arange(24.0).reshape(2, 3, 4).transpose(axes)
    assert same(load(pickle.dumps(value, protocol), tmp_path), value)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_both_names_that_numpy_has_gone_by_are_read(tmp_path, module, protocol):
    value = {"array": np.arange(6, dtype="f4").reshape(2, 3), "scalar": np.float64(0.1)}
    content = pickle.dumps(value, protocol)
    old, new = b"numpy._core.", module.encode() + b"."
    if protocol >= 4:  # lengths stand before the names, and before the frame around all of them
        for name in (b"multiarray", b"numeric"):
            content = content.replace(
                struct.pack("<B", len(old + name)) + old + name, b"%c" % len(new + name) + new + name
            )
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    else:
        content = content.replace(old, new)
    assert module.encode() + b"." in content
    assert same(load(content, tmp_path), value)


def test_what_is_shared_stays_shared_and_is_read_once(tmp_path):
    array = np.arange(3.0)
    first, second = load(pickle.dumps([array, array]), tmp_path)
    assert first is second
    value: list = []
    for _ in range(60):  # 2 ** 60 leaves, were each path walked
        value = [value, value]
    found = load(pickle.dumps(value), tmp_path)
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert found == []


def test_arrays_are_read_only(tmp_path):
    array = load(pickle.dumps(np.arange(3.0), 4), tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


# --- hostile pickles --------------------------------------------------------------------------------------

MARKER = "headlens_unpickle_was_here"


class Call:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


class WithState:
    def __init__(self):
        self.x = 1


def _object_array(held) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = held
    return array


class ByPersistentId(pickle.Pickler):
    def persistent_id(self, obj):
        return ("evil", 1) if obj == "stand-in" else None


def _with_persistent_id(protocol: int) -> bytes:
    file = io.BytesIO()
    ByPersistentId(file, protocol).dump(["stand-in"]) if protocol else file.write(b"Pevil\n.")
    return file.getvalue()


SYSTEM = "nt.system" if os.name == "nt" else "posix.system"
TOUCH = f"import pathlib; pathlib.Path({MARKER!r}).touch()"
REFUSED = {
    "os.system": (Call(os.system, f"touch {MARKER}"), SYSTEM),
    "eval": (Call(eval, f"__import__('os').system('touch {MARKER}')"), "builtins.eval|__builtin__.eval"),
    "exec": (Call(exec, TOUCH), "builtins.exec|__builtin__.exec"),
    "a chain of getattr": (Call(getattr, Call(__import__, "os"), "system"), "getattr"),
    "import": (Call(__import__, "antigravity"), "__import__"),
    "an attribute getter": (Call(operator.attrgetter("system"), "os"), "operator.attrgetter"),
    "in a list": ([1, Call(os.system, f"touch {MARKER}")], SYSTEM),
    "as a key": ({(1, Call(os.system, f"touch {MARKER}")): 1}, SYSTEM),
    "in a set": ({Call(os.system, f"touch {MARKER}")}, SYSTEM),
    "in a dict of dicts": ({0: {0: {0: Call(os.system, f"touch {MARKER}")}}}, SYSTEM),
    "in an array of objects": (_object_array(Call(os.system, f"touch {MARKER}")), "dtype 'O8'|" + SYSTEM),
    "an array of objects": (_object_array(1), "dtype 'O8'"),
    "a structured array": (np.zeros(2, dtype=[("a", "f4"), ("b", "O")]), "dtype 'V12'"),
    "an array of text": (np.array(["a"]), "dtype 'U1'"),
    "an array of bytes": (np.array([b"a"]), "dtype 'S1'"),
    "an array of times": (np.array(["2020"], "M8[Y]"), "dtype 'M8'"),
    "a masked array": (np.ma.array([1.0]), "numpy.ma"),
    "a matrix": (np.zeros(2).view(np.recarray), "numpy.rec|numpy.records|recarray"),
    "an object": (WithState(), "WithState|_reconstructor"),
    "a class": (WithState, "WithState"),
    "a function": (len, "len"),
    "a named global that is admitted": ([np.ndarray], "the name numpy.ndarray"),
    "an ordered dict": (collections.OrderedDict(a=1), "collections.OrderedDict"),
    "a default dict": (collections.defaultdict(list), "collections.defaultdict"),
    "a date": (datetime.date(2020, 1, 1), "datetime.date"),
    "a path": (Path("a"), "pathlib"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, name, protocol):
    value, said = REFUSED[name]
    content = pickle.dumps(value, protocol)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"some.pkl holds .*({said}).*Nothing in it was run"):
        load(content, tmp_path)
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["os.system", "in an array of objects", "in a dict of dicts"])
def test_the_hostile_pickles_are_hostile(tmp_path, monkeypatch, name):
    """The same bytes do what they say where an ordinary unpickler reads them."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(REFUSED[name][0]))
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_ids_are_refused(tmp_path, protocol):
    with pytest.raises(DataError, match="a persistent id"):
        load(_with_persistent_id(protocol), tmp_path)


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x01\x01\x01"])
def test_extension_codes_are_refused_even_where_the_process_knows_them(tmp_path, monkeypatch, code):
    number = int.from_bytes(code[1:], "little")
    monkeypatch.setitem(copyreg._extension_cache, number, os.system)
    with pytest.raises(DataError, match="an extension code"):
        load(b"\x80\x02" + code + b"(X\x04\x00\x00\x00truetR.", tmp_path)


@pytest.mark.parametrize(
    ("program", "said"),
    {
        "a global by lines": (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        "an instance by lines": (b"(S'true'\nios\nsystem\n.", "os.system"),
        "an instance by lines, of an admitted name": (b"(inumpy\nndarray\n.", "numpy.ndarray"),
        "a class called": (b"(cos\nsystem\nS'true'\no.", "os.system"),
        "a global by two texts": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        "a dotted name of an admitted module": (b"\x80\x04\x8c\x05numpy\x8c\x0dcore.sys.exit\x93.", "numpy.core.sys.exit"),
        "a dotted name behind an admitted one": (
            b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__class__.x\x93.", "numpy.ndarray.__class__.x",
        ),
        "a new object of an admitted name": (b"\x80\x02cnumpy\nndarray\n)\x81.", "an object"),
        "a new object with keywords": (b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)}\x92.", "an object"),
        "an object of an admitted name": (b"(cnumpy\nndarray\no.", "an object"),
        "a call of a text": (b"\x80\x02X\x01\x00\x00\x00a)R.", "a call"),
        "a call of an admitted class that is none here": (b"\x80\x02cnumpy\nndarray\n)R.", "a call"),
        "a call without a tuple": (b"\x80\x02c_codecs\nencode\n]R.", "a call"),
        "a codec that is no bytes": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "encode"),
        "a state for an admitted name": (b"\x80\x02c_codecs\nencode\n}X\x04\x00\x00\x00nameK\x01sb.", "_Global with a state"),
        "a state for a dict": (b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "a dict with a state"),
        "an array of another type": (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nK\x00K\x00K\x00\x87R.", "a type of its own"),
        "a buffer from outside": (b"\x80\x05\x97.", "kept elsewhere"),
    }.values(),
    ids=str,
)  # fmt: skip
def test_programs_that_no_pickler_writes_are_refused(tmp_path, program, said):
    with pytest.raises(DataError, match=f"holds .*{said}"):
        load(program, tmp_path)


def array(state: bytes, dtype: bytes = b"f4", order: bytes = b"<", structure: bytes = b"NNN") -> bytes:
    """A program that makes an array and gives it `state`, in which DTYPE stands for a dtype and its state."""
    made = b"cnumpy\ndtype\nX" + struct.pack("<I", len(dtype)) + dtype + b"\x89\x88\x87R"
    made += b"(K\x03X\x01\x00\x00\x00" + order + structure + b"K\x08K\x01K\x00tb"
    start = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return start + state.replace(b"DTYPE", made) + b"b."


EIGHT = b"C\x08" + bytes(8)
ONE = b"(K\x01K\x01\x85DTYPE\x89" + EIGHT + b"t"
FORGED = {
    "more numbers than bytes": (array(b"(K\x01K\x03\x85DTYPE\x89" + EIGHT + b"t"), "cannot reshape"),
    "fewer numbers than bytes": (array(b"(K\x01K\x01\x85DTYPE\x89" + EIGHT + b"t"), "cannot reshape"),
    "a size that is guessed": (array(b"(K\x01J\xff\xff\xff\xff\x85DTYPE\x89" + EIGHT + b"t"), "no shape"),
    "2 ** 62 numbers": (array(b"(K\x01\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85DTYPE\x89" + EIGHT + b"t"), "reshape"),
    "no shape": (array(b"(K\x01NDTYPE\x89" + EIGHT + b"t"), "no shape"),
    "objects for bytes": (array(b"(K\x01K\x02\x85DTYPE\x89]K\x01aK\x02at"), "not the bytes of numbers"),
    "no dtype": (array(b"(K\x01K\x02\x85N\x89" + EIGHT + b"t"), "not the bytes of numbers"),
    "a dtype of objects": (array(ONE, b"O8"), "dtype 'O8'"),
    "a dtype of structures": (array(ONE, b"V8"), "dtype 'V8'"),
    "a dtype of two": (array(ONE, b"f4,f4"), "dtype 'f4,f4'"),
    "a dtype with a shape": (array(ONE, b"(2,)f4"), "dtype"),
    "a dtype with fields": (array(ONE, b"f8", structure=b"NX\x01\x00\x00\x00a\x85}"), "a structured dtype"),
    "a dtype with a part": (array(ONE, b"f8", structure=b"N\x85NN"), "a structured dtype"),
    "an order that swaps whatever it was": (array(ONE, b"f8", b"S"), "a structured dtype"),
    "no state": (b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.", "no content"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_arrays_are_refused(tmp_path, name):
    program, said = FORGED[name]
    with pytest.raises(DataError, match=f"some.pkl.*{said}"):
        load(program, tmp_path)


def test_the_forged_arrays_are_sound_but_for_what_is_forged(tmp_path):
    assert load(array(b"(K\x01K\x02\x85DTYPE\x89" + EIGHT + b"t"), tmp_path).tolist() == [0, 0]
    assert load(array(ONE, b"f8"), tmp_path).tolist() == [0]


BOMBS = {
    "8 GB of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33),
    "8 GB of a byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33),
    "4 GB of text": b"\x80\x02X" + struct.pack("<I", (1 << 32) - 1),
    "8 GB of a frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 33),
    "a memo of 4 billion": b"\x80\x02]r" + struct.pack("<I", (1 << 32) - 1) + b".",
    "a size for bytes": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "2 ** 31 by 2 ** 31 numbers": b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86C\x01b\x87R.",
}  # fmt: skip
LIMITED = """
import resource, sys
from headlens import _unpickle
from headlens._errors import DataError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for path in sys.argv[1:]:
    try:
        print(type(_unpickle.load(path)).__name__)
    except DataError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know what a process uses")
def test_no_promise_of_size_is_believed(tmp_path):
    """With room for 256 MB more, files of a few bytes that promise gigabytes are refused for what they are."""
    paths = []
    for i, content in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{i}.pkl")
        paths[-1].write_bytes(content)
    run = subprocess.run([sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, check=True)
    said = dict(zip(BOMBS, run.stdout.splitlines(), strict=True))
    assert said.pop("a memo of 4 billion") == "list"  # an index into a dict: harmless
    for name, message in said.items():
        assert any(reason in message for reason in ("ends in the middle", "make no sense", "no content")), name
        assert "memory" not in message, name


# --- damaged files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_an_error(tmp_path, protocol):
    content = pickle.dumps({0: {1: np.arange(4, dtype="f4"), 2: np.float32(1)}}, protocol)
    for end in range(len(content)):
        with pytest.raises(DataError, match="not a pickle, or a damaged one"):
            load(content[:end], tmp_path)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\x80\x04" + b + b"."))
def test_no_bytes_lead_to_another_error(tmp_path_factory, content):
    with contextlib.suppress(DataError):
        load(content, tmp_path_factory.getbasetemp())


@settings(max_examples=200, deadline=None)
@given(data=st.data(), protocol=st.sampled_from(PROTOCOLS))
def test_no_changed_byte_leads_to_another_error(tmp_path_factory, data, protocol):
    content = bytearray(pickle.dumps({0: {1: np.arange(4, dtype="f4"), 2: [np.float32(1), b"", "x"]}}, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        load(bytes(content), tmp_path_factory.getbasetemp())


def test_a_container_that_holds_itself_and_one_too_deep_are_refused(tmp_path):
    ring: list = []
    ring.append(ring)
    with pytest.raises(DataError, match="holds itself"):
        load(pickle.dumps(ring), tmp_path)
    with pytest.raises(DataError, match="damaged"):
        load(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", tmp_path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(DataError, match="There is no file at .*none.pkl"):
        _unpickle.load(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="could not be read: Is a directory"):
        _unpickle.load(tmp_path)
    with pytest.raises(DataError, match="not a pickle"):
        load(b'{"metadata": {}}', tmp_path)
    with pytest.raises(DataError, match="ends in the middle"):
        load(b"", tmp_path)
