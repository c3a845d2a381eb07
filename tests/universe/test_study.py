"""A study's splits hold out what they say; its tables are kept whole, and the page is made of them alone."""

import numpy as np
import pytest

from headlens._errors import DataError, ResultError
from headlens._result import Provenance
from headlens.axes import HeadId
from headlens.universe import UniverseStudy
from headlens.universe.ablations import ablations
from headlens.universe.clone import Training
from headlens.universe.decoder import Shape
from headlens.universe.evaluate import POSITION, reconstruction
from headlens.universe.measured import FAMILY, HEADS, OURS, Study, _over_pairs, measured
from headlens.universe.page import few_table, page
from headlens.universe.retrieval import Fold
from headlens.universe.study import (
    CLONE,
    Joined,
    leave_heads_out,
    leave_one_family_out,
    record,
    repeated_words,
)
from headlens.universe.tables import LEFT_BY
from tests.universe import made

FAMILIES = {f"m{i}": f"f{i}" for i in range(4)}
EVERY = tuple(HeadId(model, layer, head) for model in FAMILIES for layer in range(3) for head in range(3))
PLANTED = {"induction": {h for h in EVERY if h[1:] == (1, 2)}, "self": {h for h in EVERY if h[1:] == (0, 0)}}
JOIN = Training(epochs=1, rate=0.01)
LEFT = {"mean pattern": 0.9, "symbolic": 0.8, "nearest head": 1.2, "shuffled texts": 1.5}
"""KL of what knows less than a clone, where position only has 1."""


def rows(kl):
    """A table of methods, in which clones have the KL given."""
    made_rows = []
    less = {name: dict.fromkeys(EVERY, value) for name, value in (LEFT | {POSITION: 1.0}).items()}
    for method, values in (less | {CLONE: kl}).items():
        for head in EVERY:
            skill = 1 - values[head]
            said = {
                "kl": values[head],
                "low": 0.0,
                "high": 1.0,
                "skill": skill,
                "skill_low": skill,
                "skill_high": skill,
            }
            rest = {"mse": 0.0, "r": 0.0, "documents": 4, "rows": 8}
            made_rows.append(head._asdict() | {"method": method} | said | rest)
    return reconstruction(made_rows, Provenance())


def folds(rng, signal):
    space = {head: rng.standard_normal(6) for head in EVERY}
    for axis, heads in enumerate(PLANTED.values()):
        for head in heads:
            space[head] = space[head] + signal * np.eye(6)[axis]
    found = []
    for model, family in FAMILIES.items():
        old, new = ([h for h in EVERY if (h.model == model) == out] for out in (False, True))
        found.append(
            Fold(family, tuple(old), np.stack([space[h] for h in old]), tuple(new), np.stack([space[h] for h in new]))
        )
    return found


@pytest.fixture(scope="module")
def study() -> UniverseStudy:
    rng = np.random.default_rng(0)
    cloned = {head: 0.3 + 0.01 * rng.standard_normal() for head in EVERY}
    cloned[EVERY[5]] = 0.95
    kl = {head: value + 0.1 for head, value in cloned.items()}
    joined = [
        Joined(
            (fold,), kl, kl, [{"head": h, "documents": n, "kl": kl[h] + 1 / n} for h in fold.left_out for n in (1, 10)]
        )
        for fold in folds(rng, 30.0)
    ]
    words = {head: rng.random((6, 10)) for head in EVERY}
    texts = [f"a b c{'d e' * n}" for n in range(6)]
    chance = {FAMILY: {"random": folds(rng, 0.0)}, HEADS: {"random": folds(rng, 0.0)}}
    found = rows(cloned)
    few = {CLONE: {n: {head: value + 0.1 + 2 / n for head, value in cloned.items()} for n in (1, 10)}}
    return measured(
        Study(Provenance(), FAMILIES, found, found, {FAMILY: joined, HEADS: joined}, chance, few, PLANTED, words, texts)
    )


def test_tables_say_what_was_planted(study):
    of = {(row["split"], row["kind"], row["space"]): row for row in study["spaces"].to_pylist()}
    assert len(of) == 2 * 2 * 2
    ours, chance = of[FAMILY, "induction", OURS], of[FAMILY, "induction", "random"]
    assert ours["recall"] == ours["f1"] == 1 and ours["gain"] is None and ours["queries"] == 4
    assert chance["gain"] == pytest.approx(1 - chance["ap"]) and chance["gain_low"] > 0
    assert of[HEADS, "self", OURS]["f1"] is None and of[HEADS, "self", "random"]["f1_gain"] is None
    assert ours["f1_gain"] is None and chance["f1_gain"] == pytest.approx(1 - chance["f1"])
    assert 0 < chance["f1_gain_low"] <= chance["f1_gain"] <= chance["f1_gain_high"] <= 1
    heads = {HeadId(row["model"], row["layer"], row["head"]): row for row in study["heads"].to_pylist()}
    assert [head for head, row in heads.items() if row["is_unclonable"]] == [EVERY[5]]
    assert heads[HeadId("m0", 1, 2)]["kinds"] == ["induction"]
    for name, method in LEFT_BY.items():
        assert [row[name] for row in heads.values()] == pytest.approx([LEFT[method]] * len(EVERY))


