// What does a probe say of texts, and which of their tokens make it say so?
//
// Reads `readings` and, for the text on screen only, `reading_R_D`: see probe_payload.py.

import {
  aligned, chooser, chosenFromList, failure, filled, inflate, labelOf, make, minus, numbered, plainText, positionOf,
  quoted, segmented, shown, threeDigits, tokenElements, withRole,
} from "./common.js";

const MOST = 6; // tokens that are listed because they add, or take away, the most
const LITTLE = 0.01; // of the largest: less is not listed

const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** A text of which the first token can be reached; none is chosen yet. */
function optionsOf(tokens) {
  const elements = tokenElements(tokens);
  elements.forEach((element, i) => {
    element.tabIndex = i === 0 ? 0 : -1;
    element.setAttribute("aria-selected", "false");
  });
  return elements;
}

/** The elements in reading order: a newline breaks the line, and a sign stands for text that the probe did not read. */
function laidOut(elements, { tokens, gaps }, cut) {
  const skipped = (title) => Object.assign(make("span", "skipped faint", "\u22EF"), { title });
  const parts = elements.flatMap((element, i) => [
    ...(gaps.includes(i) ? [skipped("Here stand tokens that the probe does not read.")] : []),
    element,
    ...(tokens[i].includes("\n") ? [document.createElement("br")] : []),
  ]);
  return cut ? [...parts, skipped("The text goes on; the probe read no further.")] : parts;
}

// --- Data -------------------------------------------------------------------------------------------------

/** A document with its attention as one list of numbers a head, and classes by their names. */
async function loadDocument(model, r, d, { n_heads: heads, classes }) {
  const found = await model.get(`reading_${r}_${d}`);
  const numbers = new DataView(await inflate(found.attention));
  const n = found.tokens.length;
  const attention = Array.from({ length: heads }, (_, head) =>
    Array.from({ length: n }, (__, i) => numbers.getInt16(2 * (head * n + i), true) / 32767),
  );
  const name = (x) => (classes === null || x === null ? x : classes[x]);
  const named = (units) => ({ ...units, towards: units.towards.map(name), prediction: units.prediction.map(name), label: units.label.map(name) });
  return { ...found, attention, units: found.units && named(found.units) };
}

const manyClasses = ({ classes }) => classes !== null && classes.length > 2;

/** What texts are ordered by. Scores of different classes do not compare, their probabilities do. */
const strength = (reading) => (manyClasses(reading) ? ({ probability }) => probability : ({ score }) => score);

/** How sure the probe is of what it says: the surest mistakes are the ones to look at. */
const sureness = ({ score, probability, prediction, towards }) =>
  probability === null ? Math.abs(score ?? 0) : prediction === towards ? probability : 1 - probability;

/** How far a number that was said is from the one that is true; of texts without a label, nothing. */
const off = ({ score, label }) => (score === null || label === null ? -1 : Math.abs(score - Number(label)));

/** Orders of the texts that mean something here: [name, title, comparison]. */
function ordersOf(reading) {
  const of = strength(reading);
  const some = (test) => reading.documents.some(test);
  const what = manyClasses(reading) ? ["Surest", "Least sure"] : ["Highest score", "Lowest score"];
  const orders = [["given", "As given", () => 0]];
  if (some((one) => of(one) !== null)) {
    orders.push(["high", what[0], (a, b) => (of(b) ?? -Infinity) - (of(a) ?? -Infinity)]);
    orders.push(["low", what[1], (a, b) => (of(a) ?? Infinity) - (of(b) ?? Infinity)]);
  }
  if (reading.classes === null && some((one) => off(one) >= 0)) orders.push(["off", "Furthest off", (a, b) => off(b) - off(a)]);
  if (some(({ wrong }) => wrong > 0)) {
    orders.push(["wrong", "Wrong first", (a, b) => (b.wrong ?? -1) - (a.wrong ?? -1) || sureness(b) - sureness(a)]);
  }
  return orders;
}

// --- The list of texts ------------------------------------------------------------------------------------

