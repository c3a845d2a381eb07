// Where does this head look? Its attention over example texts: as coloured text, and as a matrix.
//
// Reads `selected` ({model, layer, head}), `heads`, `kinds`, `scores`, `patterns` and, for the head on
// screen only, `packed_M_T`: base64 of zlib of 255 * A[q, k] for k <= q, row by row.

import {
  below, colourText, filled, keepSharp, labelOf, laidOut, make, matrixOf, minus, numbered, patternLoader, positionOf,
  readRamp, runsOf, segmented, strongestLink, tokenElements, withRole,
} from "./common.js";

const LIMITS = { largest: 560, largestCell: 26 }; // of the matrix

// --- Data -------------------------------------------------------------------------------------------------

/** A[q, k]; null above the diagonal, where a causal head cannot look. */
const weightOf = (bytes, query, key) => (key <= query ? bytes[below(query, key)] / 255 : null);

const strongest = (bytes, size) => strongestLink(size, (query, key) => weightOf(bytes, query, key));

function markText(elements, { query, key, pinned }) {
  elements.forEach((element, i) => {
    element.classList.toggle("is-query", i === query);
    element.classList.toggle("is-key", i === key);
    element.setAttribute("aria-selected", String(i === pinned));
  });
}

// --- Words about it ---------------------------------------------------------------------------------------

const named = (tokens, i) => Object.assign(labelOf(tokens[i]), { title: `position ${i}` });

function pairSentence(tokens, bytes, { query, key }) {
  const weight = weightOf(bytes, query, key);
  return [named(tokens, query), ` (${query}) → `, named(tokens, key), ` (${key}): `, numbered(weight.toFixed(2))];
}

/** The three largest of a row or column, largest first. */
function summarySentence(tokens, weights, focus, mode) {
  const largest = weights
    .map((weight, i) => ({ weight, i }))
    .filter(({ weight }) => weight !== null && weight >= 0.005)
    .sort((a, b) => b.weight - a.weight)
    .slice(0, 3);
  const verb = mode === "query" ? " looks at " : " is looked at by ";
  const parts = largest.flatMap(({ weight, i }, n) => [n === 0 ? "" : ", ", named(tokens, i), ` (${i}) `, numbered(weight.toFixed(2))]);
  return [named(tokens, focus), ` (${focus})`, verb, ...(parts.length > 0 ? parts : ["nothing much"])];
}

/** The head's score of every kind; those whose interval clears their null stand out. Levels say more: see head.js. */
function scoreChips(model, selected) {
  const scores = model.get("scores");
  if (scores.level) return "";
  const m = model.get("heads").findIndex((entry) => entry.model === selected.model);
  const chips = make("ul", "chips");
  const ofHead = (i) => scores.model[i] === m && scores.layer[i] === selected.layer && scores.head[i] === selected.head;
  const rows = [...scores.score.keys()].filter((i) => ofHead(i) && scores.score[i] !== null);
  for (const i of rows.sort((a, b) => scores.kind[a] - scores.kind[b])) {
    const { kind, name } = model.get("kinds")[scores.kind[i]];
    const above = scores.low[i] !== null && scores.null[i] !== null && scores.low[i] > scores.null[i];
    chips.append(filled("li", above ? "above" : "", `${name ?? kind} `, numbered(minus(scores.score[i].toFixed(2)))));
  }
  if (chips.children.length > 0) chips.append(make("li", "note", "Shaded: the 95 % interval lies above the null."));
  return chips;
}

// --- Controls ---------------------------------------------------------------------------------------------

const WAYS = [["query", "Where it looks"], ["key", "Who looks at it"]];

function textPicker(onChoose) {
  const select = make("select");
  select.addEventListener("change", () => onChoose(Number(select.value)));
  const label = filled("label", "text-picker", make("span", "faint", "Text "), select);
  const fill = (texts, chosen) => {
    const options = texts.map((tokens, i) => make("option", "", `${i + 1} · ${preview(tokens)} (${tokens.length} tokens)`));
    options.forEach((option, i) => Object.assign(option, { value: String(i), selected: i === chosen }));
    select.replaceChildren(...options);
  };
  return { label, fill };
}

function preview(tokens) {
  const text = tokens.slice(0, 24).flatMap(runsOf).map((run) => run.text).join("").trim();
  const characters = [...text];
  return characters.length > 36 ? `${characters.slice(0, 36).join("")}…` : text;
}

// --- The view ---------------------------------------------------------------------------------------------

function skeleton(el, { onText, onMode }) {
  const [heading, about, notice] = [make("h2"), make("div", "about"), make("p", "notice")];
  const picker = textPicker(onText);
  const controls = filled("div", "controls", picker.label, segmented("What a token under the pointer shows", WAYS, "query", onMode));
  const readout = make("p", "readout");
  readout.setAttribute("aria-live", "polite");
  const text = withRole(make("div", "text"), "listbox");
  text.setAttribute("aria-label", "Tokens of the text");
  const matrix = matrixOf(LIMITS);
  const caption = "Rows are queries, columns are keys; each label names its row and its column.";
  const side = filled("div", "side", matrix.frame, make("p", "faint caption", caption));
  const body = filled("div", "attention-body", text, side);
  el.replaceChildren(heading, about, notice, controls, readout, body);
  const reveal = (message) => {
    notice.textContent = message;
    notice.hidden = message === "";
    for (const part of [controls, readout, body]) part.hidden = message !== "";
  };
  return { heading, about, picker, readout, text, side, matrix, reveal };
}

