"""Merged tables are a union: nothing is lost, nothing is there twice, and contradictions are named."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headlens._errors import DataError
from headlens._result import Provenance
from headlens.heads.atlas import ATLAS_SCHEMA, HeadAtlas
from headlens.heads.merge import merge
from headlens.heads.scores import SCHEMA, HeadScores

MODELS = ("gpt2", "org/model: odd, name")
KINDS = ("induction", "previous_token")
COLUMNS = ("model", "layer", "head", "kind", "score", "low", "n")


def described(name: str, **said) -> dict:
    return {"name": name, "revision": "abc", "dtype": "float32", "weights": f"weights of {name}", "bos": 0} | said


def scores(rows, *, models=None, data=None, seed: int | None = 0, **provenance) -> HeadScores:
    """Rows are (model, layer, head, kind, score, low, n); the protocol of each model's kinds is one."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    names = sorted({row["model"] for row in rows})
    models = [described(name) for name in names] if models is None else models
    if data is None:
        data = {f"{name}: induction, previous_token": {"name": "repeats", "n": 8, "length": 50} for name in names}
    return HeadScores(Provenance(tuple(models), data, seed, **provenance), pa.Table.from_pylist(rows, schema=SCHEMA))


def row(model="gpt2", layer=0, head=0, kind="induction", score=0.5, low=0.25, n=8) -> tuple:
    return model, layer, head, kind, score, low, n


def union(*results: HeadScores) -> list[dict]:
    """The slow, obvious merge: a dict by head, that takes what is known."""
    found: dict[tuple, dict] = {}
    for one in itertools.chain(*(result.table.to_pylist() for result in results)):
        key = tuple(one[name] for name in ("model", "kind", "layer", "head"))
        held = found.setdefault(key, one)
        found[key] = {name: one[name] if value is None else value for name, value in held.items()}
    return [found[key] for key in sorted(found)]


def same(a: HeadScores, b: HeadScores) -> bool:
    """Everything alike, the order of keys included: as bytes, since NaN differs from itself."""
    said = [json.dumps([r.table.to_pylist(), dataclasses.asdict(r.provenance)]) for r in (a, b)]
    return said[0] == said[1] and a.table.schema == b.table.schema


# --- laws -------------------------------------------------------------------------------------------------

truth = st.dictionaries(  # what is true of each head; each table then says a part of it
    st.tuples(st.sampled_from(MODELS), st.integers(0, 2), st.integers(0, 2), st.sampled_from(KINDS)),
    st.tuples(st.floats(), st.floats() | st.none(), st.integers(0, 9) | st.none()),
    min_size=1,
    max_size=12,
)


@st.composite
def agreeing(draw: Callable, tables: int) -> list[dict]:
    """Arguments of `scores` for tables that say parts of one truth, in any order, some things twice, with one protocol a model and kind."""
    known = draw(truth)
    corpora = {name: draw(st.sampled_from(({"hash": "one"}, {"hash": "two"}))) for name in MODELS}
    made = []
    for _ in range(tables):
        keys = draw(st.lists(st.sampled_from(sorted(known)), max_size=10))
        rows = []
        for key in keys:
            score, low, n = known[key]
            rows.append((*key, score, low if draw(st.booleans()) else None, n if draw(st.booleans()) else None))
        names = {key[0] for key in keys}
        data: dict = {}
        for name in names:
            data[f"{name}: induction"] = {"name": "repeats", "hash": "1", "length": 50} | draw(
                st.sampled_from(({}, {"max_gap": 40}, {"created_at": "then"}))
            )
            data[f"{name}: previous_token"] = {"name": "text", "hash": f"{name} {corpora[name]}"}
            data[f"{name}: name_mover"] = {"samples": 8}
        if len({json.dumps(corpora[name]) for name in names}) == 1:
            data["corpus"] = corpora[min(names)]
        else:  # two models and two corpora: as a merged table has it
            for name in names:
                data[f"{name}: previous_token"]["corpus"] = corpora[name]
        if draw(st.booleans()):
            data["notes"] = {"by": draw(st.sampled_from("ab"))}
        models = [described(name, **draw(st.sampled_from(({}, {"family": "GPT-2"})))) for name in sorted(names)]
        command, version = draw(st.sampled_from(("", "one", "two"))), draw(st.sampled_from(("1.0", "2.0")))
        made.append(
            {
                "rows": rows,
                "models": models,
                "data": data,
                "command": command,
                "versions": dict(draw(st.permutations([("numpy", version), ("torch", "2.6")]))),
            }
        )
    return made


