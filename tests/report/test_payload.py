import base64
import json
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headlens import heads
from headlens._errors import ResultError
from headlens._result import Provenance, Result
from headlens.heads.circuit_tokens import HeadCircuits
from headlens.heads.patterns import AttentionPatterns
from headlens.heads.scores import SCHEMA, HeadScores
from headlens.report.page import embedded_json
from headlens.report.payload import GROUPS, OTHERS, pack, traits
from tests.report.shown_results import (
    FIRST,
    KINDS,
    MISSING,
    SECOND,
    SHAPES,
    make_atlas,
    make_circuits,
    make_scores,
    patterns_of,
    scores_of,
)

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too: tokens may hold anything


@given(arrays(np.uint8, st.integers(0, 200)))
def test_packed_bytes_are_the_bytes(entries):
    assert zlib.decompress(base64.b64decode(pack(entries))) == entries.tobytes()


@given(st.lists(any_text))
def test_embedded_json_reads_back_and_holds_nothing_that_html_reads(tokens):
    text = embedded_json("tokens", tokens)
    assert json.loads(text) == tokens
    assert text.isascii()
    assert not set("<>&") & set(text)


@given(any_text)
def test_an_html_parser_finds_one_block_with_the_very_json(token):
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)

        def handle_data(self, data):
            found.append(data)

    text = embedded_json("token", token)
    Reader().feed(f'<script type="application/json">{text}</script>')
    assert found == ["script", text]


def test_json_has_no_word_for_nan():
    with pytest.raises(ResultError, match="provenance"):
        embedded_json("provenance", {"loss": float("nan")})


def test_every_score_is_found_again(example):
    values = traits(example.results)
    columns = values["scores"]
    names = [h["model"] for h in values["heads"]]
    kinds = [k["kind"] for k in values["kinds"]]
    for i in range(len(columns["score"])):
        at = names[columns["model"][i]], columns["layer"][i], columns["head"][i], kinds[columns["kind"][i]]
        row = example.row(*at)
        if at[:3] == MISSING and at[3] == "previous_token":
            assert columns["score"][i] is None
        else:
            assert columns["score"][i] == pytest.approx(row["score"], rel=1e-5)
        assert [columns[c][i] for c in ("null", "n")] == [row["null"], row["n"]]
    assert len(columns["score"]) == example.scores.table.num_rows


def test_every_pattern_is_found_again(example):
    values = traits(example.results)
    names = [h["model"] for h in values["heads"]]
    for (model, text), attention in example.attention.items():
        packed = values[f"packed_{names.index(model)}_{text}"]
        rows, columns = np.tril_indices(attention.shape[-1])
        for layer, head in np.ndindex(attention.shape[:2]):
            entries = np.frombuffer(zlib.decompress(base64.b64decode(packed[layer][head])), np.uint8)
            assert np.abs(entries / 255 - attention[layer, head, rows, columns]).max() <= 1 / 510 + 1e-12


def test_shapes_names_and_order(example):
    values = traits(example.results)
    assert [(h["model"], h["layers"], h["heads"]) for h in values["heads"]] == [(m, *s) for m, s in SHAPES.items()]
    kinds = {k["kind"]: k for k in values["kinds"]}
    assert set(kinds) == set(KINDS)
    assert list(kinds)[-1] == "my_kind", "an unknown kind comes last"
    assert kinds["my_kind"]["name"] is None
    assert kinds["induction"]["name"] == "Induction"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["/home/me/models/gpt2", "gpt2-xl"], ["gpt2", "gpt2-xl"]),
        (["C:\\models\\gpt2", "./runs/mine/", "~/m"], ["gpt2", "mine", "m"]),
        (["Qwen/Qwen3-4B", "zoo:llama-small"], ["Qwen/Qwen3-4B", "zoo:llama-small"]),
        (["/a/gpt2", "/b/gpt2", "/c/gpt2"], ["gpt2", "gpt2 (2)", "gpt2 (3)"]),
    ],
)
def test_a_path_is_shown_by_its_last_part_and_names_stay_distinct(names, shown):
    scores = make_scores(dict.fromkeys(names, (1, 1)), np.random.default_rng(0))
    assert [h["model"] for h in traits([scores])["heads"]] == shown


def test_patterns_alone_and_scores_alone_can_be_shown(example):
    only_patterns = traits([example.patterns[SECOND]])
    assert only_patterns["heads"] == [{"model": SECOND, "layers": 2, "heads": 6}]
    assert only_patterns["kinds"] == []
    only_scores = traits([example.scores])
    assert only_scores["patterns"] == [None, None]


def test_a_text_without_tokens_is_left_out(example):
    patterns = example.patterns[SECOND]
    empty = np.zeros((2, 6, 0), np.uint8)
    values = traits([replace(patterns, tokens=((), *patterns.tokens), weights=(empty, *patterns.weights))])
    assert values["patterns"] == [{"texts": [list(patterns.tokens[0])]}]
    assert values["packed_0_0"] == traits([patterns])["packed_0_0"]


def test_results_of_one_run_share_their_provenance(example):
    same = replace(example.scores, provenance=example.patterns[FIRST].provenance)
    entries = traits([same, example.patterns[FIRST], example.patterns[SECOND]])["provenance"]
    assert [e["results"] for e in entries] == [
        ["Head scores", f"Attention patterns of {FIRST}"],
        [f"Attention patterns of {SECOND}"],
    ]
    assert entries[0]["provenance"]["seed"] == 7


