"""From what a page holds every score, and every pair that it shows, follows; however little is kept."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headlens._errors import ResultError
from headlens.fra.sides import OTHERS
from headlens.report import fra_payload, write_report
from headlens.report.page import FRA_VIEW, VIEWS, embedded_json
from headlens.report.payload import traits
from tests.report.shown_fra import DIGEST, WORDS, make_fra, make_labels
from tests.report.shown_results import FIRST, SHAPES, make_atlas, make_circuits


def unpacked(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def rows(content, side):
    """Position, source, activation and vector of each row."""
    own = content[side]
    position = np.repeat(np.arange(len(own["offsets"]) - 1), np.diff(own["offsets"]))
    vector = unpacked(own["vector"], "<f4").reshape(len(position), content["width"]).astype(float)
    return position, unpacked(own["source"], "<i4"), unpacked(own["activation"], "<f4"), vector


def sums(content):
    n = len(content["tokens"])
    whole = []
    for side in ("query", "key"):
        position, _, _, vector = rows(content, side)
        own = np.zeros((n, content["width"]))
        np.add.at(own, position, vector)
        whole.append(own)
    return whole[0] @ whole[1].T


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**16), st.integers(1, 14), st.integers(0, 9), st.sampled_from([None, 2, 5]),
    st.sampled_from([None, 3.0]), st.sampled_from([200, 10**6]),
)  # fmt: skip
def test_rows_sum_to_every_score_whatever_is_kept(seed, n_tokens, most, window, softcap, least):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fra_payload, "BYTES", least)
        patch.setattr(fra_payload, "LEAST", 1)
        result = make_fra(WORDS[:1] * n_tokens, most=most, seed=seed, window=window, softcap=softcap)
        values = json.loads(embedded_json("all", traits([result])))
    content, (listed,) = values["fra_0"], values["fra"]
    below = np.tril_indices(n_tokens)
    own, u = result.scores().numpy()[below], result.sums().numpy()[below]
    seen = np.isfinite(own)
    np.testing.assert_array_equal(unpacked(content["scores"], "<f4"), own)
    np.testing.assert_array_equal(unpacked(content["attention"], "<f4"), result.pattern.numpy()[below])
    np.testing.assert_allclose(sums(content)[below][seen], u[seen], atol=1e-4)
    merged = result.n_features + len(OTHERS)
    assert listed["merged"] == any(merged in rows(content, side)[1] for side in ("query", "key"))
    assert (listed["window"], listed["softcap"], listed["tokens"]) == (window, softcap, n_tokens)


def test_rows_that_are_kept_are_those_of_the_result_and_the_rest_is_one_row():
    result = make_fra(n_features=40, most=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fra_payload, "BYTES", 0)
        patch.setattr(fra_payload, "LEAST", 3)
        content = traits([result])["fra_0"]
    merged = result.n_features + len(OTHERS)
    assert content["others"] == [*OTHERS, "other features"]
    for name, side in (("query", result.query), ("key", result.key)):
        position, source, activation, vector = rows(content, name)
        assert (np.diff(position) >= 0).all()
        for p in range(len(WORDS)):
            here, own = position == p, side.at(p)
            features = side.source[own].numpy() < result.n_features
            assert (source[here] < result.n_features).sum() == min(3, features.sum())
            assert set(side.source[own].numpy()[~features]) <= set(source[here]), "biases and error stay"
            left = dict(zip(side.source[own].tolist(), side.vector[own].numpy(), strict=True))
            for s, v in zip(source[here], vector[here], strict=True):
                if s != merged:
                    np.testing.assert_array_equal(left.pop(int(s)), v)
            summed = vector[here][source[here] == merged]
            assert len(summed) == bool(left)
            if left:
                np.testing.assert_allclose(summed[0], np.sum(list(left.values()), 0), atol=1e-5)
                assert activation[here][source[here] == merged] == len(left), "how many they are"


def test_features_with_the_largest_pairs_are_kept():
    """At the last query one feature makes pairs a hundred times those of the others."""
    result = make_fra(n_features=40, most=30, scale=0.1, seed=3)
    rows_of = result.query.at(len(WORDS) - 1)
    features = [r for r in range(rows_of.start, rows_of.stop) if result.query.source[r] < 40]
    assert len(features) > 4
    result.query.vector[features[2]] *= 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fra_payload, "BYTES", 0)
        patch.setattr(fra_payload, "LEAST", 1)
        position, source, _, _ = rows(traits([result])["fra_0"], "query")
    own = source[(position == len(WORDS) - 1) & (source < 40)]
    assert own.tolist() == [int(result.query.source[features[2]])]


def test_the_bytes_are_bounded_and_said(tmp_path):
    def listed(most):
        (one,) = traits([make_fra(WORDS * 8, n_features=800, most=most, d_head=16)])["fra"]
        return one["bytes"]

    few, many = listed(10), listed(200)
    assert few < many and many < 4 * fra_payload.BYTES
    result = make_fra(WORDS * 8, n_features=800, most=200, d_head=16)
    page = write_report(result, tmp_path / "r.html")
    assert page.stat().st_size == pytest.approx(many, abs=250_000)


def test_labels_are_put_to_the_features_of_their_dictionary():
    result = make_fra()
    own = make_labels({0: "cats", 3: "x" * 500, 999: "not here"}, contexts={0: [("a ", "cat", " sat")] * 9})
    other = make_labels({0: "dogs", 1: "of another dictionary"}, digest="f" * 16)
    plain = make_labels({0: "second", 1: "says not of which"}, digest=None)
    content = traits([result, own, other, plain])["fra_0"]
    present = {int(i) for i in torch.cat([result.query.source, result.key.source]) if i < result.n_features}
    assert {0, 1, 3} <= present
    assert content["labels"] == {"0": "cats", "1": "says not of which", "3": "x" * 160}
    assert content["contexts"] == {"0": [["a ", "cat", " sat"]] * 4}
    assert traits([result])["fra_0"]["labels"] == {}
    assert DIGEST not in json.dumps(content)


def test_labels_alone_are_refused():
    with pytest.raises(ResultError, match="FeatureLabels are shown beside a FeatureAttention"):
        traits([make_labels({0: "x"})])


def test_a_page_names_its_heads_and_says_what_it_holds(tmp_path):
    def head_of(*results):
        source = write_report(results, tmp_path / "r.html").read_text()
        return source.partition("<h1>")[2].partition("</h1>")[0], source.partition('"summary">')[2].partition("<")[0]

    assert head_of(make_fra()) == (
        "Why layer 1, head 2 of zoo:llama-small looks where it looks",
        "1 head taken apart · 10 tokens · a dictionary of 12 features",
    )
    title, _ = head_of(make_fra(), make_fra(head=3), make_fra(head=3, tokens=WORDS[:4]))
    assert title == "Why 2 heads of zoo:llama-small look where they look"
    several = traits([make_fra(), make_fra(head=3), make_fra(head=3, tokens=WORDS[:4])])["fra"]
    assert [one["name"] for one in several][::2] == [
        "Layer 1, head 2 of zoo:llama-small: <s> the cat sat on the mat and the cat",
        "Layer 1, head 3 of zoo:llama-small: <s> the cat sat",
    ]


def test_pages_of_heads_and_of_features_stand_together(tmp_path):
    atlas, circuits = make_atlas(), make_circuits(FIRST, SHAPES[FIRST])
    both = write_report([atlas, circuits, make_fra(), make_labels({0: "x"})], tmp_path / "r.html").read_text()
    found = [name for name in (*VIEWS, FRA_VIEW) if f'id="view-{name}"' in both]
    assert set(found) == {*VIEWS, FRA_VIEW}
    assert both.index(f'id="view-{FRA_VIEW}"') < both.index('id="view-provenance"')
    entries = traits([make_fra(), make_labels({0: "x"})])["provenance"]
    assert [name for entry in entries for name in entry["results"]] == [
        "Feature-resolved attention of layer 1, head 2", "Labels of features",
    ]  # fmt: skip


def test_the_same_results_give_the_same_bytes(tmp_path):
    first, second = (write_report([make_fra()], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
