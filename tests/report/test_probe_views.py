"""What a reader sees of a probe: its worth, and its texts token by token; every test also demands silence."""

import json
import re

import numpy as np
import pytest
from playwright.sync_api import expect

import headlens as hl
from headlens.data.world import documents
from headlens.probes import Probe
from headlens.probes.evaluation.metrics import evaluate
from headlens.probes.readings import described, readings
from headlens.report import write_report
from headlens.report.page import PROBE_VIEWS, _source
from headlens.report.payload import traits
from tests.report.shown_probes import (
    CLASSES,
    CUT,
    GAP,
    REST,
    TEXTS,
    THREE,
    by_document,
    make_evaluation,
    make_readings,
    provenance,
    without,
)
from tests.report.shown_results import FIRST, SHAPES, make_atlas, make_circuits
from tests.report.test_views import HOST, heats

pytestmark = pytest.mark.browser

NAMES = {
    "accuracy": "Accuracy", "f1": "F1", "auroc": "AUROC", "ap": "Average precision", "ece": "Calibration error",
    "brier": "Brier score", "log_loss": "Log loss", "fnr": "Missed", "fpr": "False alarms",
}  # fmt: skip


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def table(page, name):
    """Rows of a table, each a list of the texts of its cells."""
    return page.eval_on_selector_all(
        f".{name} tbody tr", "all => all.map((row) => [...row.children].map((td) => td.textContent))"
    )


def overall(result):
    return [row for row in result.table.to_pylist() if row["tokens_from"] is None]


def words(low, high):
    return "" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


# --- How far it can be trusted ------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_the_result_with_interval_and_n(probe_page, probe_results):
    shown = table(probe_page, "metrics")
    for cells, row in zip(shown, overall(probe_results[0]), strict=True):
        name = NAMES.get(row["metric"], f"TPR at FPR ≤ {100 * (row['at'] or 0):.3g} %")
        assert [cells[0], *cells[2:5]] == [name, f"{row['value']:.3f}", words(row["low"], row["high"]), str(row["n"])]


def test_an_interval_is_a_bar_around_its_value(probe_page, probe_results):
    bars = probe_page.eval_on_selector_all(
        ".metrics .interval",
        """all => all.map((bar) => {
            const at = (mark) => mark.getBoundingClientRect();
            const [whole, dot, whisker] = [at(bar), at(bar.querySelector('.dot')), at(bar.querySelector('.whisker'))];
            return [whisker.left, (dot.left + dot.right) / 2, whisker.right].map((x) => (x - whole.left) / whole.width);
        })""",
    )
    for row, (low, value, high) in zip(overall(probe_results[0]), bars, strict=True):
        assert (low, value) == pytest.approx((row["low"], row["value"]), abs=5e-3)
        assert high == pytest.approx(max(row["high"], row["low"]), abs=2e-2), "a bar is two pixels wide at least"


def test_rivals_stand_beside_as_marks_and_in_columns(probe_page):
    assert probe_page.locator(".metrics thead td").all_text_contents()[5:] == ["majority", "<i>bag</i>"]
    rows = {cells[0]: cells[5:] for cells in table(probe_page, "metrics")}
    assert rows["AUROC"] == ["0.500", "0.625"] and rows["F1"] == ["0.250", "0.375"]
    assert rows["Accuracy"] == ["–", "–"]
    marks = probe_page.locator(".metrics tr", has_text="AUROC").locator(".null")
    assert [mark.get_attribute("title") for mark in marks.all()] == ["majority 0.500", "<i>bag</i> 0.625"]
    assert marks.nth(1).evaluate("e => e.style.left") == "62.5%"


def test_what_cannot_be_told_says_so(open_page, tmp_path):
    result = without(make_evaluation(), "auroc", "fnr")
    page = open_page(write_report([result], tmp_path / "r.html"))
    row = next(cells for cells in table(page, "metrics") if cells[0] == "AUROC")
    assert row[1:3] == ["cannot be told", "–"]
    assert page.locator(".roc .in-use").count() == 0


def test_the_metrics_are_explained(probe_page):
    details = probe_page.locator(".meanings")
    details.locator("summary").click()
    assert details.locator("dt").all_text_contents() == list(
        dict.fromkeys([*list(NAMES.values())[:4], "TPR", *list(NAMES.values())[4:]])
    )
    assert "Share of documents of which the right class is said." in details.text_content()


