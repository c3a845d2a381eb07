// Which heads are alike? Every head of every model as a place on one map, and the like of one of them side by side.
//
// Reads `universe` (see universe_payload.py), `heads` and `patterns` (see payload.py) and, for what is on screen only,
// `packed_M_T`; reads and sets `selected` ({model, layer, head}; with `show` it comes into sight).

import {
  below, chooser, drawn, filled, imageOf, keepSharp, labelOf, make, matrixOf, numbered, patternLoader, plainText,
  readRamp, segmented, shown,
} from "./common.js";

const SIZE = 560; // of the map, in its own units
const EDGE = 18; // between a place and the frame
const NEAR = 14; // a dot that is as near to the pointer as this is pointed at
const COLOURS = 8;
const BESIDE = 4; // heads beside the one that is chosen
const LIMITS = { largest: 300, largestCell: 22, labels: 34 }; // of a matrix

const counted = (n) => n.toLocaleString("en");

// --- Data -------------------------------------------------------------------------------------------------

/** The heads as objects, each with its place in the list. */
function readHeads({ heads, models, kinds }) {
  return heads.model.map((m, i) => ({
    i,
    m,
    model: models[m].model,
    family: models[m].family,
    at: models[m].at,
    layer: heads.layer[i],
    head: heads.head[i],
    depth: heads.depth[i],
    kinds: heads.kinds[i],
    labels: heads.kinds[i].map((kind) => kinds[kind].name),
    kl: heads.kl[i],
    position_kl: heads.position_kl[i],
    clone_skill: heads.clone_skill[i],
    joined_skill: heads.joined_skill[i],
  }));
}

const nameOf = ({ layer, head }) => `L${layer}H${head}`;
const inWords = (head) => `Layer ${head.layer}, head ${head.head} of ${head.model}: ${head.labels.join(", ") || "of no kind"}`;
const sameHead = (a, b) => Boolean(a && b) && a.model === b.model && a.layer === b.layer && a.head === b.head;

/** The nearest head of each other model, the nearest first: those with a pattern to show. */
function nearestOfEach(universe, heads, chosen) {
  const found = new Map();
  for (const [i, distance] of universe.neighbours[chosen.i]) {
    const head = heads[i];
    if (!found.has(head.m) && head.at !== null) found.set(head.m, { head, distance });
  }
  return [...found.values()].slice(0, BESIDE);
}

// --- Colours ----------------------------------------------------------------------------------------------

// What has the same colour has another shape: not by colour alone.
const SHAPES = [
  "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",
  "M-4.4 -4.4H4.4V4.4H-4.4Z",
  "M0 -5.6L5.4 4H-5.4Z",
  "M0 -6L6 0L0 6L-6 0Z",
  "M0 5.6L5.4 -4H-5.4Z",
  "M-1.8 -5.5H1.8V-1.8H5.5V1.8H1.8V5.5H-1.8V1.8H-5.5V-1.8H-1.8Z",
  "M-5.5 -3.5H5.5V3.5H-5.5Z",
  "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9Z",
];
const NOBODY = "M-3 0A3 3 0 1 0 3 0A3 3 0 1 0 -3 0Z";

/** What dots can be coloured by: of each head a group (null: none), and the names of groups. */
function coloursOf(universe) {
  const { models, kinds } = universe;
  const ways = [];
  if (kinds.length > 0) ways.push(["label", "Label", (head) => head.kinds[0] ?? null, kinds.map(({ name }) => name), "of no kind"]);
  ways.push(["model", "Model", (head) => head.m, models.map(({ model }) => model), ""]);
  const families = [...new Set(models.map(({ family }) => family))];
  if (families.length > 1 && families.length < models.length) {
    ways.push(["family", "Family", (head) => families.indexOf(head.family), families.map((name) => name ?? "unknown"), ""]);
  }
  ways.push(["depth", "Depth", null, [], ""]);
  return ways;
}

