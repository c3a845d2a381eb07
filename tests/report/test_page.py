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
from headlens.report.page import (
    FRA_VIEW,
    PROBE_VIEWS,
    RULES_VIEW,
    SEARCH_VIEW,
    STUDY_VIEW,
    UNIVERSE_VIEW,
    VIEWS,
    _source,
    common,
    scoped,
)
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


SHARED = (
    "const HALF = 2;\n"
    "const double = (x) => HALF * x;\n"
    "export const quadruple = (x) => double(double(x));\n"
    "export function add(a, b) {\n  return a + b;\n}\n"
    "export async function later(x) {\n  return x;\n}\n"
)
"""A module to share: one name of its own stays its own."""


def test_what_is_shared_is_what_the_module_exports():
    source, names = common(SHARED)
    assert names == ["quadruple", "add", "later"]
    assert "export" not in source
    assert "return { quadruple, add, later };" in source


@pytest.mark.parametrize(
    "line", ["import { add } from './common.js';", 'import { add, } from "./common.js"', "import './common.js';"]
)
def test_only_the_one_form_of_import_is_inlined(line):
    with pytest.raises(ValueError, match="must stand alone: no import but one"):
        scoped("views/new.js", line + END, ["add"])


def test_a_second_import_is_refused():
    line = 'import { add } from "./common.js";\n'
    with pytest.raises(ValueError, match="no import but one"):
        scoped("views/new.js", line + line + END, ["add"])


@pytest.mark.parametrize(
    ("names", "unknown"),
    [("add, ad", "ad"), ("HALF", "HALF"), ("add as plus", "add as plus"), ("later add", "later add")],
)
def test_a_name_that_is_not_shared_is_refused(names, unknown):
    _, shared = common(SHARED)
    with pytest.raises(ValueError, match=f"views/new.js imports {unknown}, which views/common.js does not export"):
        scoped("views/new.js", f'import {{ {names} }} from "./common.js";{END}', shared)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('import x from "./x.js";', "must import nothing"),
        ("export default 1;", "must import nothing"),
        ("const x = 1;\nexport { x };", "export only const and functions"),
        ("export class X {}", "export only const and functions"),
        ("const a = '</script>';", "must not contain"),
    ],
)
def test_a_shared_module_that_cannot_be_inlined_is_refused(line, reason):
    with pytest.raises(ValueError, match=f"views/common.js {reason}" if reason.startswith("must") else reason):
        common(f"{SHARED}{line}\n")


ALL_VIEWS = [UNIVERSE_VIEW, STUDY_VIEW, *VIEWS, FRA_VIEW, SEARCH_VIEW, RULES_VIEW, *PROBE_VIEWS]


def test_what_views_share_stands_once_on_the_page(parsed):
    (script,) = parsed.texts("script", type="module")
    _, shared = common(_source("views/common.js"))
    for name in shared:
        assert len(re.findall(rf"^(?:async )?(?:function|const) {name}\b", script, re.MULTILINE)) == 1, name
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)


def test_no_view_has_a_function_of_its_own_that_is_shared_or_another_view_s():
    """A twin is a body that stands twice; short ones, such as `const less = ...`, are not worth a name elsewhere."""
    functions = re.compile(r"^(?:export )?(?:async )?function \w+\(.*?^}$", re.MULTILINE | re.DOTALL)
    bodies = [
        "\n".join(found.removeprefix("export ").splitlines()[1:])
        for name in ("common", *ALL_VIEWS)
        for found in functions.findall(_source(f"views/{name}.js"))
    ]
    twins = {body for body in bodies if bodies.count(body) > 1}
    assert twins == set()
    assert len(bodies) > 100


def imports_and_body(view: str) -> tuple[list[str], str]:
    imported, _, body = _source(f"views/{view}.js").partition("import {")[2].partition('} from "./common.js";')
    return [name.strip() for name in imported.split(",") if name.strip()], body


def uses(source: str, name: str) -> int:
    """How often a name stands there, not counting properties that are called so."""
    return len(re.findall(rf"(?:(?<![\w.])|(?<=\.\.\.)){name}\b(?!:)", source))


def test_what_is_shared_is_used_by_more_than_one_module():
    """By two views; or by one, and by what else is shared."""
    source = _source("views/common.js")
    _, shared = common(source)
    imported = [name for view in ALL_VIEWS for name in imports_and_body(view)[0]]
    for name in shared:
        assert imported.count(name) + (imported.count(name) == 1 and uses(source, name) > 1) >= 2, name


@pytest.mark.parametrize("view", ALL_VIEWS)
def test_a_view_uses_all_that_it_imports(view):
    imported, body = imports_and_body(view)
    assert imported == sorted(imported, key=str.lower)
    assert [name for name in imported if uses(body, name) == 0] == []


CLASHING = """import { quadruple, add } from "./common.js";
const double = (x) => -x; // the shared module has one of its own
const common = { add: null };
function render() {
  return [add(double(1), quadruple(3)), common.add];
}
export default { render };
"""


@pytest.mark.browser
def test_views_and_what_they_share_do_not_disturb_each_other(browser):
    """Names of one stay out of all others, whether the modules are inlined or loaded as they are."""
    shared, names = common(SHARED)
    other = CLASHING.replace("-x", "x")
    inlined = ", ".join(scoped(f"views/{i}.js", view, names) for i, view in enumerate((CLASHING, other, CLASHING)))
    context = browser.new_context()
    page = context.new_page()
    bodies = {"common": SHARED, "first": CLASHING, "second": other}

    def serve(route):
        name = route.request.url.rpartition("/")[2].removesuffix(".js")
        kind = "text/javascript" if name in bodies else "text/html"
        route.fulfill(content_type=kind, body=bodies.get(name, "<!doctype html><title>host</title>"))

    context.route("**/*", serve)
    page.goto("http://views.test/")
    here = page.evaluate(f"() => {{ const common = {shared}; return [{inlined}].map((view) => view.render()); }}")
    load = "async () => Promise.all(['first', 'second', 'first'].map(async (n) => (await import(`http://views.test/${n}.js`)).default.render()))"
    there = page.evaluate(load)
    context.close()
    assert here == there == [[11, None], [13, None], [11, None]]


def test_all_views_are_on_the_page(parsed):
    ids = [attrs.get("id") for tag, attrs in parsed.elements if tag == "section"]
    assert ids == [f"view-{name}" for name in VIEWS]