def test_errors_are_told_by_length_with_their_number(probe_page, probe_results):
    rows = [row for row in probe_results[0].table.to_pylist() if row["tokens_from"] is not None]
    shown = table(probe_page, "lengths")
    spans = list(dict.fromkeys((row["tokens_from"], row["tokens_to"]) for row in rows))
    assert len(shown) == len(spans) > 3
    for cells, span in zip(shown, spans, strict=True):
        own = {row["metric"]: row for row in rows if row["tokens_from"] == span[0]}
        assert cells[0] == ("1" if span == (1, 1) else f"{span[0]}–{span[1]}")
        for cell, metric in zip(cells[1:], ("accuracy", "fnr", "fpr"), strict=True):
            value = 1 - own[metric]["value"] if metric == "accuracy" else own[metric]["value"]
            told = "–" if np.isnan(value) else f"{value:.3f}"
            assert cell.endswith(f"{told} of {own[metric]['n']}")
    last = {row["metric"]: row for row in rows if row["tokens_from"] == spans[-1][0]}
    titles = [cell.get_attribute("title") for cell in probe_page.locator(".lengths tr").last.locator(".measured").all()]
    errors = words(1 - last["accuracy"]["high"], 1 - last["accuracy"]["low"])
    assert titles == [errors, *(words(last[name]["low"], last[name]["high"]) for name in ("fnr", "fpr"))]


# --- ROC ----------------------------------------------------------------------------------------------------------


def in_plot(page, selector, *attributes):
    """Attributes of marks of the ROC, in units of its square: (0, 0) below on the left, (1, 1) above on the right."""
    found = page.eval_on_selector_all(
        f".roc .diagram {selector}",
        "(all, names) => all.map((e) => names.map((n) => Number(e.getAttribute(n))))",
        list(attributes),
    )
    frame = page.eval_on_selector(".roc .frame", "e => ['x', 'y', 'width'].map((n) => Number(e.getAttribute(n)))")
    x, y, size = frame
    return [
        [(v - x) / size if "x" in name else 1 - (v - y) / size for name, v in zip(attributes, values, strict=True)]
        for values in found
    ]


def rates(result):
    rows = {row["metric"]: row for row in overall(result)}
    return rows["fpr"], rows["fnr"]


def test_a_ring_marks_the_threshold_and_bars_its_intervals(probe_page, probe_results):
    alarms, missed = rates(probe_results[0])
    ((x, y),) = in_plot(probe_page, "circle.in-use", "cx", "cy")
    assert (x, y) == pytest.approx((alarms["value"], 1 - missed["value"]), abs=1e-5)
    across, up = in_plot(probe_page, "line.in-use", "x1", "y1", "x2", "y2")
    assert across == pytest.approx([alarms["low"], y, alarms["high"], y], abs=1e-5)
    assert up == pytest.approx([x, 1 - missed["low"], x, 1 - missed["high"]], abs=1e-5)
    caption = probe_page.locator(".roc .faint.caption").text_content()
    assert f"threshold in use, 0.5, finds {1 - missed['value']:.3f}" in caption
    assert f"({1 - missed['high']:.3f} to {1 - missed['low']:.3f})" in caption
    assert f"false alarms {alarms['value']:.3f} ({alarms['low']:.3f} to {alarms['high']:.3f})" in caption


def test_a_point_walks_along_the_curve_with_the_slider(probe_page, probe_results):
    curve = probe_results[0].roc
    slider = probe_page.locator(".roc input[type=range]")
    above = int((curve[:, 3] > 0.5).nonzero()[0][-1])
    assert int(slider.input_value()) == above, "it starts at the threshold in use"
    for key, i in (("ArrowRight", above + 1), ("Home", 0), ("End", len(curve) - 1)):
        slider.press(key)
        assert in_plot(probe_page, ".walker", "cx", "cy")[0] == pytest.approx(curve[i, 1:3], abs=1e-5)
        said = probe_page.locator(".walked").text_content()
        assert said.endswith(f"finds {curve[i, 2]:.3f}, false alarms {curve[i, 1]:.3f}")
        assert slider.get_attribute("aria-valuetext") == said
    slider.press("Home")
    assert "Above every score" in probe_page.locator(".walked").text_content()


def test_the_pointer_finds_the_nearest_point_of_the_curve(probe_page, probe_results):
    curve = probe_results[0].roc
    probe_page.locator(".roc .frame").scroll_into_view_if_needed()
    box = probe_page.locator(".roc .frame").bounding_box()
    probe_page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
    nearest = np.hypot(curve[:, 1] - 0.3, curve[:, 2] - 0.6).argmin()
    assert in_plot(probe_page, ".walker", "cx", "cy")[0] == pytest.approx(curve[nearest, 1:3], abs=1e-5)


def path(page, selector):
    """Points of a curve, in units of the square."""
    d = page.locator(f".roc .diagram {selector}").first.get_attribute("d")
    x, y, size = page.eval_on_selector(".roc .frame", "e => ['x', 'y', 'width'].map((n) => Number(e.getAttribute(n)))")
    pairs = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", d)[1:]])
    return np.stack([(pairs[:, 0] - x) / size, 1 - (pairs[:, 1] - y) / size], 1)


