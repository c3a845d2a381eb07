"""Whatever is wrong, the command line says it in one sentence that names the fix, and leaves nothing behind."""

import json
import os

import pytest

from headlens._errors import ModelNotFound
from tests.test_files import full_disk

FEW = ("--num-samples", 3, "--seq-len", 8)

MODELS = {
    "no_config": "broken holds no config.json: a model is a folder that save_pretrained wrote.",
    "broken_config": "broken",
    "mamba": "Architecture 'mamba' is not in the table",
    "bloom": "Architecture 'bloom' is not in the table",
    "nan": "broken has NaN or infinite values in model.norm.weight",
    "incomplete": "broken lacks weights that its config promises (model.layers.1.self_attn.k_proj.weight)",
    "truncated": "The weights of broken could not be read",
    "headless": "The weights of broken could not be read",
    "no_weights": "The weights of broken could not be read",
}


@pytest.mark.parametrize("command", ["heads", "verify"])
@pytest.mark.parametrize("how", MODELS)
def test_models(refused, broken, how, command):
    assert MODELS[how] in refused(command, broken(how))


def test_an_encoder_has_no_heads_to_verify(refused, broken):
    assert "broken is an encoder" in refused("verify", broken("encoder"))


@pytest.mark.parametrize("command", ["heads", "verify"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nothing", "There is no folder ./nothing. Name a model folder, a hub id or zoo:NAME."),
        ("a/b/c", "There is no folder a/b/c."),
        ("zoo:nothing", "The zoo has no model 'nothing'"),
        ("notes.txt", "notes.txt is a file; a model is a folder"),
    ],
)
def test_names(refused, tmp_path, command, name, sentence):
    (tmp_path / "notes.txt").write_text("x")
    assert sentence in refused(command, name)


def test_attention_that_overflows_is_no_score(refused, broken):
    sentence = refused("heads", broken("overflowing"), *FEW, "--dtype", "float16")
    assert "of broken is NaN: its numbers overflow float16. Load it in a wider dtype." in sentence


