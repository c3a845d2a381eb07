"""Labels that are read are those that were written; labels that are computed are the tokens that excite a feature most."""

import gzip
import io
import json
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headlens as hl
from headlens._errors import DataError, ResultError, SiteError
from headlens.dictionaries.autoencoder import Autoencoder
from headlens.fra import FeatureLabels, label_features, read_labels, resolve
from headlens.fra.labels import SCHEMA, _Best
from headlens.zoo import constructed
from tests.fra.test_known_truth import dictionary

WRITTEN = {3: "cats", 12: "<b>not markup</b>", 0: "naïve 猫"}


def written(path, kind):
    rows = [{"feature": i, "label": label} for i, label in WRITTEN.items()]
    neuronpedia = [{"modelId": "gpt2-small", "layer": "5-res-jb", "index": str(i), "description": label,
                    "explanationModelName": "gpt-4o-mini"} for i, label in WRITTEN.items()]  # fmt: skip
    lines = "\n".join(map(json.dumps, neuronpedia)) + "\n"
    match kind:
        case "object.json":
            content = json.dumps({str(i): label for i, label in WRITTEN.items()}).encode()
        case "list.json":
            content = json.dumps(rows).encode()
        case "neuronpedia.json":
            content = json.dumps(neuronpedia).encode()
        case "neuronpedia.json.gz":
            content = gzip.compress(json.dumps(neuronpedia).encode())
        case "batch-0.jsonl":
            content = b"\xef\xbb\xbf" + lines.encode()
        case "batch-0.jsonl.gz":
            content = gzip.compress(lines.encode())
        case "a.csv":
            content = b"feature,label\n" + "".join(f'{i},"{label}"\n' for i, label in WRITTEN.items()).encode()
        case "a.parquet" | "a.arrow" | "a.feather":
            table = pa.Table.from_pylist(
                [{"index": i, "description": d, "embedding": [0.1]} for i, d in WRITTEN.items()]
            )
            write = pyarrow.parquet.write_table if kind == "a.parquet" else pyarrow.feather.write_feather
            write(table, path / kind)
            return path / kind
    (path / kind).write_bytes(content)
    return path / kind


KINDS = (
    "object.json", "list.json", "neuronpedia.json", "neuronpedia.json.gz", "batch-0.jsonl", "batch-0.jsonl.gz", "a.csv",
    "a.parquet", "a.arrow", "a.feather",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_read_the_same(tmp_path, kind):
    found = read_labels(written(tmp_path, kind))
    assert {i: found.label(i) for i in (0, 3, 12, 4)} == WRITTEN | {4: None}
    assert (found.name(3), found.name(4)) == ("feature 3: cats", "feature 4")
    assert found.table["feature"].to_pylist() == [0, 3, 12] and found.contexts(3) == []
    again = FeatureLabels.load(found.save(tmp_path / "saved"))
    assert again.table.equals(found.table) and again.provenance == found.provenance
    with pytest.raises(ResultError, match=r"Call FeatureLabels\.load"):
        hl.fra.FeatureAttention.load(tmp_path / "saved")


def test_of_several_the_first_counts_and_empty_ones_do_not(tmp_path):
    rows = [{"index": 1, "description": "  "}, {"index": 1, "description": " first "},
            {"index": 1, "description": "second"}, {"index": 2, "description": None}]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = read_labels(tmp_path / "a.json")
    assert found.label(1) == "first" and found.table.num_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.json", None, "There are no labels at"),
        ("a.txt", "x", "ends in '.txt', and labels are in .json"),
        ("a.parquet.gz", "x", "ends in '.gz', and labels are in"),
        ("a.json", "{", "cannot be read as labels"),
        ("a.json", "[1, 2]", "must hold"),
        ("a.json", "3", "must hold"),
        ("a.json", "{}", "holds no label"),
        ("a.json", '{"one": "x"}', "Label 1 of .* is of feature 'one'"),
        ("a.json", '{"-1": "x"}', "is of feature '-1'"),
        ("a.json", '{"1": 5}', "Label 1 of .* is '5'; it must be a text"),
        ("a.json", '[{"feature": true, "label": "x"}]', "is of feature 'True'"),
        ("a.json", '[{"feature": 1.5, "label": "x"}]', "is of feature '1.5'"),
        ("a.json", '[{"number": 1, "label": "x"}]', r"has no feature or index \(it has: number, label\)"),
        ("a.csv", "feature,text\n1,x\n", r"has no label or description \(it has: feature, text\)"),
        ("a.parquet", "PAR1", "cannot be read as labels"),
        ("a.jsonl.gz", "not gzip", "cannot be read as labels"),
        ("a.jsonl", '{"index": 1}\n{bad\n', "cannot be read as labels"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=says):
        read_labels(tmp_path / name)


def test_labels_of_a_larger_dictionary_are_told(tmp_path):
    found = read_labels(written(tmp_path, "list.json"))
    found.check(13)
    with pytest.raises(DataError, match="a label of feature 12, and the dictionary's features are 0 to 11"):
        found.check(12)


def test_a_half_character_is_replaced(tmp_path):
    (tmp_path / "a.json").write_text('{"1": "half \\ud800"}')
    assert read_labels(tmp_path / "a.json").label(1) == "half ?"


# --- Neuronpedia --------------------------------------------------------------------------------------------------


class _Bucket:
    """Stands in for the place that Neuronpedia exports to: three files, listed two at a time."""

    def __init__(self, content=None):
        self.asked = []
        lines = content or [[{"index": str(i), "description": label}] for i, label in WRITTEN.items()]
        self.files = {
            f"v1/gpt2-small/5-res-jb/explanations/batch-{n}.jsonl.gz": gzip.compress(
                "\n".join(json.dumps(row) for row in rows).encode()
            )
            for n, rows in enumerate(lines)
        }

    def urlopen(self, url, timeout):
        assert timeout and url.startswith("https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/")
        self.asked.append(url)
        if "?" not in url:
            return io.BytesIO(self.files[url.partition("amazonaws.com/")[2]])
        asked = dict(urllib.parse.parse_qsl(url.partition("?")[2]))
        names = [n for n in sorted(self.files) if n.startswith(asked["prefix"]) and n > asked.get("start-after", "")]
        told = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in names[:2])
        more = str(len(names) > 2).lower()
        return io.BytesIO(f"<ListBucketResult><IsTruncated>{more}</IsTruncated>{told}</ListBucketResult>".encode())