function answerOf({ label, prediction, wrong, tokens }, reading) {
  const said = (text) => make("span", wrong > 0 ? "answer wrong" : "answer", text);
  if (reading.by_token) {
    if (wrong === null) return said(counted(tokens, "token"));
    return said(wrong > 0 ? `\u2717 ${wrong} of ${counted(tokens, "token")} wrong` : "\u2713 all tokens right");
  }
  if (reading.classes === null) return said(label === null ? "" : `is ${minus(label)}`);
  if (label === null) return said(prediction);
  return said(wrong > 0 ? `\u2717 says ${prediction}, is ${label}` : `\u2713 ${prediction}`);
}

/** One button a text: its beginning, what the probe says, and what the list can be ordered by. */
function documentButton(document, d, reading) {
  const start = document.tokens === 0 ? "(empty)" : plainText(document.start);
  const value = strength(reading)(document);
  const button = filled(
    "button",
    "",
    make("span", "place faint number", String(d + 1)),
    make("span", "start", start),
    answerOf(document, reading),
    make("span", "number", value === null ? "" : Math.abs(value) < 1000 ? shown(value, 2) : threeDigits(value)),
  );
  button.type = "button";
  button.dataset.document = d;
  return button;
}

function listHead(reading) {
  const { documents } = reading;
  const judged = documents.filter(({ wrong }) => wrong !== null);
  const mistaken = judged.filter(({ wrong }) => wrong > 0).length;
  const words = judged.length === 0 ? counted(documents.length, "text") : `${mistaken} of ${counted(judged.length, "text")} ${reading.by_token ? "with a wrong token" : "wrong"}`;
  const what = documents.every((one) => strength(reading)(one) === null) ? "" : manyClasses(reading) ? "probability" : "score";
  return filled("p", "list-head faint", make("span", "", words), make("span", "", what));
}

/** Fill the list in the chosen order; returns the text that comes first. */
function fillList({ readings, state, ui }) {
  const reading = readings[state.r];
  const [, , before] = ordersOf(reading).find(([name]) => name === state.order);
  const ranked = reading.documents.map((document, d) => ({ ...document, d })).sort((a, b) => before(a, b) || a.d - b.d);
  ui.list.replaceChildren(...ranked.map(({ d }) => filled("li", "", documentButton(reading.documents[d], d, reading))));
  ui.list.scrollTop = 0;
  return ranked[0]?.d;
}

// --- What is said, in words -------------------------------------------------------------------------------

/** A sentence of what is said of the whole text. */
function verdict(document, reading) {
  const { score, probability, prediction, towards, label, tokens } = document;
  const said = make("p", "verdict");
  if (reading.by_token) {
    said.append("Each token is read by itself");
    if (score !== null) said.append("; the highest scores ", numbered(shown(score)));
    said.append(".");
    return said;
  }
  if (reading.classes === null) said.append("Says ", numbered(shown(score)));
  else said.append("Says ", quoted(prediction), ", with a probability of ", numbered(shown(probability)), " for ", quoted(towards));
  if (label !== null) said.append(document.wrong > 0 ? "; it is " : ". The label is ", reading.classes === null ? numbered(minus(label)) : quoted(label));
  said.append(tokens === 0 ? ". The probe read no token of this text: what it says is its bias." : ".");
  return said;
}

const rounded = (x) => Math.round(1000 * x) / 1000;

/** The sum that makes the score, and what it has to exceed; the digits that are shown add up. */
function sumOf({ score, rest }, reading) {
  const line = make("p", "sum number");
  if (reading.by_token || score === null || rest === null) return line;
  line.append(make("span", "faint", "score "), numbered(shown(score)), make("span", "faint", " = tokens "), numbered(shown(rounded(score) - rounded(rest))));
  line.append(make("span", "faint", rest < 0 ? " \u2212 rest " : " + rest "), numbered(shown(Math.abs(rest))));
  if (reading.classes?.length === 2) line.append(make("span", "faint", `; the threshold is ${shown(reading.threshold)}`));
  const title = "The rest is what no token adds: the bias, or what hidden layers make of all tokens together.";
  return Object.assign(line, { title: reading.calibration === null ? title : `${title} Scores are before calibration, the probability is after it.` });
}

