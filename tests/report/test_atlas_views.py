"""What a reader sees of an atlas: labels, small multiples, a head's page; every test also demands silence."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

from headlens.report import write_report
from headlens.report.page import _source
from headlens.report.payload import traits
from tests.report.shown_results import (
    ATLAS_KINDS,
    ATLAS_SHAPES,
    FIRST,
    HOSTILE,
    PROFILES,
    SECOND,
    SHAPES,
    atlas_of,
    make_atlas,
    make_circuits,
    make_scores,
)
from tests.report.test_views import HOST, _serve, heats

pytestmark = pytest.mark.browser

HIGH, MEDIUM = 0.85, 0.4


def cell(page, model, layer, head):
    panel = page.locator(".panel").nth(list(ATLAS_SHAPES).index(model))
    return panel.locator(f'.cell[data-layer="{layer}"][data-head="{head}"]')


def show(page, model, layer, head):
    cell(page, model, layer, head).click()
    assert page.locator(".head h2").text_content() == f"Layer {layer}, head {head} of {model}"


def kind(page, name):
    page.locator(".kinds label", has_text=name).click()


def score_rows(page):
    """The table of the head's scores, a dict of columns per row."""
    return page.eval_on_selector_all(
        ".scores tbody tr",
        "all => all.map(row => Object.fromEntries([...row.children].map(td => [td.className, td.textContent])))",
    )


def lists(page):
    """Title -> rows (text) of every list of tokens."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('section.tokens')].map(
            (list) => [list.querySelector('h4').textContent, [...list.querySelectorAll('li')].map((li) => li.textContent)]
        ))"""
    )


# --- Labels -------------------------------------------------------------------------------------------------------


def test_an_atlas_opens_on_what_every_head_is(atlas_page):
    assert atlas_page.locator(".kinds input:checked").get_attribute("value") == "*"
    expected = []
    for model, shape in ATLAS_SHAPES.items():
        for at in np.ndindex(shape):
            found = [s for name, s in PROFILES.get((model, *at), {}).items() if name != "my_kind"]
            best = max(found, default=0)
            expected.append(HIGH if best >= 0.7 else MEDIUM if best >= 0.3 else 0)
    assert heats(atlas_page, ".cell[role]") == expected


def test_a_cell_names_its_strongest_kind_and_counts_the_others(atlas_page):
    assert cell(atlas_page, FIRST, 1, 1).text_content() == "Ind+1"
    assert cell(atlas_page, FIRST, 0, 2).text_content() == "Prev"
    assert cell(atlas_page, SECOND, 0, 0).text_content() == "Ind+1"
    assert cell(atlas_page, FIRST, 0, 0).text_content() == ""
    spoken = cell(atlas_page, SECOND, 0, 0).get_attribute("aria-label")
    assert spoken == "Layer 0, head 0: Induction high, Sink medium"
    assert cell(atlas_page, FIRST, 0, 0).get_attribute("aria-label") == "Layer 0, head 0: of no kind"


def test_pointing_at_a_cell_names_all_its_kinds(atlas_page):
    cell(atlas_page, SECOND, 0, 0).hover()
    text = atlas_page.locator(".tooltip").text_content()
    assert text == "L0H0Induction high 0.800, null 0.010Sink medium 0.500, null 0.010"
    cell(atlas_page, FIRST, 0, 0).hover()
    assert atlas_page.locator(".tooltip").text_content() == "L0H0 of no kind"


def test_kinds_stand_in_groups_with_the_number_of_their_heads(atlas_page):
    groups = atlas_page.locator(".kinds .group").all_text_contents()
    assert groups == ["Where it looks", "What it writes", "What the model does with it", "Others"]
    counts = {
        label.locator("input").get_attribute("value"): label.locator(".count").all_text_contents()
        for label in atlas_page.locator(".kinds label").all()
    }
    assert set(counts) == {"*", *ATLAS_KINDS}
    shown = {name: int(count[0]) for name, count in counts.items() if count}
    assert shown == {"induction": 3, "copying_logits": 2, "sink": 1, "previous_token": 1}


def test_a_kind_of_an_atlas_is_coloured_by_score_on_a_scale_that_noise_does_not_fill(atlas_page):
    kind(atlas_page, "Induction")
    by_head = {at: PROFILES.get(at, {}).get("induction", 0.01) for at in _heads()}
    assert heats(atlas_page, ".cell[role]") == pytest.approx(list(by_head.values()))
    kind(atlas_page, "Successor")  # all at .01; a successor head would be above .5
    assert heats(atlas_page, ".cell[role]") == pytest.approx([0.01] * len(by_head))
    assert atlas_page.locator(".legend.scale .number").all_text_contents() == ["0", "1"]
    assert not atlas_page.locator(".legend.levels").is_visible()


