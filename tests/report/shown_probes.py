"""What was measured of probes, and what they say, with known numbers: hostile text, an empty text, a long one, gaps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from headlens._result import Provenance
from headlens.probes.evaluation.metrics import Evaluation, evaluate
from headlens.probes.readings import SCHEMA, ProbeReadings
from tests.report.shown_results import HOSTILE, PLAIN

SITE = "blocks.1.hook_resid_post"
CLASSES = ("no", "<b>yes</b>")
THREE = ("a", "</script>", "\u202ec")
READABLE = tuple(token.encode("utf-8", "replace").decode() for token in HOSTILE)
TEXTS: tuple[tuple[str, ...], ...] = (
    PLAIN[1:],
    READABLE,
    (),
    (" one",),
    tuple(f" w{i}" for i in range(600)),
    ("line\n", "next\n", "שלום", " עולם"),
)
GAP = 3  # before this token of the first text stands one that the probe does not read
CUT = 4  # the text that goes on
REST = -0.4


def probe_of(**more) -> dict:
    """What `described` says of a probe."""
    said = {
        "kind": "Probe", "pooling": "attention", "n_heads": 2, "before": [], "after": [], "model": "zoo:llama-small",
        "site": SITE, "head": None, "classes": list(CLASSES), "threshold": 0.25, "calibration": None, "weights": "0f",
    }  # fmt: skip
    return said | more


def provenance(probe: dict | None, **data) -> Provenance:
    return Provenance((), {"probe": probe, **data} if probe else data, 0, "headlens probe fit", {"python": "3.11"})


def make_evaluation(seed: int = 0, *, n: int = 300, classes=CLASSES, apart: float = 1.5, **options: Any) -> Evaluation:
    """Scores of `n` documents of 1 to 200 tokens, whose classes are `apart` apart."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(classes), n)
    scores = rng.normal(size=(n, len(classes))) + apart * np.eye(len(classes))[codes]
    if len(classes) == 2:
        scores, options = scores[:, 1] - scores[:, 0], {"threshold": 0.5} | options
    probe = probe_of(classes=list(classes)) | options.pop("probe", {})
    came_from = provenance(probe, **options.pop("data", {}))
    settings: dict[str, Any] = {"lengths": rng.integers(1, 200, n), "draws": 60, "provenance": came_from} | options
    return evaluate(np.array(classes, dtype=object)[codes], scores, classes=classes, **settings)


def make_beside() -> dict:
    """Two baselines, as `judge` keeps them with an evaluation."""
    rows = [
        {"metric": m, "at": None, "value": v, "low": v - 0.1, "high": v + 0.1}
        for m, v in (("auroc", 0.5), ("f1", 0.25))
    ]
    return {"majority": rows, "<i>bag</i>": [{**row, "value": row["value"] + 0.125} for row in rows]}


def make_readings(seed: int = 1, *, texts=TEXTS, labelled: bool = True, **probe) -> ProbeReadings:
    """Contributions of every size and sign; scores are what they and the rest come to."""
    rng = np.random.default_rng(seed)
    said = probe_of(**probe)
    by_token, classes = said["pooling"] == "token", said["classes"]
    rows, attention = [], []
    for i, tokens in enumerate(texts):
        added = rng.normal(size=len(tokens)) * 10.0 ** -rng.integers(0, 3, len(tokens))
        taken = rng.uniform(-1 if said["pooling"] == "tanh" else 0, 1, (len(tokens), said["n_heads"]))
        own = _answer(REST + added.sum(), classes, said["threshold"], rng, labelled)
        spans = np.cumsum([0, *map(len, tokens)])
        for t, token in enumerate(tokens):
            skipped = 5 * (i == 0 and t >= GAP)
            place = {
                "document": i,
                "position": t,
                "token": token,
                "start": spans[t] + skipped,
                "end": spans[t + 1] + skipped,
            }
            answer = _answer(REST + added[t], classes, said["threshold"], rng, labelled) if by_token else own
            rows.append(place | {"contribution": added[t], "cut": i == CUT} | answer)
        if not tokens:
            rows.append({"document": i, "cut": False} | ({} if by_token else own))
        attention.append(taken if tokens else np.full((1, said["n_heads"]), np.nan))
    table = pa.Table.from_pylist(rows, SCHEMA)
    return ProbeReadings(provenance(said), table, np.concatenate(attention).astype(np.float32))


def _answer(score: float, classes, threshold: float, rng, labelled: bool) -> dict:
    answer = {"score": score, "rest": REST}
    if classes is None:
        return answer | {"prediction": f"{score:.6g}", "label": f"{rng.normal():.6g}" if labelled else None}
    k = 1 if len(classes) == 2 else int(rng.integers(len(classes)))
    says = int(score > threshold) if len(classes) == 2 else k
    label = classes[int(rng.integers(len(classes)))] if labelled and rng.uniform() < 0.8 else None
    chance = float(1 / (1 + np.exp(-score)))
    return answer | {"towards": classes[k], "prediction": classes[says], "probability": chance, "label": label}


def by_document(result: ProbeReadings) -> list[list[dict]]:
    """The rows of each text, with their attention."""
    found: dict[int, list[dict]] = {}
    for row, taken in zip(result.table.to_pylist(), result.attention, strict=True):
        found.setdefault(row["document"], []).append(row | {"attention": taken})
    return list(found.values())


def without(result: Evaluation, *metrics: str) -> Evaluation:
    """The evaluation as if these could not be told."""
    rows = [row if row["metric"] not in metrics else row | {"value": float("nan")} for row in result.table.to_pylist()]
    return replace(result, table=pa.Table.from_pylist(rows, result.table.schema))
