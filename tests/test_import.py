"""Importing does nothing: no heavy package, no environment, no global state; `--help` answers without torch."""

import json
import os
import subprocess
import sys

import pytest

import headlens

HEAVY = ("torch", "transformers", "tokenizers", "pyarrow", "numpy", "sklearn", "duckdb", "safetensors")


def fresh(script: str, *arguments: str) -> dict:
    """Run a script in a new Python and return what it prints last.

    It inherits only what Python needs: this process has imported headlens, and might have changed the rest.
    """
    needed = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
    environment = {name: os.environ[name] for name in needed if name in os.environ}
    program = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


LOADED = "import json, sys; print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"


def test_import_loads_nothing_heavy():
    assert not set(HEAVY) & set(fresh(f"import headlens; {LOADED}"))


def test_the_probe_would_see_a_heavy_import():
    assert "numpy" in fresh(f"import headlens.data; {LOADED}")


HELP = """
import sys
from headlens.cli import run
assert run(sys.argv[1:]) == 0
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["heads", "--help"],
        ["verify", "--help"],
        ["demo", "--help"],
        ["zoo", "--help"],
        ["capture", "--help"],
        ["probe", "--help"],
        ["probe", "fit", "--help"],
        [],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments):
    assert not {"torch", "transformers", "pyarrow"} & set(fresh(HELP + LOADED, *arguments))


STATE = """
import json, os, random, signal, sys, warnings
import numpy, sklearn, torch  # sklearn sets two options of OpenMP

def state():
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "random": repr(random.getstate()),
        "numpy random": repr(numpy.random.get_state()), "numpy errors": repr(numpy.geterr()),
        "torch random": torch.get_rng_state().tolist(), "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(), "warnings": repr(warnings.filters),
        "signal": repr(signal.getsignal(signal.SIGINT)), "hook": repr(sys.excepthook),
    }

def changed(before, after):
    return [name for name in before if before[name] != after[name]]

first = state()
import headlens
second = state()
import transformers
third = state()
import headlens.data, headlens.models, headlens.tracing, headlens.heads, headlens.report, headlens.cli
fourth = state()
torch.manual_seed(1); os.environ["X"] = "1"
print(json.dumps([changed(first, second), changed(third, fourth), changed(fourth, state())]))
"""


def test_importing_changes_no_global_state():
    package, folders, on_purpose = fresh(STATE)
    assert package == []
    # transformers imports the rest of itself when its names are first used, and draws and filters as it does.
    assert not set(folders) - {"random", "warnings"}
    assert on_purpose == ["environment", "torch random"]  # the probe sees a change


def test_every_public_name_is_there():
    for name in headlens.__all__:
        assert getattr(headlens, name) is not None
    assert set(headlens.__all__) <= set(dir(headlens))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        headlens.nothing  # noqa: B018