def _heads():
    return [(model, *at) for model, shape in ATLAS_SHAPES.items() for at in np.ndindex(shape)]


def test_kinds_are_walked_with_keys(atlas_page):
    atlas_page.locator(".kinds input:checked").focus()
    atlas_page.keyboard.press("ArrowRight")
    assert atlas_page.locator(".kinds input:checked").get_attribute("value") == "previous_token"
    atlas_page.keyboard.press("ArrowRight")
    assert atlas_page.locator(".kinds input:checked").get_attribute("value") == "self"
    assert "current token itself" in atlas_page.locator(".meaning").text_content()


def test_the_list_of_an_atlas_says_what_each_head_is(atlas_page):
    items = atlas_page.locator(".panel").first.locator(".ranking button").all_text_contents()
    assert items == ["L0H2Previous token", "L1H1Induction, Copying logits"]
    high = atlas_page.locator(".panel").nth(1).locator(".ranking button").nth(1).locator("b").all_text_contents()
    assert high == ["Induction"], "L0H0 is a sink at medium only"


def test_scores_without_levels_are_chosen_as_before(page):
    assert page.locator(".kinds input:checked").get_attribute("value") == "previous_token"
    assert page.locator(".kinds .count, .kinds .group").count() == 0
    assert not page.locator("#view-head").is_visible()
    assert page.locator(".attention .chips li").count() > 0


def test_heads_whose_levels_were_not_decided_are_empty(open_page, tmp_path):
    rows = [{"head": 0, "kind": "induction", "level": "high", "score": 0.9}]
    rows += [{"head": 1, "kind": "induction", "level": None, "score": 0.9}]
    page = open_page(write_report([atlas_of(rows)], tmp_path / "r.html"))
    assert heats(page, ".cell[role]") == [HIGH, None]


# --- Many models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    rng = np.random.default_rng(2)
    names = [f"zoo:model-{i}" for i in range(11)]
    rows = [
        {"model": name, "layer": layer, "head": head, "kind": "induction", "score": float(rng.uniform())}
        for i, name in enumerate(names)
        for layer, head in np.ndindex(2 + i % 5, 4 + 2 * (i % 2))
    ]
    return write_report([atlas_of(rows)], tmp_path_factory.mktemp("many") / "r.html"), rows


def test_eleven_models_fit_on_one_screen_and_on_one_scale(open_page, many):
    path, rows = many
    page = open_page(path)
    kind(page, "Induction")
    box = page.locator(".panels").bounding_box()
    assert page.locator(".panel.small").count() == 11
    assert box["height"] < 620
    assert heats(page, ".cell[role]") == pytest.approx([row["score"] for row in rows], abs=1e-5)
    assert min(c.bounding_box()["width"] for c in page.locator(".panel.small .cell").all()) >= 9
    for width in (400, 900):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_strongest_heads_of_many_models_are_folded_away(open_page, many):
    path, rows = many
    page = open_page(path)
    kind(page, "Induction")
    panel = page.locator(".panel").nth(3)
    assert not panel.locator(".ranking li").first.is_visible()
    panel.locator("summary").focus()
    page.keyboard.press("Enter")
    best = max((row for row in rows if row["model"] == "zoo:model-3"), key=lambda row: row["score"])
    first = panel.locator(".ranking li").first
    assert first.is_visible()
    assert first.text_content() == f"L{best['layer']}H{best['head']}{best['score']:.3f}"
    first.locator("button").click()
    assert "of zoo:model-3" in page.locator(".head h2").text_content()


# --- A head's page ------------------------------------------------------------------------------------------------