def test_on_a_logarithmic_axis_low_rates_have_room(probe_page, probe_results):
    result = probe_results[0]
    assert path(probe_page, ".front") == pytest.approx(result.roc[:, 1:3], abs=1e-4)
    probe_page.locator(".roc label", has_text="Logarithmic").click()
    least = result.roc[result.roc[:, 1] > 0, 1].min()
    decades = np.ceil(-np.log10(least))
    alarms, missed = rates(result)
    at = lambda x: max(0, 1 + np.log10(max(x, 1e-300)) / decades)  # noqa: E731
    ((x, y),) = in_plot(probe_page, "circle.in-use", "cx", "cy")
    assert (x, y) == pytest.approx((at(alarms["value"]), 1 - missed["value"]), abs=1e-5)
    across, up = in_plot(probe_page, "line.in-use", "x1", "x2")
    assert across == pytest.approx([at(alarms["low"]), at(alarms["high"])], abs=1e-5) and up == pytest.approx([x, x])
    wanted = np.array([[at(fpr), tpr] for fpr, tpr in result.roc[:, 1:3]])
    apart = np.abs(wanted[:, None] - path(probe_page, ".front")).max(2)
    assert apart.min(1).max() < 1e-4
    chance = path(probe_page, ".chance")
    inside = chance[:, 0] > 0
    assert chance[inside, 1] == pytest.approx(10 ** (decades * (chance[inside, 0] - 1)), abs=2e-3), "no straight line"
    assert np.diff(chance[inside, 0]).max() < 0.2
    ticks = probe_page.locator(".roc .tick").all_text_contents()
    assert ".01" in ticks and ticks[-1] == "1"


def test_a_tie_is_bent_on_a_logarithmic_axis(open_page, tmp_path):
    """All scores alike: the curve is the diagonal, which a straight line from corner to corner is not."""
    result = evaluate([0, 1] * 50, np.zeros(100), draws=0, provenance=provenance(None))
    page = open_page(write_report([result, make_evaluation()], tmp_path / "r.html"))
    page.locator(".roc label", has_text="Logarithmic").click()
    curve = path(page, ".front")
    assert len(curve) > 20 and curve[curve[:, 0] < 0.5, 1].max() < 0.35


def test_many_classes_have_a_curve_each(open_page, tmp_path):
    result = make_evaluation(classes=THREE)
    page = open_page(write_report([result], tmp_path / "r.html"))
    assert page.locator(".roc option").all_text_contents() == list(THREE)
    for k in (0, 2, 1):
        page.select_option(".roc select", str(k))
        assert path(page, ".front") == pytest.approx(result.roc[result.roc[:, 0] == k, 1:3], abs=1e-4)
    assert page.locator(".roc .curve").count() == 3
    assert page.locator(".roc .in-use").count() == 0
    assert page.locator(".meaning .quoted").all_text_contents() == list(THREE)


def test_documents_of_one_class_have_no_curve(open_page, tmp_path):
    result = evaluate([1] * 20, np.linspace(-1, 1, 20), draws=20, provenance=provenance(None))
    page = open_page(write_report([result], tmp_path / "r.html"))
    assert "There is no curve" in page.locator(".roc").text_content()


# --- Calibration --------------------------------------------------------------------------------------------------


def test_calibration_shows_each_bin_with_its_interval_and_count(probe_page, probe_results):
    bins = np.array(traits([probe_results[0]])["evaluations"][0]["reliability"])
    probe_page.locator(".reliability summary").click()
    rows = table(probe_page, "bins")
    assert [cells[0] for cells in rows] == [f"{a:.2f} to {b:.2f}" for a, b in bins[:, :2]]
    assert [int(cells[4]) for cells in rows] == bins[:, 2].tolist()
    assert np.array([[number(cell) for cell in cells[1:3]] for cells in rows]) == pytest.approx(bins[:, 3:5], abs=6e-4)
    marks = probe_page.evaluate(
        """() => {
            const read = (selector, names) => [...document.querySelectorAll(`.reliability ${selector}`)].map((e) => names.map((n) => Number(e.getAttribute(n))));
            const [[x, y, size]] = read('.frame', ['x', 'y', 'width']);
            const [u, v] = [(z) => (z - x) / size, (z) => 1 - (z - y) / size];
            return {
                dots: read('.bin', ['cx', 'cy']).map(([a, b]) => [u(a), v(b)]),
                ends: read('.bin-interval', ['y1', 'y2']).map((ends) => ends.map(v)),
                heights: read('.count', ['height']).flat(),
            };
        }"""
    )
    assert np.array(marks["dots"]) == pytest.approx(bins[:, 3:5], abs=1e-5)
    assert np.array(marks["ends"]) == pytest.approx(bins[:, 5:], abs=1e-5)
    heights, n = np.array(marks["heights"]), bins[:, 2]
    big = heights > 1
    assert heights[big] / heights.max() == pytest.approx(n[big] / n.max())
    assert probe_page.locator(".reliability .small").all_text_contents() == [str(int(x)) for x in n]