const shapeOf = (group) => (group === null ? NOBODY : SHAPES[(group + 3 * Math.floor(group / COLOURS)) % SHAPES.length]);
const classOf = (group) => (group === null ? "nobody" : `group-${group % COLOURS}`);

// --- Patterns ---------------------------------------------------------------------------------------------

/** A pattern as a small picture. */
function thumbnail(bytes, size, ramp) {
  const canvas = imageOf(size, (query, key) => ramp(bytes[below(query, key)]));
  canvas.className = "thumbnail";
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

// --- The map ----------------------------------------------------------------------------------------------

const placeOf = (u) => EDGE + u * (SIZE - 2 * EDGE);

/** The next place in the direction of an arrow key: near, and not far aside. */
function placeAfter(key, places, from) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
  if (dx === 0 && dy === 0) return null;
  let best = null;
  for (const place of places) {
    const [along, aside] = [(place.x - from.x) * dx + (place.y - from.y) * dy, Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx)];
    if (place === from || along <= 0) continue;
    const far = along + 2 * aside;
    if (best === null || far < best.far) best = { place, far };
  }
  return best?.place ?? null;
}

/** Dots for heads. `actions`: onPoint(head, dot), onLeave(), onChoose(head). */
function mapOf(universe, heads, actions) {
  const svg = drawn("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "diagram heads-map", role: "group", "aria-label": "Map of heads: near is alike" });
  svg.append(drawn("rect", { x: 0.5, y: 0.5, width: SIZE - 1, height: SIZE - 1, rx: 10, class: "frame" }));
  const lines = drawn("g", { class: "links" });
  svg.append(lines);
  const dots = heads.map((head) => {
    const dot = drawn("path", { tabindex: "-1", role: "button", "aria-label": inWords(head), "aria-pressed": "false" });
    dot.head = head;
    svg.append(dot);
    return dot;
  });
  let places = [];

  /** Put every dot where `map` has it; what has no place is not there. */
  const put = (map) => {
    places = [];
    dots.forEach((dot, i) => {
      const there = map.x[i] !== null;
      dot.toggleAttribute("hidden", !there);
      dot.style.display = there ? "" : "none";
      if (!there) return;
      const place = { x: placeOf(map.x[i]), y: placeOf(1 - map.y[i]), dot };
      dot.setAttribute("transform", `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})`);
      places.push(place);
    });
  };
  const colour = (way, only) => {
    const [, , groupOf] = way;
    for (const dot of dots) {
      const group = groupOf ? groupOf(dot.head) : 0;
      dot.setAttribute("d", shapeOf(group));
      dot.setAttribute("class", groupOf ? `head-dot ${classOf(group)}` : "head-dot heat-fill");
      dot.style.setProperty("--heat", dot.head.depth);
      dot.classList.toggle("dimmed", only !== null && group !== only);
    }
  };
  const placeFor = (head) => places.find(({ dot }) => dot.head.i === head.i);
  const enter = (dot) => {
    for (const other of dots) other.setAttribute("tabindex", other === dot ? "0" : "-1");
  };
  /** Mark the one that is chosen, with a line to each of its like. */
  const mark = (chosen, others) => {
    for (const dot of dots) {
      dot.classList.toggle("chosen", dot.head === chosen);
      dot.classList.toggle("alike", others.some(({ head }) => head === dot.head));
      dot.setAttribute("aria-pressed", String(dot.head === chosen));
    }
    const from = placeFor(chosen);
    enter((from ?? places[0])?.dot);
    lines.replaceChildren(...(from ? others.map(({ head }) => placeFor(head)).filter(Boolean) : []).map((to) => drawn("line", { x1: from.x, y1: from.y, x2: to.x, y2: to.y })));
  };
  const under = (event) => {
    const box = svg.getBoundingClientRect();
    const unit = SIZE / box.width;
    const [x, y] = [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit];
    let best = null;
    for (const place of places) {
      const far = Math.hypot(place.x - x, place.y - y);
      if (far <= NEAR * unit && (best === null || far < best.far)) best = { place, far };
    }
    return best?.place.dot ?? null;
  };
  let pointed = null;
  const point = (dot) => {
    if (dot === pointed) return;
    pointed?.classList.remove("pointed");
    pointed = dot;
    dot?.classList.add("pointed");
    if (dot) actions.onPoint(dot.head, dot);
    else actions.onLeave();
  };
  svg.addEventListener("pointermove", (event) => point(under(event)));
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("click", (event) => under(event) && actions.onChoose(under(event).head));
  svg.addEventListener("focusin", (event) => event.target.head && point(event.target));
  svg.addEventListener("focusout", () => point(null));
  svg.addEventListener("keydown", (event) => {
    if (!event.target.head) return;
    if (event.key === "Escape") return point(null);
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      actions.onChoose(event.target.head);
    }
    const next = placeAfter(event.key, places, placeFor(event.target.head));
    if (!next) return;
    event.preventDefault();
    enter(next.dot);
    next.dot.focus();
  });
  return { svg, put, colour, mark };
}

