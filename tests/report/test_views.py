"""What a reader sees and does, in a real browser; every test also demands silence and no request."""

import json
import re

import numpy as np
import pytest
from playwright.sync_api import expect

from headlens.report import write_report
from headlens.report.page import VIEWS, _source
from headlens.report.payload import traits
from tests.report.shown_results import (
    FIRST,
    HOSTILE,
    KINDS,
    LONG,
    MISSING,
    PLAIN,
    SECOND,
    SHAPES,
    make_patterns,
    make_scores,
    scores_of,
)

pytestmark = pytest.mark.browser

TOLERANCE = 1 / 510 + 1e-9


def cell(page, model, layer, head):
    panel = page.locator(".panel").nth(list(SHAPES).index(model))
    return panel.locator(f'.cell[data-layer="{layer}"][data-head="{head}"]')


def choose(page, model, layer, head):
    cell(page, model, layer, head).click()
    heading = f"Where layer {layer}, head {head} of {model} looks"
    expect(page.locator(".attention h2")).to_have_text(heading)
    page.wait_for_timeout(50)


def choose_text(page, index, tokens):
    page.select_option("select", str(index))
    expect(page.locator(".token")).to_have_count(len(tokens))


def token(page, i):
    return page.locator(".token").nth(i)


def heats(page, selector=".token"):
    """The heat of every element; None where it has none."""
    return page.eval_on_selector_all(
        selector,
        "all => all.map(e => e.classList.contains('heat') ? Number(e.style.getPropertyValue('--heat')) : null)",
    )


def readout(page):
    return page.locator(".readout").text_content()


def kind(page, name):
    page.locator(".head-grid .segmented label", has_text=re.compile(f"^{name}$")).click()


# --- Heads ------------------------------------------------------------------------------------------------


def test_the_page_is_alive_at_once(page, example):
    rows = [r for r in example.scores.table.to_pylist() if r["kind"] == "previous_token"]
    best = max((r for r in rows if r["score"] == r["score"]), key=lambda r: r["score"])
    assert page.locator(".cell.selected").count() == 1
    expected = f"Where layer {best['layer']}, head {best['head']} of {best['model']} looks"
    assert page.locator(".attention h2").text_content() == expected
    assert max(h for h in heats(page) if h is not None) > 0


def test_a_kind_recolours_the_grid_by_its_scores(page, example):
    def colours():
        return page.eval_on_selector_all(".cell[role]", "all => all.map(e => getComputedStyle(e).backgroundColor)")

    before = colours()
    kind(page, "Induction")
    page.wait_for_timeout(300)  # colours fade over
    assert colours() != before
    expected = [
        example.row(model, layer, head, "induction")["score"]
        for model, shape in SHAPES.items()
        for layer, head in np.ndindex(shape)
    ]
    assert heats(page, ".cell[role]") == pytest.approx(expected, abs=1e-5)  # scores reach .95: the scale ends at 1
    assert "what followed earlier copies" in page.locator(".meaning").text_content()


def test_a_kind_without_a_name_keeps_its_own(page):
    labels = page.locator(".head-grid .segmented label").all_text_contents()
    assert labels == ["Previous token", "Sink", "Duplicate token", "Induction", "my_kind"]


def test_pointing_at_a_cell_shows_its_score_interval_null_and_n(page, example):
    kind(page, "Sink")
    cell(page, SECOND, 1, 4).hover()
    row = example.row(SECOND, 1, 4, "sink")
    card = page.locator(".tooltip")
    text = card.text_content()
    assert card.is_visible()
    for part in ("L1H4", "Sink", f"{row['score']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", "null 0.125", "n 64"):
        assert part in text
    null = card.locator(".null").evaluate("e => parseFloat(e.style.left)")
    dot = card.locator(".dot").evaluate("e => parseFloat(e.style.left)")
    assert (null, dot) == pytest.approx((12.5, 100 * row["score"]), abs=0.01)
    page.mouse.move(1, 1)
    assert not card.is_visible()


def test_a_missing_score_is_an_empty_cell(page):
    missing = cell(page, *MISSING)
    assert "empty" in missing.get_attribute("class")
    assert missing.get_attribute("aria-label") == "Layer 1, head 2: no value"
    missing.hover()
    assert "no value" in page.locator(".tooltip").text_content()
    kind(page, "Induction")
    assert "empty" not in missing.get_attribute("class")