# --- Several ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def several():
    return [
        make_evaluation(apart=2.0),
        make_evaluation(apart=-2.0, probe={"pooling": "mean", "n_heads": 1}),
        make_evaluation(classes=THREE, probe={"pooling": "max", "n_heads": 1}),
    ]


@pytest.fixture
def several_page(open_page, several, tmp_path):
    return open_page(write_report(several, tmp_path / "r.html"))


def test_several_are_compared_on_one_scale(several_page, several):
    assert several_page.locator(".choice").all_text_contents() == [
        f"Probe with pooling {name}" for name in ("attention, 2 heads", "mean", "max")
    ]
    for metric, title in (("auroc", "AUROC"), ("log_loss", "Log loss")):
        several_page.select_option(".comparison select", label=title)
        found = [next(row for row in overall(one) if row["metric"] == metric) for one in several]
        assert [cells[2:4] for cells in table(several_page, "compared")] == [
            [f"{row['value']:.3f}", words(row["low"], row["high"])] for row in found
        ]
        ends = several_page.locator(".compared .end").all_text_contents()
        assert set(ends[1::2]) == {"1" if metric == "auroc" else "4"}, "log loss is beyond 2"
    several_page.select_option(".comparison select", label="Missed")
    assert table(several_page, "compared")[2][1:3] == ["cannot be told", "–"], "of three classes there is no such rate"


def test_one_of_several_is_looked_at(several_page, several):
    for i in (1, 2, 0):
        choice = several_page.locator(".choice").nth(i)
        choice.focus()
        several_page.keyboard.press("Enter")
        pressed = [b.get_attribute("aria-pressed") for b in several_page.locator(".choice").all()]
        assert pressed == [str(j == i).lower() for j in range(3)]
        shown = {cells[0]: cells[2] for cells in table(several_page, "metrics")}
        assert shown["AUROC"] == f"{several[i].value('auroc'):.3f}"
        others = several_page.locator(".roc .curve:not(.front)")
        assert others.count() == (2 if i == 2 else 1), "those with the same two classes; or its own other classes"
    assert others.first.locator("title").text_content() == "Probe with pooling mean"


# --- What it says of texts ----------------------------------------------------------------------------------------


def choose_text(page, d, tokens):
    page.locator(f'.documents button[data-document="{d}"]').click()
    expect(page.locator(".reading h3").first).to_have_text(re.compile(f"^Text {d + 1} "))
    assert page.locator(".reading .token").count() == tokens


def readout(page):
    return page.locator(".reading .readout").text_content()


def mode(page, name):
    page.locator(".reading .controls label", has_text=re.compile(f"^{name}$")).click()


def test_texts_are_listed_with_answer_label_and_score(probe_page, probe_results):
    texts = by_document(probe_results[1])
    buttons = probe_page.locator(".documents li button")
    assert buttons.count() == len(TEXTS)
    for i, rows in enumerate(texts):
        row = rows[0]
        answer = row["prediction"] if row["label"] is None else f"✓ {row['label']}"
        if row["label"] not in (None, row["prediction"]):
            answer = f"✗ says {row['prediction']}, is {row['label']}"
        assert buttons.nth(i).locator(".answer").text_content() == answer
        assert number(buttons.nth(i).locator(".number").nth(1).text_content()) == pytest.approx(row["score"], abs=0.006)
    judged = [rows[0] for rows in texts if rows[0]["label"] is not None]
    wrong = sum(row["label"] != row["prediction"] for row in judged)
    assert probe_page.locator(".list-head").text_content() == f"{wrong} of {len(judged)} texts wrongscore"


@pytest.mark.parametrize("d", [0, 3, 4])
def test_tokens_and_rest_add_up_to_the_score_on_the_page(probe_page, probe_results, d):
    rows = by_document(probe_results[1])[d]
    choose_text(probe_page, d, len(rows))
    score, tokens, rest, threshold = map(
        number, re.findall(r"[\d.\N{MINUS SIGN}]*\d", probe_page.locator(".sum").text_content())
    )
    assert "− rest 0.400" in probe_page.locator(".sum").text_content()
    assert (score, rest, threshold) == (pytest.approx(rows[0]["score"], abs=5e-4), -REST, 0.25)
    assert round(tokens - rest, 3) == score, "the digits that are shown add up, too"
    spoken = probe_page.eval_on_selector_all(".reading .token", "all => all.map((e) => e.getAttribute('aria-label'))")
    added = [number(label.rpartition(": ")[2]) for label in spoken]
    assert added == pytest.approx([row["contribution"] for row in rows], rel=6e-3)
    assert sum(added) + REST == pytest.approx(rows[0]["score"], abs=6e-3 * sum(map(abs, added)))


