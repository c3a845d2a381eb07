"""What a reader sees of feature-resolved attention: the result's numbers, whole; every test also demands silence."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from headlens.report import fra_payload, write_report
from headlens.report.page import _source
from headlens.report.payload import traits
from tests.report.shown_fra import WORDS, make_fra, make_labels, name_of
from tests.report.shown_results import HOSTILE
from tests.report.test_views import HOST

pytestmark = pytest.mark.browser

LABELS = {i: f"words like {i}" for i in range(0, 12, 2)}


@pytest.fixture(scope="session")
def fra():
    return make_fra()


@pytest.fixture(scope="session")
def fra_report(fra, tmp_path_factory):
    labels = make_labels(LABELS, contexts={i: [("on the ", "cat", " sat")] for i in range(12)})
    return write_report([fra, labels], tmp_path_factory.mktemp("fra") / "report.html")


@pytest.fixture
def fra_page(open_page, fra_report):
    return opened(open_page, fra_report)


def opened(open_page, path, **options):
    page = open_page(path, **options)
    page.wait_for_selector(".fra .score-bar")
    return page


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def way(page, name):
    page.locator(".fra .controls label", has_text=re.compile(f"^{name}$")).click()


def pick(page, what, position):
    """Choose the token that is the query, key or other key."""
    way(page, {"query": "Query", "key": "Key", "other": "Other key"}[what])
    page.locator(f'.fra .token[data-position="{position}"]').click()
    page.mouse.move(1, 1)


def choose(page, query, key):
    pick(page, "query", query)
    pick(page, "key", key)


def segments(page):
    """The bar's parts: name, value, left and right end in units of the score, lane by lane."""
    return page.eval_on_selector_all(
        ".score-bar .part",
        """all => all.map((part) => ({
            name: part.querySelector('span').textContent, value: Number(part.dataset.value),
            left: parseFloat(part.style.left), right: parseFloat(part.style.left) + parseFloat(part.style.width),
        }))""",
    )


def end_of(page):
    return number(page.locator(".score-bar .tick.end").text_content())


def listed(page):
    """What the lists say: (source, source) to value."""
    rows = page.eval_on_selector_all(
        ".pair", "all => all.map((b) => [b.dataset.pair, b.querySelector('.number').textContent])"
    )
    return {tuple(map(int, pair.split(","))): number(value) for pair, value in rows}


def of_pair(found, query, key):
    pair = found.pair(query, key)
    return {
        (int(i), int(j)): float(pair.product[a, b])
        for a, i in enumerate(pair.query_sources)
        for b, j in enumerate(pair.key_sources)
    }


def largest(values, n=8):
    """The n largest that raise, and the n that lower."""
    told = {}
    for sign in (1, -1):
        own = sorted(((p, v) for p, v in values.items() if v * sign > 0), key=lambda one: -abs(one[1]))[:n]
        told |= dict(own)
    most = max(map(abs, values.values()))
    return {pair: value for pair, value in told.items() if abs(value) >= 0.001 * most}


# --- one score ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "key"), [(9, 3), (9, 9), (4, 0), (0, 0)])
def test_the_pairs_are_those_of_the_result_and_end_at_the_model_s_own_score(fra_page, fra, query, key):
    choose(fra_page, query, key)
    wanted = largest(of_pair(fra, query, key))
    assert listed(fra_page) == pytest.approx(wanted, abs=6e-4)
    parts, score = segments(fra_page), float(fra.own[query, key])
    assert sum(part["value"] for part in parts) == pytest.approx(score, abs=1e-5), "the parts end at the score"
    assert end_of(fra_page) == pytest.approx(score, abs=6e-4)
    (rest,) = [part["value"] for part in parts if part["name"] == "everything else"] or [0.0]
    assert rest == pytest.approx(score - sum(wanted.values()), abs=1e-5)
    assert f"score {score:.3f}".replace("-", "\N{MINUS SIGN}") in fra_page.locator(".facts").text_content()
    attention = float(fra.pattern[query, key])
    told = "<0.001" if attention < 5e-4 else f"{attention:.3f}"
    assert f"attention {told}" in fra_page.locator(".facts").text_content()