/** What the colours mean; a group that is pressed stands out alone. */
function legendOf(onOnly) {
  const row = make("div", "legend groups");
  const update = ([, , groupOf, names, nobody], heads) => {
    if (!groupOf) {
      row.replaceChildren(make("span", "", "first layer"), make("span", "ramp"), make("span", "", "last layer"));
      return;
    }
    const groups = [...new Set(heads.map(groupOf))].sort((a, b) => (a ?? Infinity) - (b ?? Infinity));
    const buttons = groups.map((group) => {
      const key = drawn("svg", { viewBox: "-8 -8 16 16", class: "key-shape", "aria-hidden": "true" }, drawn("path", { d: shapeOf(group), class: `head-dot ${classOf(group)}` }));
      const n = heads.filter((head) => groupOf(head) === group).length;
      const button = filled("button", "group-key", key, make("span", "", group === null ? nobody : names[group]), make("span", "faint number", ` ${counted(n)}`));
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") === "true";
        for (const other of row.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(!pressed));
        onOnly(pressed ? undefined : group);
      });
      return button;
    });
    row.replaceChildren(...buttons);
  };
  return { row, update };
}

// --- Words about a head -----------------------------------------------------------------------------------

const SCORES = [
  ["kl", "KL of its place", "What its embedding misses on the texts that it was fitted on, nats a row."],
  ["position_kl", "KL of position only", "What a head that sees only positions misses, nats a row."],
  ["clone_skill", "Skill of its clone", "Share of that which one map for this head tells, on held-out texts."],
  ["joined_skill", "Skill as a newcomer", "The same share where its family was unknown to the shared decoder."],
];

const scoreLines = (head) => SCORES.filter(([name]) => head[name] !== null).map(([name, title, meaning]) => Object.assign(filled("li", "", `${title} `, numbered(shown(head[name], 2))), { title: meaning }));

function chipsOf(head) {
  const chips = make("ul", "chips");
  chips.append(...head.labels.map((label) => make("li", "above", label)), ...scoreLines(head));
  return chips;
}

function nearestList(found, kinds, choose) {
  const most = found.reduce((top, { distance }) => Math.max(top, distance), 0);
  const items = found.map(({ head, distance }) => {
    const bar = make("span", "closeness");
    bar.style.width = `${100 * (1 - distance / (1.05 * most || 1))}%`;
    const shared = head.kinds.some((kind) => kinds.includes(kind));
    const words = filled("span", "of", make("span", "", head.model), filled("span", "faint", head.labels.join(", ") || "of no kind", shared ? make("b", "same", " ✓") : ""));
    const button = filled("button", "", make("span", "name", nameOf(head)), words, make("span", "number", shown(distance, 2)));
    button.type = "button";
    button.setAttribute("aria-label", `${inWords(head)}, distance ${shown(distance, 2)}${shared ? ", of the same kind" : ""}`);
    button.addEventListener("click", () => choose(head));
    return filled("li", "", button);
  });
  return filled("ol", "", ...items);
}

