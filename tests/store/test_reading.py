"""A store reads like the list of its documents, in any order, and takes no more memory however large it is."""

import gc
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headlens as hl
from headlens._errors import DataError, SiteError, StoreError
from headlens.store import Rows, as_rows

SITE, Z = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def ragged(model, tmp_path_factory) -> hl.ActivationStore:
    """Documents of 0 to 9 rows; shards of one or a few of them, and one without any row."""
    rng = np.random.default_rng(2)
    lengths = [0, *rng.integers(0, 10, 20), *[0] * 20, *rng.integers(0, 3, 18), 0]
    ids = [[1, *rng.integers(3, 97, n)] for n in lengths]
    folder = tmp_path_factory.mktemp("ragged") / "s"
    store = hl.capture_to(folder, model, ids, [SITE, Z], dtype="bfloat16", shard_bytes=500)
    rows = [shard.rows for shard in store.manifest.shards]
    assert len(rows) > 20 and 0 in rows and store.lengths.tolist() == lengths
    return store


@pytest.fixture(scope="module")
def one_by_one(ragged) -> list[torch.Tensor]:
    return [ragged.read(Z, [i]).clone() for i in range(len(ragged))]


# --- documents and rows -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.lists(st.integers(0, 59), max_size=30))
def test_documents_come_one_after_the_other(ragged, one_by_one, index):
    expected = torch.cat([one_by_one[i] for i in index]) if index else torch.zeros(0, 48, dtype=torch.bfloat16)
    assert torch.equal(ragged.read(Z, index), expected)
    assert torch.equal(ragged.rows(Z).read(np.array(index, dtype=np.int64)), expected)
    for head in (0, 3):
        assert torch.equal(ragged.read(Z, index, head=head), expected[:, 12 * head : 12 * head + 12])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_a_run_of_documents_is_a_slice_of_all(ragged, bounds):
    first, last = sorted(bounds)
    rows = slice(ragged.offsets[first], ragged.offsets[last])
    assert torch.equal(ragged.read(Z, range(first, last)), ragged.read(Z)[rows])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_come_in_the_order_asked_for(ragged, data):
    index = data.draw(st.lists(st.integers(0, int(ragged.offsets[-1]) - 1), max_size=40))
    assert torch.equal(ragged.read_rows(Z, index), ragged.read(Z)[index])
    assert torch.equal(ragged.read_rows(Z, index, head=2), ragged.read(Z)[index][:, 24:36])


def test_heads_tile_the_row(ragged):
    assert torch.equal(torch.cat([ragged.read(Z, head=head) for head in range(4)], 1), ragged.read(Z))


def test_a_run_in_one_shard_is_a_view_of_the_file(undisturbed):
    store = hl.ActivationStore(undisturbed)
    n = store.manifest.shards[0].documents
    a, b = store.read(SITE, range(n)), store.read(SITE, [1])
    assert a[int(store.offsets[1])].data_ptr() == b.data_ptr()


def test_what_is_written_into_a_view_never_reaches_the_file(undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.iterdir()}
    view = hl.ActivationStore(undisturbed).read(SITE, [0])
    view.zero_()
    assert {path: path.read_bytes() for path in undisturbed.iterdir()} == before
    assert hl.ActivationStore(undisturbed).read(SITE, [0]).abs().sum() > 0


def test_views_outlive_the_store(undisturbed):
    views = [hl.ActivationStore(undisturbed).read(SITE, [i]) for i in range(3)]
    gc.collect()
    store = hl.ActivationStore(undisturbed)
    assert all(torch.equal(view, store.read(SITE, [i])) for i, view in enumerate(views))


def test_many_views_keep_few_files_open(undisturbed):
    store = hl.ActivationStore(undisturbed)
    views = [store.read(SITE, [i % len(store)]) for i in range(5000)]  # beyond what a process may open
    assert len(views) == 5000


# --- as rows ----------------------------------------------------------------------------------------------


def test_rows_are_what_probes_read(ragged):
    rows = as_rows(ragged, site=Z)
    assert isinstance(rows, Rows) and rows.width == 48 and (rows.lengths == ragged.lengths).all()
    assert ragged.rows(Z, head=1).width == 12
    source = rows.source
    assert source["site"] == Z and source["hash"] == ragged.hash and source["bos"] == 1 and source["head"] is None
    assert source["model"] == "LlamaForCausalLM" and source["revision"] is None and source["dtype"] == "bfloat16"
    assert json.loads(json.dumps(source)) == source
    assert ragged.rows(Z, head=1).source == {**source, "head": 1}


def test_a_store_of_one_site_needs_no_name(model, tmp_path):
    store = hl.capture_to(tmp_path / "s", model, [[1, 5, 6], [1, 7]], [SITE])
    assert torch.equal(store[0], store.read(SITE, [0])) and torch.equal(store[-1], store[1])
    assert as_rows(store).width == 48 and len(list(store)) == 2
    with pytest.raises(IndexError):
        store[2]


def test_a_store_can_be_sent_to_another_process(ragged):
    again = pickle.loads(pickle.dumps(ragged.rows(Z)))
    assert torch.equal(again.read(np.arange(5)), ragged.read(Z, range(5)))


