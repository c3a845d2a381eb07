"""`headlens world`: the corpus that Python draws, whole or not at all, and a summary that counts it."""

import json
import re
from collections import Counter
from dataclasses import asdict

import pytest

from headlens.data import read_texts
from headlens.data.world import WITHOUT_REPEATS, WorldConfig, documents
from headlens.data.world.config import KNOBS
from tests.test_files import full_disk


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_of(outcome) -> WorldConfig:
    assert outcome.status == 0
    return WorldConfig(**json.loads(outcome.out)["config"])


def test_a_line_is_a_document_with_its_spans_and_labels(headlens, tmp_path):
    assert headlens("world", "--docs", 30, "--seed", 4, "--out", "w.jsonl").status == 0
    expected = [
        {"text": d.text, "spans": [asdict(s) for s in d.spans], **asdict(d.labels), "nats": round(d.nats, 6)}
        for d in documents(30, seed=4)
    ]
    assert rows(tmp_path / "w.jsonl") == json.loads(json.dumps(expected))
    assert list(rows(tmp_path / "w.jsonl")[0]) == ["text", "spans", "topic", "author", "sentiment", "needle", "nats"]


def test_other_commands_can_read_it(headlens, tmp_path):
    headlens("world", "--docs", 5, "--out", "w.jsonl")
    assert read_texts(tmp_path / "w.jsonl") == [document.text for document in documents(5, seed=0)]


def test_without_options_a_thousand_documents_go_to_out(headlens, tmp_path):
    assert headlens("world", "--quiet").status == 0
    assert len(rows(tmp_path / "out" / "world.jsonl")) == 1000