def test_the_verdict_names_answer_probability_and_label(probe_page, probe_results):
    for d, rows in enumerate(by_document(probe_results[1])):
        choose_text(probe_page, d, len(rows) if rows[0]["position"] is not None else 0)
        row = rows[0]
        said = probe_page.locator(".verdict").text_content()
        assert said.startswith(
            f"Says {row['prediction']}, with a probability of {row['probability']:.3f} for {CLASSES[1]}"
        )
        if row["label"] is not None:
            assert f"is {row['label']}." in said


def test_colours_are_contributions_around_zero(probe_page, probe_results):
    rows = by_document(probe_results[1])[0]
    added = np.array([row["contribution"] for row in rows])
    assert heats(probe_page, ".reading .token") == pytest.approx(np.abs(added) / np.abs(added).max(), abs=1e-4)
    against = probe_page.eval_on_selector_all(
        ".reading .token", "all => all.map((e) => e.classList.contains('against'))"
    )
    assert against == (added < 0).tolist() and {True, False} <= set(against)
    low, zero, high = probe_page.locator(".diverging .number").all_text_contents()
    assert zero == "0" and number(low) == -number(high) == pytest.approx(-np.abs(added).max(), rel=6e-3)
    colours = probe_page.eval_on_selector_all(
        ".diverging .ramp", "all => all.map((e) => getComputedStyle(e).backgroundImage)"
    )
    assert len(set(colours)) == 2


def test_pointing_at_a_token_tells_what_it_adds_and_how_much_of_it_is_taken(probe_page, probe_results):
    rows = by_document(probe_results[1])[0]
    strongest = int(np.abs([row["contribution"] for row in rows]).argmax())
    resting = readout(probe_page)
    assert f"({strongest}) adds" in resting
    for i in (0, 5):
        probe_page.locator(".reading .token").nth(i).hover()
        added, *taken = map(
            number,
            re.findall(r"[\d.\N{MINUS SIGN}]*\d", readout(probe_page).partition(" adds ")[2].replace(CLASSES[1], "")),
        )
        assert added == pytest.approx(rows[i]["contribution"], rel=6e-3)
        assert taken == pytest.approx(rows[i]["attention"], abs=6e-4)
    probe_page.mouse.move(1, 1)
    assert readout(probe_page) == resting


def test_attention_is_shown_by_head(probe_page, probe_results):
    taken = np.array([row["attention"] for row in by_document(probe_results[1])[0]])
    heads = probe_page.locator(".reading .controls select")
    assert not heads.is_visible()
    mode(probe_page, "Attention")
    assert heats(probe_page, ".reading .token") == pytest.approx(taken.mean(1) / taken.mean(1).max(), abs=1e-3)
    for head in (1, 0):
        probe_page.select_option(".reading .controls select", str(head + 1))
        assert heats(probe_page, ".reading .token") == pytest.approx(taken[:, head] / taken[:, head].max(), abs=1e-3)
    assert not probe_page.locator(".ramp.against").is_visible(), "attention has no other side"
    mode(probe_page, "What it adds")
    assert not heads.is_visible()


def test_the_strongest_tokens_are_listed_and_lead_to_their_place(probe_page, probe_results):
    rows = by_document(probe_results[1])[4]
    choose_text(probe_page, 4, 600)
    added = np.array([row["contribution"] for row in rows])
    for side, order in enumerate((np.argsort(-added), np.argsort(added))):
        places = probe_page.locator("section.tokens").nth(side).locator(".words .number").all_text_contents()
        assert [int(place) for place in places] == order[:6].tolist()
    last = probe_page.locator("section.tokens").nth(1).locator("button").first
    last.click()
    place = int(added.argmin())
    token = probe_page.locator(".reading .token").nth(place)
    assert token.get_attribute("aria-selected") == "true"
    assert f"({place}) adds" in readout(probe_page)
    box, frame = token.bounding_box(), probe_page.locator(".reading .text").bounding_box()
    assert frame["y"] <= box["y"] <= frame["y"] + frame["height"] - box["height"], "the text scrolled to it"


def orders(page):
    return page.locator(".orders label").all_text_contents()


def listed(page):
    return page.eval_on_selector_all(".documents li button", "all => all.map((e) => Number(e.dataset.document))")