/** A floating card at a dot: what the head is, and its pattern. */
function cardOf(load, patterns, ramp) {
  const card = make("div", "tooltip head-card");
  card.setAttribute("role", "tooltip");
  card.hidden = true;
  let request = 0;
  const hide = () => {
    request++;
    card.hidden = true;
  };
  const show = async (head, dot, text) => {
    const mine = ++request;
    const lines = scoreLines(head);
    const words = filled("div", "", make("strong", "", nameOf(head)), make("span", "faint", ` ${head.model}`), make("div", "", head.labels.join(", ") || "of no kind"), filled("ul", "lines faint", ...lines));
    const picture = make("div", "picture");
    card.replaceChildren(picture, words);
    card.hidden = false;
    place(card, dot);
    if (head.at === null) return;
    const tokens = patterns[head.at].texts[Math.min(text, patterns[head.at].texts.length - 1)];
    const bytes = await load(head.at, Math.min(text, patterns[head.at].texts.length - 1), head);
    if (mine !== request) return; // another head is pointed at meanwhile
    picture.replaceChildren(thumbnail(bytes, tokens.length, ramp()));
    place(card, dot);
  };
  return { card, show, hide };
}

function place(card, dot) {
  const near = dot.getBoundingClientRect();
  const left = Math.min(near.right + 10, window.innerWidth - card.offsetWidth - 8);
  const above = near.top - card.offsetHeight - 8;
  card.style.left = `${Math.max(8, left)}px`;
  card.style.top = `${above < 8 ? Math.min(near.bottom + 8, Math.max(8, window.innerHeight - card.offsetHeight - 8)) : above}px`;
}

// --- Side by side -----------------------------------------------------------------------------------------

/** The text as these tokens have it, and where each ends in it; what opens a text for the model (its BOS) has no room. */
function endsOf(tokens) {
  const pieces = tokens.map((token, i) => (i === 0 && /^<[^<>]*>$/u.test(token.trim()) ? "" : token));
  let end = 0;
  return { text: pieces.join(""), ends: pieces.map((piece) => (end += piece.length)) };
}

/** The token of another model that holds the same character, where both read the same text so far; else null. */
function counterpart(position, own, other) {
  if (position === null) return null;
  const end = own.ends[position];
  if (end === 0) return other.ends[0] === 0 ? 0 : null;
  if (!other.text.startsWith(own.text.slice(0, end))) return null;
  return other.ends.findIndex((one) => one >= end);
}

/** One head's pattern; `link` tells the others what is pointed at. */
function patternFigure(head, distance, tokens, bytes, onPoint) {
  const matrix = matrixOf(LIMITS);
  const ends = endsOf(tokens);
  const words = make("p", "readout small");
  const title = filled("figcaption", "", make("strong", "", nameOf(head)), make("span", "faint", ` ${head.model}`), make("div", "faint", distance === null ? "the one that is chosen" : `distance ${shown(distance, 2)}`), make("div", "faint", head.labels.join(", ") || "of no kind"));
  const figure = filled("figure", "beside-head", title, matrix.frame, words);
  const token = (i) => Object.assign(labelOf(tokens[i]), { title: `position ${i}` });
  const strongestOf = (query) => {
    let best = 0;
    for (let key = 0; key <= query; key++) if (bytes[below(query, key)] > bytes[below(query, best)]) best = key;
    return best;
  };
  const show = (query, key) => {
    matrix.mark(query === null ? {} : { query, ...(key === null ? {} : { key }) });
    if (query === null) return words.replaceChildren();
    const at = key ?? strongestOf(query);
    return words.replaceChildren(token(query), key === null ? " looks most at " : " → ", token(at), ": ", numbered((bytes[below(query, at)] / 255).toFixed(2)));
  };
  matrix.overlay.addEventListener("pointermove", (event) => {
    const link = matrix.under(event);
    onPoint(figure, link);
    show(link?.query ?? null, link?.key ?? null);
  });
  matrix.overlay.addEventListener("pointerleave", () => {
    onPoint(figure, null);
    show(null, null);
  });
  const draw = (ramp, room) => matrix.draw(tokens, (query, key) => ramp(bytes[below(query, key)]), room, `Attention of ${nameOf(head)} of ${head.model}: ${tokens.length} queries (rows) to their keys (columns)`);
  return { figure, draw, show, ends };
}

