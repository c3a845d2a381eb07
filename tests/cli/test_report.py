"""`headlens report` makes a page of saved results, loads what it has to show, and refuses in one sentence."""

import json
import re

import pytest

from headlens.report.payload import traits
from tests.report.shown_fra import make_labels
from tests.report.shown_rules import LABELS, make_rules
from tests.report.shown_universe import heads_of, make_texts, make_universe


def block(page, name):
    found = re.search(rf'id="data-{name}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_a_folder_of_results_becomes_one_page(headlens, tmp_path):
    results = {"result": make_rules(), "labels": make_labels(LABELS)}
    for name, one in results.items():
        one.save(tmp_path / "rules" / name)
    outcome = headlens("report", "rules", "--out", "rules/page.html", "--title", "Mine")
    assert outcome.status == 0 and "report: rules/page.html" in outcome.err
    page = tmp_path / "rules" / "page.html"
    assert block(page, "rules_0_0") == json.loads(json.dumps(traits(list(results.values()))["rules_0_0"]))
    assert "<h1>Mine</h1>" in page.read_text()


def test_models_of_a_universe_are_loaded_unless_their_patterns_are_there(headlens, tmp_path):
    heads = heads_of({"zoo:llama-small": (3, 4), "zoo:gpt2-small": (2, 3), "./nowhere": (1, 2)})
    make_universe(heads).save(tmp_path / "u")
    make_texts("zoo:gpt2-small")[0].save(tmp_path / "p")
    outcome = headlens("report", "u", "p", "--out", "page.html", "--text", "a cat and a cat", "--text", "a dog")
    assert outcome.status == 0
    assert "./nowhere is shown without patterns" in outcome.err
    page = tmp_path / "page.html"
    told = {one["model"]: one["at"] for one in block(page, "universe")["models"]}
    patterns = block(page, "patterns")
    assert told["nowhere"] is None
    assert len(patterns[told["zoo:llama-small"]]["texts"]) == 2, "one that was loaded reads the texts that were given"
    assert len(patterns[told["zoo:gpt2-small"]]["texts"]) == 1, "one that was saved is not loaded again"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Name at least one folder"),
        (("nowhere",), "holds no headlens result"),
        (("empty",), "holds no saved result"),
        (("u", "--out", "u/page.html"), "put it beside it"),
    ],
)
def test_it_refuses_in_one_sentence(refused, tmp_path, options, said):
    make_universe().save(tmp_path / "u")
    (tmp_path / "empty").mkdir()
    out = () if "--out" in options else ("--out", "page.html")
    assert said in refused("report", *options, *out)
