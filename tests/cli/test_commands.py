"""What the commands answer: statuses, JSON that parses, results and pages that say what they came from."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import headlens as hl
from headlens import __version__
from headlens.cli.demo import _strongest, print_side_by_side
from headlens.heads import KINDS
from headlens.models import Head
from tests.test_files import full_disk

FEW = ("--num-samples", 3, "--seq-len", 8)
QUICK = (*FEW, "--kinds", "previous_token,self,induction")
ODD = [
    "<script>alert(1)</script> & <b>bold</b> </body>",
    "\x00\x01\x1b[31mred\x1b[0m\x07 \r\n\t end",
    "\u202e\u200b\ufeff\u2028 שלום 👩\u200d🚀 e\u0301",
    "\ud800 half a character",
    "]]> --> {{ }} ${x} %s \\ \" ' `",
]


# --- heads ------------------------------------------------------------------------------------------------


def test_heads_prints_each_model_and_kind(headlens, zoo):
    outcome = headlens("heads", zoo / "llama", zoo / "neox", *QUICK)
    assert outcome.status == 0
    for name in (
        str(zoo / "llama"),
        str(zoo / "neox"),
        "previous_token",
        "induction",
        "copying_logits",
        "strongest head",
        "null",
    ):
        assert name in outcome.out


def test_one_sequence_has_no_interval(headlens, llama):
    outcome = headlens("heads", llama, "--num-samples", 1, "--kinds", "self", "--report", "r.html")
    assert outcome.status == 0 and "(no interval)" in outcome.out
    rows = json.loads(headlens("heads", llama, "--num-samples", 1, "--kinds", "self", "--json").out)["scores"]
    assert {(row["low"], row["high"]) for row in rows} == {(None, None)}


def test_intervals_are_printed(headlens, llama):
    outcome = headlens("heads", llama, *FEW, "--kinds", "self")
    rows = json.loads(headlens("heads", llama, *FEW, "--kinds", "self", "--json").out)["scores"]
    best = max(rows, key=lambda row: row["score"] - row["null"])
    printed = f"L{best['layer']}H{best['head']} {best['score']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
    assert printed in outcome.out


def test_heads_as_json_is_the_table_and_where_it_came_from(headlens, llama):
    arguments = ("heads", llama, *FEW, "--seed", 5, "--kinds", "self,induction")
    outcome = headlens(*arguments, "--json")
    answer = json.loads(outcome.out)
    expected = hl.heads.atlas(str(llama), ["self", "induction"], num_samples=3, seq_len=8, seed=5)
    assert answer["scores"] == expected.table.to_pylist()
    assert answer["provenance"]["seed"] == 5
    assert answer["provenance"]["models"][0]["name"] == str(llama)
    assert headlens(*arguments, "--format", "json").out == outcome.out.replace("--json", "--format json")


def test_a_list_is_comma_separated_or_repeated(headlens, llama):
    def kinds(*arguments):
        scores = json.loads(headlens("heads", llama, *FEW, "--json", *arguments).out)["scores"]
        return {row["kind"] for row in scores}

    both = {"self", "sink"}
    assert kinds("--kinds", "self,sink") == kinds("--kinds", "self", "--kinds", "sink") == both
    assert both | {"induction", "copying_logits", "offset"} <= kinds() <= set(KINDS) - {"fixed_gap_induction"}
    assert kinds("--kinds", "induction") == {"induction", "copying_logits"}  # what its label needs is measured as well


def test_saved_scores_say_which_command_made_them(headlens, llama, tmp_path):
    outcome = headlens("heads", llama, *QUICK, "--out", "the scores", "--format", "parquet")
    assert outcome.status == 0 and outcome.out == "" and "table.parquet" in outcome.err
    loaded = hl.heads.HeadAtlas.load(tmp_path / "the scores")
    assert (
        loaded.provenance.command
        == f"headlens heads {llama} --num-samples 3 --seq-len 8 --kinds previous_token,self,induction "
        "--out 'the scores' --format parquet"
    )
    assert pq.read_table(tmp_path / "the scores" / "table.parquet") == loaded.table


def test_the_same_command_gives_the_same_bytes(headlens, llama, tmp_path):
    files = []
    for _ in range(2):
        assert headlens("heads", llama, *QUICK, "--out", "o", "--report", "r.html").status == 0
        paths = [*sorted((tmp_path / "o").iterdir()), tmp_path / "r.html"]
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]


def test_quiet_says_nothing_but_the_answer(headlens, llama):
    outcome = headlens("heads", llama, *QUICK, "--out", "o", "--report", "r.html", "--quiet", "--format", "parquet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_texts_longer_than_the_context_are_cut(headlens, llama, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "w1 w2 w3 w4 w5 " * 100}) + "\n")
    outcome = headlens(
        "heads", llama, *FEW, "--corpus", "a.jsonl", "--max-tokens", 10**6, "--json", "--report", "r.html"
    )
    data = json.loads(outcome.out)["provenance"]["data"]
    assert outcome.status == 0 and data["corpus"]["documents"] == 1
    (text,) = (stimulus for stimulus in data.values() if stimulus.get("name") == "text")
    assert text["max_tokens"] == 128  # the context of the tiny model


def test_a_length_beyond_the_context_shrinks_and_is_recorded(headlens, llama):
    outcome = headlens("heads", llama, "--num-samples", 2, "--seq-len", 10**9, "--max-gap", 10**9, "--json")
    data = json.loads(outcome.out)["provenance"]["data"]
    (recipe,) = (stimulus for stimulus in data.values() if stimulus.get("name") == "repeats")
    assert recipe["length"] == 47 and recipe["max_gap"] == 33  # of 94 words, and 127 places after BOS


def test_a_corpus_of_markup_and_control_characters_goes_through(headlens, zoo, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ODD))
    outcome = headlens(
        "heads", zoo / "bytes", *QUICK, "--corpus", "a.jsonl", "--texts", 5, "--out", "o", "--report", "r.html"
    )
    assert outcome.status == 0 and outcome.err.count("\n") == 2
    scores = hl.heads.HeadAtlas.load(tmp_path / "o").table.to_pylist()
    assert {row["n"] for row in scores if row["kind"] == "self"} == {3}  # --num-samples is a limit for texts, too
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page and "\x1b" not in page and "\x00" not in page


def test_no_example_texts_no_patterns(headlens, llama, tmp_path):
    sizes = {}
    for texts in (0, 3):
        assert headlens("heads", llama, *QUICK, "--texts", texts, "--report", "r.html").status == 0
        sizes[texts] = (tmp_path / "r.html").stat().st_size
    assert sizes[0] < sizes[3]


def test_a_model_without_a_tokenizer_is_scored_on_random_tokens(headlens, zoo, tmp_path):
    outcome = headlens("heads", zoo / "silent", *FEW, "--json", "--report", "r.html")
    assert outcome.status == 0 and (tmp_path / "r.html").is_file()
    data = json.loads(outcome.out)["provenance"]["data"]
    assert {made["name"] for made in data.values() if "name" in made} == {"repeats", "plain", "entities"}
    assert "tokenizer" in data[f"{zoo / 'silent'}: not measured"]["name_mover"]


@pytest.mark.parametrize("name", ["[red]", "x[/]", "größe", "a b", "'\"&<i>"])
def test_any_name_of_a_folder_is_printed_as_it_is(headlens, llama, tmp_path, name):
    shutil.copytree(llama, tmp_path / name)
    for command in (("heads", name, *QUICK), ("verify", name)):
        outcome = headlens(*command)
        assert outcome.status == 0 and name in outcome.out
        assert json.loads(headlens(*command, "--json").out)["provenance"]["models"][0]["name"] == name


def test_options_stand_in_a_file_and_what_is_typed_wins(headlens, llama, tmp_path):
    (tmp_path / "headlens.toml").write_text(
        '[heads]\nnum-samples = 2\nseq_len = 8\nkinds = ["self"]\nseed = 9\njson = true\n'
    )
    answer = json.loads(headlens("heads", llama).out)
    assert {row["n"] for row in answer["scores"]} == {2} and {row["kind"] for row in answer["scores"]} == {"self"}
    assert answer["provenance"]["seed"] == 9
    assert json.loads(headlens("heads", llama, "--seed", 4).out)["provenance"]["seed"] == 4
    assert headlens("verify", llama, "--quiet").status == 0  # the table of another command


# --- verify -----------------------------------------------------------------------------------------------


def test_verify_passes_a_sound_model(headlens, zoo):
    outcome = headlens("verify", zoo / "neox")
    assert outcome.status == 0 and "parity holds: 43 checks passed" in outcome.out and "bit for bit" in outcome.out


def test_verify_as_json(headlens, llama, tmp_path):
    outcome = headlens("verify", llama, "--json", "--out", "o", "--seed", 3, "--tokens", 9)
    answer = json.loads(outcome.out)
    assert outcome.status == 0 and answer["passed"] is True and answer["failed"] == []
    assert set(answer["worst"]) == {"scores", "pattern", "z", "attn_out", "resid", "logits"}
    assert answer["provenance"]["seed"] == 3 and answer["provenance"]["data"] == {"tokens": {"n_tokens": 9}}
    saved = hl.ParityReport.load(tmp_path / "o")
    assert saved.passed and saved.provenance.command.startswith(f"headlens verify {llama} --json")


@pytest.mark.parametrize("how", ["wrong", "nan"])
def test_verify_fails_where_a_head_is_read_wrong(headlens, llama, monkeypatch, how):
    output, factor = Head.output, 1.001 if how == "wrong" else float("nan")
    monkeypatch.setattr(Head, "output", lambda self, z: output(self, z) * (factor if self.layer == 1 else 1))
    printed = headlens("verify", llama)
    assert printed.status == 1
    assert "parity fails: 2 of 43 checks" in printed.out and "of layer 1" in printed.out
    as_json = headlens("verify", llama, "--json")
    answer = json.loads(as_json.out)
    assert as_json.status == 1 and answer["passed"] is False
    assert {(row["layer"], row["quantity"]) for row in answer["failed"]} == {(1, "attn_out"), (1, "resid")}
    assert (answer["worst"]["resid"] is None) == (how == "nan")


# --- the rest ---------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(zoo, monkeypatch):
    """Let the tiny models that can read text be those that ship."""
    monkeypatch.setattr("headlens.zoo._MODELS", zoo)
    monkeypatch.setattr("headlens.zoo.names", lambda: ("bytes",))
    return zoo


def test_zoo_lists_and_finds(headlens, shipped):
    assert headlens("zoo", "list").out == "zoo:bytes          llama, 1 layers x 2 heads, width 16\n"
    for name in ("bytes", "zoo:bytes"):
        assert headlens("zoo", "path", name).out == f"{shipped / 'bytes'}\n"


def test_a_shipped_model_is_named_by_zoo(headlens, shipped):
    assert headlens("verify", "zoo:bytes", "--quiet").status == 0


def test_demo_writes_its_page(headlens, shipped, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["headlens.cli.demo"], "N_DOCUMENTS", 4)
    monkeypatch.setattr(sys.modules["headlens.cli.demo"], "KINDS", ("self", "induction"))  # a tiny context
    outcome = headlens("demo", "--out", "new [/b]/page.html")
    assert outcome.status == 0 and (tmp_path / "new [/b]" / "page.html").is_file()
    assert outcome.out.endswith(f"{tmp_path / 'new [/b]' / 'page.html'}\n")
    assert outcome.err == "zoo:bytes: 1 layers x 2 heads, parity holds\n"


def test_demo_shows_the_strongest_head_of_each_kind_side_by_side(capsys):
    rows = [
        {"model": model, "kind": kind, "layer": 0, "head": head, "score": score, "null": 0.2, "level": "low"}
        for model in ("a[b]", "c")
        for kind in ("self", "sink")
        for head, score in enumerate((0.1, 0.5 if kind == "sink" else 0.25))
    ]
    print_side_by_side(rows, ["self", "sink"])
    shown = capsys.readouterr().out
    assert [shown.count(cell) for cell in ("a[b]", "0.50 L0H1", "0.25 L0H1", "0.10")] == [1, 2, 2, 0]


def test_demo_shows_in_bold_what_is_of_the_kind():
    row = {"layer": 1, "head": 2, "score": 0.5, "null": 0.4}
    other = {"layer": 0, "head": 0, "score": 0.55, "null": 0.5, "level": "low"}  # higher, and stands out less
    assert _strongest([row | {"level": "medium"}, other]) == "[bold]0.50 L1H2[/]"
    assert _strongest([other, row | {"level": "low"}]) == "[dim]0.50 L1H2[/]"
    assert _strongest([]) == ""


def test_demo_does_not_start_what_it_cannot_write(refused, never_loaded, shipped, tmp_path):
    assert "is a folder and a file is wanted" in refused("demo", "--out", tmp_path)


def test_version_and_help(headlens):
    assert headlens("--version").out == f"{__version__}\n"
    for command in ((), ("--help",), ("heads", "--help"), ("verify", "--help"), ("zoo", "--help"), ("demo", "--help")):
        outcome = headlens(*command)
        assert outcome.status == 0 and "Usage: headlens" in outcome.out


# --- as a process -----------------------------------------------------------------------------------------

MAIN = "from headlens.cli import main; main()"


def typed(*arguments: str, script: str = MAIN, stdout=subprocess.PIPE, **environment: str):
    """Run the command line in a process of its own, whose output is buffered as it mostly is."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-c", script, *arguments]
    return subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, check=False, env=ours | environment)


def test_a_name_that_the_terminal_cannot_show_is_escaped():
    script = "import headlens.cli as cli; cli.run = lambda _: print('gr\xf6\xdfe') or 1; cli.main()"
    done = typed(script=script, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (1, rb"gr\xf6\xdfe", b"")


PRINT = "import headlens.cli as cli; cli.app.command(lambda: print('x'), name='print'); cli.main()"
outputs = pytest.mark.parametrize(("script", "command"), [(MAIN, "--version"), (MAIN, "--help"), (PRINT, "print")])


@outputs
def test_a_reader_that_leaves_is_no_error(script, command):
    read, write = os.pipe()
    os.close(read)
    done = typed(command, script=script, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@outputs
def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path, script, command):
    with (tmp_path / "answer").open("w") as answer, full_disk(0):
        done = typed(command, script=script, stdout=answer)
    assert done.returncode == 2 and done.stderr == b"error: The output could not be read or written: File too large.\n"


def test_main_switches_telemetry_off():
    script = "import atexit, os; atexit.register(lambda: print(os.environ['HF_HUB_DISABLE_TELEMETRY']));" + MAIN
    assert typed("--version", script=script).stdout.split() == [__version__.encode(), b"1"]