/** What is on screen, and how pointing at it changes it. */
function display(parts) {
  const state = { tokens: [], bytes: null, elements: [], mode: "query", focus: 0, pinned: null, request: 0 };

  const paint = (focus, link = null) => {
    const { tokens, bytes, elements, mode } = state;
    const along = (i) => (mode === "query" ? weightOf(bytes, focus, i) : weightOf(bytes, i, focus));
    const weights = tokens.map((_, i) => along(i));
    const at = link ?? { [mode]: focus };
    colourText(elements, weights);
    markText(elements, { ...at, pinned: state.pinned });
    parts.matrix.mark(at);
    parts.readout.replaceChildren(
      ...(link ? pairSentence(tokens, bytes, link) : summarySentence(tokens, weights, focus, mode)),
    );
  };
  const rest = () => paint(state.focus);
  const pin = (position) => {
    state.pinned = state.pinned === position ? null : position;
    state.focus = position;
    for (const element of state.elements) element.tabIndex = -1;
    state.elements[position].tabIndex = 0;
    rest();
  };
  const showText = (tokens) => {
    if (tokens === state.tokens) return;
    Object.assign(state, { tokens, pinned: null, elements: tokenElements(tokens) });
    parts.text.replaceChildren(...laidOut(state.elements, tokens));
    parts.text.scrollTop = 0;
  };
  /** Show what is pinned, or else a place of this head that is worth a look. */
  const settle = () => {
    if (!state.bytes) return;
    if (state.pinned === null) state.focus = strongest(state.bytes, state.tokens.length)[state.mode];
    state.elements.forEach((element, i) => (element.tabIndex = i === state.focus ? 0 : -1));
    rest();
  };
  return { state, paint, rest, pin, showText, settle };
}

function listenToText(text, { state, paint, rest, pin }) {
  text.addEventListener("pointerover", (event) => positionOf(event) !== null && paint(positionOf(event)));
  text.addEventListener("pointerleave", rest);
  text.addEventListener("focusin", (event) => positionOf(event) !== null && paint(positionOf(event)));
  text.addEventListener("click", (event) => positionOf(event) !== null && pin(positionOf(event)));
  text.addEventListener("keydown", (event) => {
    const at = positionOf(event);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (at === null || (!step && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    if (step) state.elements[at + step]?.focus();
    else pin(at);
  });
}

function listenToMatrix(matrix, { state, paint, rest, pin }) {
  matrix.overlay.addEventListener("pointermove", (event) => {
    const link = matrix.under(event);
    if (link) paint(link[state.mode], link);
    else rest();
  });
  matrix.overlay.addEventListener("pointerleave", rest);
  matrix.overlay.addEventListener("click", (event) => {
    const link = matrix.under(event);
    if (link) pin(link[state.mode]);
  });
}

function render({ model, el }) {
  el.classList.add("headlens", "attention");
  const load = patternLoader(model);
  let text = 0;
  const parts = skeleton(el, {
    onText: (chosen) => {
      text = chosen;
      attempt();
    },
    onMode: (mode) => {
      shown.state.mode = mode;
      shown.settle();
    },
  });
  const shown = display(parts);
  listenToText(parts.text, shown);
  listenToMatrix(parts.matrix, shown);

  const drawMatrix = () => {
    const { bytes, tokens } = shown.state;
    if (!bytes || parts.side.clientWidth === 0) return;
    const label = `Attention of ${tokens.length} queries (rows) to their keys (columns)`;
    const ramp = readRamp(parts.side);
    parts.matrix.draw(tokens, (query, key) => ramp(bytes[below(query, key)]), parts.side.clientWidth, label);
  };
  const redraw = () => {
    drawMatrix();
    if (shown.state.bytes) shown.rest();
  };

  const update = async () => {
    const selected = model.get("selected");
    const request = ++shown.state.request;
    parts.heading.textContent = selected ? `Where layer ${selected.layer}, head ${selected.head}` : "Attention";
    parts.heading.append(selected ? make("span", "faint", ` of ${selected.model}`) : "", selected ? " looks" : "");
    parts.about.replaceChildren(selected ? scoreChips(model, selected) : "");
    const m = model.get("heads").findIndex((entry) => entry.model === selected?.model);
    const texts = model.get("patterns")[m]?.texts;
    if (!selected || !texts) return parts.reveal(absence(selected));
    text = Math.min(text, texts.length - 1);
    const bytes = await load(m, text, selected);
    if (request !== shown.state.request) return; // another head was chosen while this one inflated
    parts.reveal("");
    parts.picker.fill(texts, text);
    shown.showText(texts[text]);
    shown.state.bytes = bytes;
    drawMatrix();
    shown.settle();
  };
  const attempt = () => update().catch((error) => parts.reveal(`This pattern could not be read: ${error.message}`));

  model.on("change:selected", attempt);
  attempt();
  return keepSharp(parts.side, redraw);
}

function absence(selected) {
  if (!selected) return "Choose a head above to see where it looks.";
  return `There are no attention patterns of ${selected.model} in this report: pass its AttentionPatterns to see where this head looks.`;
}

export default { render };
