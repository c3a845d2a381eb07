"""`headlens capture`: writes a store, goes on with one, checks one; and refuses, at once, what cannot end well."""

import json

import pytest

import headlens as hl
from tests.test_files import full_disk

SITES = ("--sites", "blocks.*.hook_resid_post,blocks.0.attn.hook_z")
SHARD = "shard-00000.safetensors"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"w{i} w2 w3", "story": "w1"}) + "\n" for i in range(30)))
    return path


def test_capture_writes_what_capture_to_writes(headlens, llama, corpus, tmp_path):
    outcome = headlens("capture", llama, "texts.jsonl", *SITES, "--out", "acts")
    assert outcome.status == 0 and outcome.err == ""
    assert "30 documents, 120 tokens, 90 rows" in outcome.out and str(tmp_path / "acts") in outcome.out
    hl.capture_to(tmp_path / "other", str(llama), corpus, SITES[1].split(","), shard_bytes=256 << 20)
    for name in ("manifest.json", SHARD):
        assert (tmp_path / "acts" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_every_option_reaches_the_store(headlens, llama, corpus, tmp_path):
    options = ("--store-dtype", "bfloat16", "--num-docs", 7, "--max-tokens", 3, "--template-tokens", "drop", "--field",
               "text", "--batch-tokens", 64, "--shard-mb", 1, "--dtype", "float64", "--device", "cpu")  # fmt: skip
    outcome = headlens("capture", llama, corpus, *SITES, "--out", "acts", *options)
    assert outcome.status == 0 and "7 documents (7 cut at 3 tokens)" in outcome.out
    settings = hl.ActivationStore(tmp_path / "acts").manifest.settings
    assert (settings.dtype, settings.max_tokens, settings.template_tokens) == ("bfloat16", 3, "drop")
    assert (settings.batch_tokens, settings.shard_bytes, settings.model["dtype"]) == (64, 1 << 20, "float64")


def test_capture_as_json(headlens, llama, corpus, tmp_path):
    outcome = headlens("capture", llama, corpus, *SITES, "--out", "acts", "--json", "--field", "story")
    answer, store = json.loads(outcome.out), hl.ActivationStore(tmp_path / "acts")
    assert (answer["documents"], answer["rows"], answer["hash"]) == (30, 30, store.hash)
    assert list(answer["sites"]) == list(store.sites) and answer["model"]["name"] == str(llama)
    assert answer["bytes"] == (tmp_path / "acts" / SHARD).stat().st_size


def test_damage_is_checked_for_and_made_good(headlens, llama, corpus, tmp_path):
    command = ("capture", llama, corpus, *SITES, "--out", "acts")
    assert headlens(*command).status == 0
    assert headlens("capture", "--check", "acts").out == "whole: acts\n"
    shard = tmp_path / "acts" / SHARD
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + b"\7")
    checked = headlens("capture", "--check", "acts")
    assert checked.status == 1 and checked.out.startswith(f"{SHARD} is damaged: its checksum is another\n")
    as_json = headlens("capture", "--check", "acts", "--json")
    assert as_json.status == 1 and json.loads(as_json.out)["faults"] == {SHARD: "damaged: its checksum is another"}
    resumed = headlens(*command, "--resume")
    assert resumed.status == 0 and shard.read_bytes() == sound
    assert resumed.err == f"{SHARD} is damaged: its checksum is another; it is made again.\n"
    shard.write_bytes(sound[:-1] + b"\7")
    assert headlens(*command, "--resume", "--quiet").err == ""
    assert headlens("capture", "--check", "acts", "--json").status == 0


def test_a_full_disk_ends_with_a_sentence_and_a_store_that_goes_on(headlens, llama, corpus, tmp_path):
    command = ("capture", llama, corpus, *SITES, "--out", "acts")
    with full_disk(5_000):
        outcome = headlens(*command)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("error: acts could not be written: File too large. What was written before is whole")
    assert headlens(*command, "--resume").status == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name a model, a corpus, --sites and --out; or a store to --check."),
        (("@llama", "texts.jsonl", "--out", "o"), "Name a model, a corpus, --sites and --out"),
        (("@llama", "none.jsonl", *SITES, "--out", "o"), "There is no corpus at none.jsonl."),
        (("@llama", "texts.jsonl", *SITES, "--out", "texts.jsonl"), "texts.jsonl is a file: name a folder."),
        (("@llama", "texts.jsonl", *SITES, "--out", "."), ". holds other files (texts.jsonl): name another folder."),
        (("@llama", "texts.jsonl", *SITES, "--out", "o", "--num-docs", 0), "Must be >= 1"),
        (("@llama", "texts.jsonl", *SITES, "--out", "o", "--field", "tale"), "has no field 'tale'"),
        (("--check", "o"), "o holds no activation store: there is no manifest.json in it."),
    ],
)
def test_what_can_be_seen_at_once_costs_no_loading(refused, never_loaded, zoo, corpus, arguments, sentence):
    typed = [zoo / str(a).removeprefix("@") if str(a).startswith("@") else a for a in arguments]
    assert sentence in refused("capture", *typed)


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [("blocks.0.attn.hook_pattern", "has no row per token"), ("blocks.9.hook_resid_post", "has no layer 9")],
)
def test_sites_that_cannot_be_kept(refused, llama, corpus, sites, sentence):
    assert sentence in refused("capture", llama, corpus, "--sites", sites, "--out", "o")


def test_a_store_is_not_written_over_nor_mixed(headlens, refused, zoo, corpus):
    assert headlens("capture", zoo / "llama", corpus, *SITES, "--out", "acts").status == 0
    again = ("capture", zoo / "llama", corpus, "--out", "acts")
    assert "acts holds a store already" in refused(*again, *SITES)
    assert "was captured with sites" in refused(*again, "--sites", "blocks.0.hook_resid_pre", "--resume")
    other = refused("capture", zoo / "neox", corpus, *SITES, "--out", "acts", "--resume")
    assert "acts was captured with model config" in other


def test_interrupting_keeps_what_is_whole(headlens, llama, corpus, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("headlens.store.manifest.Manifest.save", interrupt)
    outcome = headlens("capture", llama, corpus, *SITES, "--out", "acts")
    assert outcome.status == 130 and [path.name for path in (tmp_path / "acts").iterdir()] == [SHARD]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert headlens("capture", llama, corpus, *SITES, "--out", "acts", "--resume").status == 0