def test_every_kind_of_a_head_stands_in_its_table(atlas_page):
    show(atlas_page, SECOND, 0, 0)
    rows = score_rows(atlas_page)
    assert len(rows) == len(ATLAS_KINDS)
    by_kind = {row["kind"]: row for row in rows}
    assert by_kind["Induction"] == {
        **{"kind": "Induction", "bar": "01", "score": "0.800", "null": "0.010"},
        **{"weighted": "0.400", "level": "high", "q": "< .001", "n": "64"},
    }
    assert by_kind["Sink 2 back <b>"]["level"] == "medium"
    assert by_kind["Delimiter"]["q"] == ".750"
    assert by_kind["Successor"]["bar"] == "01", "its scale reaches what is high, though all score .01"
    assert by_kind["Delimiter"]["level"] == "low"
    assert (by_kind["my_kind"]["level"], by_kind["my_kind"]["weighted"]) == ("", "")
    labelled = atlas_page.locator(".scores tr.labelled .title").all_text_contents()
    assert labelled == ["Sink", "Induction"]
    assert atlas_page.locator(".head .chips li").all_text_contents() == ["Induction high", "Sink medium"]


def test_marks_of_the_table_stand_where_their_numbers_are(atlas_page):
    show(atlas_page, SECOND, 0, 0)
    bar = atlas_page.locator(".scores tr", has_text="Induction").locator(".interval")
    left = {
        name: bar.locator(f".{name}").evaluate("e => parseFloat(e.style.left)") for name in ("null", "dot", "whisker")
    }
    right = bar.locator(".whisker").evaluate("e => parseFloat(e.style.right)")
    assert left == pytest.approx({"null": 1, "dot": 80, "whisker": 79})
    assert right == pytest.approx(100 - 81)


def test_a_head_of_no_kind_says_so(atlas_page):
    show(atlas_page, FIRST, 0, 0)
    assert atlas_page.locator(".head .chips li").all_text_contents() == ["Of none of the 10 kinds."]


def slow_similarity(atlas, own, other):
    """1 - |a - b| / (|a| + |b|) of score less null, in units of what each kind calls high."""
    high = {entry["kind"]: entry["high"] or 1 for entry in traits([atlas])["kinds"]}
    profiles = []
    for model, layer, head in (own, other):
        rows = [r for r in atlas.table.to_pylist() if (r["model"], r["layer"], r["head"]) == (model, layer, head)]
        profiles.append({r["kind"]: (r["score"] - r["null"]) / high[r["kind"]] for r in rows})
    a, b = (np.array([profile[k] for k in profiles[0] if k in profiles[1]]) for profile in profiles)
    size = np.linalg.norm(a) + np.linalg.norm(b)
    return 1 - np.linalg.norm(a - b) / size if size else 1.0


def similar(page):
    return [
        (button.locator(".name").text_content(), button.locator(".of span").first.text_content(), button.locator(".number").text_content())
        for button in page.locator(".similar button").all()
    ]  # fmt: skip


def test_similar_heads_are_the_nearest_profiles_of_all_models(atlas_page):
    atlas, own = make_atlas(), (FIRST, 1, 1)
    show(atlas_page, *own)
    others = [at for at in _heads() if at != own]
    ranked = sorted(others, key=lambda at: -slow_similarity(atlas, own, at))[:5]
    expected = [(f"L{at[1]}H{at[2]}", at[0], f"{slow_similarity(atlas, own, at):.2f}") for at in ranked]
    found = similar(atlas_page)
    assert [value for *_, value in found] == [value for *_, value in expected]
    assert found[:2] == expected[:2]
    assert found[0] == ("L1H5", SECOND, expected[0][2])


def test_similar_heads_of_equal_distance_come_in_the_order_of_the_report(atlas_page):
    show(atlas_page, FIRST, 0, 0)  # of nothing, as most others
    assert [name for name, *_ in similar(atlas_page)] == ["L0H1", "L0H3", "L1H0", "L1H2", "L1H3"]
    assert {value for *_, value in similar(atlas_page)} == {"1.00"}


def test_a_similar_head_is_chosen_with_a_click_and_stays(atlas_page):
    show(atlas_page, FIRST, 1, 1)
    atlas_page.locator(".similar button").first.focus()
    atlas_page.keyboard.press("Enter")
    assert atlas_page.locator(".head h2").text_content() == f"Layer 1, head 5 of {SECOND}"
    assert "selected" in cell(atlas_page, SECOND, 1, 5).get_attribute("class")
    expect(atlas_page.locator(".attention h2")).to_have_text(f"Where layer 1, head 5 of {SECOND} looks")
    kind(atlas_page, "Previous token")
    assert atlas_page.locator(".head h2").text_content() == f"Layer 1, head 5 of {SECOND}"


def test_a_head_chosen_in_another_view_is_not_lost_to_a_new_kind(atlas_page):
    before = atlas_page.locator(".head h2").text_content()
    atlas_page.locator(".similar button").first.click()
    chosen = atlas_page.locator(".head h2").text_content()
    assert chosen != before
    kind(atlas_page, "Sink")
    assert atlas_page.locator(".head h2").text_content() == chosen