/** What a colour says of one token, in words. */
function tokenSentence({ content, reading, document }, i) {
  const of = (name) => (content.units ? content.units[name][i] : document[name]);
  const parts = [labelOf(content.tokens[i]), ` (${i}) adds `, numbered(threeDigits(content.contribution[i]))];
  if (of("towards") !== null) parts.push(" to the score of ", quoted(of("towards")));
  if (content.units) return [...parts, ...unitSentence(reading, of)];
  const shares = content.attention.map((head) => head[i]);
  const words = shares.length === 1 ? "attention" : "attention of its heads";
  return [...parts, `; ${words} `, make("span", "number", shares.map((x) => shown(x)).join(" \u00B7 "))];
}

/** What is said of a token that is read by itself. */
function unitSentence(reading, of) {
  const parts = [` and the rest ${threeDigits(of("rest"))}: score `, numbered(shown(of("score")))];
  if (reading.classes !== null) parts.push(`, probability ${shown(of("probability"))}: says `, quoted(of("prediction")));
  if (of("label") !== null) parts.push(", the label is ", quoted(of("label")));
  return parts;
}

// --- Colour -----------------------------------------------------------------------------------------------

/** What colours can show: name, title, words of the legend, and titles of the lists of what is above and below zero. */
const MODES = {
  contribution: ["What it adds", "what the token adds to the score", ["Adds most", "Takes away most"]],
  attention: ["Attention", "share of the token that is taken", ["Most taken", "Taken with the other sign"]],
  score: ["Score", "the token's own score", ["Highest scores", "Lowest scores"]],
};

const modesOf = (reading) => (reading.by_token ? ["score", "contribution"] : ["contribution", "attention"]);

/** Values by token and the largest size among them, which has the deepest colour. */
function colouring({ content }, { mode, head }) {
  const { attention, tokens } = content;
  const mean = (i) => attention.reduce((sum, one) => sum + one[i], 0) / attention.length;
  const values = {
    contribution: () => content.contribution,
    attention: () => (head === null ? tokens.map((_, i) => mean(i)) : attention[head]),
    score: () => content.units.score,
  }[mode]();
  return { values, extent: values.reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 0) };
}

/** Two ramps from paper: one for what adds, one for what takes away. Strong ones against are dashed, too. */
function colour(elements, { values, extent }) {
  elements.forEach((element, i) => {
    const value = values[i];
    const heat = value === null || extent === 0 ? 0 : Math.abs(value) / extent;
    element.classList.toggle("heat", value !== null);
    element.classList.toggle("against", value < 0);
    element.classList.toggle("strongly", value < 0 && heat > 0.15);
    element.style.setProperty("--heat", heat);
  });
}

/** The ramps with their ends; zero stands in the middle as soon as something is below it. */
function legendOf() {
  const [low, zero, high] = [make("span", "number"), make("span", "number", "0"), make("span", "number")];
  const [against, words] = [make("span", "ramp against"), make("span", "faint")];
  const row = filled("div", "legend diverging", low, against, zero, make("span", "ramp"), high, words);
  const update = ({ values, extent }, meaning) => {
    low.hidden = against.hidden = !values.some((x) => x < 0);
    low.textContent = threeDigits(-extent);
    high.textContent = threeDigits(extent);
    words.textContent = meaning;
  };
  return { row, update };
}

/** Labels of tokens: one that is not the first class is underlined, one that is said wrongly has a frame. */
function markLabels(elements, units, classes) {
  if (!units || classes === null) return;
  elements.forEach((element, i) => {
    element.classList.toggle("labelled", units.label[i] !== null && units.label[i] !== classes[0]);
    element.classList.toggle("mistaken", units.label[i] !== null && units.label[i] !== units.prediction[i]);
  });
}

const labelLegend = (classes) => ["Underlined: the label is not ", quoted(classes[0]), ". In a dotted frame: said wrongly."];

// --- The strongest tokens ---------------------------------------------------------------------------------

/** The tokens of the largest values above and below zero, largest first. */
function mostOf(values) {
  const ranked = values.map((value, i) => ({ value: value ?? 0, i })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value) || a.i - b.i);
  const least = LITTLE * Math.abs(ranked[0]?.value ?? 0);
  return [1, -1].map((sign) => ranked.filter(({ value }) => value * sign > least).slice(0, MOST));
}