@settings(max_examples=80, deadline=None)
@given(agreeing(3))
def test_neither_order_nor_grouping_nor_repetition_changes_anything(tables):
    a, b, c = (scores(**said) for said in tables)
    whole = merge(a, b, c)
    for other in (
        merge(c, a, b),
        merge(merge(a, b), c),
        merge(a, merge(b, c)),
        merge(merge(c, a), b),
        merge(a, a, b, c, b),
        merge(whole),
        merge(whole, whole),
        merge(whole, b),
    ):
        assert same(whole, other)


@settings(max_examples=80, deadline=None)
@given(agreeing(3))
def test_the_rows_are_the_union(tables):
    tables = [scores(**said) for said in tables]
    found = merge(*tables).table.to_pylist()
    expected = union(*tables)
    assert len(found) == len(expected)
    assert json.dumps(found) == json.dumps(expected)


@settings(max_examples=60, deadline=None)
@given(agreeing(1), st.data())
def test_parts_of_a_table_give_the_table_back(tables, data):
    whole = merge(*(scores(**said) for said in tables))
    assume(len(whole.table))
    part = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(whole.table), max_size=len(whole.table))))
    parts = [HeadScores(whole.provenance, whole.table.filter(pa.array(part == i))) for i in range(4)]
    assert same(merge(*parts), whole)
    assert same(merge(*(p for p in parts if len(p.table))), whole)


@settings(max_examples=50, deadline=None)
@given(agreeing(2))
def test_nothing_that_a_provenance_says_is_lost(tables):
    tables = [scores(**said) for said in tables]
    found = merge(*tables).provenance
    text = json.dumps(dataclasses.asdict(found))
    for table in tables:
        p = table.provenance
        assert all(entry in found.models for entry in p.models)
        assert set(p.command.splitlines()) <= set(found.command.splitlines())
        assert all(version in found.versions[name].split(", ") for name, version in p.versions.items())
        for name, entry in p.data.items():
            assert name in text
            kept = [v for k, v in found.data.items() if k.startswith(name) or name == "corpus"]
            assert any((entry.items() <= v.items()) or v.get("corpus") == entry for v in kept if isinstance(v, dict))


def test_saved_and_loaded_it_merges_alike(tmp_path):
    a = scores([row()], data={"gpt2: induction": {"name": "repeats", "sizes": (1, 2)}})
    b = scores([row(kind="previous_token")], data={"gpt2: previous_token": {"name": "text"}, "corpus": {"hash": "x"}})
    loaded = [HeadScores.load(t.save(tmp_path / str(i))) for i, t in enumerate((a, b))]
    assert same(merge(*loaded), merge(a, b))
    again = HeadScores.load(merge(a, b).save(tmp_path / "merged"))
    assert same(merge(again, a), merge(a, b))


# --- what stands in a merged provenance -------------------------------------------------------------------


def test_each_protocol_keeps_the_corpus_and_seed_of_its_own_result():
    one = scores([row("a")], data={"a: induction": {"name": "text", "hash": "1"}, "corpus": {"hash": "x"}}, seed=1)
    other = scores([row("b")], data={"b: induction": {"name": "text", "hash": "2"}, "corpus": {"hash": "y"}}, seed=2)
    found = merge(one, other).provenance
    assert found.seed is None
    assert found.data == {
        "a: induction": {"seed": 1, "corpus": {"hash": "x"}, "name": "text", "hash": "1"},
        "b: induction": {"seed": 2, "corpus": {"hash": "y"}, "name": "text", "hash": "2"},
    }
    assert merge(one, one).provenance.seed == 1