def test_the_sum_in_words_adds_up_digit_by_digit(fra_page, fra):
    for query, key in ((9, 3), (7, 2), (5, 5)):
        choose(fra_page, query, key)
        said = fra_page.locator(".fra .sum").text_content()
        up, sign, down, other, rest, n, total = re.fullmatch(
            r"(.+) raise (.) (.+) lower (.) (.+) everything else \((\d+) pairs\) = (.+)", said
        ).groups()
        signs = {"\N{MINUS SIGN}": -1, "+": 1}
        digits = len(total.partition(".")[2])
        assert round(number(up) + signs[sign] * number(down) + signs[other] * number(rest), digits) == number(total)
        assert number(total) == pytest.approx(float(fra.own[query, key]), abs=6e-4)
        assert int(n) + len(listed(fra_page)) == fra.pair(query, key).product.size


def test_the_bar_runs_up_from_0_and_back_to_the_score(fra_page, fra):
    choose(fra_page, 9, 3)
    parts, score = segments(fra_page), float(fra.own[9, 3])
    zero, end = fra_page.eval_on_selector_all(".score-bar .tick", "all => all.map((t) => parseFloat(t.style.left))")
    up, down = ([part for part in parts if part["value"] * sign > 0] for sign in (1, -1))
    assert len(up) > 1 and len(down) > 1
    assert up[0]["left"] == pytest.approx(zero)
    for lane, (near, far) in ((up, ("left", "right")), (down, ("right", "left"))):
        for one, following in pairwise(lane):
            assert following[near] == pytest.approx(one[far], abs=1e-3)
    assert down[0]["right"] == pytest.approx(up[-1]["right"], abs=1e-3)
    assert down[-1]["left"] == pytest.approx(end, abs=1e-3)
    unit = (up[-1]["right"] - zero) / sum(part["value"] for part in up)
    assert end - zero == pytest.approx(unit * score, abs=1e-3)
    for part in parts:
        assert part["right"] - part["left"] == pytest.approx(unit * abs(part["value"]), abs=1e-3)


def test_names_are_labels_with_numbers_and_biases_have_none(fra_page, fra):
    choose(fra_page, 9, 3)
    shown = fra_page.eval_on_selector_all(
        ".pair", "all => all.map((b) => [b.dataset.pair, b.querySelector('.names').textContent])"
    )
    for pair, text in shown:
        i, j = (f"{LABELS[s]} {s}" if s in LABELS else name_of(fra, s) for s in map(int, pair.split(",")))
        assert text == f"{i} → {j}"


# --- against other keys -------------------------------------------------------------------------------------------


def test_against_another_key_it_tells_the_contrast(fra_page, fra):
    choose(fra_page, 9, 3)
    way(fra_page, "Against another key")
    pick(fra_page, "other", 6)
    assert fra_page.locator(".fra h3").first.text_content() == "Why cat 9 looks at sat 3 and not at mat 6"
    table = fra.contrast(9, 3, 6, 1000)
    values = zip(
        table["query_source"].to_pylist(), table["key_source"].to_pylist(), table["value"].to_pylist(), strict=True
    )
    assert listed(fra_page) == pytest.approx(largest({(i, j): v for i, j, v in values}), abs=6e-4)
    total = float(fra.own[9, 3] - fra.own[9, 6])
    assert end_of(fra_page) == pytest.approx(total, abs=6e-4)
    assert sum(part["value"] for part in segments(fra_page)) == pytest.approx(total, abs=1e-5)
    ratio = float(fra.pattern[9, 3] / fra.pattern[9, 6])
    said = fra_page.locator(".facts").text_content()
    assert number(re.search(r"e to that: ([\d.e-]+) times", said)[1]) == pytest.approx(ratio, rel=0.05)
    assert math.log(ratio) == pytest.approx(total, abs=1e-4)