function mostLists(view) {
  const { content, values } = view.state.now;
  const titles = MODES[view.state.mode][2];
  const extent = Math.abs(values[strongest(values)] ?? 0);
  return mostOf(values).flatMap((found, side) => {
    if (found.length === 0) return [];
    const items = found.map(({ value, i }) => {
      const button = filled("button", "", filled("span", "words", labelOf(content.tokens[i]), make("span", "faint number", ` ${i}`)), make("span", "number", aligned(value, extent)));
      Object.assign(button, { type: "button" });
      button.addEventListener("click", () => goTo(view, i));
      return filled("li", "", button);
    });
    return [filled("section", "tokens", make("h4", "", titles[side]), filled("ol", "", ...items))];
  });
}

/** Show a token that was named elsewhere: scroll the text to it, and keep it. */
function goTo(view, i) {
  const { text } = view.ui;
  const element = view.state.elements[i];
  text.scrollTop += element.getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 3;
  if (view.state.focus !== i) pin(view, i);
}

// --- The text ---------------------------------------------------------------------------------------------

const strongest = (values) => values.reduce((best, x, i) => (Math.abs(x ?? 0) > Math.abs(values[best] ?? 0) ? i : best), 0);

const point = ({ state, ui }, i) => ui.words.replaceChildren(...tokenSentence(state.now, i));

/** Back to the token that was pinned, or the strongest. */
function rest(view) {
  const { now, focus } = view.state;
  if (now.content.tokens.length === 0) view.ui.words.replaceChildren();
  else point(view, focus ?? strongest(now.values));
}

function paint(view) {
  const { state, ui } = view;
  const colours = colouring(state.now, state);
  state.now.values = colours.values;
  colour(state.elements, colours);
  state.elements.forEach((element, i) => element.setAttribute("aria-label", `${plainText(state.now.content.tokens[i])}: ${threeDigits(colours.values[i])}`));
  ui.legend.update(colours, MODES[state.mode][1]);
  ui.most.replaceChildren(...mostLists(view));
  rest(view);
}

async function showDocument(view, d) {
  const { state, ui, model } = view;
  const reading = view.readings[state.r];
  const request = ++state.request;
  const content = await loadDocument(model, state.r, d, reading);
  if (request !== state.request) return; // another text was chosen while this one inflated
  const document = reading.documents[d];
  Object.assign(state, { focus: null, now: { content, reading, document, values: [] }, elements: optionsOf(content.tokens) });
  ui.heading.replaceChildren(`Text ${d + 1}`, make("span", "faint", ` ${counted(content.tokens.length, "token")}`));
  ui.said.replaceChildren(verdict(document, reading), sumOf(document, reading));
  markLabels(state.elements, content.units, reading.classes);
  ui.text.replaceChildren(...laidOut(state.elements, content, document.cut));
  ui.text.scrollTop = 0;
  ui.main.classList.toggle("nothing", content.tokens.length === 0);
  for (const button of ui.list.querySelectorAll("button")) {
    const chosen = Number(button.dataset.document) === d;
    button.classList.toggle("selected", chosen);
    button.setAttribute("aria-pressed", String(chosen));
  }
  paint(view);
}

const choose = (view, d) => showDocument(view, d).catch(view.report);

/** What the colours show, and of which head. */
function modeControls(view) {
  const { state } = view;
  const reading = view.readings[state.r];
  const heads = chooser("", ["All heads, mean", ...Array.from({ length: reading.n_heads }, (_, h) => `Head ${h}`)], 0, (chosen) => {
    state.head = chosen === 0 ? null : chosen - 1;
    paint(view);
  });
  heads.querySelector("select").setAttribute("aria-label", "Head");
  heads.hidden = true;
  const options = modesOf(reading).map((mode) => [mode, MODES[mode][0]]);
  const modes = segmented("What the colours show", options, state.mode, (mode) => {
    state.mode = mode;
    heads.hidden = reading.n_heads < 2 || mode !== "attention";
    paint(view);
  });
  return [modes, heads];
}

