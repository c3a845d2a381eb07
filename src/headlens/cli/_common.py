"""Options that every command shares, and the device they run on."""

import logging
import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

COMMON = Group("Common options", sort_key=9)

ARGUMENTS: ContextVar[Sequence[str]] = ContextVar("arguments", default=())
"""What was typed after `headlens`."""

# Below 2**63, which is what torch takes.
Seed = Annotated[int, Parameter(group=COMMON, help="Seed of everything random.", validator=Number(gte=0, lt=2**63))]
Device = Annotated[str, Parameter(group=COMMON, help="cpu, cuda, cuda:1, mps; auto takes the best there is.")]
Dtype = Annotated[
    Literal["float32", "float64", "float16", "bfloat16", "auto"],
    Parameter(group=COMMON, help="Precision to load weights in; auto keeps the checkpoint's."),
]
Revision = Annotated[str | None, Parameter(group=COMMON, help="Branch, tag or commit on the hub.")]
Json = Annotated[bool, Parameter(name="--json", negative="", group=COMMON, help="Print the answer as JSON.")]
Quiet = Annotated[bool, Parameter(negative="", group=COMMON, help="No progress, no notes; answers and errors only.")]
Debug = Annotated[bool, Parameter(negative="", group=COMMON, help="Show the traceback of an error.")]


def pick_device(device: str) -> str:
    """Return the device that `auto` means here.

    Raises
    ------
    ModelError
        If the device named does not exist on this machine.
    """
    import torch

    from headlens._errors import ModelError

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ModelError(f"Device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    if kind == "meta":
        raise ModelError("Device 'meta' holds no numbers: name cpu, cuda, mps or auto.")
    return device


def check_page(page: Path | None, *folders: Path | None) -> None:
    """Raise now if a page cannot be written, or would stand in a folder that holds nothing but a result.

    Raises
    ------
    OutputError
    """
    from headlens._errors import OutputError
    from headlens._files import check_file_target

    if page is None:
        return
    check_file_target(page)
    for folder in folders:
        if folder is not None and page.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                f"The page {page} would lie in {folder}, which holds nothing but a result: put it beside it."
            )


def quieten_transformers() -> None:
    """Keep transformers' own bars and warnings out of our output; its errors reach the user as ours."""
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def with_command(result: Any) -> Any:
    """Return `result` with the command line in its provenance."""
    command = shlex.join(["headlens", *ARGUMENTS.get()])
    return replace(result, provenance=replace(result.provenance, command=command))