def test_against_the_average_key_it_tells_the_centred_form(fra_page, fra):
    choose(fra_page, 9, 3)
    way(fra_page, "Against the average key")
    table = fra.top(100_000, form="centred").to_pylist()
    centred = {
        (row["query_source"], row["key_source"]): row["value"] for row in table if (row["query"], row["key"]) == (9, 3)
    }
    shown = listed(fra_page)
    assert len(shown) > 8 and {p: shown[p] for p in centred if p in shown} == pytest.approx(
        {p: v for p, v in centred.items() if p in shown}, abs=6e-4
    )
    total = float(fra.own[9, 3] - (fra.pattern[9] * fra.own[9].clamp(min=-1e6)).sum())
    assert end_of(fra_page) == pytest.approx(total, abs=6e-4)
    assert sum(part["value"] for part in segments(fra_page)) == pytest.approx(total, abs=1e-5)


# --- a channel ----------------------------------------------------------------------------------------------------


def test_a_pair_is_a_map_over_the_text(fra_page, fra):
    choose(fra_page, 9, 3)
    button = fra_page.locator(".pair").first
    i, j = map(int, button.get_attribute("data-pair").split(","))
    button.click()
    assert fra_page.locator('.pair[aria-pressed="true"]').get_attribute("data-pair") == f"{i},{j}"
    channel = fra.channel(i, j)
    scale = channel.nan_to_num().abs().max().item()
    assert number(fra_page.locator(".fra .legend .number").last.text_content()) == pytest.approx(scale, abs=6e-4)
    for query, key in ((9, 3), (9, 9), (6, 2)):
        choose(fra_page, query, key)
        said = fra_page.locator(".map-said").text_content().removeprefix("here it adds ")
        assert number(said) == pytest.approx(float(channel[query, key]), abs=6e-4)
    pixels = map_pixels(fra_page, len(WORDS))
    assert [[p[3] > 0 for p in row] for row in pixels] == (~channel.isnan()).tolist()
    inside = [(abs(float(channel[q, k])), sum(pixels[q][k][:3])) for q in range(10) for k in range(q + 1)]
    zero = next(light for size, light in inside if size == 0)
    assert all((light < zero) == (size > 0.02 * scale) for size, light in inside if size == 0 or size > 0.02 * scale)
    fra_page.locator(".release").click()
    assert fra_page.locator(".map-head h3").text_content() == "Attention"
    assert fra_page.locator('.pair[aria-pressed="true"]').count() == 0


def map_pixels(page, n):
    return page.eval_on_selector(
        ".fra .pattern",
        """(canvas, n) => {
            const copy = document.createElement('canvas');
            [copy.width, copy.height] = [canvas.width, canvas.height];
            const context = copy.getContext('2d', { willReadFrequently: true }), cell = canvas.width / n;
            context.drawImage(canvas, 0, 0);
            const at = (i) => Math.floor((i + 0.5) * cell);
            return Array.from({ length: n }, (_, q) =>
                Array.from({ length: n }, (_, k) => [...context.getImageData(at(k), at(q), 1, 1).data]));
        }""",
        n,
    )


def test_the_matrix_is_attention_and_pointing_at_it_shows_that_pair(fra_page, fra):
    pixels = map_pixels(fra_page, len(WORDS))
    dark = [[-sum(pixels[q][k][:3]) for k in range(q + 1)] for q in range(len(WORDS))]
    for q in range(1, len(WORDS)):
        assert int(np.argmax(dark[q])) == int(fra.pattern[q].argmax())
    fra_page.locator(".fra .overlay").scroll_into_view_if_needed()
    box = fra_page.locator(".fra .overlay").bounding_box()
    cell = box["width"] / len(WORDS)
    fra_page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 6.5 * cell)
    assert fra_page.locator(".fra h3").first.text_content() == "mat 6 looks at cat 2"
    assert end_of(fra_page) == pytest.approx(float(fra.own[6, 2]), abs=6e-4)
    fra_page.mouse.down()
    fra_page.mouse.up()
    fra_page.mouse.move(1, 1)
    assert fra_page.locator(".fra h3").first.text_content() == "mat 6 looks at cat 2"