def test_a_corpus_that_nothing_was_measured_on_is_kept_and_given_to_no_other():
    unread = scores([row("a")], data={"a: induction": {"name": "repeats", "hash": "1"}, "corpus": {"hash": "x"}})
    given = scores([row("b")], data={"b: induction": {"name": "text", "hash": "2"}})
    found = merge(merge(unread, given)).provenance
    assert found.data["corpus"] == {"hash": "x"}
    assert found.data["b: induction"]["corpus"] is None


def test_entries_of_one_name_and_different_content_are_both_kept():
    one, other = (scores([row(head=i)], data={"notes": {"by": i}}) for i in (0, 1))
    found = merge(one, other, one).provenance.data
    assert sorted(entry["by"] for entry in found.values()) == [0, 1]
    assert all(name.startswith("notes (") for name in found)


def test_a_name_that_ends_like_one_with_a_digest_stays_as_it_is():
    assert set(merge(scores([row()], data={"notes (deadbeef)": {"by": 1}})).provenance.data) == {"notes (deadbeef)"}


def test_of_two_models_whose_names_begin_alike_the_longer_one_is_meant():
    data = {"a: induction": {"length": 5}, "a: b: induction": {"length": 6}}
    one = scores([row("a"), row("a: b")], data=data)
    assert len(merge(one, scores([row("a: b")], data={"a: b: induction": {"length": 6}})).table) == 2
    with pytest.raises(DataError, match=r"^induction of a: b \(revision abc\): length is"):
        merge(one, scores([row("a: b")], data={"a: b: induction": {"length": 7}}))


def test_a_statement_about_nothing_measured_does_not_part_two_tables():
    one, other = (
        scores([row(head=i)], data={"gpt2: induction": {"length": 5, "levels": [i], "source": {"file": str(i)}}})
        for i in (0, 1)
    )
    assert len(merge(one, other).table) == 2


# --- contradictions ---------------------------------------------------------------------------------------


def protocol(**said) -> dict:
    return {"gpt2: induction": {"name": "repeats", "hash": "1", "length": 50, **said}}