function pin(view, i) {
  const { state } = view;
  state.focus = state.focus === i ? null : i;
  state.elements.forEach((element, j) => {
    element.setAttribute("aria-selected", String(j === state.focus));
    element.tabIndex = j === i ? 0 : -1;
  });
  rest(view);
}

function listenToText(view) {
  const { text } = view.ui;
  text.addEventListener("pointerover", (event) => positionOf(event) !== null && point(view, positionOf(event)));
  text.addEventListener("pointerleave", () => rest(view));
  text.addEventListener("focusin", (event) => positionOf(event) !== null && point(view, positionOf(event)));
  text.addEventListener("focusout", () => rest(view));
  text.addEventListener("click", (event) => positionOf(event) !== null && pin(view, positionOf(event)));
  text.addEventListener("keydown", (event) => {
    const at = positionOf(event);
    const to = at === null ? null : placeAfter(event.key, at, view);
    if (to === null) return;
    event.preventDefault();
    if (to === at) pin(view, at);
    else view.state.elements[to]?.focus();
  });
}

/** Where a key leads from a token: to itself with Enter or space; null for other keys. In text that runs to the left,
    so do the arrows. */
function placeAfter(key, at, { state, ui }) {
  const forwards = getComputedStyle(ui.text).direction === "rtl" ? -1 : 1;
  const places = { ArrowLeft: at - forwards, ArrowRight: at + forwards, Home: 0, End: state.elements.length - 1, Enter: at, " ": at };
  return places[key] ?? null;
}

// --- The view ---------------------------------------------------------------------------------------------

function parts() {
  const [list, heading, said, words] = [make("ol"), make("h3"), make("div"), make("p", "readout")];
  const text = withRole(make("div", "text"), "listbox");
  text.setAttribute("aria-label", "The text, token by token");
  text.dir = "auto";
  const [about, most] = [make("p", "faint caption"), make("div", "lists most")];
  const [orders, modes, head] = [make("div", "orders"), make("div", "controls"), make("div")];
  const main = filled("div", "reading", heading, said, modes, words, text, about, most);
  const side = filled("div", "ranking documents", orders, head, list);
  return { list, heading, said, words, text, about, most, orders, modes, head, main, side, legend: legendOf() };
}

function chooseReading(view, r) {
  const { readings, state, ui } = view;
  const reading = readings[r];
  Object.assign(state, { r, order: "given", mode: modesOf(reading)[0], head: null });
  const first = () => {
    const d = fillList(view);
    if (d !== undefined) choose(view, d);
  };
  const orders = ordersOf(reading).map(([name, title]) => [name, title]);
  const picker = segmented("Order of the texts", orders, "given", (order) => {
    state.order = order;
    first();
  });
  picker.hidden = orders.length < 2 || reading.documents.length < 2;
  ui.orders.replaceChildren(picker);
  ui.head.replaceChildren(listHead(reading));
  ui.modes.replaceChildren(...modeControls(view), ui.legend.row);
  const labelled = reading.by_token && reading.classes !== null && reading.documents.some(({ wrong }) => wrong !== null);
  ui.about.replaceChildren(...(labelled ? labelLegend(reading.classes) : []));
  first();
}

function render({ model, el }) {
  el.classList.add("headlens", "probe");
  const readings = model.get("readings") ?? [];
  el.hidden = readings.length === 0;
  if (el.hidden) return undefined;
  const { notice, report } = failure("This text could not be read");
  const state = { r: 0, order: "given", mode: "contribution", head: null, focus: null, request: 0, now: null, elements: [] };
  const view = { model, readings, report, state, ui: parts() };
  listenToText(view);
  chosenFromList(view.ui.list, (button) => choose(view, Number(button.dataset.document)));
  const picker = chooser("Probe ", readings.map(({ name }) => name), 0, (r) => chooseReading(view, r));
  const only = readings.length === 1 ? [make("p", "meaning", `${readings[0].name}.`)] : [];
  el.replaceChildren(make("h2", "", "What it says of texts"), picker, ...only, filled("div", "reading-body", view.ui.side, view.ui.main), notice);
  chooseReading(view, 0);
  return undefined;
}

export default { render };