def test_the_list_ranks_the_heads_of_its_model(page, example):
    kind(page, "Duplicate token")
    rows = [r for r in example.scores.table.to_pylist() if (r["model"], r["kind"]) == (FIRST, "duplicate_token")]
    ranked = sorted(rows, key=lambda r: -r["score"])[:8]
    buttons = page.locator(".panel").first.locator(".ranking button")
    shown = [(b.locator(".name").text_content(), b.locator(".number").text_content()) for b in buttons.all()]
    assert shown == [(f"L{r['layer']}H{r['head']}", f"{r['score']:.3f}") for r in ranked]
    buttons.nth(3).click()
    assert "selected" in cell(page, FIRST, ranked[3]["layer"], ranked[3]["head"]).get_attribute("class")


def test_a_kind_moves_the_selection_until_a_head_is_picked(page, example):
    def selected():
        return page.locator(".attention h2").text_content()

    first = selected()
    kind(page, "Induction")
    assert selected() != first
    choose(page, FIRST, 0, 0)
    kind(page, "Sink")
    assert selected() == f"Where layer 0, head 0 of {FIRST} looks"


def test_the_grid_is_walked_with_keys(page):
    page.locator(".cell.selected").focus()
    cell(page, FIRST, 0, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    here = "[document.activeElement.dataset.layer, document.activeElement.dataset.head]"
    assert page.evaluate(here) == ["1", "1"], "two down, one back; the edge holds"
    assert "L1H1" in page.locator(".tooltip").text_content()
    page.keyboard.press("End")
    assert page.evaluate(here) == ["1", "3"]
    page.keyboard.press("Enter")
    assert page.locator(".attention h2").text_content() == f"Where layer 1, head 3 of {FIRST} looks"
    assert cell(page, FIRST, 1, 3).get_attribute("aria-selected") == "true"
    for panel in page.locator(".panel").all():
        assert panel.locator('.cell[tabindex="0"]').count() == 1


def test_every_cell_has_a_spoken_name(page, example):
    row = example.row(FIRST, 2, 1, "previous_token")
    expected = (
        f"Layer 2, head 1: Previous token {row['score']:.3f}, "
        f"95 % interval {row['low']:.3f} to {row['high']:.3f}, null 0.125, n 64"
    )
    assert cell(page, FIRST, 2, 1).get_attribute("aria-label") == expected


# --- Attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "text", "tokens"), [(FIRST, 0, PLAIN), (FIRST, 2, LONG), (SECOND, 0, PLAIN)])
def test_a_query_colours_its_keys_and_a_key_its_queries(page, example, model, text, tokens):
    choose(page, model, 1, 3)
    choose_text(page, text, tokens)
    attention = example.attention[model, text][1, 3]
    at = len(tokens) // 2

    token(page, at).hover()
    shown = heats(page)
    assert shown[at + 1 :] == [None] * (len(tokens) - at - 1)
    assert np.abs(np.array(shown[: at + 1]) - attention[at, : at + 1]).max() <= TOLERANCE

    page.get_by_text("Who looks at it").click()
    token(page, at).hover()
    shown = heats(page)
    assert shown[:at] == [None] * at
    assert np.abs(np.array(shown[at:]) - attention[at:, at]).max() <= TOLERANCE


def test_a_click_pins_a_token_and_a_second_one_frees_it(page, example):
    choose(page, FIRST, 2, 0)
    token(page, 9).click()
    pinned = heats(page)
    token(page, 4).hover()
    assert heats(page) != pinned
    page.mouse.move(1, 1)
    assert heats(page) == pinned
    assert token(page, 9).get_attribute("aria-selected") == "true"
    choose(page, FIRST, 0, 1)
    expected = example.attention[FIRST, 0][0, 1][9, :10]
    assert np.abs(np.array(heats(page)[:10]) - expected).max() <= TOLERANCE, "the pin outlives another head"
    token(page, 9).click()
    assert page.locator('.token[aria-selected="true"]').count() == 0


def test_all_scores_of_the_head_stand_beside_it(page, example):
    choose(page, SECOND, 0, 5)
    names = ("Previous token", "Sink", "Duplicate token", "Induction", "my_kind")
    kinds = ("previous_token", "sink", "duplicate_token", "induction", "my_kind")
    expected = [
        f"{name} {example.row(SECOND, 0, 5, kind)['score']:.2f}" for name, kind in zip(names, kinds, strict=True)
    ]
    assert page.locator(".chips li:not(.note)").all_text_contents() == expected
    above = [example.row(SECOND, 0, 5, kind)["low"] > 0.125 for kind in kinds]
    assert page.eval_on_selector_all(".chips li:not(.note)", "all => all.map(e => e.className === 'above')") == above


def test_the_sentence_names_the_strongest_keys(page, example):
    choose(page, FIRST, 1, 1)
    token(page, 11).hover()
    weights = example.attention[FIRST, 0][1, 1][11, :12]
    strongest = int(weights.argmax())
    assert re.match(rf"␣\w+ \(11\) looks at \S+ \({strongest}\) {round(255 * weights.max()) / 255:.2f}", readout(page))


def test_text_is_walked_with_keys(page):
    token(page, 3).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert readout(page).startswith("␣time (4)") == (PLAIN[4] == " time")
    assert "(4) looks at" in readout(page)
    page.keyboard.press("Enter")
    assert token(page, 4).get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator('.token[tabindex="0"]').count() == 1


@pytest.mark.parametrize(("text", "tokens", "pairs"), [
    (0, PLAIN, [(0, 0), (9, 3), (15, 15), (16, 0)]),
    (2, LONG, [(0, 0), (300, 17), (511, 511), (511, 0)]),
])  # fmt: skip
def test_the_matrix_names_the_pair_under_the_pointer(page, example, text, tokens, pairs):
    choose(page, FIRST, 0, 2)
    choose_text(page, text, tokens)
    page.locator(".overlay").scroll_into_view_if_needed()
    box = page.locator(".overlay").bounding_box()
    side = box["width"] / len(tokens)
    attention = example.attention[FIRST, text][0, 2]
    for query, key in pairs:
        page.mouse.move(box["x"] + (key + 0.5) * side, box["y"] + (query + 0.5) * side)
        value = round(255 * attention[query, key]) / 255
        name = [t.replace(" ", "␣") for t in (tokens[query], tokens[key])]
        assert readout(page) == f"{name[0]} ({query}) → {name[1]} ({key}): {value:.2f}"
        marked = [page.locator(f".token.{role}").get_attribute("data-position") for role in ("is-query", "is-key")]
        assert marked == [str(query), str(key)]
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2)
    assert "→" not in readout(page), "nothing lies above the diagonal"


