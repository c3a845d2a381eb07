"""What a reader sees and does on the map of heads and in its study; every test also demands silence."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from headlens.report import write_report
from headlens.report.payload import traits
from headlens.universe.tables import LEFT_BY
from tests.report.shown_universe import INDUCTION, TEXTS, heads_of, make_study, make_texts, make_universe

pytestmark = pytest.mark.browser
HEADS = heads_of()
BOS = "<s>"
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def results():
    patterns = {name: make_texts(name, n=2) for name in TEXTS}
    return [make_universe(), make_study(), *(one for one, _ in patterns.values())], {
        k: a for k, (_, a) in patterns.items()
    }


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return write_report(results[0], tmp_path_factory.mktemp("universe") / "report.html")


@pytest.fixture
def page(open_page, report):
    return opened(open_page, report)


def opened(open_page, path, **options):
    page = open_page(path, **options)
    page.wait_for_selector(".head-dot.chosen")
    page.wait_for_selector(".beside-head canvas.pattern")
    return page


def dot(page, head):
    return page.locator(".heads-map .head-dot").nth(HEADS.index(head))


def chosen(page):
    return page.text_content(".map-detail h3")


def beside(page):
    return page.eval_on_selector_all(
        ".beside-head figcaption",
        "all => all.map((one) => [...one.children].slice(0, 2).map((c) => c.textContent).join(''))",
    )


def title(head):
    return f"L{head.layer}H{head.head} of {head.model}"


def choose(page, head):
    dot(page, head).focus()
    page.keyboard.press("Enter")
    assert chosen(page) == title(head)


def test_an_induction_head_comes_first_with_its_like_in_every_other_model(page):
    assert chosen(page) in {f"L{layer}H{head} of {model}" for model, layer, head in INDUCTION}
    expect(page.locator(".beside-head")).to_have_count(3)
    assert set(beside(page)) == {f"L{layer}H{head} {model}" for model, layer, head in INDUCTION}
    assert page.locator(".map-detail .chips li").first.text_content() == "Induction"
    assert page.locator(".map-detail li .same").count() == 2
    assert page.locator(".links line").count() == 2


def test_every_head_has_a_dot_where_the_map_has_it(page, results):
    maps = traits(results[0])["universe"]["maps"]
    for name, way in (("neighbours", "By neighbours"), ("components", "By components")):
        page.locator(".universe label", has_text=way).click()
        told = page.eval_on_selector_all(".heads-map .head-dot", "all => all.map((d) => d.getAttribute('transform'))")
        at = np.array([[float(x) for x in re.findall(r"[\d.]+", one)] for one in told])
        wanted = np.stack([np.array(maps[name]["x"]), 1 - np.array(maps[name]["y"])], 1)
        assert len(at) == len(HEADS) and at == pytest.approx(18 + 524 * wanted, abs=0.1)


def test_a_head_is_chosen_by_pointer_and_by_keyboard(page):
    for head in HEADS[::6]:
        choose(page, head)
        assert page.locator(".heads-map .head-dot[tabindex='0']").count() == 1
        near = page.locator(".map-detail li").all_text_contents()
        rows = make_universe().neighbours(head, 8, other_models=True).to_pylist()
        names = [re.match(r"L(\d+)H(\d+)", text).groups() for text in near if text.startswith("L")]
        assert [tuple(map(int, one)) for one in names] == [(r["layer"], r["head"]) for r in rows]
    box = dot(page, HEADS[3]).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert chosen(page) == title(HEADS[3])
    page.locator(".map-detail li button").first.click()
    first = make_universe().neighbours(HEADS[3], 1, other_models=True).to_pylist()[0]
    assert chosen(page) == f"L{first['layer']}H{first['head']} of {first['model']}"


def test_arrow_keys_go_to_the_next_dot_in_that_direction(page):
    places = {
        tuple(one[0]): one[1:]
        for one in page.eval_on_selector_all(
            ".heads-map .head-dot",
            "all => all.map((d) => { const b = d.getBoundingClientRect(); "
            "return [[d.head.model, d.head.layer, d.head.head], b.x + b.width / 2, b.y + b.height / 2]; })",
        )
    }
    moves = {"ArrowLeft": (0, -1), "ArrowRight": (0, 1), "ArrowUp": (1, -1), "ArrowDown": (1, 1)}
    dot(page, HEADS[5]).focus()
    here = tuple(HEADS[5])
    for key, (axis, sign) in moves.items():
        page.keyboard.press(key)
        now = tuple(page.evaluate("(({ model, layer, head }) => [model, layer, head])(document.activeElement.head)"))
        beyond = [one for one, at in places.items() if sign * (at[axis] - places[here][axis]) > 0.5]
        assert (now != here) == bool(beyond)
        assert now == here or now in beyond
        here = now
    assert page.locator(".head-card").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator(".head-card").is_visible()


def test_pointing_shows_scores_and_the_pattern(page, results):
    head = HEADS[0]
    dot(page, head).focus()
    page.wait_for_selector(".head-card .thumbnail")
    assert page.text_content(".head-card strong") == f"L{head.layer}H{head.head}"
    assert "Skill of its clone 0.60" in page.text_content(".head-card")
    n = len(TEXTS[head.model])
    drawn, alpha = page.evaluate(
        "(() => { const c = document.querySelector('.thumbnail'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; return [c.width, [...d].filter((_, i) => i % 4 === 3)]; })()"
    )
    assert drawn == n and np.array_equal(np.array(alpha).reshape(n, n) > 0, np.tril(np.ones((n, n), bool)))


def test_colours_go_by_label_model_and_depth_and_a_group_can_stand_out(page):
    keys = page.locator(".group-key").all_text_contents()
    assert keys == ["Induction 3", "my_kind 1", "of no kind 12"]
    page.locator(".group-key").first.click()
    assert page.locator(".heads-map .head-dot:not(.dimmed)").count() == 3
    page.locator(".group-key").first.click()
    assert page.locator(".head-dot.dimmed").count() == 0
    page.locator(".universe label", has_text=re.compile("^Model$")).click()
    assert page.locator(".group-key").all_text_contents() == [
        "org/<b>other</b> 4",
        "zoo:gpt2-small 6",
        "zoo:llama-small 6",
    ]
    shapes = page.eval_on_selector_all(".heads-map .head-dot", "all => all.map((d) => d.getAttribute('d'))")
    assert len({shapes[i] for i in range(len(HEADS))}) == 3, "not by colour alone"
    page.locator(".universe label", has_text=re.compile("^Depth$")).click()
    assert page.locator(".group-key").count() == 0 and page.locator(".heads-map .head-dot.heat-fill").count() == len(
        HEADS
    )


def test_the_same_place_is_marked_in_other_models_that_split_the_text_otherwise(page, results):
    expect(page.locator(".beside-head")).to_have_count(3)
    choose(page, next(h for h in HEADS if tuple(h) == ("zoo:gpt2-small", 1, 2)))
    expect(page.locator(".beside-head strong").first).to_have_text("L1H2")
    names = [text.split(" ", 1)[1] for text in beside(page)]
    query = 5  # " cat" the second time
    page.evaluate(
        """(q) => { const o = document.querySelector('.beside-head .overlay'); const b = o.getBoundingClientRect();
        const n = 7; o.dispatchEvent(new PointerEvent('pointermove', { bubbles: true,
        clientX: b.left + b.width * 2.5 / n, clientY: b.top + b.height * (q + 0.5) / n })); }""",
        query,
    )
    said = page.locator(".readout.small").all_text_contents()
    attention = results[1]["zoo:gpt2-small"][0][1, 2]
    assert said[0] == f"␣cat → ␣cat: {attention[query, 2]:.2f}"
    for name, text in zip(names[1:], said[1:], strict=True):
        holds = {"zoo:llama-small": "at", "org/<b>other</b>": "␣cat␣sat"}[name]
        assert text.startswith(f"{holds} looks most at "), "the token that holds the same character"


def test_another_text_is_shown_on_demand(page):
    page.locator(".universe select").select_option("1")
    expect(page.locator(".beside-head .pattern").first).to_have_attribute("aria-label", re.compile("3 queries"))


def cells(page, name):
    return page.eval_on_selector_all(
        f".{name} tbody tr", "all => all.map((row) => [...row.children].map((td) => td.textContent))"
    )


def test_retrieval_tells_what_is_found_beside_baselines_and_marks_right_and_wrong(page):
    found = cells(page, "spaces")
    assert [row[0] for row in found] == ["the universe", "random"]
    assert found[0][1:4] == ["0.90"] * 3 and found[0][4] == "" and found[1][4] == "+0.20"
    assert page.locator(".spaces tbody td.bar").nth(0).locator(".null").get_attribute("title") == "chance 0.13"
    page.locator(".query select").select_option("1")
    head = sorted(INDUCTION)[1]
    assert page.text_content(".query h4") == f"L{head[1]}H{head[2]} of {head[0]} looks for induction"
    marks = page.locator(".strip span").all_text_contents()
    assert marks[:2] == ["✓", "✓"] and set(marks[2:]) == {""}
    listed = page.locator(".ranked > li button > span:nth-child(2)").all_text_contents()
    assert listed == ["✓", "✓"] + ["✗"] * (len(marks) - 2)
    page.locator(".spaces .choice").nth(1).click()
    assert page.locator(".strip span").all_text_contents() != marks
    assert page.evaluate("document.activeElement.textContent") == "random", "it keeps the keyboard"
    page.locator(".universe-study label", has_text="Heads held out").click()
    assert [row[0] for row in cells(page, "spaces")] == ["the universe", "random"]
    assert "F1" not in page.locator(".spaces thead").text_content(), "what was not asked has no column"


def test_heads_of_the_study_are_chosen_on_the_map(page):
    named = page.locator(".ranked .of > span:first-child").all_text_contents()
    page.locator(".ranked button").first.click()
    assert chosen(page) == named[0].replace(" ", " of ", 1)
    assert page.locator(".ranked .of > span:first-child").all_text_contents() == named, "the list stays as it was"
    inside = "(() => { const b = document.querySelector('.map-stage').getBoundingClientRect(); return b.top < innerHeight && b.bottom > 0; })()"
    assert page.evaluate(inside), "the map is in sight"
    page.locator(".outliers .choice").first.click()
    assert chosen(page) == title(HEADS[15])


def test_outliers_are_flagged_and_all_can_be_asked_for(page):
    assert "1 head is flagged at 5 % false discoveries, of 13 heads judged." in page.text_content(".universe-study")
    found = cells(page, "outliers")
    assert len(found) == 12 and found[0][7] == "unclonable" and found[1][7] == ""
    assert found[0][6] == f"1.15 {next(iter(LEFT_BY.values()))}", "of the baselines, the one that leaves least"
    told = page.locator(".outliers .least [title]").first.get_attribute("title")
    assert [part.rsplit(" ", 1)[1] for part in told.split(", ")] == ["1.15", "1.25", "1.35", "1.45"]
    assert found[0][3] == "< .001" and found[0][0] == f"L{HEADS[15].layer}H{HEADS[15].head} {HEADS[15].model}"
    page.locator(".study-part .release").click()
    assert len(cells(page, "outliers")) == 13
    assert [row[0] for row in cells(page, "methods")] == ["clone: one map a head", "uniform"]


def test_few_texts_are_told_method_by_method(open_page, tmp_path):
    kl = {("phase 2", 1): 0.9, ("phase 2", 16): 0.7, ("clone", 1): 0.8, ("clone", 16): None}
    few = [
        {"method": m, "documents": n, "heads": 1600, "kl": 0.5, "above": 0.1, "skill": skill, "skill_low": 0.1,
         "skill_high": 0.2, "gap": None if m == "phase 2" else -0.25, "gap_low": -0.5, "gap_high": -0.125}
        for (m, n), skill in kl.items()
    ]  # fmt: skip
    page = open_page(write_report([make_study(few=few)], tmp_path / "f.html"))
    assert page.locator(".few thead td").all_text_contents() == ["Method", "1 text", "16 texts"]
    assert cells(page, "few") == [["phase 2, family left out", "+0.90", "+0.70"], ["clone", "+0.80", ""]]
    assert page.locator(".few .sure").all_text_contents() == ["+0.90", "+0.70"], "the best of so many texts"
    said = page.locator(".few tbody tr").nth(1).locator("[title]").first.get_attribute("title")
    assert (
        said
        == f"skill 0.10 to 0.20; KL 0.500 nats a row; phase 2 {MINUS}0.25 nats ({MINUS}0.50 to {MINUS}0.13); 1,600 heads"
    )


def test_what_is_missing_is_said(open_page, tmp_path):
    results = [make_universe(), make_texts("zoo:gpt2-small")[0]]
    page = open_page(write_report(results, tmp_path / "r.html"))
    page.wait_for_selector(".head-dot.chosen")
    said = page.text_content(".universe .notice")
    assert said.startswith("There are no patterns of org/<b>other</b>, zoo:llama-small in this page")
    alone = open_page(write_report([make_universe()], tmp_path / "a.html"))
    assert "no patterns of any model" in alone.text_content(".universe .notice")
    assert alone.locator(".beside-head").count() == 0
    none = open_page(write_report([make_study(spaces=[], queries=[], judged=False)], tmp_path / "n.html"))
    assert none.locator(".notice").all_text_contents() == [
        "No kind has heads in three families or more, so there is nothing to find again.",
        "No head was judged: position tells all of them.",
    ]


def test_hostile_names_stay_text(page):
    assert page.locator("b", has_text=re.compile("^other$")).count() == 0
    assert page.locator("main script, main img").count() == 0
    assert "org/<b>other</b>" in page.text_content(".map-detail")


@pytest.mark.parametrize("width", [380, 1024])
def test_nothing_runs_over_the_edge(open_page, report, width):
    page = opened(open_page, report, color_scheme="dark")
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
