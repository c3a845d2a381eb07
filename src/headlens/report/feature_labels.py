"""What results about features share on a page: the names of their models, and labels of their dictionaries."""

from collections.abc import Sequence

from headlens._result import Result
from headlens.fra.labels import FeatureLabels
from headlens.report.plain import short_names

LONGEST_LABEL = 160
"""Characters."""


def model_names(results: Sequence[Result]) -> list[str]:
    """Return a short name of each result's model, the same for the same model."""
    models = [str(one.provenance.models[0]["name"]) if one.provenance.models else "a model" for one in results]
    distinct = list(dict.fromkeys(models))
    short = dict(zip(distinct, short_names(distinct), strict=True))
    return [short[model] for model in models]


def labels_of(result: Result, labels: Sequence[FeatureLabels]) -> FeatureLabels | None:
    """Labels that are of this dictionary, or do not say of which; the first counts where two label one feature."""
    own = result.provenance.data.get("dictionary", {}).get("digest")
    chosen: FeatureLabels | None = None
    for one in labels:
        if one.provenance.data.get("dictionary", {}).get("digest", own) == own:
            chosen = one if chosen is None else chosen.filled(one)
    return chosen