def test_the_features_of_a_pair_have_their_contexts_beside_the_map(fra_page, fra):
    choose(fra_page, 9, 3)
    buttons = fra_page.locator(".pair")
    pairs = [tuple(map(int, b.get_attribute("data-pair").split(","))) for b in buttons.all()]
    which = next(n for n, (i, j) in enumerate(pairs) if i < 12 and j < 12)
    buttons.nth(which).click()
    cards = fra_page.locator(".feature-card")
    for side, source, position, card in (
        (fra.query, pairs[which][0], 9, cards.nth(0)), (fra.key, pairs[which][1], 3, cards.nth(1)),
    ):  # fmt: skip
        row = side.at(position).start + side.source[side.at(position)].tolist().index(source)
        active = number(re.search(r"active (\S+) here", card.text_content())[1])
        assert active == pytest.approx(float(side.activation[row]), rel=6e-3)
        assert card.locator(".contexts li").text_content() == "on the cat sat"
        assert card.locator("mark").text_content() == "cat"
    held = fra_page.eval_on_selector_all(
        ".fra .token", "all => all.map((e) => [e.classList.contains('holds-query'), e.classList.contains('holds-key')])"
    )
    for p in range(len(WORDS)):
        own = [source in side.source[side.at(p)].tolist()
               for side, source in zip((fra.query, fra.key), pairs[which], strict=True)]  # fmt: skip
        assert held[p] == own


# --- choosing -----------------------------------------------------------------------------------------------------


def test_the_text_is_coloured_by_the_attention_of_the_query(fra_page, fra):
    choose(fra_page, 7, 2)
    heats = fra_page.eval_on_selector_all(
        ".fra .token", "all => all.map((e) => Number(e.style.getPropertyValue('--heat')))"
    )
    assert heats[:8] == pytest.approx(fra.pattern[7, :8].tolist(), abs=1e-6)
    beyond = fra_page.eval_on_selector_all(".fra .token", "all => all.map((e) => e.classList.contains('beyond'))")
    assert beyond == [p > 7 for p in range(len(WORDS))]


def test_pointing_previews_and_a_click_stays(fra_page):
    choose(fra_page, 9, 3)
    heading = fra_page.locator(".fra h3").first
    fra_page.locator('.fra .token[data-position="5"]').hover()
    assert heading.text_content() == "cat 9 looks at the 5"
    fra_page.mouse.move(1, 1)
    assert heading.text_content() == "cat 9 looks at sat 3"
    pick(fra_page, "query", 4)
    pick(fra_page, "key", 8)  # which it does not see
    assert heading.text_content().startswith("on 4 looks at ") and "the 8" not in heading.text_content()


def test_a_new_query_starts_at_the_key_that_it_attends_to_most(fra_page, fra):
    for q in (3, 6, 9):
        pick(fra_page, "query", q)
        assert fra_page.locator(".fra h3").first.text_content().endswith(f" {int(fra.pattern[q].argmax())}")