def test_neuronpedia_is_fetched_when_it_is_named(monkeypatch):
    bucket = _Bucket()
    monkeypatch.setattr(urllib.request, "urlopen", bucket.urlopen)
    found = read_labels("neuronpedia:gpt2-small/5-res-jb")
    assert {i: found.label(i) for i in WRITTEN} == WRITTEN
    assert len(bucket.asked) == 5, "two lists, three files"
    assert found.provenance.data["labels"]["source"] == "neuronpedia:gpt2-small/5-res-jb"
    with pytest.raises(DataError, match="exports no explanations of gpt2-small/99-none"):
        read_labels("neuronpedia:gpt2-small/99-none")


@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), TimeoutError("timed out")])
def test_without_a_network_it_says_what_to_do(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"Neuronpedia could not be reached \(.+\): on a machine that can, save"):
        read_labels("neuronpedia:gpt2-small/5-res-jb")


@pytest.mark.parametrize("name", ["", "gpt2-small", "gpt2-small/", "a/b/c", "gpt2-small/../../x", "a/b?c"])
def test_a_name_that_is_none_asks_for_nothing(monkeypatch, name):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(DataError, match="must be neuronpedia:MODEL/DICTIONARY"):
        read_labels(f"neuronpedia:{name}")


def test_an_export_that_is_damaged_is_told(monkeypatch):
    bucket = _Bucket()
    bucket.files = dict.fromkeys(bucket.files, b"not gzip")
    monkeypatch.setattr(urllib.request, "urlopen", bucket.urlopen)
    with pytest.raises(DataError, match=r"batch-0.jsonl.gz of Neuronpedia cannot be read"):
        read_labels("neuronpedia:gpt2-small/5-res-jb")


# --- computed -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 5), st.integers(0, 3), st.integers(1, 5))
def test_in_one_pass_the_tokens_of_the_largest_activation_are_kept(seed, n, width, n_batches):
    """Against all activations at once, sorted."""
    rng = np.random.default_rng(seed)
    n_features, n_vocab = 6, 5
    best, largest = _Best.empty(n_features, n, width), {}
    for batch in range(n_batches):
        lengths = rng.integers(1, 9, 3)
        ids = np.full((3, lengths.max()), -1)
        for row, length in enumerate(lengths):
            ids[row, :length] = rng.integers(0, n_vocab, length)
        where = np.argwhere(ids >= 0)
        entries = [(t, p, f) for t, p in where for f in range(n_features) if rng.random() < 0.3]
        if not entries:
            continue
        text, at, feature = np.array(entries).T
        value = rng.integers(1, 9, len(entries)).astype(np.float32)  # ties are common
        best.add(ids, text, at, feature, value)
        for order, (t, p, f, v) in enumerate(zip(text, at, feature, value, strict=True)):
            padded = np.pad(ids[t], width, constant_values=-1)[p : p + 2 * width + 1]
            key = (int(f), int(ids[t, p]))
            if key not in largest or v > largest[key][0]:
                largest[key] = (float(v), (batch, order), padded.tolist())
    for f in range(n_features):
        own = sorted((-v, order, token, around) for (g, token), (v, order, around) in largest.items() if g == f)[:n]
        kept = best.token[f] >= 0
        assert (-best.value[f][kept]).tolist() == [v for v, *_ in own]
        if len({v for v, *_ in own}) == len(own):
            assert best.token[f][kept].tolist() == [token for _, _, token, _ in own]
            assert best.context[f][kept].tolist() == [around for *_, around in own]
        assert len(set(best.token[f][kept])) == kept.sum(), "each token once"