/** Patterns of the head that is chosen and of its like, on one text. */
function sideBySide(load, patterns) {
  const stage = make("div", "beside-heads");
  let figures = [];
  let request = 0;
  const draw = () => {
    if (stage.clientWidth === 0 || figures.length === 0) return;
    const ramp = readRamp(stage);
    for (const one of figures) one.draw(ramp, one.figure.clientWidth);
  };
  const tell = (from, link) => {
    for (const one of figures) {
      if (one.figure === from) continue;
      const own = figures.find(({ figure }) => figure === from).ends;
      one.show(counterpart(link?.query ?? null, own, one.ends), null);
    }
  };
  const update = async (rows, text) => {
    const mine = ++request;
    const there = rows.filter(({ head }) => head.at !== null && patterns[head.at].texts.length > 0);
    const made = await Promise.all(there.map(async ({ head, distance }) => {
      const t = Math.min(text, patterns[head.at].texts.length - 1);
      return patternFigure(head, distance, patterns[head.at].texts[t], await load(head.at, t, head), tell);
    }));
    if (mine !== request) return;
    figures = made;
    stage.replaceChildren(...figures.map(({ figure }) => figure));
    draw();
  };
  return { stage, update, draw };
}

// --- The view ---------------------------------------------------------------------------------------------

const MAPS = [["neighbours", "By neighbours"], ["components", "By components"]];
const ABOUT = {
  neighbours: () => "Near is alike: t-SNE keeps neighbours together; how far groups lie apart says nothing.",
  components: ({ spread: [x, y] }) => `The two directions in which heads differ most: ${shown(100 * x, 0)} % and ${shown(100 * y, 0)} % of all differences; what lies together here may differ in others.`,
};

function preview(tokens) {
  const characters = [...plainText(tokens.slice(/^<[^<>]*>$/u.test(tokens[0] ?? "") ? 1 : 0).join(""))];
  return characters.length > 60 ? `${characters.slice(0, 60).join("")}…` : characters.join("");
}

/** Sentences on what is not here. */
function absences(universe, patterns) {
  const without = universe.models.filter(({ at }) => at === null).map(({ model }) => model);
  const said = [];
  if (universe.left_out > 0) said.push(`${counted(universe.left_out)} more heads are not shown: a page has some thousands.`);
  if (without.length > 0) {
    const who = without.length === universe.models.length ? "any model" : without.join(", ");
    said.push(`There are no patterns of ${who} in this page, so ${without.length === universe.models.length ? "there are no pictures of them" : "their pictures are missing"}: the model could not be read when it was made.`);
  }
  return said.length > 0 && patterns ? [make("p", "notice", said.join(" "))] : [];
}