def test_all_of_it_goes_by_keyboard(fra_page, fra):
    choose(fra_page, 9, 3)
    heading = fra_page.locator(".fra h3").first
    fra_page.locator('.fra .token[tabindex="0"]').focus()
    for key, position in (("ArrowRight", 4), ("ArrowRight", 5), ("ArrowLeft", 4), ("Home", 0), ("ArrowRight", 1)):
        fra_page.keyboard.press(key)
        assert heading.text_content() == f"cat 9 looks at {WORDS[position].strip()} {position}"
    assert fra_page.locator('.fra .token[aria-selected="true"]').get_attribute("data-position") == "1"
    fra_page.locator('.fra .controls input[value="key"]').focus()
    fra_page.keyboard.press("ArrowLeft")
    assert fra_page.locator('.fra .token[aria-selected="true"]').get_attribute("data-position") == "9", "now the query"
    fra_page.locator('.fra .token[tabindex="0"]').focus()
    fra_page.keyboard.press("ArrowLeft")
    assert heading.text_content().startswith("the 8 looks at ")
    button = fra_page.locator(".pair").first
    button.focus()
    fra_page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert fra_page.evaluate("document.activeElement.className") == "pair", "focus is not lost"
    spoken = fra_page.locator('.fra .token[data-position="2"]').get_attribute("aria-label")
    assert spoken.startswith("cat, position 2, attention ")
    assert number(spoken.rpartition(" ")[2].lstrip("<>")) == pytest.approx(float(fra.pattern[8, 2]), abs=6e-4)


# --- odd heads ----------------------------------------------------------------------------------------------------