def order(page, name):
    page.locator(".orders label", has_text=name).click()


def test_texts_are_ordered_by_score_and_by_mistake(probe_page, probe_results):
    rows = [rows[0] for rows in by_document(probe_results[1])]
    scores = [row["score"] for row in rows]
    assert orders(probe_page) == ["As given", "Highest score", "Lowest score", "Wrong first"]
    order(probe_page, "Highest score")
    assert listed(probe_page) == np.argsort([-s for s in scores]).tolist()
    probe_page.wait_for_selector(".documents .selected")
    assert probe_page.locator(".documents .selected").count() == 1
    order(probe_page, "Lowest score")
    assert listed(probe_page) == np.argsort(scores).tolist()
    order(probe_page, "Wrong first")
    wrong = [d for d, row in enumerate(rows) if row["label"] not in (None, row["prediction"])]
    assert set(listed(probe_page)[: len(wrong)]) == set(wrong)
    order(probe_page, "As given")
    assert listed(probe_page) == list(range(len(rows)))


def test_texts_and_tokens_are_walked_with_keys(probe_page):
    probe_page.locator(".documents button").first.focus()
    for d in (1, 2, 3):
        probe_page.keyboard.press("ArrowDown")
        expect(probe_page.locator(".reading h3").first).to_have_text(re.compile(f"^Text {d + 1} "))
    probe_page.keyboard.press("ArrowUp")
    choose_text(probe_page, 0, len(TEXTS[0]))
    probe_page.locator(".reading .token").first.focus()
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(TEXTS[0]) - 1), ("Home", 0)):
        probe_page.keyboard.press(key)
        assert probe_page.evaluate("() => Number(document.activeElement.dataset.position)") == at
        assert f"({at}) adds" in readout(probe_page)
    probe_page.keyboard.press("Enter")
    probe_page.keyboard.press("End")
    probe_page.evaluate("() => document.activeElement.blur()")
    assert "(0) adds" in readout(probe_page), "a pinned token stays"
    assert probe_page.locator(".token[aria-selected=true]").count() == 1


def test_text_that_runs_to_the_left_does_so_with_its_keys(open_page, tmp_path):
    page = open_page(write_report([make_readings(texts=[("שלום", " עולם", " ab", " עוד")])], tmp_path / "r.html"))
    page.wait_for_selector(".token")
    first, second = (page.locator(".token").nth(i).bounding_box()["x"] for i in (0, 1))
    assert first > second
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("() => document.activeElement.dataset.position") == "1"


def test_gaps_ends_and_new_lines_are_seen(probe_page):
    marks = "all => all.map((e) => [...e.parentElement.children].indexOf(e))"
    assert probe_page.eval_on_selector_all(".skipped", marks) == [GAP]
    choose_text(probe_page, CUT, 600)
    assert probe_page.eval_on_selector_all(".skipped", marks) == [600]
    choose_text(probe_page, 5, 4)
    assert probe_page.locator(".reading .text br").count() == 2
    assert probe_page.locator(".reading .text .mark").all_text_contents() == ["⏎", "⏎"]


def test_a_text_without_tokens_says_what_the_probe_says_without_any(probe_page):
    choose_text(probe_page, 2, 0)
    said = probe_page.locator(".reading").text_content()
    assert "The probe read no token of this text" in said and "score −0.400 = tokens 0.000 − rest 0.400" in said
    assert not probe_page.locator(".reading .text").is_visible()
    assert probe_page.locator('.documents button[data-document="2"] .start').text_content() == "(empty)"
    choose_text(probe_page, 0, len(TEXTS[0]))
    assert probe_page.locator(".reading .text").is_visible()


def test_hostile_tokens_and_classes_stay_text(probe_page):
    choose_text(probe_page, 1, len(TEXTS[1]))
    for i, token in enumerate(TEXTS[1]):
        shown = probe_page.locator(".reading .token").nth(i)
        if token.isascii() and token.isprintable() and token:
            assert shown.text_content() == token
        else:
            assert shown.text_content() != "", "what cannot be seen is marked"
    assert probe_page.locator("main img, main iframe, .probe b b, .quoted *:not(.mark)").count() == 0
    assert probe_page.locator("section script, .probe i").count() == 0
    assert probe_page.locator(".meaning .quoted").first.text_content() == CLASSES[1]


# --- Other kinds of probes ----------------------------------------------------------------------------------------


def test_of_many_classes_texts_are_ordered_by_probability(open_page, tmp_path):
    result = make_readings(classes=list(THREE))
    page = open_page(write_report([result], tmp_path / "r.html"))
    rows = [rows[0] for rows in by_document(result)]
    assert orders(page)[:3] == ["As given", "Surest", "Least sure"]
    order(page, "Surest")
    assert listed(page) == np.argsort([-row["probability"] for row in rows], kind="stable").tolist()
    shown = [number(text) for text in page.locator(".documents .number:last-child").all_text_contents()]
    assert shown == pytest.approx(sorted((row["probability"] for row in rows), reverse=True), abs=6e-3)
    assert "threshold" not in page.locator(".sum").text_content()


