"""What does an experiment file say? Which models, data and probes are to be compared.

    [models.NAME]    model, sites, layers, ...: what is captured
    [data.NAME]      source, field, label_field, ...: what is asked
    [sweep]          poolings, heads, penalties, seeds, ...: what is tried, as in `sweep`
    [sets.NAME]      models, data, sweep: some of these under a name, with options of their own; none: all of them

Every option is checked when the file is read; a name that there is not is refused. `pieces.py` does the work.
"""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headlens._errors import ConfigError, MissingExtra
from headlens.probes.sweep import PENALTIES
from headlens.probes.training.pooling import POOLINGS

Control = Literal["permuted_labels", "control_task"]
_AtLeastOne = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


_T = TypeVar("_T")
_Some = Annotated[list[_T], Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelTable(_Table):
    """A model, and what of it is captured."""

    model: str
    sites: list[str] = ["blocks.*.hook_resid_post"]
    layers: list[int] | None = None
    """What * stands for; None: all, -1: the last."""
    revision: str | None = None
    dtype: Literal["float32", "float64", "float16", "bfloat16", "auto"] = "float32"
    store_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    max_tokens: _AtLeastOne | None = None
    template_tokens: Literal["keep", "drop"] = "keep"
    batch_tokens: _AtLeastOne = 8192
    shard_mb: _AtLeastOne = 256


class DataTable(_Table):
    """Labelled documents, as `read_labelled` takes them."""

    source: str
    field: str = "text"
    label_field: str = "label"
    split_field: str | None = None
    group_field: str | None = None
    split: str | None = None
    positive: str | None = None
    limit: _AtLeastOne | None = None


class SweepTable(_Table):
    """What is tried at every site, as `sweep` takes it."""

    poolings: _Some[str] = ["mean", "last", "attention"]
    heads: _Some[_AtLeastOne] = [1, 2, 4, 8]
    penalties: _Some[_NotNegative] = list(PENALTIES)
    seeds: _Some[int] = [0]
    folds: Annotated[int, Field(ge=3)] | None = None
    """None: the data's own train and test documents, where it has them; else 5."""
    optimizers: _Some[Literal["adamw", "lbfgs"]] = ["adamw"]
    controls: list[Control] = ["permuted_labels", "control_task"]
    """Labels of nothing that the same probes are trained on, with the first of the seeds."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    steps: _AtLeastOne = 1000
    batch: _AtLeastOne = 256
    patience: _AtLeastOne = 20
    tolerance: _NotNegative = 1e-5
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("poolings")
    @classmethod
    def _there_are_such(cls, poolings: list[str]) -> list[str]:
        offered = [name for name in POOLINGS if name != "token"]
        for name in poolings:
            if name not in offered:
                raise ValueError(f"'{name}' is no pooling of documents{meant(name, offered)}")
        return poolings


class SetTable(_Table):
    """Some of the models and data, and options that are other than in [sweep]."""

    models: list[str] | None = None
    data: list[str] | None = None
    sweep: dict[str, Any] = {}


class Experiment(_Table):
    """What a file says."""

    models: dict[str, ModelTable]
    data: dict[str, DataTable]
    sweep: SweepTable = SweepTable()
    sets: dict[str, SetTable] = {}

    @field_validator("models", "data", "sets")
    @classmethod
    def _names_make_folders(cls, tables: dict[str, Any]) -> dict[str, Any]:
        for name in tables:
            if not name or name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
                raise ValueError(f"the name '{name}' must be of letters, digits and . _ -, to name a folder")
        return tables

    @field_validator("models")
    @classmethod
    def _texts_have_a_folder(cls, models: dict[str, ModelTable]) -> dict[str, ModelTable]:
        if "texts" in models:
            raise ValueError("a model must not be named 'texts': what needs no model goes by that")
        return models


# --- reading ----------------------------------------------------------------------------------------------


def read_experiment(path: str | Path) -> Experiment:
    """Return what a .toml or .yaml file says; its paths go from the folder that it lies in.

    Raises
    ------
    ConfigError
        If it cannot be read, has a key that there is not, lacks one, or names a model or data set that it has not.
    MissingExtra
        If it is YAML and PyYAML is not installed.
    """
    path = Path(path)
    said = _checked(Experiment, _parsed(path), path)
    for name, own in said.sets.items():
        _checked(SweepTable, {**said.sweep.model_dump(), **own.sweep}, path, ("sets", name, "sweep"))
        for kind, there in (("models", said.models), ("data", said.data)):
            if unknown := [one for one in getattr(own, kind) or [] if one not in there]:
                raise ConfigError(
                    f"{path}: [sets.{name}] names '{unknown[0]}', and {kind} are {', '.join(there)}"
                    f"{meant(unknown[0], there)}."
                )
    models = {name: one.model_copy(update={"model": _model(path, one.model)}) for name, one in said.models.items()}
    data = {name: one.model_copy(update={"source": _data(path, one.source)}) for name, one in said.data.items()}
    return said.model_copy(update={"models": models, "data": data})


def _checked(kind: type[Any], said: Any, path: Path, at: tuple[str, ...] = ()) -> Any:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        *tables, key = (*at, *map(str, first["loc"])) or ("",)
        table = f"[{'.'.join(tables)}]" if tables else "the file"
        if first["type"] == "extra_forbidden":
            sentence = f"{table} has '{key}', which is no option there{meant(key, _options(kind, tables))}"
        elif first["type"] == "missing":
            sentence = f"{table} has no '{key}'"
        else:
            place = f"'{key}' in {table}: " if key else ""
            sentence = f"{place}{first['msg'].removeprefix('Value error, ').lower()}"
        raise ConfigError(f"{path}: {sentence}.") from error


def meant(name: str, there: Iterable[str]) -> str:
    """Return a question that names what a mistyped name is most like; nothing where it is like none."""
    close = get_close_matches(name, there, 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _options(kind: type[BaseModel], tables: list[str]) -> Iterable[str]:
    of = {"models": ModelTable, "data": DataTable, "sweep": SweepTable, "sets": SetTable}
    return (of[tables[0]] if tables and kind is Experiment else kind).model_fields


def _parsed(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"{path} ends in '{path.suffix}', and an experiment is a .toml or a .yaml file.")
        return _yaml(text)
    except FileNotFoundError:
        raise ConfigError(f"There is no experiment file {path}.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra("YAML files need PyYAML: pip install pyyaml, or write the experiment as .toml.") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _model(path: Path, model: str) -> str:
    return str(path.parent / model) if (path.parent / model).is_dir() else model


def _data(path: Path, source: str) -> str:
    return source if source.startswith("hf:") else str(path.parent / source)