def test_a_store_says_what_it_is(ragged):
    assert "60 documents" in repr(ragged) and "bfloat16" in repr(ragged)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "sentence"),
    [
        (lambda s: s.read(), SiteError, "Say which site; it has: blocks.0.hook_resid_post, blocks.1"),
        (lambda s: s[0], SiteError, "Say which site"),
        (lambda s: s.rows("blocks.2.hook_resid_post"), SiteError, "does not hold 'blocks.2.hook_resid_post'"),
        (lambda s: s.rows(SITE, head=0), SiteError, "has no heads, and head 0 was asked for"),
        (lambda s: s.read(Z, [0], head=4), SiteError, "has heads 0 to 3, and head 4"),
        (lambda s: s.read(Z, [], head=-1), SiteError, "has heads 0 to 3, and head -1"),
        (lambda s: s.read(Z, [60]), IndexError, "There is no document 60: documents go from 0 to 59"),
        (lambda s: s.read(Z, [-1]), IndexError, "There is no document -1"),
        (lambda s: s.read(Z, [True, False]), DataError, "Documents to read are a flat list of whole numbers"),
        (lambda s: s.read(Z, [0.5]), DataError, "flat list of whole numbers"),
        (lambda s: s.read_rows(Z, [10**6]), IndexError, "There is no row 1000000"),
    ],
)
def test_what_cannot_be_read(ragged, ask, error, sentence):
    with pytest.raises(error, match=sentence):
        ask(ragged)


def test_what_is_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StoreError, match="holds no activation store"):
            hl.ActivationStore(path)


def test_a_file_that_shrinks_after_opening_is_an_error_and_not_a_crash(store):
    opened = hl.ActivationStore(store)
    path = store / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StoreError, match="shard-00001.safetensors could not be read"):
        opened.read(SITE)


# --- larger than memory -----------------------------------------------------------------------------------

LARGER = """
import json, resource, sys
import numpy as np, torch, transformers as tf
import headlens as hl

torch.set_num_threads(1)

def now(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

def limit(size):
    resource.setrlimit(resource.RLIMIT_AS, (now("VmSize:") + size, resource.RLIM_INFINITY))

torch.manual_seed(0)
config = tf.LlamaConfig(hidden_size=512, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16,
                        vocab_size=97, max_position_embeddings=128, bos_token_id=1)
model = hl.load(tf.LlamaForCausalLM(config))
sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.attn.hook_z", "blocks.0.hook_attn_out"]
options = dict(dtype="float32", shard_bytes=1 << 22, batch_tokens=512)
few = [[1, *[3 + i % 90] * 100] for i in range(20)]
hl.capture_to(sys.argv[1] + "/few", model, few, sites, **options).read(sites[0], [3, 1])  # so that code is loaded

size = 240_000_000
tenth = size // 10
limit(tenth)
documents = [[1, *[3 + i % 90] * 100] for i in range(size // (100 * 512 * 4 * len(sites)) + 1)]
store = hl.capture_to(sys.argv[1] + "/many", model, documents, sites, **options)
total = sum(shard.bytes for shard in store.manifest.shards)
assert total >= size, total

weight, rng, read = torch.zeros(512), np.random.default_rng(0), 0
for site in sites:  # one step of training on every document of every site
    for index in np.array_split(rng.permutation(len(store)), 80):
        rows = store.read(site, index)
        weight += 1e-3 * (rows.mean(0) - weight)
        read += rows.numel() * 4
    for start in range(0, len(store), 5):
        read += store.read(site, range(start, min(start + 5, len(store)))).sum().isfinite().item()
store.verify()
assert bool(weight.isfinite().all())
try:
    store.read(sites[0])  # a quarter of the store does not fit
    fits = True
except (RuntimeError, MemoryError, hl.store.activations.StoreError):
    fits = False
print(json.dumps({"total": total, "tenth": tenth, "read": read, "fits": fits}))
"""


def test_a_store_is_written_and_trained_on_in_a_tenth_of_its_size(tmp_path):
    """The process may take a tenth of the store's size in address space beyond what it had before."""
    done = subprocess.run([sys.executable, "-c", LARGER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["total"] > 10 * found["tenth"] and found["read"] > 0.9 * found["total"]
    assert not found["fits"]  # the limit binds


def test_an_encoder_reads_texts_between_its_own_ends(tmp_path):
    """[CLS] text [SEP], as transformers' tokenizer frames them; neither has a row, and [SEP] is never cut off."""
    import torch
    import transformers as tf

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four"])}
    tokenizer = tf.BertTokenizerFast(vocab=vocab)
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    encoder = tf.BertModel(config).eval()
    model = hl.load(encoder, tokenizer=tokenizer)
    texts, site = ["one two three", "four"], "blocks.1.hook_resid_post"
    store = hl.capture_to(tmp_path / "store", model, texts, sites=[site], dtype="float32")
    framed = [tokenizer(text)["input_ids"] for text in texts]
    assert [row.tolist() for row in store.tokens] == framed
    assert store.kept.tolist() == [False, True, True, True, False, False, True, False]
    with torch.no_grad():
        theirs = encoder(torch.tensor([framed[0]])).last_hidden_state[0, 1:-1]
    torch.testing.assert_close(store.read(site, [0]), theirs, rtol=1e-5, atol=1e-5)
    assert store.tokens.spans is not None and store.tokens.spans[:5].tolist() == [
        [0, 0],
        [0, 3],
        [3, 7],
        [7, 13],
        [13, 13],
    ]
    short = hl.capture_to(tmp_path / "short", model, texts, sites=[site], max_tokens=3)
    assert [row.tolist() for row in short.tokens] == [[2, 4, 3], framed[1]]
    assert short.manifest.totals["cut"] == 1
