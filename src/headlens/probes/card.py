"""What has to go with a probe so that others can rely on it? A folder with its weights and a card.

    probe.safetensors    its weights, and whatever else it learned that is an array
    probe.json           the card: what was fitted, on activations of which model, site, tokens and data; its threshold,
                         calibration and the documents they were chosen on; metrics with intervals; seeds; versions

A probe that was loaded refuses activations of another model or site, as the fitted one does. Nothing is pickled, and
the card holds the digest of the weights, so that the two cannot come apart.

    threshold       log-odds above which the second of two classes is said, chosen at an FPR of at most a target
    calibration     what makes log-odds of what the probe says; `predict_proba` uses it, the threshold is on raw scores

Axes: document, class.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from headlens._errors import DataError, ResultError, StoreMismatch
from headlens._files import whole_folder
from headlens._result import versions
from headlens.probes.evaluation.calibrate import Platt, Temperature, from_parameters
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.evaluation.roc import coded, threshold_at_fpr
from headlens.probes.targets import packed_labels

CARD, WEIGHTS = "probe.json", "probe.safetensors"
FORMAT = 1

_SAME = ("revision", "tokenizer", "bos", "site", "head", "token_mask")
"""What must agree between the activations that a probe was fitted to and those that it reads, beside the model."""


class Kept(BaseEstimator):
    """What every probe of documents can do once it is fitted: set a threshold, be calibrated, saved and loaded."""

    kinds: ClassVar[dict[str, type["Kept"]]] = {}
    threshold_: float = 0.0
    """Log-odds above which `predict` says the second of two classes."""
    threshold_set_: Mapping[str, Any] | None = None
    """How the threshold was chosen, and on which documents; None: it was not."""
    calibration_: Temperature | Platt | None = None
    calibration_set_: Mapping[str, Any] | None = None
    source_: Mapping[str, Any] | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__name__.startswith("_"):
            Kept.kinds[cls.__name__] = cls

    def _begin(self, source: Mapping[str, Any] | None) -> None:
        """Forget what was set on an earlier fit, and remember where the rows of this one came from."""
        self.source_ = None if source is None else dict(source)
        self.threshold_, self.threshold_set_ = 0.0, None
        self.calibration_, self.calibration_set_ = None, None

    def choose_threshold(
        self, X: Any, y: Any, *, fpr: float = 0.01, on: str = "", mask: Any = None, site: str | None = None
    ) -> "Kept":
        """Set the threshold to the lowest that at most a share `fpr` of documents of the first class exceeds.

        `on` names the documents: they should be others than those the probe was fitted to. Documents of the first class
        alone will do.

        Raises
        ------
        DataError
            If the probe has not two classes, there is no document of the first, or a label is neither.
        """
        self._check_two("A threshold")
        if not 0 <= fpr < 1:
            raise DataError(f"fpr must be at least 0 and less than 1, not {fpr}.")
        scores, codes = self._scored(X, y, mask, site)
        self.threshold_ = threshold_at_fpr(codes, scores, fpr)
        self.threshold_set_ = {"fpr": fpr, "on": on, **_documents(codes, scores)}
        return self

    def calibrate(
        self, X: Any, y: Any, *, kind: Literal["temperature", "platt"] = "temperature", on: str = "", mask: Any = None,
        site: str | None = None,
    ) -> "Kept":  # fmt: skip
        """Fit what makes log-odds of the probe's scores, on other documents than it was fitted to.

        Raises
        ------
        DataError
            If the probe is not of classes, a label is not one of them, or `kind` is "platt" and there are not two.
        """
        check_is_fitted(self)
        if not hasattr(self, "classes_"):
            raise DataError("Calibration is for probes of classes: this one has none.")
        if kind not in ("temperature", "platt"):
            raise DataError(f"kind must be temperature or platt, not {kind!r}.")
        scores, codes = self._scored(X, y, mask, site)
        self.calibration_ = (Temperature() if kind == "temperature" else Platt()).fit(scores, codes)
        self.calibration_set_ = {"on": on, **_documents(codes, scores)}
        return self

    def calibrated(self, scores: np.ndarray) -> np.ndarray:
        """Return scores as log-odds, as far as the probe has been calibrated."""
        return scores if self.calibration_ is None else self.calibration_.transform(scores)

    def save(self, path: str | Path, *, evaluation: Evaluation | None = None, notes: str = "") -> Path:
        """Write the probe and its card to the folder `path`, whole or not at all, and return it.

        Raises
        ------
        ResultError
            If `path` holds something other than a saved probe; it is not overwritten.
        OutputError
            If the folder cannot be written.
        """
        check_is_fitted(self)
        path = Path(path)
        check_probe_target(path)
        learned, arrays = self._learned()
        weights = save_arrays(arrays)
        card = {
            "type": type(self).__name__, "format": FORMAT, "parameters": _plain(self.get_params(), "parameters"),
            "learned": learned, "source": self.source_, "threshold": _said(self.threshold_, self.threshold_set_),
            "calibration": None if self.calibration_ is None else _said(
                self.calibration_.parameters(), self.calibration_set_
            ),
            "metrics": None if evaluation is None else evaluation.table.to_pylist(),
            "evaluated": None if evaluation is None else evaluation.provenance.data,
            "seeds": {name: value for name, value in self.get_params().items() if name.endswith("seed")},
            "weights": hashlib.sha256(weights).hexdigest(), "notes": notes, "versions": versions(),
        }  # fmt: skip
        said = json.dumps(_plain(card, "card"), indent=1, ensure_ascii=True)
        with whole_folder(path) as folder:
            (folder / WEIGHTS).write_bytes(weights)
            (folder / CARD).write_text(said + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Any:
        """Read back what `save` wrote.

        Raises
        ------
        ResultError
            If `path` holds no probe, a damaged one, or one of another type or format.
        """
        path = Path(path)
        card = read_card(path)
        kind = cls.kinds.get(card["type"])
        if kind is None or not issubclass(kind, cls):
            raise ResultError(
                f"{path} holds a {card['type']}, not a {cls.__name__}: call headlens.probes.load instead."
            )
        try:
            weights = (path / WEIGHTS).read_bytes()
            if hashlib.sha256(weights).hexdigest() != card["weights"]:
                raise ValueError(f"{WEIGHTS} is not the file that the card was written with")
            probe = kind(**_revived(card["parameters"]))
            probe._restore(card, load_arrays(weights))
        except Exception as error:  # whatever a reader of damaged bytes can raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ResultError(f"{path} is damaged ({reason}): save the probe again.") from error
        return probe

    # --- what a kind of probe may say otherwise ---

    def _learned(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What was learned, as plain values and as arrays."""
        elsewhere = {*self.get_params(), "source_", "threshold_", "threshold_set_"}
        plain, arrays = {}, {}
        for name, value in vars(self).items():
            if name in elsewhere or name.startswith("calibration_"):
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                arrays[name] = np.ascontiguousarray(value)
            else:
                plain[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        return plain, arrays

    def _restore(self, card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        for name, value in {**card["learned"], **arrays}.items():
            setattr(self, name, np.array(value) if isinstance(value, list) else value)
        self.source_ = card["source"]
        self.threshold_, self.threshold_set_ = card["threshold"]["value"], card["threshold"]["set"]
        if card["calibration"] is not None:
            self.calibration_ = from_parameters(card["calibration"]["value"])
            self.calibration_set_ = card["calibration"]["set"]

    def _scored(self, X: Any, y: Any, mask: Any, site: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of what has a label, documents or with the pooling "token" rows, and its class's number."""
        scores = self.decision_function(X, mask=mask, site=site)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(scores, list):
            labels = packed_labels(y, np.array([len(one) for one in scores]))
            known = np.array([one is not None and one == one for one in labels.tolist()], dtype=bool)
            scores, y = np.concatenate(scores)[known], labels[known]
        return scores, coded(y, self.classes_.tolist(), len(scores))  # pyright: ignore[reportAttributeAccessIssue]

    def _check_two(self, what: str) -> None:
        check_is_fitted(self)
        if len(getattr(self, "classes_", ())) != 2:
            raise DataError(f"{what} is for probes of two classes.")


def load(path: str | Path) -> Any:
    """Read back a probe of any kind.

    Raises
    ------
    ResultError
        If `path` holds no probe, or a damaged one.
    """
    return Kept.load(path)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return a saved probe's card.

    Raises
    ------
    ResultError
        If there is none, it cannot be read, or it is of another format.
    """
    path = Path(path)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ResultError(f"{path} holds no probe: there is no {CARD} in it.") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path / CARD} cannot be read ({error}): save the probe again.") from error
    if not isinstance(card, dict) or not {"type", "format", "weights", "learned"} <= card.keys():
        raise ResultError(f"{path / CARD} is not the card of a headlens probe.")
    if card["format"] != FORMAT:
        raise ResultError(f"{path} has format {card['format']} and this version reads {FORMAT}: save the probe again.")
    return card


def check_probe_target(path: Path) -> None:
    """Raise if saving a probe at `path` would destroy something that `save` did not write.

    Raises
    ------
    ResultError
        If `path` is a file, or a folder that holds anything but a saved probe.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if not path.is_dir() or CARD not in names or names - {CARD, WEIGHTS}:
        raise ResultError(f"{path} exists and is not a saved probe: name another folder.")
    read_card(path)


def same_source(fitted: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> None:
    """Raise if activations come from another model or site than those a probe was fitted to.

    Models are told apart by their weights where both are known, for one model may lie at many paths; else by name.

    Raises
    ------
    StoreMismatch
        Naming the first thing that differs.
    """
    if fitted is None or given is None:
        return
    if fitted.get("weights") is not None and given.get("weights") is not None:
        differ = fitted["weights"] != given["weights"]
    else:
        differ = None not in (fitted.get("model"), given.get("model")) and fitted["model"] != given["model"]
    if differ:
        raise StoreMismatch(
            f"This probe was fitted to the model {fitted.get('model')} and X comes from {given.get('model')}, whose "
            "weights are others: capture the first, or fit again."
        )
    for name in _SAME:
        if name in fitted and name in given and fitted[name] != given[name]:
            raise StoreMismatch(
                f"This probe was fitted to activations with {name} {fitted[name]} and X has {name} {given[name]}: "
                "capture them alike, or fit again."
            )


def _said(value: Any, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"value": value, "set": chosen}


def _documents(codes: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """What tells one set of documents from another: how many, and a digest of their labels and scores."""
    digest = hashlib.sha256(np.ascontiguousarray(codes, "<i8").tobytes())
    digest.update(np.ascontiguousarray(scores, "<f8").tobytes())
    return {"n": len(codes), "hash": digest.hexdigest()[:16]}


def _plain(value: Any, where: str) -> Any:
    """Return a value as JSON has it; mappings from other things than text become lists of pairs."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(one, f"{where}.{key}") for key, one in value.items()}
        return {"pairs": [[_plain(key, where), _plain(one, where)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(one, where) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # what could not be told; JSON has no word for it
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DataError(f"A probe whose {where} is a {type(value).__name__} cannot be saved.")


def _revived(parameters: Mapping[str, Any]) -> dict[str, Any]:
    def back(value: Any) -> Any:
        if isinstance(value, Mapping) and set(value) == {"pairs"}:
            return dict(map(tuple, value["pairs"]))
        return tuple(value) if isinstance(value, list) else value

    return {name: back(value) for name, value in parameters.items()}
