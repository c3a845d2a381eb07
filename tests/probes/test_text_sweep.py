"""What needs no model is judged by the same documents as the probes, and stands beside them."""

import numpy as np
import pytest

from headlens._errors import DataError
from headlens.data.labelled import Labelled
from headlens.probes.evaluation.baselines import BagOfWords, RandomDirection
from headlens.probes.experiments.text_sweep import RIVALS, beside, sweep_direction, sweep_texts
from headlens.probes.sweep import sweep
from headlens.store.rows import as_rows

QUICK = {"poolings": ("mean",), "penalties": (0.1,), "steps": 20}


def data(n: int = 90, classes: str = "ab", groups: int | None = None) -> tuple[list[np.ndarray], Labelled]:
    """Texts that say their class in one word, and rows that say it in one number."""
    rng = np.random.default_rng(0)
    labels = np.array(list(classes))[np.arange(n) % len(classes)]
    texts = tuple(f"w{rng.integers(9)} {'very ' * (label == 'a')}w{rng.integers(9)}" for label in labels)
    rows = [rng.normal(size=(rng.integers(2, 6), 4)).astype(np.float32) for _ in range(n)]
    for own, label in zip(rows, labels, strict=True):
        own[:, 0] += 2.0 * (label == "a")
    split = np.array(["train", "train", "validation", "test", "train"])[np.arange(n) // len(classes) % 5]
    named = None if groups is None else np.array([f"g{i // groups}" for i in range(n)])
    return rows, Labelled(texts, labels, split, named, "somewhere")


def by_hand(estimator, X, found, y, split):
    learn = split != "test"
    estimator.fit([x for x, one in zip(X, learn, strict=True) if one], y[learn])
    return estimator.decision_function([x for x, one in zip(X, ~learn, strict=True) if one])


def test_texts_are_judged_as_scikit_learn_would():
    _, texts = data()
    found = sweep_texts(texts, split=texts.splits)
    expected = by_hand(BagOfWords(), texts.texts, found, texts.labels, texts.splits)
    judged = texts.splits == "test"
    np.testing.assert_allclose(found.logits[1, 0, judged, 0], expected, rtol=1e-5)
    assert np.isnan(found.logits[:, 0, ~judged]).all()
    values = {row["pooling"]: row["value"] for row in found.summary(("auroc",)).to_pylist()}
    assert values == {"majority": 0.5, "bag_of_words": 1.0}


def test_a_random_direction_is_that_of_the_baseline():
    rows, texts = data()
    found = sweep_direction(as_rows(rows), texts, "here", split=texts.splits, seed=3)
    expected = by_hand(RandomDirection(seed=3), rows, found, texts.labels, texts.splits)
    np.testing.assert_allclose(found.logits[0, 0, texts.splits == "test", 0], expected, rtol=1e-5)


@pytest.mark.parametrize("classes", ["ab", "abc"])
def test_rivals_stand_beside_probes_and_are_drawn_with_them(classes):
    rows, texts = data(90, classes, groups=3)
    options = {"groups": texts.groups, "folds": 3, "seed": 1}
    probes = sweep({"blocks.4.x": rows}, texts.labels, seeds=(0, 1), **options, **QUICK)
    texts_alone = sweep_texts(texts, folds=3, seed=1)
    direction = sweep_direction(as_rows(rows), texts, "blocks.4.x", folds=3, seed=1)
    both = beside(probes, [direction, texts_alone])
    assert [config.pooling for config in both.configs] == ["mean", "random_direction", *RIVALS[:2]]
    assert {config.site for config in both.configs} == {"blocks.4.x"} and set(both.table["layer"].to_pylist()) == {4}
    assert both.summary().slice(0, 5).equals(probes.summary())  # what is beside it changes nothing
    alone = {row["pooling"]: row for row in texts_alone.summary(("auroc",)).to_pylist()}
    for row in both.summary(("auroc",)).to_pylist():
        if row["pooling"] in alone:
            assert [row[name] for name in ("value", "low", "high")] == pytest.approx(
                [alone[row["pooling"]][name] for name in ("value", "low", "high")]
            )
    (pair,) = (
        r for r in both.differences().to_pylist() if (r["pooling"], r["other_pooling"]) == ("mean", "bag_of_words")
    )
    values = {row["pooling"]: row["value"] for row in both.summary(("auroc",)).to_pylist()}
    assert pair["gain"] == pytest.approx(values["mean"] - values["bag_of_words"])


def test_groups_are_never_on_both_sides_of_a_fold():
    _, texts = data(90, "ab", groups=6)
    found = sweep_texts(texts, folds=3)
    for group in set(texts.groups.tolist()):
        assert len(set(found.rounds[texts.groups == group])) == 1


def test_a_class_that_learning_never_met_is_all_but_impossible():
    _, texts = data(90, "abc")
    splits = np.where((texts.labels == "c") & (texts.splits != "test"), "none", texts.splits)
    some = texts.take(np.flatnonzero(splits != "none"))
    found = sweep_texts(some, split=some.splits)
    judged = some.splits == "test"
    assert (found.logits[:, 0, judged, 2] < found.logits[:, 0, judged, :2].min(-1) - 10).all()


def test_sweeps_of_other_documents_and_labels_of_numbers_are_refused():
    rows, texts = data()
    probes = sweep(rows, texts.labels, split=texts.splits, **QUICK)
    other = texts.take(np.arange(len(texts))[::-1])
    with pytest.raises(DataError, match="of other documents or rounds"):
        beside(probes, [sweep_texts(other, split=other.splits)])
    numbers = Labelled(texts.texts, np.linspace(0, 1, len(texts)), texts.splits, None, "somewhere")
    with pytest.raises(DataError, match="looks like a regression task"):
        sweep_texts(numbers, split=texts.splits)
