"""What people type. Only this folder prints, parses arguments, or picks a device.

Exit status: 0 done; 1 a check did not pass; 2 the input or an option is wrong; 130 interrupted.
torch and transformers are imported inside commands, so that --help answers at once.
"""

import io
import os
import sys
import tomllib
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError
from cyclopts.config import Toml

from headlens import __version__
from headlens._errors import ConfigError, HeadlensError
from headlens.cli import _console
from headlens.cli._common import ARGUMENTS
from headlens.cli.capture import capture
from headlens.cli.demo import demo
from headlens.cli.fra import fra
from headlens.cli.heads import heads
from headlens.cli.probe import probe
from headlens.cli.report import report
from headlens.cli.rules import rules
from headlens.cli.sae import sae
from headlens.cli.universe import universe
from headlens.cli.verify import verify
from headlens.cli.world import world
from headlens.cli.zoo import zoo

HELP = """What attention heads do, with figures that can be trusted.

A model is a folder, a hub id (gpt2, Qwen/Qwen3-4B) or a model that ships with headlens (zoo:llama-small).
Options may also stand in ./headlens.toml, one table per command: `[heads]`, `seed = 1`.

Start with:

    headlens demo                            a tour of the shipped models
    headlens verify gpt2                     are its heads read right?
    headlens heads gpt2 --report out.html    what does each of them do?
"""

CONFIG = "headlens.toml"

app = App(
    name="headlens",
    help=HELP,
    help_format="markdown",
    version=__version__,
    suppress_keyboard_interrupt=False,  # `run` has something to say
    console=_console.out,
    config=Toml(CONFIG, must_exist=False),
)
for command in (demo, verify, heads, fra, rules, sae, capture, probe, universe, report, world, zoo):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show is no error
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; whatever goes wrong becomes one sentence."""
    ARGUMENTS.set(tuple(arguments))
    try:
        _check_config()
        status = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value") or 0
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
        return status
    except KeyboardInterrupt:
        _console.fail("Interrupted; nothing half-written was left behind.")
        return 130
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone, e.g. `| head`
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _drop_output()
        if "--debug" in arguments:
            traceback.print_exc()
        _console.fail(_sentence(error))
        return 2


def _sentence(error: Exception) -> str:
    """Return what to tell a person about `error`."""
    if isinstance(error, (HeadlensError, CycloptsError)):
        return str(error).strip() or type(error).__name__
    if isinstance(error, OSError):
        return f"{error.filename or 'The output'} could not be read or written: {error.strerror or error}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own is no MemoryError
        return "There is not enough memory: use a smaller model or --dtype, or a lower --num-samples."
    return f"{type(error).__name__}: {error} This is a fault of headlens: --debug shows where."


def _drop_output() -> None:
    """Let what is still buffered for stdout go nowhere: it must not fail again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_config() -> None:
    """Raise where `CONFIG` would be ignored: cyclopts checks the options in a command's table, and nothing else.

    Raises
    ------
    ConfigError
        If the file is not TOML, or holds anything but one table per command.
    """
    path = Path(CONFIG)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{CONFIG} cannot be read as TOML: {error}. Repair or remove it.") from error
    commands = [command.__name__ for command in (demo, verify, heads, rules, capture, report, world)]
    commands += [*fra.name, *sae.name, *probe.name, *universe.name]
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{CONFIG} has '{name}' outside a table: put it under [{'] or ['.join(commands)}].")
        if name not in commands:
            raise ConfigError(f"{CONFIG} has a table [{name}], and its tables are [{'], ['.join(commands)}].")