def test_a_tokenizer_of_another_model(refused, broken, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4 than rows\n")
    sentence = refused("heads", broken("mismatched"), *FEW, "--corpus", "a.txt")
    assert sentence == (
        "Token id 100 is outside the vocabulary of broken (0 to 96): these tokens come from another tokenizer."
    )


def test_a_vocabulary_larger_than_the_model_does_no_harm_until_it_is_read(headlens, broken):
    assert headlens("heads", broken("mismatched"), *FEW, "--quiet").status == 0


OPTIONS = {
    "no model": ((), "Name at least one model"),
    "twice": (("@llama", "@llama"), "llama is named twice"),
    "no sample": (("@llama", "--num-samples", 0), "num_samples must be 1 or more, not 0."),
    "negative samples": (("@llama", "--num-samples", -2), "num_samples must be 1 or more, not -2."),
    "many, in words": (
        ("@llama", "--num-samples", "many"),
        'Invalid value for --num-samples: unable to convert "many"',
    ),
    "no length": (("@llama", "--seq-len", 0), "seq_len must be 2 or more, not 0."),
    "negative length": (("@llama", "--seq-len", -5), "seq_len must be 2 or more, not -5."),
    "negative gap": (("@llama", "--max-gap", -1), "max_gap must be 0 or more, not -1."),
    "no token": (("@llama", "--max-tokens", 0), "max_tokens must be 4 or more, not 0."),
    "one token": (("@llama", "--max-tokens", 1), "max_tokens must be 4 or more, not 1."),
    "negative texts": (("@llama", "--texts", -1), 'Invalid value "-1" for --texts. Must be >= 0.'),
    "negative seed": (("@llama", "--seed", -1), 'Invalid value "-1" for --seed. Must be >= 0.'),
    "large seed": (("@llama", "--seed", 2**63), "for --seed. Must be < 9223372036854775808."),
    "unknown kind": (
        ("@llama", "--kinds", "self,induced"),
        "'induced' is no kind of head; the kinds are previous_token,",
    ),
    "no kind": (("@llama", "--kinds", ""), "'' is no kind of head; the kinds are"),
    "unknown option": (("@llama", "--samples", 3), "Unknown option: --samples"),
    "unknown format": (("@llama", "--format", "xml"), '"xml" for --format. Choose from: "table", "json", "parquet".'),
    "parquet nowhere": (("@llama", "--format", "parquet"), "say where with --out DIR"),
    "unknown dtype": (("@llama", "--dtype", "int8"), 'Invalid value "int8" for --dtype. Choose from: "float32"'),
    "unknown device": (("@llama", "--device", "abacus"), "Device 'abacus' cannot be used here"),
    "a device of another torch": (("@llama", "--device", "hpu"), "Device 'hpu' cannot be used here"),
    "no device": (("@llama", "--device", "meta"), "Device 'meta' holds no numbers: name cpu, cuda, mps or auto."),
    "report in out": (("@llama", "--out", "o", "--report", "o/r.html"), "--report o/r.html lies in --out o"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_heads(refused, zoo, case):
    arguments, sentence = OPTIONS[case]
    typed = [zoo / str(a).removeprefix("@") if str(a).startswith("@") else a for a in arguments]
    assert sentence in refused("heads", *typed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "requires an argument"),
        (("@llama", "--tokens", 0), 'Invalid value "0" for --tokens. Must be >= 1.'),
        (("@llama", "--tokens", -3), 'Invalid value "-3" for --tokens. Must be >= 1.'),
        (("@llama", "--seed", -1), "Must be >= 0"),
        (("@llama", "--device", "abacus"), "Device 'abacus' cannot be used here"),
    ],
)
def test_options_of_verify(refused, zoo, arguments, sentence):
    typed = [zoo / str(a).removeprefix("@") if str(a).startswith("@") else a for a in arguments]
    assert sentence in refused("verify", *typed)


def test_a_command_that_does_not_exist(refused):
    assert "Available commands: demo, verify, heads, fra, rules, sae, capture, probe, " in refused("head")


@pytest.mark.parametrize("option", [("--seq-len", -1), ("--kinds", "induced"), ("--corpus", "nothing.txt")])
def test_what_can_be_seen_at_once_costs_no_loading(refused, never_loaded, llama, option):
    refused("heads", llama, *option)


# --- corpora ----------------------------------------------------------------------------------------------

CORPORA = {
    "a.jsonl": ("", "a.jsonl holds no text: every document in it is empty."),
    "b.jsonl": ('{"text": "w1 w2 w3 w4"}\n{bad\n', "b.jsonl line 2 is not JSON"),
    "c.jsonl": ('{"story": "w1"}\n', "c.jsonl line 1 has no field 'text' (it has: story)."),
    "d.csv": ("story\nw1\n", "d.csv has no column 'text' (it has: story)."),
    "e.pdf": ("x", "e.pdf ends in '.pdf', and a corpus is one of .jsonl, .csv, .txt or a folder."),
    "f.txt": ("w1\nw1 w2\n", "No text has four tokens or more"),
    "g.jsonl": ('{"\\u001b[31m\\nkey": 1}\n', "g.jsonl line 1 has no field 'text' (it has: \\x1b[31m key)."),
}


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(refused, tmp_path, llama, name):
    content, sentence = CORPORA[name]
    (tmp_path / name).write_text(content)
    assert sentence in refused("heads", llama, *FEW, "--corpus", name, "--out", "o", "--report", "r.html")


def test_a_corpus_that_is_not_there(refused, llama):
    assert refused("heads", llama, "--corpus", "a.jsonl") == "There is no corpus at a.jsonl."


def test_text_for_a_model_without_a_tokenizer(refused, zoo, tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4\n")
    sentence = refused("heads", zoo / "silent", *FEW, "--corpus", "a.txt")
    assert sentence == "This model has no tokenizer, so text cannot be read: pass token ids instead."


# --- places to write to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["heads", "verify"])
@pytest.mark.parametrize("kind", ["file", "folder", "manifest", "model"])
def test_out_is_someone_elses(refused, never_loaded, tmp_path, llama, command, kind):
    out = tmp_path / "mine"
    if kind == "file":
        out.write_text("mine")
    elif kind == "model":
        out = llama
    else:
        out.mkdir()
        (out / ("manifest.json" if kind == "manifest" else "thesis.tex")).write_text('{"name": "my app"}')
    before = {p: p.read_bytes() for p in llama.iterdir()}
    assert "is not a saved headlens result: name another folder." in refused(command, llama, "--out", out)
    assert {p: p.read_bytes() for p in llama.iterdir()} == before


def test_out_is_a_result_with_a_file_of_someone_else_in_it(headlens, refused, tmp_path, llama):
    assert headlens("heads", llama, *FEW, "--out", "o").status == 0
    (tmp_path / "o" / "notes.md").write_text("mine")
    sentence = refused("heads", llama, *FEW, "--out", "o")
    assert sentence == "o holds other files beside a result (notes.md): name another folder."


def test_report_is_a_folder_or_a_device(refused, never_loaded, tmp_path, llama):
    (tmp_path / "folder").mkdir()
    assert "folder is a folder and a file is wanted" in refused("heads", llama, "--report", "folder")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a device, pipe or socket" in refused("heads", llama, "--report", "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("command", ["heads", "verify"])
def test_a_full_disk_for_out(headlens, refused, llama, command):
    few = FEW if command == "heads" else ()
    with full_disk(2_000):
        assert "o could not be written: " in refused(command, llama, *few, "--out", "o")
    assert headlens(command, llama, *few, "--out", "o").status == 0
    with full_disk(2_000):  # the older result stays
        assert "o could not be written: " in refused(command, llama, *few, "--out", "o")


def test_a_full_disk_for_report(refused, llama, tmp_path):
    (tmp_path / "r.html").write_text("the page of yesterday")
    with full_disk(2_000):
        sentence = refused("heads", llama, *FEW, "--report", "r.html")
    assert sentence.startswith("r.html could not be written: File too large. Nothing was left behind")


def test_out_in_a_place_that_cannot_be_made(refused, llama, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file/o could not be written: " in refused("heads", llama, *FEW, "--out", "file/o")


# --- options in a file ------------------------------------------------------------------------------------

TOML = {
    "[heads]\nnum_sample = 3": 'Unknown option: "[num_sample]" from',
    '[heads]\nseed = "x"': 'unable to convert "x" into int',
    "[heads]\nseed = -1": "Must be >= 0",
    "[heads]\nmax_gap = -1": "max_gap must be 0 or more, not -1.",
    "seed = 1": "headlens.toml has 'seed' outside a table: put it under [demo] or [verify] or [heads] or [rules] or [capture] or [report] or [world] or [fra] or [sae] or [probe] or [universe].",
    "[head]\nseed = 1": "headlens.toml has a table [head], and its tables are [demo], [verify], [heads], [rules], [capture], [report], [world], [fra], [sae], [probe], [universe].",
    "[heads\n": "headlens.toml cannot be read as TOML: ",
    "\ud800": "headlens.toml cannot be read as TOML: ",
}


@pytest.mark.parametrize("content", TOML)
def test_a_file_of_options_that_is_wrong(refused, tmp_path, llama, content):
    (tmp_path / "headlens.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert TOML[content] in refused("heads", llama)


# --- what no one foresaw ----------------------------------------------------------------------------------


def failing(monkeypatch, error: BaseException) -> None:
    def load(*_, **__):
        raise error

    monkeypatch.setattr("headlens.models.load", load)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (RuntimeError("two\nlines"), 2, "RuntimeError: two lines This is a fault of headlens: --debug shows where."),
        (KeyboardInterrupt(), 130, "Interrupted; nothing half-written was left behind."),
        (MemoryError(), 2, "There is not enough memory: use a smaller model or --dtype, or a lower --num-samples."),
        (OSError(5, "Input/output error", "disk"), 2, "disk could not be read or written: Input/output error."),
        (ModelNotFound("[bold]x[/] \x1b[31m\u202e"), 2, "[bold]x[/] \\x1b[31m\\u202e"),
    ],
)
def test_one_line_whatever_happens(headlens, monkeypatch, llama, error, status, sentence):
    failing(monkeypatch, error)
    outcome = headlens("heads", llama)
    assert (outcome.status, outcome.out, outcome.err) == (status, "", f"error: {sentence}\n")


@pytest.mark.parametrize(
    "error", [RuntimeError("why"), ModelNotFound("why"), OSError(5, "why", "it"), MemoryError("why")]
)
def test_debug_shows_where(headlens, monkeypatch, llama, error):
    failing(monkeypatch, error)
    outcome = headlens("heads", llama, "--debug")
    assert outcome.status == 2 and outcome.err.startswith("Traceback") and "raise error" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in headlens("heads", llama).err


def test_a_refusal_is_not_json(headlens, tmp_path):
    outcome = headlens("heads", "./nothing", "--json")
    assert outcome.status == 2 and outcome.out == ""
    with pytest.raises(json.JSONDecodeError):
        json.loads(outcome.err)