def test_numbers_are_said_and_ordered_by_how_far_they_are_off(open_page, tmp_path):
    result = make_readings(classes=None)
    page = open_page(write_report([result], tmp_path / "r.html"))
    rows = [rows[0] for rows in by_document(result)]
    order(page, "Furthest off")
    off = [-1 if row["label"] is None else abs(row["score"] - float(row["label"])) for row in rows]
    assert listed(page) == np.argsort([-x for x in off], kind="stable").tolist()
    choose_text(page, 0, len(TEXTS[0]))
    label = "." if rows[0]["label"] is None else f". The label is {rows[0]['label']}."
    assert page.locator(".verdict").text_content() == f"Says {rows[0]['score']:.3f}{label}".replace("-", "−")


@pytest.mark.parametrize("classes", [CLASSES, THREE, None])
def test_with_the_pooling_token_each_token_has_an_answer(open_page, tmp_path, classes):
    result = make_readings(pooling="token", n_heads=1, classes=classes and list(classes))
    page = open_page(write_report([result], tmp_path / "r.html"))
    page.wait_for_selector(".token")
    rows = by_document(result)[0]
    scores = np.array([row["score"] for row in rows])
    assert heats(page, ".token") == pytest.approx(np.abs(scores) / np.abs(scores).max(), abs=1e-4)
    for i in (0, 4):
        page.locator(".token").nth(i).hover()
        said, row = readout(page), rows[i]
        assert f"and the rest −0.4: score {row['score']:.3f}".replace("-", "−") in said
        if classes:
            assert f"probability {row['probability']:.3f}: says {row['prediction']}" in said
        assert ("the label is" in said) == (row["label"] is not None)
    mode(page, "What it adds")
    added = np.abs([row["contribution"] for row in rows])
    assert heats(page, ".token") == pytest.approx(added / added.max(), abs=1e-4)
    marked = page.eval_on_selector_all(
        ".token", "all => all.map((e) => [e.matches('.labelled'), e.matches('.mistaken')])"
    )
    assert marked == [
        [row["label"] not in (None, classes[0]), row["label"] not in (None, row["prediction"])]
        if classes
        else [False, False]
        for row in rows
    ]


def test_readings_are_chosen_by_name(open_page, tmp_path):
    results = [make_readings(), make_readings(2, pooling="tanh", n_heads=1, texts=TEXTS[:1])]
    page = open_page(write_report(results, tmp_path / "r.html"))
    page.select_option("#view-probe_reading > .text-picker select", "1")
    rows = by_document(results[1])[0]
    score = f"score {rows[0]['score']:.3f}".replace("-", "−")
    expect(page.locator(".sum").first).to_have_text(re.compile("^" + re.escape(score)))
    added = np.array([row["contribution"] for row in rows])
    assert heats(page, ".token") == pytest.approx(np.abs(added) / np.abs(added).max(), abs=1e-4)
    assert not page.locator(".orders label").first.is_visible(), "one text has no order"
    mode(page, "Attention")
    assert page.locator(".ramp.against").is_visible(), "of tanh pooling, attention has a sign"


# --- The page -----------------------------------------------------------------------------------------------------


def test_no_page_is_wider_than_its_window(open_page, tmp_path, several):
    long = make_evaluation(classes=("x" * 300, "y" * 300), data={"documents": {"source": "z" * 200}})
    result = make_readings(classes=["x" * 300, "y" * 300], texts=[*TEXTS, ("w" * 500,)])
    page = open_page(write_report([long, *several, result], tmp_path / "r.html"))
    page.wait_for_selector(".token")
    for width in (320, 400, 900):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_heads_and_probes_share_a_page(open_page, example, probe_results, tmp_path):
    results = [make_atlas(), *example.patterns.values(), make_circuits(FIRST, SHAPES[FIRST]), *probe_results]
    page = open_page(write_report(results, tmp_path / "r.html"))
    page.wait_for_selector("#view-attention .token")
    page.wait_for_selector("#view-probe_reading .token")
    headings = page.locator("main h2").all_text_contents()
    assert headings[-2:] == ["How far it can be trusted", "What it says of texts"] and len(headings) >= 3
    page.locator("#view-head_grid .cell[role]").nth(3).click()
    choose_text(page, 3, 1)
    assert page.locator("#view-attention .token").count() > 1, "each view keeps its own text"
    assert "could not be drawn" not in page.locator("main").text_content()