def test_the_same_command_gives_the_same_bytes(headlens, tmp_path):
    files = []
    for seed in (1, 1, 2):
        headlens("world", "--docs", 20, "--seed", seed, "--out", "w.jsonl")
        files.append((tmp_path / "w.jsonl").read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_summary_counts_what_was_written_and_shows_two_answers(headlens, tmp_path):
    outcome = headlens("world", "--docs", 60, "--out", "w.jsonl")
    written = rows(tmp_path / "w.jsonl")
    spans = Counter(span["kind"] for row in written for span in row["spans"])
    for kind, n in spans.items():
        assert re.search(rf"{kind} +\W +{n:,} ", outcome.out)
    n_words = sum(len(row["text"].split()) for row in written)
    assert f"60 documents, {n_words:,} words" in outcome.out and str(tmp_path / "w.jsonl") in outcome.out
    shown = re.findall(r"^  ([a-z ]+): (.+)$", outcome.out, re.MULTILINE)
    assert len({kind for kind, _ in shown}) == len(shown) == 2
    assert all(any(sentence in row["text"] for row in written) for _, sentence in shown)


def test_brackets_of_an_example_are_no_markup(headlens):
    config = WorldConfig(**dict.fromkeys(KNOBS, 0.0) | {"brackets": 1.0})
    settings = ",".join(f"{knob}={share}" for knob, share in asdict(config).items())
    shown = 0
    for seed in range(6):
        outcome = headlens("world", "--docs", 1, "--seed", seed, "--out", "w.jsonl", "--set", settings)
        (document,) = documents(1, seed=seed, config=config)
        first = document.text.split(". ")[0]
        assert f"closing: {first}." in outcome.out
        shown += "[" in first
    assert shown > 0


def test_as_json(headlens, tmp_path):
    outcome = headlens("world", "--docs", 40, "--out", "w.jsonl", "--seed", 2, "--json")
    answer, written = json.loads(outcome.out), rows(tmp_path / "w.jsonl")
    assert outcome.status == 0 and outcome.err == ""
    assert answer["file"] == "w.jsonl" and answer["seed"] == 2 and answer["config"] == asdict(WorldConfig())
    assert answer["documents"] == 40 and answer["words"] == sum(len(row["text"].split()) for row in written)
    assert answer["nats"] == pytest.approx(sum(row["nats"] for row in written))
    spans = [span for row in written for span in row["spans"]]
    assert {kind: counts["n"] for kind, counts in answer["spans"].items()} == Counter(span["kind"] for span in spans)
    known = Counter(span["kind"] for span in spans if span["sources"])
    assert {k: counts["with_sources"] for k, counts in answer["spans"].items() if counts["with_sources"]} == known


# --- knobs ------------------------------------------------------------------------------------------------

FEW = ("--docs", 2, "--out", "w.jsonl", "--json")


def test_a_knob_is_set(headlens, tmp_path):
    expected = WorldConfig(facts=0.3, tasks=0.0)
    assert config_of(headlens("world", *FEW, "--set", "facts=0.3,tasks=0")) == expected
    assert [row["text"] for row in rows(tmp_path / "w.jsonl")] == [
        d.text for d in documents(2, seed=0, config=expected)
    ]
    assert config_of(headlens("world", *FEW, "--set", "facts=0.3", "--set=tasks=0")) == expected


def test_knobs_are_switched_off(headlens):
    assert config_of(headlens("world", *FEW, "--without", "facts,topics")) == WorldConfig(facts=0.0, topics=0.0)
    assert config_of(headlens("world", *FEW, "--without", "facts", "--without", "topics")).topics == 0


def test_without_repeats_is_the_control(headlens):
    assert config_of(headlens("world", *FEW, "--without", "repeats")) == WITHOUT_REPEATS
    mixed = config_of(headlens("world", *FEW, "--without", "repeats,counts", "--set", "facts=0.5"))
    assert (mixed.facts, mixed.counts, mixed.tasks, mixed.topics) == (0.5, 0.0, 0.0, WorldConfig().topics)


def test_options_stand_in_a_file(headlens, tmp_path):
    (tmp_path / "headlens.toml").write_text('[world]\ndocs = 3\nset = ["facts=0.3"]\nwithout = ["tasks"]\nseed = 1\n')
    assert config_of(headlens("world", "--out", "w.jsonl", "--json")) == WorldConfig(facts=0.3, tasks=0.0)
    assert [row["text"] for row in rows(tmp_path / "w.jsonl")] == [
        document.text for document in documents(3, seed=1, config=WorldConfig(facts=0.3, tasks=0.0))
    ]


# --- refusals ---------------------------------------------------------------------------------------------

REFUSED = {
    "no document": (("--docs", 0), "Must be >= 1"),
    "negative seed": (("--seed", -1), "Must be >= 0"),
    "unknown knob": (("--set", "fact=0.1"), "'fact' is no knob of the world; its knobs are sentence_repeats, "),
    "unknown knob off": (("--without", "fact"), f"its knobs are {', '.join(KNOBS)}."),
    "repeats are no knob to set": (("--set", "repeats=0.1"), "'repeats' is no knob of the world"),
    "no share": (("--set", "facts"), "--set facts must be NAME=SHARE with a number, e.g. facts=0.3."),
    "share in words": (("--set", "facts=much"), "--set facts=much must be NAME=SHARE with a number, e.g. facts=0.3."),
    "share above one": (("--set", "facts=1.5"), "facts must be a share from 0 to 1, not 1.5."),
    "share of nothing": (("--set", "facts=nan"), "facts must be a share from 0 to 1, not nan."),
    "too many needles": (("--set", "needles=0.7"), "needles must be a share from 0 to 0.5, not 0.7."),
    "shares above one": (("--set", "facts=0.9"), "add to 1.48, and to at most 1: lower some."),
    "no jsonl": (("--out", "w.txt"), "--out w.txt must end in .jsonl"),
    "a folder": (("--out", "folder.jsonl"), "folder.jsonl is a folder and a file is wanted: name a file in it."),
    "no such place": (("--out", "file/w.jsonl"), "file/w.jsonl could not be written: "),
    "positional": (("w.jsonl",), "Unused Tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_and_nothing_is_written(refused, tmp_path, case):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("x")
    arguments, sentence = REFUSED[case]
    assert sentence in refused("world", *arguments)


def test_a_full_disk_leaves_the_older_file(headlens, refused, tmp_path):
    assert headlens("world", "--docs", 1, "--out", "w.jsonl").status == 0
    with full_disk(2_000):
        assert "w.jsonl could not be written: " in refused("world", "--docs", 50, "--out", "w.jsonl")
    assert len(rows(tmp_path / "w.jsonl")) == 1


def test_an_interruption_leaves_nothing(headlens, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        yield from documents(3, seed=0)
        raise KeyboardInterrupt

    monkeypatch.setattr("headlens.data.world.documents", interrupted)
    assert headlens("world", "--out", "w.jsonl").status == 130
    assert not list(tmp_path.iterdir())


def test_help_teaches(headlens):
    out = headlens("world", "--help").out
    for knob in KNOBS:
        assert knob in out
    for example in ("--without repeats", "--set facts=0.5"):
        assert example in " ".join(out.split())
