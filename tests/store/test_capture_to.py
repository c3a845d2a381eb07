"""What was captured is what is kept: every site, every token that should have a row, whatever the corpus is."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

import headlens as hl
from headlens._errors import DataError, ModelError, SiteError
from headlens.data import pack, texts_hash, tokenize
from headlens.store.documents import Documents, chat_template
from tests.cli.conftest import word_tokenizer
from tests.families import build
from tests.store.conftest import SITES, contents

ALL = [
    f"blocks.*.{name}"
    for name in ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
                 "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
                 "hook_mlp_out", "hook_resid_post")
]  # fmt: skip


def captured(model, ids, sites) -> dict[str, torch.Tensor]:
    """One sequence, alone: site -> (token, width)."""
    (batch,) = hl.capture(model, torch.as_tensor(np.asarray(ids), dtype=torch.long), list(sites))
    return {site: batch[site][0].flatten(1) for site in sites}


# --- round trip -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_every_site_equals_what_capture_sees(family, tmp_path):
    model = hl.load(build(family))
    sites = [s for s in ALL if s.removeprefix("blocks.*.") in hl.tracing.site_names(model)]
    rng = np.random.default_rng(1)
    rows = [rng.integers(3, 97, n) for n in (30, 2, 17, 17, 64, 1)]
    store = hl.capture_to(tmp_path / "s", model, rows, sites, dtype="float32", shard_bytes=1 << 18)
    assert len(store.manifest.shards) > 1
    assert len(store.sites) == 3 * len(sites)
    for i, row in enumerate(rows):
        for site, alone in captured(model, row, store.sites).items():
            torch.testing.assert_close(store.read(site, [i]), alone, rtol=1e-4, atol=1e-5)


def test_batches_of_one_are_exactly_what_capture_sees(model, texts, tmp_path):
    store = hl.capture_to(tmp_path / "s", model, texts, SITES, dtype="float32", batch_tokens=1)
    tokens = tokenize(texts, model.tokenizer, bos=model.bos)
    for i in range(len(texts)):
        for site, alone in captured(model, tokens[i], store.sites).items():
            assert torch.equal(store.read(site, [i]), alone[1:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_rounded_once(dtype, small, undisturbed, tmp_path):
    narrow = hl.capture_to(tmp_path / "s", **small | {"dtype": dtype, "shard_bytes": 1 << 28})
    wide = hl.capture_to(tmp_path / "w", **small | {"shard_bytes": 1 << 28})
    for site in wide.sites:
        assert narrow.read(site).dtype is getattr(torch, dtype)
        assert torch.equal(narrow.read(site), wide.read(site).to(getattr(torch, dtype)))


def test_shapes_of_heads_are_recorded(undisturbed):
    store = hl.ActivationStore(undisturbed)
    assert store.sites == (*(f"blocks.{i}.hook_resid_post" for i in range(3)), *SITES[1:])
    assert [store.shape(site) for site in store.sites] == [(48,)] * 3 + [(4, 12), (2, 12)]


def test_a_site_named_twice_is_kept_once(model, tmp_path):
    sites = ["blocks.1.hook_resid_post", "blocks.*.hook_resid_post"]
    assert len(hl.capture_to(tmp_path / "s", model, [[5, 6]], sites).sites) == 3


# --- tokens -----------------------------------------------------------------------------------------------


def test_tokens_and_spans_are_those_of_tokenize(model, texts, undisturbed):
    store, tokens = hl.ActivationStore(undisturbed), tokenize(texts, model.tokenizer, bos=model.bos)
    assert (store.tokens.ids == tokens.ids).all() and store.tokens.hash == tokens.hash
    assert (store.tokens.offsets == tokens.offsets).all() and (store.tokens.spans == tokens.spans).all()
    assert store.text_hash == texts_hash(texts)
    assert store.offsets[0] == 0 and (np.diff(store.offsets) == store.lengths).all()
    assert store.offsets[-1] == len(store.spans) == len(store.read(store.sites[0]))


def test_rows_are_all_tokens_but_bos(model, texts, undisturbed):
    store = hl.ActivationStore(undisturbed)
    first = np.zeros(len(store.tokens.ids), bool)
    first[store.tokens.offsets[:-1]] = True
    assert (store.kept == ~first).all()
    assert (store.lengths == store.tokens.lengths - 1).all()
    for text, i in zip(texts, range(len(texts)), strict=True):  # so that spans tile the text
        spans = store.spans[store.offsets[i] : store.offsets[i + 1]]
        assert "".join(text[a:b] for a, b in spans) == text


def test_bos_in_the_middle_has_a_row(model, tmp_path):
    store = hl.capture_to(tmp_path / "s", model, [[1, 5, 1, 6], [5, 1]], ["blocks.0.hook_resid_post"])
    assert store.kept.tolist() == [False, True, True, True, True, True]
    assert store.tokens.spans is None and store.spans is None and store.text_hash is None


def test_documents_without_rows_stay_documents(model, tmp_path):
    store = hl.capture_to(tmp_path / "s", model, pack([[], [1], [5, 6], [], [1]]), ["blocks.0.hook_resid_post"])
    assert store.lengths.tolist() == [0, 0, 2, 0, 0]
    assert store[1].shape == (0, 48) and store[2].shape == (2, 48)
    empty = hl.capture_to(tmp_path / "e", model, ["", ""], ["blocks.0.hook_resid_post"])
    assert empty.lengths.tolist() == [0, 0] and empty.read().shape == (0, 48)
    nothing = hl.capture_to(tmp_path / "n", model, [[], []], ["blocks.0.hook_resid_post"])
    assert nothing.lengths.tolist() == [0, 0] and nothing.read(None, [1, 0]).shape == (0, 48)


def test_long_documents_are_cut_and_counted(model, tmp_path):
    texts = ["w1 " * 200, "w2 " * 127, "w3 " * 128]
    store = hl.capture_to(tmp_path / "s", model, texts, ["blocks.0.hook_resid_post"])
    assert store.tokens.lengths.tolist() == [128, 128, 128] and store.manifest.totals["cut"] == 2
    cut = hl.capture_to(tmp_path / "c", model, texts, ["blocks.0.hook_resid_post"], max_tokens=5)
    assert cut.lengths.tolist() == [4, 4, 4] and cut.manifest.totals["cut"] == 3
    assert (cut.tokens.ids == tokenize(texts, model.tokenizer, bos=model.bos, max_tokens=5).ids).all()
    as_ids = hl.capture_to(tmp_path / "i", model, tokenize(texts, model.tokenizer, bos=1), store.sites, max_tokens=5)
    assert torch.equal(as_ids.read(), cut.read()) and as_ids.manifest.totals["cut"] == 3


def test_every_form_of_a_corpus_gives_the_same_rows(model, texts, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    tokens = tokenize(texts, model.tokenizer, bos=model.bos)
    site = ["blocks.0.hook_resid_post"]
    forms = [texts, tuple(texts), iter(texts), (t for t in texts), tokens, [list(map(int, t)) for t in tokens]]
    stores = [hl.capture_to(tmp_path / str(i), model, form, site) for i, form in enumerate(forms)]
    stores.append(hl.capture_to(tmp_path / "file", model, path, site, field="story"))
    assert all(torch.equal(store.read(), stores[0].read()) for store in stores)
    assert contents(tmp_path / "file") == contents(tmp_path / "0")
    assert {store.text_hash for store in stores} == {texts_hash(texts), None}


def test_texts_are_read_as_they_are_needed(model, tmp_path):
    seen = []

    def endless():
        for i in itertools.count():
            seen.append(i)
            if i == 2000:
                raise DataError("enough")
            yield f"w{i % 90} w1"

    with pytest.raises(DataError, match="enough"):
        hl.capture_to(tmp_path / "s", model, endless(), ["blocks.0.hook_resid_post"], shard_bytes=1 << 14)
    assert len(list((tmp_path / "s").glob("shard-*"))) > 10  # written before the corpus ended


# --- the chat template ------------------------------------------------------------------------------------

CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture
def chatty(model):
    tokenizer = word_tokenizer("user", "assistant")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.chat_template = CHAT
    hf = build("llama")
    hf.resize_token_embeddings(len(tokenizer))
    return hl.load(hf, tokenizer=tokenizer)


def test_template_tokens_are_dropped_and_messages_kept(chatty, tmp_path):
    turns = [{"role": "user", "content": "w1 user w2"}, {"role": "assistant", "content": "w3 assistant"}]
    text = chatty.tokenizer.apply_chat_template(turns, tokenize=False)
    (kept, dropped) = (
        hl.capture_to(tmp_path / how, chatty, [text], ["blocks.0.hook_resid_post"], template_tokens=how)
        for how in ("keep", "drop")
    )
    words = chatty.tokenizer.convert_ids_to_tokens(dropped.tokens.ids[dropped.kept].tolist())
    assert words == ["w1", "user", "w2", "w3", "assistant"]  # words of a message are kept though the template has them
    assert kept.lengths.tolist() == [len(kept.tokens.ids) - 1] and kept.tokens.hash == dropped.tokens.hash
    torch.testing.assert_close(dropped.read(), kept.read()[dropped.kept[1:]], rtol=1e-3, atol=1e-3)


def test_without_a_chat_template_special_tokens_are_dropped(model, tmp_path):
    store = hl.capture_to(
        tmp_path / "s", model, [[1, 5, 2, 6], [2]], ["blocks.0.hook_resid_post"], template_tokens="drop"
    )
    assert chat_template(model.tokenizer) is None
    assert store.lengths.tolist() == [2, 0]


def test_a_template_that_refuses_roles_is_no_error(chatty):
    chatty.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert chat_template(chatty.tokenizer) is None
    chatty.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('x') }}{% endif %}" + CHAT
    )
    assert chat_template(chatty.tokenizer) is not None


# --- determinism ------------------------------------------------------------------------------------------


def test_the_same_bytes_whatever_came_before(small, same, tmp_path):
    torch.manual_seed(7)
    hl.capture_to(tmp_path / "a", **small)
    assert same(tmp_path / "a")


def test_shards_are_safetensors_that_anyone_reads(undisturbed):
    store = hl.ActivationStore(undisturbed)
    found = []
    for path in sorted(undisturbed.glob("shard-*")):
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"token_offsets", "row_offsets", "ids", "spans", "kept", *store.sites}
            found.append(file.get_tensor(store.sites[0]))
    assert len(found) > 5 and torch.equal(torch.cat(found), store.read(store.sites[0]))


def test_shards_are_as_large_as_asked(undisturbed, small):
    shards = hl.ActivationStore(undisturbed).manifest.shards
    assert all(shard.bytes - 4096 <= small["shard_bytes"] for shard in shards)
    assert all(shard.bytes > small["shard_bytes"] / 3 for shard in shards[:-1])
    assert sum(shard.documents for shard in shards) == len(small["corpus"])


def test_batches_hold_only_documents_of_one_shard(small, tmp_path):
    """A shard made from its own documents alone is the same shard."""
    whole = hl.capture_to(tmp_path / "a", **small)
    first = whole.manifest.shards[0].documents
    second = whole.manifest.shards[1].documents
    part = hl.capture_to(tmp_path / "b", **small | {"corpus": small["corpus"][first : first + second]})
    assert (tmp_path / "b" / "shard-00000.safetensors").read_bytes() == (
        tmp_path / "a" / "shard-00001.safetensors"
    ).read_bytes()
    assert part.manifest.shards[0].sha256 == whole.manifest.shards[1].sha256


def test_documents_of_like_length_share_a_batch(model, tmp_path, monkeypatch):
    read = []

    def counted(*arguments, **named):
        for batch in hl.capture(*arguments, **named):
            read.append(batch.ids.numel())
            yield batch

    monkeypatch.setattr(sys.modules["headlens.store.capture_to"], "capture", counted)
    ids = [[5] * n for n in [2, 120] * 30]
    hl.capture_to(tmp_path / "s", model, ids, ["blocks.0.hook_resid_post"], batch_tokens=480)
    assert sum(read) < 1.1 * sum(map(len, ids))


def test_progress_counts_every_document_once(small, tmp_path):
    told: list[int] = []
    corpus = ["w1", "", *small["corpus"]]
    hl.capture_to(tmp_path / "a", **small | {"corpus": corpus}, progress=told.append)
    assert sum(told) == len(corpus)
    told.clear()
    hl.capture_to(tmp_path / "a", **small | {"corpus": corpus}, progress=told.append, resume=True)
    assert sum(told) == len(corpus)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"sites": ["blocks.0.attn.hook_pattern"]}, SiteError, "has no row per token: fold it with hl.capture"),
        ({"sites": ["blocks.*.attn.hook_attn_scores"]}, SiteError, "has no row per token"),
        ({"sites": ["blocks.9.hook_resid_post"]}, SiteError, "has no layer 9"),
        ({"sites": []}, SiteError, "No site was asked for"),
        ({"sites": "blocks.0.hook_resid_post"}, SiteError, "write \\['blocks"),
        ({"max_tokens": 0}, DataError, "max_tokens must be 1 or more, not 0"),
        ({"batch_tokens": 0}, DataError, "batch_tokens must be 1 or more"),
        ({"shard_bytes": 0}, DataError, "shard_bytes must be 1 or more"),
        ({"corpus": []}, DataError, "There is no document"),
        ({"corpus": iter(())}, DataError, "There is no document"),
        ({"corpus": "nothing.jsonl"}, DataError, "There is no corpus at nothing.jsonl"),
        ({"corpus": ["w1", 3]}, DataError, "Document 1 is a int, and others are text"),
        ({"corpus": [[5, 97]]}, DataError, "Token id 97 is outside"),
        ({"corpus": [[5, -1]]}, DataError, "Token id -1 is outside"),
    ],
)
def test_what_cannot_be_captured(small, tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        hl.capture_to(tmp_path / "s", **small | options)
    assert not (tmp_path / "s").exists()


def test_a_bad_id_is_found_before_anything_is_written(model, tmp_path):
    with pytest.raises(DataError, match="Token id 97 is outside"):
        hl.capture_to(tmp_path / "s", model, [[5]] * 50 + [[97]], ["blocks.0.hook_resid_post"], shard_bytes=1000)
    assert not (tmp_path / "s").exists()


def test_text_for_a_model_without_a_tokenizer(tmp_path):
    model = hl.load(build("llama"))
    with pytest.raises(DataError, match="no tokenizer, so text cannot be read"):
        hl.capture_to(tmp_path / "s", model, ["w1"], ["blocks.0.hook_resid_post"])
    with pytest.raises(DataError, match="template_tokens='keep'"):
        hl.capture_to(tmp_path / "s", model, [[5]], ["blocks.0.hook_resid_post"], template_tokens="drop")


def large(factor: float) -> hl.Model:
    hf = build("llama")
    with torch.no_grad():
        hf.model.embed_tokens.weight.mul_(factor)
    return hl.load(hf)


def test_what_float16_cannot_hold_is_refused_and_not_infinite(tmp_path):
    model, site = large(1e7), ["blocks.0.hook_resid_pre"]
    with pytest.raises(DataError, match=r"reaches .*, which float16 cannot hold: keep it as bfloat16 or float32"):
        hl.capture_to(tmp_path / "s", model, [[5, 6]], site)
    assert hl.capture_to(tmp_path / "b", model, [[5, 6]], site, dtype="bfloat16").read().isfinite().all()


def test_large_numbers_whose_sum_overflows_are_kept(tmp_path):
    model = large(1e38)
    store = hl.capture_to(tmp_path / "s", model, [[5, 6] * 20], ["blocks.0.hook_resid_pre"], dtype="float32")
    assert store.read().isfinite().all()


def test_nan_is_refused(tmp_path):
    model = large(1.0)
    nan = hl.Edit("blocks.0.hook_resid_pre", lambda value: value * float("nan"))
    with hl.edit(model, [nan]), pytest.raises(ModelError, match="blocks.0.hook_resid_post .* is NaN or infinite"):
        hl.capture_to(tmp_path / "s", model, [[5, 6]], ["blocks.0.hook_resid_post"])


def test_documents_are_what_they_say(model):
    documents = list(Documents(model, ["w1 w2", "w3"], max_tokens=2, template_tokens="keep"))
    assert [d.n_rows for d in documents] == [1, 1] and [d.cut for d in documents] == [True, False]
