"""What people type. Only this folder prints, parses arguments, or picks a device.

Exit status: 0 done; 1 a check did not pass; 2 the input or an option is wrong; 130 interrupted.
torch and transformers are imported inside commands, so that --help answers at once.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.config import Toml

from headlens import __version__
from headlens._errors import HeadlensError
from headlens.cli import _console
from headlens.cli.demo import demo
from headlens.cli.heads import heads
from headlens.cli.verify import verify
from headlens.cli.zoo import zoo

HELP = """What attention heads do, with figures that can be trusted.

A model is a folder, a hub id (gpt2, Qwen/Qwen3-4B) or a model that ships with headlens (zoo:llama-small).
Options may also stand in ./headlens.toml, one table per command: `[heads]`, `seed = 1`.

Start with:

    headlens demo                            a tour of the shipped models
    headlens verify gpt2                     are its heads read right?
    headlens heads gpt2 --report out.html    what does each of them do?
"""

app = App(
    name="headlens",
    help=HELP,
    help_format="markdown",
    version=__version__,
    config=Toml("headlens.toml", must_exist=False),
)
for command in (demo, verify, heads, zoo):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; errors meant for people become one sentence."""
    debug = "--debug" in arguments
    try:
        return app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value") or 0
    except CycloptsError as error:
        _console.fail(str(error).strip() or type(error).__name__)
        return 2
    except HeadlensError as error:
        if debug:
            raise
        _console.fail(str(error))
        return 2
    except KeyboardInterrupt:
        _console.fail("Interrupted; nothing half-written was left behind.")
        return 130
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # whoever read our output has gone, e.g. `| head`
        return 0
    except Exception as error:
        if debug:
            raise
        _console.fail(f"{type(error).__name__}: {error} This is a fault of headlens: --debug shows where.")
        return 2