@pytest.fixture(scope="module")
def synonyms():
    c = constructed.build("synonyms")
    return c, hl.load(c.model, tokenizer=c.tokenizer), dictionary(c, 1), list(c.features)


TEXTS = ["big boat gift large", "large small big boat", "boat gift", "shop large shop"]


def test_a_feature_goes_by_the_words_it_was_made_for(synonyms):
    _, model, own, features = synonyms
    found = label_features(model, own, TEXTS, 1, width=2)
    assert found.label(features.index("token:boat")) == "boat"
    assert set(found.label(features.index("concept:big")).split(" · ")) == {"big", "large"}
    after = found.contexts(features.index("previous:big"))
    assert {one["token"].strip() for one in after} == {"boat"}, "what comes after the word"
    context = found.contexts(features.index("token:small"))[0]
    whole = context["before"] + context["token"] + context["after"]
    assert whole.split() == ["<bos>", "large", "small", "big", "boat"]
    assert context["activation"] == pytest.approx(1, abs=1e-3)
    n = sum(len(text.split()) for text in TEXTS)
    share = found.table["frequency"][found.table["feature"].to_pylist().index(features.index("token:boat"))].as_py()
    assert share == pytest.approx(3 / n), "of tokens, BOS aside"
    assert found.label(features.index("token:<bos>")) is None, "BOS is not counted"
    assert found.provenance.data["texts"]["n_tokens"] == n
    assert (
        found.provenance.data["dictionary"]["digest"]
        == resolve(model, own, "big", 1, 1).provenance.data["dictionary"]["digest"]
    )


@pytest.mark.parametrize("batch_tokens", [8, 8192])
def test_batches_change_nothing_and_texts_may_be_a_stream(synonyms, batch_tokens):
    _, model, own, _ = synonyms
    first = label_features(model, own, TEXTS, 1)
    again = label_features(model, own, iter(TEXTS), 1, batch_tokens=batch_tokens)
    keep = ["feature", "frequency"]
    assert again.table.select(keep).equals(first.table.select(keep))
    for one, other in zip(first.table["label"].to_pylist(), again.table["label"].to_pylist(), strict=True):
        assert set(one.split(" · ")) == set(other.split(" · "))


def test_many_texts_come_in_groups_and_progress_is_told(synonyms):
    _, model, own, _ = synonyms
    told = []
    found = label_features(model, own, TEXTS * 40, 1, progress=told.append)
    assert told == [64, 128, 160]
    assert found.table["label"].equals(label_features(model, own, TEXTS, 1).table["label"])


def test_what_was_written_stays_and_is_filled_from_what_was_computed(synonyms, tmp_path):
    _, model, own, features = synonyms
    concept, boat = features.index("concept:big"), features.index("token:boat")
    (tmp_path / "a.json").write_text(json.dumps({str(concept): "size"}))
    both = read_labels(tmp_path / "a.json").filled(label_features(model, own, TEXTS, 1))
    assert (both.label(concept), both.label(boat)) == ("size", "boat")
    assert len(both.contexts(concept)) == 2 and both.table.schema == SCHEMA
    table = resolve(model, own, "big boat gift large", 1, 1).top(1)
    row = both.named(table).to_pylist()[0]
    assert row["query_name"] == f"feature {concept}: size"
    assert row["key_name"] == both.name(features.index("previous-concept:big"))
    assert both.named(table).column_names == table.column_names


def test_refusals(synonyms):
    _, model, own, _ = synonyms
    for texts, options, says in (
        ([], {}, "no text to find"), ("one text", {}, "write \\[text\\]"), (TEXTS, {"n": 0}, "n must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            label_features(model, own, texts, 1, **options)
    with pytest.raises(SiteError, match="head 0 of layer 0"):
        label_features(model, own, TEXTS, 0)
    silent = Autoencoder(
        W_enc=own.W_enc, b_enc=torch.full_like(own.b_enc, -1e3), W_dec=own.W_dec, b_dec=own.b_dec, site=own.site
    )
    assert label_features(model, silent, TEXTS, 1).table.num_rows == 0, "no feature is ever active"