def test_few_shared_kinds_make_no_similar_head(open_page, tmp_path):
    kinds = ("induction", "sink", "self", "previous_token", "copying_logits")
    rows = [{"head": 0, "kind": name, "score": 0.5} for name in kinds]
    rows += [{"head": 1, "kind": name, "score": 0.4} for name in kinds[:3]]
    rows += [{"head": 2, "kind": name, "score": 0.5} for name in kinds[:2]]
    page = open_page(write_report([atlas_of(rows)], tmp_path / "r.html"))
    show_only = '.cell[data-layer="0"][data-head="0"]'
    page.locator(show_only).click()
    assert page.locator(".similar .name").all_text_contents() == ["L0H1"]


# --- Circuits -----------------------------------------------------------------------------------------------------


def test_tokens_of_a_head_stand_in_their_lists(atlas_page):
    show(atlas_page, FIRST, 2, 1)
    found = lists(atlas_page)
    assert list(found) == [
        *("Copies most", "Suppresses most", "Raises most", "Lowers most"),
        *("Looks for what came after", "One place back", "4 places back"),
    ]
    assert all(len(rows) == len(HOSTILE) for rows in found.values())
    assert found["Copies most"][0] == "<script>alert(1)</script> first22.0"
    assert found["Copies most"][3] == "<!-- 3 above21.9"
    assert found["Suppresses most"][1] == "</script>\u221222.0"
    assert found["Raises most"][0] == "<script>alert(1)</script> \u2192 \u2423end22.0"
    assert found["Looks for what came after"][0] == "<script>alert(1)</script> \u2192 after \u2423end22.0"


def test_hostile_tokens_of_circuits_stay_text_and_show_what_is_hidden(atlas_page):
    foreign = "document.querySelectorAll('img, script:not([data-headlens]), .quoted b, .quoted script').length"
    show(atlas_page, FIRST, 1, 3)
    assert atlas_page.evaluate(foreign) == 0
    shown = atlas_page.locator("section.tokens").first.locator(".quoted").all_text_contents()
    by_token = dict(zip(HOSTILE, shown, strict=True))
    assert by_token['"><img src=x onerror=alert(1)>'] == '"><img\u2423src=x\u2423onerror=alert(1)>'
    for token, text in {
        "\x00": "\u2400", "\n": "\u23ce", "\u2028": "U+2028", "\u202e": "U+202E", "\u200b": "ZWSP", "": "empty",
        "\u0301": "\u25cc\u0301", "\U0001f469\u200d\U0001f680": "\U0001f469\u200d\U0001f680", " end": "\u2423end",
    }.items():  # fmt: skip
        assert by_token[token] == text


def test_what_a_head_does_not_copy_is_not_called_copied(open_page, tmp_path):
    circuits = make_circuits("m", (1, 1), ("a", "b"))
    rows = [row | {"value": -abs(row["value"])} for row in circuits.table.to_pylist()]
    table = circuits.table.from_pylist(rows, schema=circuits.table.schema)
    page = open_page(write_report([type(circuits)(circuits.provenance, table)], tmp_path / "r.html"))
    found = lists(page)
    assert found["Copies most"] == found["Raises most"] == ["none"]
    assert len(found["Suppresses most"]) == 2
    assert len(found["One place back"]) == 2, "scores have no such sign"


def test_a_model_without_circuits_has_none(atlas_page):
    show(atlas_page, FIRST, 0, 0)
    assert lists(atlas_page)
    show(atlas_page, SECOND, 0, 1)
    assert not lists(atlas_page)