class Other(Result):
    pass


def _misfits(example):
    patterns = example.patterns[SECOND]
    short = patterns_of(SECOND, patterns.tokens, [w[..., :-1] for w in patterns.weights])
    circuits = make_circuits("m", (1, 1), ("a", "b"))
    mixed = HeadCircuits(Provenance(), pa.concat_tables([circuits.table, make_circuits("o", (1, 1), ("a",)).table]))
    uneven = patterns_of(SECOND, patterns.tokens * 2, [patterns.weights[0], patterns.weights[0][:, :2]])
    return {
        "at least one result": [],
        "not Other": [Other(Provenance())],
        "Two AttentionPatterns are of org": [patterns, patterns],
        "do not fit their tokens": [short],
        "Two HeadCircuits are of m": [circuits, circuits],
        "HeadCircuits must have the columns": [HeadCircuits(Provenance(), circuits.table.drop_columns(["place"]))],
        "all of one model": [mixed],
        "differ in heads between texts": [uneven],
        "miss a text or its weights": [patterns_of(SECOND, [], patterns.weights)],
        "previous_token of zoo:llama-small:L0H0 is given twice": [example.scores, example.scores],
        "must have the columns model, layer": [HeadScores(Provenance(), example.scores.table.drop_columns(["n"]))],
        "hold no head": [HeadScores(Provenance(), SCHEMA.empty_table())],
        "at least one row": [AttentionPatterns(Provenance(), "m", (), ())],
    }


def test_what_cannot_be_shown_is_refused_with_a_reason(example):
    for reason, results in _misfits(example).items():
        with pytest.raises(ResultError, match=reason):
            traits(results)


def test_an_atlas_brings_its_decisions_and_plain_scores_have_none(example):
    atlas = make_atlas()
    columns = traits([atlas])["scores"]
    rows = sorted(zip(*(columns[name] for name in ("model", "kind", "layer", "head")), strict=True))
    assert len(set(rows)) == atlas.table.num_rows
    values = traits([atlas])
    names, kinds = [h["model"] for h in values["heads"]], [k["kind"] for k in values["kinds"]]
    shown = {
        (names[m], kinds[k], layer, head): i
        for i, (m, k, layer, head) in enumerate(
            zip(*(columns[name] for name in ("model", "kind", "layer", "head")), strict=True)
        )
    }
    for row in atlas.table.to_pylist():
        i = shown[row["model"], row["kind"], row["layer"], row["head"]]
        level = columns["level"][i]
        assert (None if level is None else ("low", "medium", "high")[level]) == row["level"]
        assert [columns[name][i] for name in ("weighted", "q", "detail")] == [row["weighted"], row["q"], row["detail"]]
    plain = traits([example.scores])["scores"]
    assert [plain[name] for name in ("weighted", "q", "level", "detail")] == [None] * 4


def test_plain_scores_and_an_atlas_can_stand_side_by_side():
    plain = make_scores({"other": (1, 1)}, np.random.default_rng(0))
    columns = traits([plain, make_atlas()])["scores"]
    undecided = [level is None for level, m in zip(columns["level"], columns["model"], strict=True) if m == 0]
    assert undecided == [True] * len(KINDS)
    assert any(level == 2 for level in columns["level"])


def test_every_kind_has_a_short_name_of_its_own_and_a_group():
    shorts = [kind.short for kind in heads.KINDS.values()]
    assert len(set(shorts)) == len(shorts) and max(map(len, shorts)) <= 6
    every = scores_of([("m", 0, 0, name, 0.5, 0.4, 0.6, 0.0, 9) for name in heads.KINDS])
    entries = {entry["kind"]: entry for entry in traits([every])["kinds"]}
    assert set(entries) == set(heads.KINDS)
    for name, kind in heads.KINDS.items():
        entry = entries[name]
        assert (entry["short"], entry["high"], entry["group"]) == (kind.short, kind.high, GROUPS[kind.shows])
    assert traits([scores_of([("m", 0, 0, "mine", 0.5, 0.4, 0.6, 0.0, 9)])])["kinds"] == [
        {"kind": "mine", "name": None, "short": None, "group": OTHERS, "meaning": None, "high": None}
    ]


def test_every_row_of_the_circuits_is_found_again(example):
    circuits = make_circuits(SECOND, (2, 3))
    values = traits([example.scores, circuits])
    assert values["circuits"] == [False, True]
    assert "circuits_0" not in values
    shown = values["circuits_1"]
    found = [
        (layer, head, name, offset, shown["tokens"][source], shown["tokens"][target], value, place)
        for layer, row in enumerate(shown["rows"])
        for head, rows in enumerate(row)
        for name, offset, source, target, value, place in rows
    ]
    expected = [
        (
            r["layer"],
            r["head"],
            r["list"],
            r["offset"],
            r["source"],
            r["target"],
            float(f"{r['value']:.4g}"),
            r["place"],
        )
        for r in circuits.table.to_pylist()
    ]
    assert found == expected
    assert [len(row) for row in shown["rows"]] == [6, 6], "heads beyond the circuits have none"
    assert values["provenance"][-1]["results"] == [f"Circuits of {SECOND}"]


def test_circuits_alone_can_be_shown():
    values = traits([make_circuits("m", (2, 3), ("a", "b"))])
    assert values["heads"] == [{"model": "m", "layers": 2, "heads": 3}]
    assert values["kinds"] == []