CONTRADICTIONS = {
    "another protocol": (
        scores([row()], data=protocol(seq_len=50)),
        scores([row()], data=protocol(seq_len=25, hash="2")),
        r"^induction of gpt2 \(revision abc\): seq_len is 50 in one and 25 in the other\.",
    ),
    "another protocol, of other heads": (
        scores([row(head=0)], data=protocol(length=50)),
        scores([row(head=1)], data=protocol(length=25)),
        r"^induction of gpt2 \(revision abc\): length is (50|25) in one and (50|25) in the other\.",
    ),
    "another protocol, deep inside": (
        scores([row()], data=protocol(analysis_params={"seq_len": 50, "batch_size": 1})),
        scores([row()], data=protocol(analysis_params={"seq_len": 25, "batch_size": 2})),
        r": analysis_params.seq_len is 50 in one and 25 in the other\.",
    ),
    "other tokens, made alike": (
        scores([row()], data=protocol()),
        scores([row()], data=protocol(hash="2")),
        "hash is 1 in one and 2 in the other",
    ),
    "another seed": (
        scores([row()], seed=0),
        scores([row()], seed=1),
        "seed is 0 in one and 1 in the other",
    ),
    "another corpus": (
        scores([row()], data={"gpt2: induction": {"name": "text"}, "corpus": {"documents": 3}}),
        scores([row()], data={"gpt2: induction": {"name": "text"}, "corpus": {"documents": 4}}),
        "corpus.documents is 3 in one and 4 in the other",
    ),
    "one of several kinds": (
        scores([row()], data={"gpt2: self, induction": {"length": 50}}),
        scores([row()], data={"gpt2: induction, sink": {"length": 25}}),
        r"^induction of gpt2 .*length is",
    ),
    "a model whose name goes on": (
        scores([row("org/model: odd, name")], data={"org/model: odd, name: induction": {"length": 50}}),
        scores([row("org/model: odd, name")], data={"org/model: odd, name: induction": {"length": 25}}),
        r"^induction of org/model: odd, name \(revision abc\): length",
    ),
    "another revision": (
        scores([row()]),
        scores([row()], models=[described("gpt2", revision="def")]),
        "^gpt2 is not the same model .*revision is abc in one and def in the other",
    ),
    "other weights": (
        scores([row()]),
        scores([row(kind="self")], models=[described("gpt2", weights="others")]),
        "weights is weights of gpt2 in one and others in the other|weights is others in one",
    ),
    "another dtype": (
        scores([row()]),
        scores([row()], models=[described("gpt2", dtype="float16")]),
        "dtype is float(16|32) in one and float(16|32) in the other",
    ),
    "no BOS": (
        scores([row()]),
        scores([row()], models=[described("gpt2", bos=None)]),
        "bos is (0|None) in one and (0|None) in the other",
    ),
    "another number": (
        scores([row(score=0.5)]),
        scores([row(score=math.nextafter(0.5, 1))]),
        "^induction of gpt2:L0H0: score is 0.5 in one and 0.5000000000000001 in the other",
    ),
    "NaN and a number": (
        scores([row(score=0.5)]),
        scores([row(score=math.nan)]),
        "score is 0.5 in one and nan in the other",
    ),
    "another interval": (
        scores([row(layer=2, head=7, low=0.25)]),
        scores([row(), row(layer=2, head=7, low=0.125)]),
        "^induction of gpt2:L2H7: low is 0.25 in one and 0.125 in the other",
    ),
    "another number of samples": (
        scores([row(n=8)]),
        scores([row(n=None), row(n=9)]),
        "n is 8 in one and 9 in the other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused_and_say_what_differs(name):
    one, other, said = CONTRADICTIONS[name]
    bystander = scores([row("other")])
    with pytest.raises(DataError, match=said):
        merge(one, other)
    for tables in ((other, one), (bystander, other, one), (merge(other, bystander), one)):
        with pytest.raises(DataError):
            merge(*tables)
    assert len(merge(one, bystander, one).table) == 2


def test_a_digest_is_not_named_beside_what_made_it_differ():
    with pytest.raises(DataError) as raised:
        merge(*CONTRADICTIONS["another protocol"][:2])
    assert "hash" not in str(raised.value)


def test_what_is_unknown_contradicts_nothing():
    study = scores([row(low=None, n=None)], models=[{"name": "gpt2", "revision": None}], data={}, seed=None)
    own = scores([row()])
    assert merge(study, own).table.to_pylist() == own.table.to_pylist()
    assert len(merge(study, own).provenance.models) == 2  # whose the study's scores are stays unknown


def test_the_same_kind_of_different_models_may_be_measured_differently():
    tables = [scores([row(name)], data={f"{name}: induction": {"length": n}}) for name, n in (("a", 1), ("b", 2))]
    assert len(merge(*tables).table) == 2


# --- tables of other columns ------------------------------------------------------------------------------


def levelled(level: str) -> HeadAtlas:
    table = scores([row()]).table.append_column("q", pa.array([0.01])).append_column("level", pa.array([level]))
    return HeadAtlas(Provenance(), table)


def test_an_atlas_stays_one_and_rows_of_other_tables_have_no_level():
    narrow = scores([row(head=1)])
    found = merge(narrow, levelled("high"))
    assert isinstance(found, HeadAtlas)
    assert type(merge(narrow)) is HeadScores
    assert found.table.schema.equals(ATLAS_SCHEMA)
    assert found.table["level"].to_pylist() == ["high", None]
    assert found.table["q"].to_pylist() == [0.01, None]
    assert same(merge(levelled("high"), narrow, scores([row()])), found)  # a table without levels denies none
    with pytest.raises(DataError, match="level is (high|low) in one and (high|low) in the other"):
        merge(levelled("high"), narrow, levelled("low"))


def test_columns_that_no_table_should_have_are_kept_after_the_others():
    odd = HeadScores(
        Provenance(), scores([row()]).table.append_column("b", pa.array([1])).append_column("a", pa.array([2]))
    )
    found = merge(odd, scores([row(head=1)])).table
    assert found.column_names == [*SCHEMA.names, "a", "b"]
    assert found["a"].to_pylist() == [2, None]


def test_thresholds_of_levels_are_put_together_unless_they_differ():
    one, other, third = (
        scores([row()], data={"thresholds": bounds})
        for bounds in ({"sink": [0.3, 0.7], "self": [0.1, 0.2]}, {"induction": [0.3, 0.7]}, {"self": [0.1, 0.5]})
    )
    found = merge(other, one).provenance.data
    assert found == {"thresholds": {"induction": [0.3, 0.7], "self": [0.1, 0.2], "sink": [0.3, 0.7]}}
    with pytest.raises(DataError, match=r"thresholds of levels differ: self is .* hl.heads.label"):
        merge(one, other, third)


def test_a_protocol_is_stated_where_no_digest_says_what_was_read():
    """Heads that are changed one by one read prompts, which only the protocol of the whole run describes."""
    data = {"gpt2: induction": {"hash": "1"}, "gpt2: name_mover": {"samples": 8}}
    one, other = (
        scores([row(kind=kind)], data=data | {"protocol": {"num_prompts": n, "batch_tokens": n}})
        for kind, n in (("induction", 8), ("name_mover", 9))
    )
    with pytest.raises(DataError, match=r"^name_mover of .*: protocol.num_prompts is"):
        merge(one, other)
    found = merge(one, one).provenance.data
    assert found["gpt2: name_mover"] == {
        "seed": 0,
        "corpus": None,
        "protocol": {"num_prompts": 8, "batch_tokens": 8},
        "samples": 8,
    }
    assert "protocol" not in found
    only_induction = [
        scores([row()], data={"gpt2: induction": {"hash": "1"}, "protocol": {"max_tokens": n}}) for n in (1, 2)
    ]
    assert len([name for name in merge(*only_induction).provenance.data if name.startswith("protocol (")]) == 2


def test_what_could_not_be_measured_is_no_protocol():
    one, other = (scores([row()], data={"gpt2: not measured": {"sink": reason}}) for reason in "ab")
    found = merge(one, other).provenance.data
    assert [entry for name, entry in found.items() if name.startswith("gpt2: not measured (")] == [
        {"sink": "a"},
        {"sink": "b"},
    ]


def test_a_table_needs_only_its_head_kind_and_score():
    least = scores([row()]).table.select(["model", "layer", "head", "kind", "score"])
    wider = least.set_column(1, "layer", least["layer"].cast(pa.int64()))
    found = merge(HeadScores(Provenance(), wider)).table
    assert found.schema.equals(SCHEMA)
    assert found["low"].to_pylist() == [None]


@pytest.mark.parametrize("name", ["model", "layer", "head", "kind", "score"])
def test_without_one_of_these_it_is_no_table_of_scores(name):
    with pytest.raises(DataError, match=f"{name} missing"):
        merge(HeadScores(Provenance(), scores([row()]).table.drop_columns([name])))


@pytest.mark.parametrize("name", ["model", "layer", "head", "kind"])
def test_a_row_of_no_known_head_is_refused(name):
    with pytest.raises(DataError, match=f"rows without {name}"):
        merge(scores([row(**{name: None})], models=[], data={}))


def test_columns_of_two_types_are_refused():
    table = scores([row()]).table
    one, other = (HeadScores(Provenance(), table.append_column("extra", pa.array([v]))) for v in ("a", 1))
    with pytest.raises(DataError, match="different types"):
        merge(one, other)


def test_nothing_is_nothing_to_merge():
    with pytest.raises(DataError, match="nothing to merge"):
        merge()
    assert len(merge(scores([])).table) == 0