# --- Layout and hosts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 400, 700, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_atlas_is_wider_than_its_window(open_page, tmp_path, width, theme):
    long = "x" * 300
    rng = np.random.default_rng(1)
    circuits = make_circuits("m" * 90, (2, 2), (*HOSTILE, long, "\u202e" + long))
    rows = [{"model": "m" * 90, "layer": i, "head": j, "kind": long if k else "induction", "score": float(rng.uniform(-9, 9)),
             "level": "high", "detail": long} for i in range(2) for j in range(2) for k in range(2)]  # fmt: skip
    page = open_page(write_report([atlas_of(rows), circuits], tmp_path / "r.html"), color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    for check in ("*", "induction"):
        page.eval_on_selector(f'.kinds input[value="{check}"]', "e => e.click()")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_narrow_page_names_the_numbers_that_have_lost_their_heading(atlas_page):
    atlas_page.set_viewport_size({"width": 400, "height": 900})
    show(atlas_page, SECOND, 0, 0)
    row = atlas_page.locator(".scores tr", has_text="Induction")
    named = row.locator("td.weighted").evaluate("e => getComputedStyle(e, '::before').content")
    assert named == '"weighted "'
    assert row.locator("td.weighted").is_visible()
    scroller = atlas_page.locator(".all-scores .scroller")
    assert scroller.evaluate("e => e.scrollHeight - e.clientHeight") <= 1, "nothing is cut off"


def test_roles_of_the_table_do_not_depend_on_its_layout(atlas_page):
    atlas_page.set_viewport_size({"width": 400, "height": 900})
    assert atlas_page.get_by_role("table").count() == 1
    assert atlas_page.locator('.scores [role="row"] [role="cell"]').count() == 8 * len(ATLAS_KINDS)


def test_the_head_view_is_a_module_for_a_host_that_fetches(browser):
    context = browser.new_context()
    context.route("**/*", lambda route: _serve(route))
    page = context.new_page()
    page.goto("http://views.test/")
    values = traits([make_atlas(), make_circuits(FIRST, SHAPES[FIRST])]) | {
        "selected": {"model": FIRST, "layer": 1, "head": 1}
    }
    host = HOST.replace("key.startsWith('packed')", "key.startsWith('circuits_')")
    assert host != HOST
    seen = page.evaluate(host, ["head", json.loads(json.dumps(values))])
    context.close()
    assert seen["saved"] == []
    for part in ("Layer 1, head 1", "Most similar heads", "Copies most", "Induction high"):
        assert part in seen["text"]


def test_the_numbers_of_a_list_have_as_many_decimals(atlas_page):
    show(atlas_page, FIRST, 2, 1)
    columns = atlas_page.eval_on_selector_all(
        "section.tokens",
        "all => all.map((list) => [...list.querySelectorAll('li > .number')].map((e) => e.textContent))",
    )
    decimals = [{len(text.partition(".")[2]) for text in numbers} for numbers in columns]
    assert decimals and all(len(found) == 1 for found in decimals)


def test_views_name_what_they_read():
    source = _source("views/head.js")
    for name in ("selected", "heads", "kinds", "scores", "circuits"):
        assert f"`{name}`" in source


def test_plain_scores_beside_an_atlas_have_no_labels(open_page, tmp_path):
    plain = make_scores({"other": (1, 2)}, np.random.default_rng(0))
    page = open_page(write_report([make_atlas(), plain], tmp_path / "r.html"))
    assert heats(page, ".panel:nth-child(3) .cell[role]") == [None, None]
    page.locator(".panel").nth(2).locator(".cell[role]").first.click()
    assert page.locator(".head .chips li").count() == 0
    assert page.locator(".scores tbody tr").count() == 5


SLOW_HOST = """async ([values, next]) => {
    const { default: view } = await import('http://views.test/head.js');
    const listeners = {};
    const slow = (value) => new Promise((resolve) => setTimeout(() => resolve(value), 100));
    const model = {
        get: (key) => (key.startsWith('circuits_') ? slow(values[key]) : values[key]),
        set: (key, value) => { values[key] = value; listeners[`change:${key}`]?.(); },
        on: (event, callback) => { listeners[event] = callback; },
        save_changes: () => {},
    };
    const el = document.createElement('div');
    document.body.append(el);
    view.render({ model, el });
    model.set('selected', next); // before the circuits of the first choice have come
    await new Promise((resolve) => setTimeout(resolve, 250));
    return { heading: el.querySelector('h2').textContent, lists: el.querySelectorAll('section.tokens').length };
}"""


def test_slow_circuits_do_not_replace_a_later_choice(browser):
    context = browser.new_context()
    context.route("**/*", lambda route: _serve(route))
    page = context.new_page()
    page.goto("http://views.test/")
    first, later = ({"model": model, "layer": 1, "head": 1} for model in (FIRST, SECOND))
    values = traits([make_atlas(), make_circuits(FIRST, SHAPES[FIRST])]) | {"selected": first}
    seen = page.evaluate(SLOW_HOST, [json.loads(json.dumps(values)), later])
    context.close()
    assert seen == {"heading": f"Layer 1, head 1 of {SECOND}", "lists": 0}
