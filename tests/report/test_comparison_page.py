"""The page of a comparison: its tables and plots in one file that holds no script and asks for nothing."""

import builtins
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from headlens.probes.experiments.compare import Comparison
from headlens.probes.experiments.comparison_text import blocks
from headlens.report.comparison_page import comparison_page, plots

HOSTILE = "</script><b>|\u202eword"


def comparison(
    data=("words",), layers=(0, 3), heads=(1, 8), pooling="attention", metric="auroc", model="llama"
) -> Comparison:
    """Values and gains as a sweep would have them, without one."""
    values, gains = [], []
    for name in data:
        for layer in layers:
            cell = {
                "set": "all",
                "data": name,
                "model": model,
                "site": f"blocks.{layer}.hook_resid_post",
                "layer": layer,
            }
            configs = [("mean", 1), ("last", 1), *((pooling, n) for n in heads)]
            rows = []
            for i, (kind, n) in enumerate(configs):
                value = 0.6 + 0.03 * i + 0.01 * layer
                called = f"{kind}-{n}" if kind == pooling else kind
                rows.append({**cell, "pooling": kind, "n_heads": n, "optimizer": "adamw", "metric": metric, "value": value,
                             "low": value - 0.04, "high": value + 0.04, "n": 100, "entropy": 0.1 * n if kind == pooling else None,
                             "name": called})  # fmt: skip
            values += rows
            for i, a in enumerate(rows):
                for b in rows[i + 1 :]:
                    gap = a["value"] - b["value"]
                    gains.append({**cell, "pooling": a["pooling"], "other_pooling": b["pooling"], "gain": gap, "low": gap - 0.04,
                                  "high": gap + 0.04, "verdict": "loss" if gap < -0.04 else "tie", "name": a["name"],
                                  "other_name": b["name"]})  # fmt: skip
    return Comparison(
        metric, pa.Table.from_pylist(values), pa.Table.from_pylist(gains), pa.table({"name": pa.array([], pa.string())})
    )


class Tags(HTMLParser):
    """Every tag, balanced, and the text of every cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen, self.cells, self.attributes = [], set(), [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "rect", "line") or self.open[-1:] == ["svg"]:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "meta":
            self.open = [one for one in self.open if one != "meta"]

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if any(one in self.open for one in ("td", "th")):
            self.cells[-1] += data


def test_tables_of_the_page_are_those_of_the_comparison():
    found = comparison(data=("words", "more"))
    tags = Tags(comparison_page(found))
    assert tags.cells == [cell for block in blocks(found) for line in block.table for cell in line]


def test_the_page_holds_no_script_and_asks_for_nothing():
    page = comparison_page(comparison())
    tags = Tags(page)
    assert not {"script", "iframe", "link", "img", "object", "form"} & tags.seen
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=", page)
    urls = set(re.findall(r"https?://[^\"' )]+", page))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, urls
    assert not any(name.startswith("on") for name, _ in tags.attributes)


def test_hostile_names_are_only_text():
    found = comparison(data=(HOSTILE, "a & b"), model="<i>m")
    page = comparison_page(found, title=HOSTILE)
    tags = Tags(page)
    assert not {"script", "b", "i"} & tags.seen
    assert f"{HOSTILE}: every pooling at every site" in re.sub(r"&lt;", "<", page).replace("&gt;", ">")


@pytest.mark.parametrize(
    ("made", "titles"),
    [
        ({}, ["Each pooling against mean", "Each pooling against last", "By layer", "How many heads"]),
        ({"layers": (2,), "heads": (4,)}, ["Each pooling against mean", "Each pooling against last"]),
        ({"pooling": "softmax"}, ["Each pooling against mean", "Each pooling against last", "By layer"]),
    ],
)
def test_plots_are_drawn_of_what_varies(made, titles):
    drawn = plots(comparison(**made))
    assert [name for name, _, _ in drawn] == titles
    for _, _, svg in drawn:
        assert svg.startswith("<svg") and "NaN" not in svg


def test_less_is_better_below_the_line():
    texts = [text for _, text, _ in plots(comparison(metric="log_loss"))]
    assert texts[0].split(". ")[1].startswith("Below the line")


def test_points_are_as_many_as_cells():
    (_, _, svg), *_ = plots(comparison(data=("words", "more")))
    assert len(re.findall(r'aria-roledescription="point"', svg)) == 2 * 2 * 3  # data, layers, poolings but the mean


def test_without_the_extra_the_page_has_its_tables(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "altair":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    found = comparison()
    page = comparison_page(found)
    assert "<svg" not in page and Tags(page).cells == [
        cell for block in blocks(found) for line in block.table for cell in line
    ]
