"""A written report, and a browser that notices every misstep of a page."""

import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from headlens.report import write_report
from tests.report.shown_probes import make_beside, make_evaluation, make_readings
from tests.report.shown_results import FIRST, SHAPES, Example, make_atlas, make_circuits, make_example


@pytest.fixture(scope="session")
def example() -> Example:
    return make_example()


@pytest.fixture(scope="session")
def report(example, tmp_path_factory):
    return write_report(example.results, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="session")
def atlas_report(example, tmp_path_factory):
    """An atlas of two models, the patterns of both, and the circuits of the first."""
    results = [make_atlas(), *example.patterns.values(), make_circuits(FIRST, SHAPES[FIRST])]
    return write_report(results, tmp_path_factory.mktemp("atlas") / "report.html")


@pytest.fixture(scope="session")
def probe_results():
    """One probe of two classes: what it is worth, and what it says."""
    return make_evaluation(data={"beside": make_beside()}), make_readings()


@pytest.fixture(scope="session")
def probe_report(probe_results, tmp_path_factory):
    return write_report(probe_results, tmp_path_factory.mktemp("probe") / "report.html")


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((found for found in map(shutil.which, names) if found), None)
    if chromium is None:
        pytest.skip("Chromium is not installed: browser tests skipped")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield instance
        instance.close()


@dataclass
class Watch:
    """What a page did that a report must not do."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def over(self, page) -> None:
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))


@pytest.fixture
def open_page(browser):
    """Open a file; when the test ends, it must have asked for nothing else and complained of nothing."""
    opened = []

    def open_file(path, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 1400}, **options)
        page, watch = context.new_page(), Watch()
        page.set_default_timeout(15_000)
        watch.over(page)
        page.goto(path.as_uri())
        page.wait_for_selector(".cell[role], :is(.probe, .fra, .induction, .rules, .universe, .universe-study) h2")
        opened.append(SimpleNamespace(context=context, watch=watch, url=path.as_uri()))
        return page

    yield open_file
    for entry in opened:
        entry.context.close()
        assert entry.watch.complaints == []
        assert entry.watch.requests == [entry.url]


@pytest.fixture
def page(open_page, report):
    page = open_page(report)
    page.wait_for_selector(".token")
    return page


@pytest.fixture
def atlas_page(open_page, atlas_report):
    page = open_page(atlas_report)
    page.wait_for_selector(".token")
    return page


@pytest.fixture
def probe_page(open_page, probe_report):
    page = open_page(probe_report)
    page.wait_for_selector(".probe .token")
    return page