@pytest.mark.parametrize("width", [620, 700, 860])
def test_a_page_of_middling_width_keeps_its_tables_and_figures_whole(probe_page, width):
    """Lengths stand on one line, bars have room, and the two diagrams stand side by side on one line."""
    probe_page.set_viewport_size({"width": width, "height": 900})
    assert probe_page.evaluate("document.documentElement.scrollWidth") == width
    sizes = "all => all.map((e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    lengths = probe_page.eval_on_selector_all(".lengths .kind", sizes)
    assert lengths and max(height for _, height in lengths) < 50  # two lines at most, for a cell of words
    bars = probe_page.eval_on_selector_all(".lengths .interval", sizes)
    assert bars and min(wide for wide, _ in bars) > 30
    tops = probe_page.eval_on_selector_all("figure .frame", "all => all.map((e) => e.getBoundingClientRect().top)")
    assert tops[0] == pytest.approx(tops[1], abs=1)


@pytest.mark.parametrize("name", PROBE_VIEWS)
def test_a_view_is_a_module_for_any_host(browser, probe_results, name):
    context = browser.new_context()
    context.route("**/*", _serve)
    page = context.new_page()
    page.goto("http://views.test/")
    seen = page.evaluate(HOST, [name, json.loads(json.dumps(traits(list(probe_results))))])
    empty = page.evaluate(HOST, [name, {}])
    context.close()
    assert {"probe_evaluation": "How far it can be trusted", "probe_reading": "What it says of texts"}[name] in seen[
        "text"
    ]
    assert seen["tokens"] == (len(TEXTS[0]) if name == "probe_reading" else 0)
    assert (seen["saved"], empty["text"]) == ([], "")


def _serve(route):
    name = route.request.url.removeprefix("http://views.test/")
    if name == "":
        route.fulfill(content_type="text/html", body="<!doctype html><title>host</title>")
    else:
        route.fulfill(content_type="text/javascript", body=_source(f"views/{name}"))


SLOW_HOST = """async (values) => {
    const { default: view } = await import('http://views.test/probe_reading.js');
    const slow = (value) => new Promise((resolve) => setTimeout(() => resolve(value), 300));
    const el = document.createElement('div');
    document.body.append(el);
    view.render({ model: { get: (key) => (key === 'reading_0_0' ? slow(values[key]) : values[key]) }, el });
    el.querySelector('button[data-document="3"]').click();
    await slow();
    await slow();
    return [el.querySelector('h3').textContent, el.querySelectorAll('.token').length];
}"""


def test_a_slow_text_does_not_replace_a_later_choice(browser, probe_results):
    context = browser.new_context()
    context.route("**/*", _serve)
    page = context.new_page()
    page.goto("http://views.test/")
    seen = page.evaluate(SLOW_HOST, json.loads(json.dumps(traits([probe_results[1]]))))
    context.close()
    assert seen == ["Text 4 1 token", 1]


def test_a_text_that_cannot_be_read_says_so(browser, probe_results):
    values = json.loads(json.dumps(traits([probe_results[1]])))
    values["reading_0_0"]["attention"] = "AAAA"
    context = browser.new_context()
    context.route("**/*", _serve)
    page = context.new_page()
    page.goto("http://views.test/")
    seen = page.evaluate(HOST, ["probe_reading", values])
    context.close()
    assert "This text could not be read" in seen["text"]


def test_a_real_probe_is_shown_as_it_is(open_page, tmp_path):
    """From a model's states to the page: the numbers that the reader sees are the probe's own."""
    texts = [d.text[:100] for d in documents(12, seed=3)]
    model = hl.load("zoo:llama-small")
    store = hl.capture_to(tmp_path / "store", model, texts, ["blocks.1.hook_resid_post"], dtype="float32")
    y = np.array(["no", "yes"] * 6)
    probe = Probe("attention", n_heads=2, steps=20).fit(store, y)
    scores = probe.decision_function(store)
    judged = evaluate(y, scores, classes=probe.classes_, lengths=store.lengths, provenance=provenance(described(probe)))
    page = open_page(write_report([judged, readings(probe, model, texts, labels=y)], tmp_path / "r.html"))
    page.wait_for_selector(".token")
    assert next(cells for cells in table(page, "metrics") if cells[0] == "AUROC")[2] == f"{judged.value('auroc'):.3f}"
    shown = [number(text) for text in page.locator(".documents .number:last-child").all_text_contents()]
    assert shown == pytest.approx(scores, abs=6e-3)
    added = probe.score_tokens(store)[0]
    assert heats(page, ".token") == pytest.approx(np.abs(added) / np.abs(added).max(), abs=1e-3)
    assert page.locator(".reading .text").text_content() == texts[0]