/** The map with all that follows from what is chosen on it. */
function drawMap(model, universe, el) {
  const heads = readHeads(universe);
  const patterns = model.get("patterns") ?? [];
  const load = patternLoader(model);
  const ways = coloursOf(universe);
  const state = { way: ways[0], only: null, text: 0, chosen: null };
  const stage = make("div", "map-stage");
  const card = cardOf(load, patterns, () => readRamp(stage));
  const choose = (head) => {
    model.set("selected", { model: head.model, layer: head.layer, head: head.head });
    model.save_changes();
  };
  const map = mapOf(universe, heads, {
    onPoint: (head, dot) => card.show(head, dot, state.text).catch(() => {}),
    onLeave: card.hide,
    onChoose: choose,
  });
  const about = make("p", "faint caption");
  const legend = legendOf((group) => {
    state.only = group === undefined ? null : group;
    map.colour(state.way, group === undefined ? null : group);
    state.pressed = group !== undefined;
  });
  const detail = make("div", "map-detail ranking similar");
  const beside = sideBySide(load, patterns);
  const placed = (name) => {
    map.put(universe.maps[name]);
    about.textContent = ABOUT[name](universe.maps[name]);
    if (state.chosen) map.mark(state.chosen, nearestOfEach(universe, heads, state.chosen));
  };
  const recolour = (name) => {
    state.way = ways.find(([own]) => own === name);
    map.colour(state.way, null);
    legend.update(state.way, heads);
  };
  const maps = MAPS.filter(([name]) => universe.maps[name]);
  const texts = patterns.find((one) => one !== null && one !== undefined)?.texts ?? [];
  const update = () => {
    const chosen = heads.find((head) => sameHead(head, model.get("selected")));
    if (!chosen) return;
    state.chosen = chosen;
    const near = universe.neighbours[chosen.i].map(([i, distance]) => ({ head: heads[i], distance }));
    const others = nearestOfEach(universe, heads, chosen);
    map.mark(chosen, others);
    const none = near.length === 0 ? [make("p", "notice", "It has no place in the universe, or no other model is there.")] : [];
    detail.replaceChildren(filled("h3", "", nameOf(chosen), make("span", "faint", ` of ${chosen.model}`)), chipsOf(chosen), make("h4", "", "Nearest in other models"), ...none, nearestList(near.slice(0, 8), chosen.kinds, choose), make("p", "faint caption", "Distance: 0 is the same, 1 nothing in common, 2 the opposite. ✓: of the same kind."));
    beside.update([{ head: chosen, distance: null }, ...others], state.text).catch((error) => beside.stage.replaceChildren(make("p", "notice", `These patterns could not be read: ${error.message}`)));
  };
  const pick = chooser("Text ", texts.map((tokens, i) => `${i + 1} · ${preview(tokens)}`), 0, (t) => {
    state.text = t;
    update();
  });
  const controls = filled("div", "controls", segmented("Colour", ways.map(([name, title]) => [name, title]), state.way[0], recolour));
  if (maps.length > 1) controls.append(segmented("Map", maps, maps[0][0], placed));
  const side = texts.length > 0 ? [make("h3", "", "Side by side, on one text"), filled("div", "controls", pick), beside.stage, make("p", "faint caption", "The chosen head, and the nearest of each other model. Rows are queries, columns keys; point at a row, and the same place is marked in the others.")] : [];
  stage.append(map.svg, about);
  el.replaceChildren(make("h2", "", "Map of heads"), controls, legend.row, filled("div", "map-body", stage, detail), ...absences(universe, patterns), ...side, card.card);
  placed(maps[0][0]);
  recolour(state.way[0]);
  if (!heads.some((head) => sameHead(head, model.get("selected")))) {
    const first = firstOf(universe, heads);
    model.set("selected", { model: first.model, layer: first.layer, head: first.head });
  }
  update();
  model.on("change:selected", () => {
    update();
    if (model.get("selected").show) stage.scrollIntoView({ block: "nearest" });
  });
  window.addEventListener("scroll", card.hide, { passive: true, capture: true });
  const undo = keepSharp(el, beside.draw);
  return () => {
    window.removeEventListener("scroll", card.hide, { capture: true });
    undo();
  };
}

/** A head worth seeing first: an induction head, else one of any kind, whose like is nearest. */
function firstOf(universe, heads) {
  const induction = universe.kinds.findIndex(({ kind }) => kind === "induction");
  const near = (head) => universe.neighbours[head.i][0]?.[1] ?? Infinity;
  const rank = (head) => (head.kinds.includes(induction) ? 0 : head.kinds.length > 0 ? 1 : 2);
  return [...heads].sort((a, b) => rank(a) - rank(b) || near(a) - near(b) || a.i - b.i)[0];
}

function render({ model, el }) {
  el.classList.add("headlens", "universe");
  const universe = model.get("universe");
  el.hidden = !universe || !universe.fitted;
  return el.hidden ? undefined : drawMap(model, universe, el);
}

export default { render };