def matrix_pixels(page, points):
    """Colours of the matrix at (query, key, heat), and those that the style sheet gives to the same heat."""
    return page.evaluate(
        """([points, size]) => {
            const canvas = document.querySelector('.pattern');
            const cell = canvas.width / size;
            const copy = document.createElement('canvas');
            [copy.width, copy.height] = [canvas.width, canvas.height];
            copy.getContext('2d', { willReadFrequently: true }).drawImage(canvas, 0, 0);
            const drawn = copy.getContext('2d').getImageData(0, 0, copy.width, copy.height);
            const probe = document.querySelector('.side').appendChild(document.createElement('span'));
            probe.className = 'heat';
            const swatch = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            const found = points.map(([query, key, heat]) => {
                probe.style.setProperty('--heat', heat);
                swatch.fillStyle = getComputedStyle(probe).backgroundColor;
                swatch.fillRect(0, 0, 1, 1);
                const at = 4 * (Math.floor((query + 0.5) * cell) * canvas.width + Math.floor((key + 0.5) * cell));
                return [[...drawn.data.slice(at, at + 4)], [...swatch.getImageData(0, 0, 1, 1).data]];
            });
            probe.remove();
            return found;
        }""",
        [points, len(PLAIN)],
    )


def test_the_matrix_has_the_colours_of_the_ramp_in_both_themes(page, example):
    choose(page, FIRST, 2, 2)
    attention = example.attention[FIRST, 0][2, 2]
    points = [(q, k, round(255 * attention[q, k]) / 255) for q in range(len(PLAIN)) for k in range(q + 1)]
    points.append((2, 9, 0))  # a key after its query
    light = matrix_pixels(page, points)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    dark = matrix_pixels(page, points)
    assert light.pop()[0][3] == dark.pop()[0][3] == 0, "what cannot be attended has no colour at all"
    for drawn, expected in [*light, *dark]:
        assert np.abs(np.subtract(drawn, expected)).max() <= 2
    assert light != dark