def test_what_is_not_kept_is_in_the_rest_and_the_bars_still_end_at_the_score(open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(fra_payload, "BYTES", 0)
    monkeypatch.setattr(fra_payload, "LEAST", 2)
    found = make_fra(n_features=60, most=40, scale=0.3)
    page = opened(open_page, write_report(found, tmp_path / "r.html"))
    assert "the others are summed" in page.locator(".fra .caption").text_content()
    for query, key in ((9, 3), (5, 5)):
        choose(page, query, key)
        own, score = of_pair(found, query, key), float(found.own[query, key])
        for pair, value in listed(page).items():
            assert value == pytest.approx(own[pair], abs=6e-4)
        parts = segments(page)
        assert sum(part["value"] for part in parts) == pytest.approx(score, abs=1e-4)
        assert "everything else" in [part["name"] for part in parts]
        assert not any("other features" in part["name"] for part in parts)


def test_under_a_soft_cap_pairs_end_at_what_goes_into_it(open_page, tmp_path):
    found = make_fra(softcap=4.0, scale=0.9)
    page = opened(open_page, write_report(found, tmp_path / "r.html"))
    choose(page, 9, 3)
    before = float(found.sums()[9, 3])
    assert end_of(page) == pytest.approx(before, abs=6e-3)
    facts = page.locator(".facts").text_content()
    said = [number(x) for x in re.search(r"score after the soft-cap (\S+?)before it (\S+)", facts).groups()]
    assert said == pytest.approx([float(found.own[9, 3]), before], abs=6e-3)


def test_beyond_the_window_nothing_can_be_picked(open_page, tmp_path):
    found = make_fra(window=3)
    page = opened(open_page, write_report(found, tmp_path / "r.html"))
    choose(page, 9, 8)
    pick(page, "key", 6)
    assert page.locator(".fra h3").first.text_content() == "cat 9 looks at the 8"
    beyond = page.eval_on_selector_all(".fra .token", "all => all.map((e) => e.classList.contains('beyond'))")
    assert beyond == [p < 7 for p in range(len(WORDS))]
    assert [[p[3] > 0 for p in row] for row in map_pixels(page, 10)] == (~found.channel(0, 0).isnan()).tolist()


def test_a_text_of_one_token(open_page, tmp_path):
    found = make_fra(WORDS[:1])
    page = opened(open_page, write_report(found, tmp_path / "r.html"))
    assert end_of(page) == pytest.approx(float(found.own[0, 0]), abs=6e-4)
    way(page, "Against another key")
    assert page.locator(".fra h3").first.text_content() == "<s> 0 looks at <s> 0"


def test_hostile_tokens_and_labels_are_text(open_page, tmp_path):
    found = make_fra(HOSTILE, n_features=len(HOSTILE))
    found = found if not any("\ud800" in t for t in HOSTILE) else _without_surrogates(found)
    labels = dict(enumerate(t for t in found.tokens if t))
    shown = [found, make_labels(labels, contexts={i: [(t, t, t)] for i, t in labels.items()})]
    page = opened(open_page, write_report(shown, tmp_path / "r.html"))
    text = page.locator(".fra .text").text_content()
    for token in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<!--", "&lt;b&gt;"):
        assert token in text
    seen = set()
    for query in range(1, len(HOSTILE), 3):
        pick(page, "query", query)
        seen |= set(page.locator(".pair .source").all_text_contents())
        page.locator(".pair").first.click()
    assert "<script>alert(1)</script>" in seen
    assert page.locator(".fra script, .fra img, .fra b[onerror]").count() == 0


def _without_surrogates(found):
    from dataclasses import replace

    return replace(found, tokens=tuple(t.encode("utf-8", "replace").decode() for t in found.tokens))


def test_several_heads_are_picked_and_the_place_stays(open_page, tmp_path):
    first, second, other = make_fra(), make_fra(head=3, seed=5), make_fra(WORDS[:6], seed=6)
    page = opened(open_page, write_report([first, second, other], tmp_path / "r.html"))
    assert page.locator(".fra option").count() == 3
    choose(page, 9, 3)
    page.select_option(".fra select", "1")
    said = f"attention {float(second.pattern[9, 3]):.3f}"
    expect(page.locator(".facts").first).to_have_text(re.compile("^" + re.escape(said)))
    assert end_of(page) == pytest.approx(float(second.own[9, 3]), abs=6e-4)
    assert page.locator(".fra h3").first.text_content() == "cat 9 looks at sat 3"
    page.select_option(".fra select", "2")
    expect(page.locator(".fra .token")).to_have_count(6)
    assert len(segments(page)) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_holds_it_in_both_themes(open_page, fra_report, scheme):
    page = opened(open_page, fra_report, color_scheme=scheme)
    for width in (400, 900, 1800):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    ink = page.evaluate(
        "[...document.querySelectorAll('.score-bar .heat')].map((e) => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])"
    )
    assert ink and all(front != back for front, back in ink)


def test_the_view_is_a_module_for_any_host(browser, fra):
    def serve(route):
        name = route.request.url.removeprefix("http://views.test/")
        if name in ("feature_attention.js", "common.js"):
            route.fulfill(content_type="text/javascript", body=_source(f"views/{name}"))
        elif name == "":
            route.fulfill(content_type="text/html", body="<!doctype html><title>host</title>")
        else:
            route.abort()

    context = browser.new_context()
    context.route("**/*", serve)
    page = context.new_page()
    page.goto("http://views.test/")
    seen = page.evaluate(HOST, ["feature_attention", json.loads(json.dumps(traits([fra])))])
    nothing = page.evaluate(HOST, ["feature_attention", {}])
    context.close()
    assert seen["tokens"] == len(WORDS) and "looks at" in seen["text"]
    assert (nothing["tokens"], nothing["text"]) == (0, "")


def test_a_pair_is_chosen_by_the_first_click_after_a_token_had_focus(fra_page):
    """Nothing is drawn anew between press and release: the click would be lost."""
    choose(fra_page, 9, 3)
    for position in (2, 5):
        fra_page.locator(f'.fra .token[data-position="{position}"]').focus()
        fra_page.locator(".pair").first.click()
        assert fra_page.locator('.pair[aria-pressed="true"]').count() == 1
        fra_page.locator(".release").click()


def test_scores_of_a_page_come_from_the_model_s_own(open_page, tmp_path):
    """The score that is shown is not what the rows happen to sum to: own scores that differ a little are shown."""
    found = make_fra()
    found.own[9, 3] += 0.5
    page = opened(open_page, write_report(found, tmp_path / "r.html"))
    choose(page, 9, 3)
    assert end_of(page) == pytest.approx(float(found.own[9, 3]), abs=6e-4)
    assert sum(part["value"] for part in segments(page)) == pytest.approx(float(found.own[9, 3]), abs=1e-5)
    assert torch.isfinite(found.own[9, 3])