def test_few_texts_stand_beside_what_was_fitted_on_the_same_ones(study):
    few = {(row["documents"], row["method"]): row for row in study["few"].to_pylist()}
    assert list(few) == [(1, OURS), (1, CLONE), (10, OURS), (10, CLONE)]
    for method in (OURS, CLONE):
        assert few[10, method]["above"] == 0 < few[1, method]["above_low"]
    for n in (1, 10):  # both have what the clone of all texts leaves, .1 more, and 1 / n or 2 / n
        assert few[n, OURS]["gap"] is None
        assert [few[n, CLONE][name] for name in ("gap", "gap_low", "gap_high")] == pytest.approx([-1 / n] * 3)
        assert few[n, CLONE]["skill"] == pytest.approx(few[n, OURS]["skill"] - 1 / n)


def test_a_query_shows_its_nearest_heads_of_other_families_and_which_are_of_its_kind(study):
    for row in study["queries"].to_pylist():
        near = row["nearest"]
        assert len(near) == 24 and row["model"] not in {one["model"] for one in near}
        gaps = [one["distance"] for one in near]
        assert gaps == sorted(gaps)
        kind = PLANTED[row["kind"]]
        assert all(one["relevant"] == (HeadId(one["model"], one["layer"], one["head"]) in kind) for one in near)
        if row["space"] == OURS:
            assert [one["relevant"] for one in near[:3]] == [True] * 3


def test_a_saved_study_gives_the_same_page(study, tmp_path):
    again = UniverseStudy.load(study.save(tmp_path / "study"))
    assert all(again[name].equals(table) for name, table in study.tables.items())
    assert page(again) == page(study)
    text = page(study)
    for said in (
        "F1 of phase 2 above it",
        "| clone | -1.00 [-1.00, -1.00] | -0.10 [-0.10, -0.10] |",
        "(1 of 36)",
        "| 0.90 | 0.80 | 1.20 | 1.50 |",
        "`induction`, family left out",
        "heads held out",
        "| phase 2 |",
        "1 of 36 heads are flagged",
        "Mantel p",
    ):
        assert said in text
    assert "nan" not in text
    assert [line.split(" | ")[0] for line in few_table(study).splitlines()[2:]] == ["| 1", "| 10"], "phase 2 alone"
    with pytest.raises(DataError, match="no table 'nothing'"):
        study["nothing"]


def test_a_study_of_before_is_refused_in_one_sentence(study, tmp_path):
    manifest = study.save(tmp_path / "study") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ResultError, match="has format 1 and this version reads 2: make it again"):
        UniverseStudy.load(tmp_path / "study")


def test_pairs_of_which_nothing_can_be_told_have_no_mean():
    pair = (EVERY[0], EVERY[-1])
    assert np.isnan(_over_pairs([pair], [np.nan])).all()
    assert _over_pairs([pair, pair], [np.nan, 0.5])[0] == 0.5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    texts = list(made.texts(48, 80))
    return record(
        ("zoo:mistral-small", "zoo:qwen3-small"), texts, made.ENCODER, tmp_path_factory.mktemp("work"), n_features=24
    )


def test_every_head_is_held_out_once_and_finds_heads_of_other_families_alone(recorded):
    found = leave_heads_out(recorded, training=JOIN)
    everyone = sorted(head for patterns in recorded.train for head in patterns.heads)
    assert sorted(head for part in found for head in part.joined) == everyone
    for part in found:
        assert sorted(part.kl) == everyone == sorted(part.other_kl)
        for fold in part.folds:
            assert not {recorded.families[h.model] for h in fold.heads} & {fold.family}
            assert not set(fold.heads) & set(part.joined)
            assert {recorded.families[h.model] for h in fold.left_out} == {fold.family}


def test_a_family_that_is_left_out_joins_on_few_texts_and_only_those_named_are(recorded):
    (left,) = leave_one_family_out(recorded, training=JOIN, few=(1, 3), only=["Qwen3"])
    assert {head.model for head in left.joined} == {"zoo:qwen3-small"}
    assert {row["documents"] for row in left.few} == {1, 3}
    assert {row["head"]: row["kl"] for row in left.few if row["documents"] == 3}.items() <= left.kl.items()
    with pytest.raises(DataError, match="No model is of the family Pythia"):
        leave_one_family_out(recorded, only=["Pythia"])
    one = type(recorded)(recorded.features, recorded.train[:1], *(recorded.test, recorded.other, recorded.whole))
    with pytest.raises(DataError, match="needs two or more"):
        leave_one_family_out(one)


def test_ablations_change_one_part_at_a_time(recorded):
    labels = [
        {"model": f"zoo:{name}", "layer": 0, "head": 1, "kind": "self", "level": "high"}
        for name in ("mistral-small", "qwen3-small")
    ]
    changes = {"whole": (Shape(size=4, parts=4, rank=2), 1), "affine": (Shape(size=4, parts=4, rank=2, hidden=0), 1)}
    found = ablations(recorded, labels, "self", changes=changes)
    assert [row["decoder"] for row in found] == ["whole", "affine"]
    assert all(row["skill_low"] <= row["skill"] <= row["skill_high"] and 0 <= row["ap"] <= 1 for row in found)
    with pytest.raises(DataError, match="No two of these families have sink heads"):
        ablations(recorded, labels, "sink")


def test_texts_of_another_kind_come_again_and_need_words_enough():
    for text in repeated_words(list(made.texts()), n=4, length=5):
        words = text.split()
        assert words[:5] == words[-5:]
    with pytest.raises(DataError, match="different words"):
        repeated_words(["Tom came home."])