RAMP = """() => {
    const probe = document.body.appendChild(document.createElement('span'));
    probe.className = 'heat';
    const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgb = (colour) => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const steps = Array.from({ length: 41 }, (_, i) => {
        probe.style.setProperty('--heat', i / 40);
        const { backgroundColor, color } = getComputedStyle(probe);
        const lightness = parseFloat(backgroundColor.match(/oklab\\(([\\d.]+)/)[1]);
        return { lightness, ground: rgb(backgroundColor), ink: rgb(color) };
    });
    probe.remove();
    return steps;
}"""


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.divide(rgb, 255)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_ramp_has_even_steps_of_lightness_and_readable_text(page, theme):
    page.emulate_media(color_scheme=theme)
    ramp = page.evaluate(RAMP)
    steps = np.diff([step["lightness"] for step in ramp]) * (1 if theme == "dark" else -1)
    assert steps.min() > 0.01
    assert steps.max() < 1.15 * steps.min()
    for step in ramp:
        dark, bright = sorted(luminance(step[name]) for name in ("ground", "ink"))
        assert (bright + 0.05) / (dark + 0.05) >= 4.3


def test_a_slow_pattern_does_not_replace_a_later_choice(page, example):
    choose(page, FIRST, 0, 0)
    choose_text(page, 2, LONG)
    page.evaluate(
        """() => {
            const cell = (layer, head) => document.querySelector(`.cell[data-layer="${layer}"][data-head="${head}"]`);
            cell(2, 3).click(); // inflates
            cell(0, 0).click(); // is there already
        }"""
    )
    page.wait_for_timeout(500)
    token(page, 5).hover()
    expected = example.attention[FIRST, 2][0, 0][5, :6]
    assert np.abs(np.array(heats(page)[:6]) - expected).max() <= TOLERANCE


# --- Hostile text -----------------------------------------------------------------------------------------


def test_hostile_tokens_stay_text(page):
    foreign = "document.querySelectorAll('img, script:not([data-headlens]), .token b, .token script').length"
    before = page.evaluate(foreign), page.locator("script").count()
    choose(page, FIRST, 0, 0)
    choose_text(page, 1, HOSTILE)
    for i in range(len(HOSTILE)):
        token(page, i).hover()
    assert (page.evaluate(foreign), page.locator("script").count()) == before == (0, before[1])
    shown = page.locator(".token").all_text_contents()
    assert shown[:5] == list(HOSTILE[:5])


def test_what_cannot_be_seen_is_marked(page):
    choose(page, FIRST, 0, 0)
    choose_text(page, 1, HOSTILE)
    shown = dict(zip(HOSTILE, page.locator(".token").all_text_contents(), strict=True))
    assert shown["\x00"] == "␀"
    assert shown["\x1b[31m"] == "␛[31m"
    assert shown["\n"] == "⏎"
    assert shown["\t"] == "⇥"
    assert shown["\r"] == "␍"
    assert shown["\u2028"] == "U+2028"
    assert shown["\u202e"] == "U+202E"
    assert shown["\u200b"] == "ZWSP"
    assert shown[""] == "empty"
    assert shown["\u0301"] == "◌\u0301"
    assert shown["\ud800"] == "\ufffd"
    assert shown["👩\u200d🚀"] == "👩\u200d🚀", "a joiner between visible characters is part of them"
    assert shown[" end"] == " end"
    after_newline = page.evaluate("document.querySelectorAll('.token')[7].nextSibling.tagName")
    assert after_newline == "BR"


def test_names_of_models_stay_text(page):
    assert page.locator("b", has_text=re.compile("^other$")).count() == 0
    assert page.locator(".panel h3").nth(1).text_content().startswith(SECOND)


