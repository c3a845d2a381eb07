import base64
import errno
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from headlens._errors import OutputError, ResultError
from headlens._result import Provenance, Result
from headlens.report import write_report
from headlens.report.page import VIEWS, scoped
from tests.report.shown_results import SECOND


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and the title."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.content, self._open = [], [], None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style", "title", "h1") else None

    def handle_data(self, data):
        if self._open:
            self.content.append((*self._open, data))
            self._open = None

    def texts(self, tag, **wanted):
        return [text for t, attrs, text in self.content if t == tag and wanted.items() <= attrs.items()]


@pytest.fixture(scope="module")
def parsed(report):
    return Page(report.read_text(encoding="utf-8"))


def policy(parsed) -> dict[str, str]:
    meta = next(a for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    return dict(part.strip().partition(" ")[::2] for part in meta["content"].split(";"))


def sha256(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def test_the_policy_admits_exactly_this_script_and_this_style(parsed):
    rules = policy(parsed)
    (script,) = parsed.texts("script", type="module")
    (style,) = parsed.texts("style")
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == sha256(script)
    assert rules["style-src"] == sha256(style)
    assert not any("unsafe" in rule or "http" in rule or "*" in rule for rule in rules.values())


def test_the_policy_comes_before_what_it_governs(parsed):
    tags = [tag if "http-equiv" not in attrs else "policy" for tag, attrs in parsed.elements]
    assert tags.index("policy") < min(tags.index("style"), tags.index("script"))


def test_markup_refers_to_nothing_and_carries_no_style_or_handler(parsed):
    names = {name for _, attrs in parsed.elements for name in attrs}
    assert not names & {"src", "href", "srcset", "style", "action", "data"}
    assert not [name for name in names if name.startswith("on")]
    (style,) = parsed.texts("style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_results_give_the_same_bytes(example, report, tmp_path):
    assert write_report(example.results, tmp_path / "again.html").read_bytes() == report.read_bytes()


@pytest.mark.parametrize("title", ["</title><script>alert(1)</script>", 'a "quoted" & <b>', "lone \ud800", "שלום"])
def test_a_title_is_text(example, tmp_path, title):
    source = write_report([example.patterns[SECOND]], tmp_path / "r.html", title=title).read_text(encoding="utf-8")
    shown = title.replace("\ud800", "?")
    assert f"<h1>{html.escape(shown)}</h1>" in source
    assert len(re.findall(r"<script(?! (?:type=\"\S+\" )?data-headlens)", source)) == 0


def test_without_a_title_the_models_are_named(report):
    source = report.read_text(encoding="utf-8")
    assert "<h1>Attention heads of zoo:llama-small and org/&lt;b&gt;other&lt;/b&gt;</h1>" in source
    assert "2 models · 24 heads · 5 kinds · 64 sequences per score · 4 example texts" in source


def test_it_returns_the_path_and_replaces_what_was_there(example, tmp_path):
    path = tmp_path / "folder" / "r.html"
    assert write_report([example.scores], path) == path
    first = path.read_bytes()
    write_report([example.scores], str(path), title="Second")
    assert path.read_bytes() != first
    assert list(path.parent.iterdir()) == [path]


def test_refused_results_leave_no_file(tmp_path):
    with pytest.raises(ResultError):
        write_report([Result(Provenance())], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_page_and_nothing_else(example, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def half(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match="No space left"):
        write_report([example.scores], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


END = "\nexport default { render };\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("function render() {}\n", "must end with"),
        ("function render() {}\nexport default render;\n", "must end with"),
        ('import x from "./x.js";' + END, "must stand alone"),
        ("export const y = 1;" + END, "must stand alone"),
        ("const a = '</ScRipt>';" + END, "must not contain"),
        ("const a = '<!--';" + END, "must not contain"),
    ],
)
def test_a_view_that_cannot_be_inlined_is_refused(source, reason):
    with pytest.raises(ValueError, match=f"views/new.js {reason}"):
        scoped("views/new.js", source)


def test_all_views_are_on_the_page(parsed):
    ids = [attrs.get("id") for tag, attrs in parsed.elements if tag == "section"]
    assert ids == [f"view-{name}" for name in VIEWS]
