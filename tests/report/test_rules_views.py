"""What a reader sees of rules: in words, with their figures, and where they match; every test also demands silence."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from headlens.report import write_report
from tests.report.shown_fra import make_labels
from tests.report.shown_results import HOSTILE
from tests.report.shown_rules import LABELS, ORDER, RULES, WORDS, make_row, make_rules

pytestmark = pytest.mark.browser
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report([make_rules(), make_labels(LABELS)], tmp_path_factory.mktemp("rules") / "report.html")


@pytest.fixture
def page(open_page, report):
    return opened(open_page, report)


def opened(open_page, path, **options):
    page = open_page(path, **options)
    page.wait_for_selector(".feature h3")
    return page


def rows(page, name):
    return page.eval_on_selector_all(
        f".{name} tbody tr", "all => all.map((row) => [...row.children].map((td) => td.textContent))"
    )


def marked(page):
    """Tokens of the first example that have a colour, and whether they are on the side that lowers."""
    return page.eval_on_selector_all(
        ".exemplars li:first-child .token",
        "all => all.filter((t) => t.classList.contains('heat')).map((t) => "
        "[Number(t.dataset.position), t.classList.contains('against') && t.classList.contains('strongly')])",
    )


def test_rules_are_said_in_words_with_their_effect_and_coverage(page):
    found = rows(page, "ruled")
    assert [row[0] for row in found] == ["French city 1", "denial 2", "French city 1", "feature 5", "feature 8"]
    assert [row[1] for row in found] == ["asks language 7"] * 2 + ["feature 9", "anything", "asks language 7"]
    assert [row[3] for row in found] == ["+3.9", f"{MINUS}6.8", "+2", "+0.5", "+0.001"]
    assert [row[4] for row in found] == ["80 %", "10 %", "30 %", "90 %", "0 %"]
    assert page.text_content(".feature h3") == "Output feature 3"
    assert "fires at 1,635 positions of 282 texts" in page.text_content(".feature > .facts")


def test_tokens_that_match_are_marked_and_a_rule_that_is_chosen_marks_its_own(page):
    assert marked(page) == [[1, False], [2, True], [3, False]]
    page.locator(".ruled .choice").nth(1).click()
    assert marked(page) == [[2, True]]
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true", "it keeps the keyboard"
    page.locator(".ruled .choice").nth(1).click()
    assert len(marked(page)) == 3
    page.locator(".examples-part label", has_text="What each token adds").click()
    assert marked(page) == [[1, False], [2, True], [3, False]], "what is missing has no colour"
    assert page.locator(".exemplars .token.is-query").text_content() == WORDS[-1]


def test_pointing_at_a_token_tells_what_it_adds_and_which_rules_match(page):
    place = page.locator(".exemplars .token").nth(1)
    top = "document.querySelector('.exemplars').offsetTop"
    before = page.evaluate(top)
    place.hover()
    said = page.text_content(".examples-part .readout")
    assert said.startswith(
        "␣Lyon 1 adds +2.500, matches 2 rules: French city 1 seen from asks language 7 raises it +3.9"
    )
    assert "feature 5 raises it +0.5" in said
    assert page.evaluate(top) == before, "the text stays under the pointer"
    page.locator(".exemplars .token").last.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.text_content(".examples-part .readout").startswith("␣never 2 adds")


def test_the_curve_shows_every_predictor_in_the_metric_that_is_chosen(page):
    figure = page.locator(".feature .curve-figure")
    names = figure.locator(".series-name").evaluate_all("all => all.map((one) => one.firstChild.data)")
    assert sorted(names) == ["All pairs", "Key features alone", "Query token alone", "Random pairs", "Rules"]
    told = figure.locator(".point.rules title").all_text_contents()
    assert told == [
        "Rules, 0: 0.530 (0.430 to 0.630)",
        "Rules, 4: 0.610 (0.510 to 0.710)",
        "Rules, 8: 0.690 (0.590 to 0.790)",
    ]
    heights = [float(one.get_attribute("cy")) for one in figure.locator(".point.rules").all()]
    assert heights == sorted(heights, reverse=True)
    figure.locator("label", has_text=re.compile("^F1$")).click()
    assert figure.locator(".point.rules title").first.text_content().startswith("Rules, 0: 0.520")
    labels = [float(one.get_attribute("y")) for one in figure.locator(".series-name").all()]
    gaps = sorted(labels)
    assert all(b - a >= 13.9 for a, b in pairwise(gaps)), "names do not cover each other"


def test_a_distractor_s_effect_is_told_with_and_without(page):
    card = page.locator(".absences-part > .findings .finding")
    assert card.count() == 1
    said = card.locator(".said").text_content()
    assert said == (
        f"French city 1 seen from asks language 7 raises it +3.9, unless denial 2 cancels it {MINUS}6.8"
    )  # fmt: skip
    assert card.locator(".share b").all_text_contents() == ["100 %", "25 %"]
    found = rows(page, "absences-part > .findings .withs")
    assert [row[0] for row in found] == ["Pre-activation without it", "Pre-activation with it", "Put in: change"]
    assert [row[2] for row in found] == ["+2.7", f"{MINUS}2.9", f"{MINUS}5"]
    assert "Tried, not confirmed (1)" in page.text_content(".absences-part summary")


def test_a_count_has_its_dose_curve(page):
    figure = page.locator(".doses")
    assert page.text_content(".counts-part .said") == (
        "Fires from more than 4.2 × French city 1 for each denial 2, seen from asks language 7"
    )
    assert figure.locator(".point").count() == 14 and figure.locator(".series").count() == 2
    (turn,) = figure.locator(".turn title").all_text_contents()
    assert turn == "the ratio says 4.2", "with none of the other there is no place where it turns"
    assert figure.locator(".point title").nth(12).text_content() == "n 5, m 1: 100 %"
    figure.locator("label", has_text="Pre-activation").click()
    assert figure.locator(".point title").nth(12).text_content() == "n 5, m 1: +1"


def test_made_texts_are_told_and_what_was_not_asked_is_empty(page):
    (row,) = rows(page, "made")
    assert row[1:4] == ["75 %", "0 %", ""] and row[5:] == ["0.88", "12"]


def test_empty_states_say_so(page):
    page.locator(".documents button").nth(1).click()
    expect(page.locator(".feature h3").first).to_have_text("Output feature 11")
    said = page.locator(".feature .notice").all_text_contents()
    assert said == [
        "No rule was chosen: none lowers the error on texts that were held out.",
        "It fires nowhere in the texts that it was judged on.",
        "No rule was tried on made texts: none raises the feature, or no text has room for its tokens.",
        "No absence was confirmed: no distractor was suspected, so none was tried.",
        "No count was confirmed: no count was suspected, so none was tried.",
    ]


def test_the_list_is_ordered_and_goes_by_arrow_keys(page):
    places = ".documents .place"
    assert page.locator(places).all_text_contents() == ["3", "11"], "absences and counts first"
    page.locator(".documents button").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".feature h3").first).to_have_text("Output feature 11")
    page.locator(".documents label", has_text="By number").click()
    assert page.locator(places).all_text_contents() == ["3", "11"]


def test_more_rules_are_shown_when_asked_for(open_page, tmp_path):
    many = [{"query": -1, "key": i, "effect": 1.0 + i} for i in range(40)]
    row = make_row(rules=many, coverage=[0.5] * 40)
    page = opened(open_page, write_report([make_rules([row])], tmp_path / "r.html"))
    assert len(rows(page, "ruled")) == 10
    page.locator(".rules-part .release").click()
    assert len(rows(page, "ruled")) == 40 and rows(page, "ruled")[0][0] == "feature 39"
    assert page.locator(".documents").count() == 0, "there is nothing to choose"
    assert "Input features have no labels here" in page.text_content(".rules")


def test_hostile_tokens_and_labels_stay_text(open_page, tmp_path):
    row = make_row(tokens=HOSTILE)
    labels = make_labels({i: HOSTILE[i % 5] for i in range(12)})
    page = opened(open_page, write_report([make_rules([row], model=HOSTILE[2]), labels], tmp_path / "r.html"))
    foreign = "document.querySelectorAll('img, iframe, object, main script').length"
    for i in range(len(HOSTILE)):
        page.locator(".exemplars .token").nth(i).hover()
    assert page.evaluate(foreign) == 0
    assert page.locator(".exemplars .token").all_text_contents()[:3] == list(HOSTILE[:3])
    assert rows(page, "ruled")[0][0] == f"{HOSTILE[RULES[ORDER[0]]['key']]} 1"


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1024, "light")])
def test_nothing_runs_over_the_edge(open_page, report, width, scheme):
    page = opened(open_page, report, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
