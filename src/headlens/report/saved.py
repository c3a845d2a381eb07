"""Which results does a folder hold? Read back whatever a page can show.

A folder is a saved result, or holds some, such as what `headlens rules --output-dir` keeps.
"""

from pathlib import Path

from headlens._errors import ResultError
from headlens._result import MANIFEST, Result, read_manifest
from headlens.fra.attention import FeatureAttention
from headlens.fra.conceptual.found import ConceptualInduction
from headlens.fra.labels import FeatureLabels
from headlens.heads.atlas import HeadAtlas
from headlens.heads.circuit_tokens import HeadCircuits
from headlens.heads.patterns import AttentionPatterns
from headlens.heads.scores import HeadScores
from headlens.probes.evaluation.metrics import Evaluation
from headlens.probes.readings import ProbeReadings
from headlens.rules.results import Rules
from headlens.universe.embed import HeadUniverse
from headlens.universe.tables import UniverseStudy

SHOWN: tuple[type[Result], ...] = (
    HeadAtlas, HeadScores, AttentionPatterns, HeadCircuits, FeatureAttention, FeatureLabels, ConceptualInduction, Rules,
    HeadUniverse, UniverseStudy, Evaluation, ProbeReadings,
)  # fmt: skip
"""Types of results that a page shows."""


def read_results(path: str | Path) -> list[Result]:
    """Return the result that a folder is, or those that it holds, by name.

    Raises
    ------
    ResultError
        If there is none, one is damaged, or no page shows its type.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or not path.is_dir():
        return [_read(path)]
    inside = sorted(one.parent for one in path.glob(f"*/{MANIFEST}"))
    if not inside:
        raise ResultError(f"{path} holds no saved result: name a folder that --out, --save or --output-dir made.")
    return [_read(one) for one in inside]


def _read(path: Path) -> Result:
    kinds = {kind.__name__: kind for kind in SHOWN}
    kind = read_manifest(path)["type"]
    if kind not in kinds:
        raise ResultError(f"{path} holds a {kind}, which no page shows; pages show {', '.join(kinds)}.")
    return kinds[kind].load(path)