def test_the_policy_stops_a_foreign_script(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector(".token")
    page.evaluate(
        """() => {
            const code = 'window.foreign = 1';
            const script = document.createElement('script');
            for (const attempt of [
                () => { document.body.innerHTML += `<img src=x onerror="${code}">`; },
                () => { script.text = code; },
                () => { script.append(code); document.body.append(script); },
                () => { document.body.setAttribute('onclick', code); document.body.click(); },
            ]) { try { attempt(); } catch { /* refused */ } }
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.foreign === undefined")
    page.close()


# --- Other reports, other hosts ---------------------------------------------------------------------------


def test_a_model_without_patterns_says_so(open_page, example, tmp_path):
    path = write_report([example.scores, example.patterns[FIRST]], tmp_path / "r.html")
    page = open_page(path)
    page.wait_for_selector(".token")
    best = max(
        (r for r in example.scores.table.to_pylist() if r["kind"] == "previous_token" and r["score"] == r["score"]),
        key=lambda r: r["score"],
    )
    assert best["model"] == SECOND, "the strongest head of all has nothing to show"
    assert FIRST in page.locator(".attention h2").text_content(), "so the first choice is one that has"
    cell(page, SECOND, 1, 1).click()
    assert f"no attention patterns of {SECOND}" in page.locator(".attention .notice").text_content()
    assert not page.locator(".attention .text").is_visible()
    cell(page, FIRST, 1, 1).click()
    page.wait_for_selector(".token")
    assert not page.locator(".attention .notice").is_visible()


def test_patterns_without_scores_can_be_looked_at(open_page, example, tmp_path):
    page = open_page(write_report([example.patterns[SECOND]], tmp_path / "r.html"))
    page.wait_for_selector(".token")
    assert page.locator(".cell.empty[role]").count() == 12
    assert "no scores" in page.locator(".meaning").text_content()


def test_negative_scores_have_a_scale_that_holds_them(open_page, tmp_path):
    rows = [("m", 0, h, "copying", score, score - 0.1, score + 0.1, 0.0, 5) for h, score in enumerate((-0.7, 0.0, 0.9))]
    page = open_page(write_report([scores_of(rows)], tmp_path / "r.html"))
    assert heats(page, ".cell[role]") == pytest.approx([0.15, 0.5, 0.95])
    assert page.locator(".legend .number").all_text_contents() == ["\u22121", "1"]
    assert cell_text(page) == ["\u22120.70", "0.00", "0.90"]


def cell_text(page):
    return page.locator(".cell[role]").all_text_contents()


@pytest.mark.parametrize(("shape", "width"), [((3, 4), 390), ((36, 32), 390), ((36, 32), 1600)])
def test_no_page_is_wider_than_its_window(open_page, tmp_path, shape, width):
    rng = np.random.default_rng(1)
    patterns, _ = make_patterns("m", (1, 1), (PLAIN, HOSTILE), rng)
    page = open_page(write_report([make_scores({"m": shape}, rng), patterns], tmp_path / "r.html"))
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_provenance_is_folded_away_and_complete(page):
    text = page.locator(".provenance")
    assert not text.locator("dl").first.is_visible()
    page.locator("summary").click()
    shown = text.text_content()
    for part in ("abc123", "float32", "sha256:5b2e", "seed", "7", "headlens heads --seed 7", "3.11", "Head scores"):
        assert part in shown


HOST = """async ([name, values]) => {
    const { default: view } = await import(`http://views.test/${name}.js`);
    const saved = [];
    const listeners = {};
    const model = {
        // A host that fetches: what is large comes as a promise.
        get: (key) => (key.startsWith('packed') ? Promise.resolve(values[key]) : values[key]),
        set: (key, value) => { values[key] = value; saved.push(key); listeners[`change:${key}`]?.(); },
        on: (event, callback) => { listeners[event] = callback; },
        save_changes: () => {},
    };
    const el = document.createElement('div');
    document.body.append(el);
    const undo = view.render({ model, el });
    await new Promise((resolve) => setTimeout(resolve, 200));
    undo?.();
    return { saved, text: el.textContent, tokens: el.querySelectorAll('.token').length };
}"""


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_module_for_any_host(browser, example, name):
    context = browser.new_context()
    context.route("**/*", lambda route: _serve(route))
    page = context.new_page()
    page.goto("http://views.test/")
    values = traits([example.scores, example.patterns[SECOND]]) | {
        "kind": "induction",
        "selected": {"model": SECOND, "layer": 1, "head": 5},
    }
    seen = page.evaluate(HOST, [name, json.loads(json.dumps(values))])
    context.close()
    assert "selected" not in seen["saved"], "the host's own choice stands"
    expected = {
        "head_grid": "what followed earlier copies",
        "head": "",  # plain scores leave it nothing to add
        "attention": "Where layer 1, head 5",
        "provenance": "abc123",
    }
    assert expected[name] in seen["text"]
    assert seen["tokens"] == (len(PLAIN) if name == "attention" else 0)


def _serve(route):
    name = route.request.url.removeprefix("http://views.test/")
    if name == "":
        route.fulfill(content_type="text/html", body="<!doctype html><title>host</title>")
    elif name.removesuffix(".js") in (*VIEWS, "common"):
        route.fulfill(content_type="text/javascript", body=_source(f"views/{name}"))
    else:
        route.abort()


def test_all_kinds_of_the_table_are_offered(page):
    values = page.eval_on_selector_all(".head-grid .segmented input", "all => all.map(e => e.value)")
    assert set(values) == set(KINDS)
