"""Small trained models that ship with the package, and the code that trained them.

Each is an ordinary `save_pretrained` folder: `hl.load("zoo:llama-small")`, or
`AutoModelForCausalLM.from_pretrained(headlens.zoo.path("llama-small"))`. Its README.md says how it was made
and what it was measured to contain.
"""

from pathlib import Path

from headlens._errors import ModelNotFound

_MODELS = Path(__file__).parent / "models"


def names() -> tuple[str, ...]:
    """Names of the shipped models, sorted; `zoo:NAME` loads one."""
    return tuple(sorted(config.parent.name for config in _MODELS.glob("*/config.json")))


def path(name: str) -> Path:
    """Folder of the shipped model `name`.

    Raises
    ------
    ModelNotFound
        If no such model ships with this version.
    """
    if name not in names():
        raise ModelNotFound(f"The zoo has no model {name!r}; it has: {', '.join(names())}.")
    return _MODELS / name
