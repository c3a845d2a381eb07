// Where does this head look? Its attention over example texts: as coloured text, and as a matrix.
//
// Reads `selected` ({model, layer, head}), `heads`, `kinds`, `scores`, `patterns` and, for the head on
// screen only, `packed_M_T`: base64 of zlib of 255 * A[q, k] for k <= q, row by row.
// Imports nothing: this one file is the report's view, the notebook widget and the web app's panel. That
// is also why it is longer than our other files.

const LARGEST = 560; // CSS pixels that the matrix may take
const LARGEST_CELL = 26;
const LABEL_ROOM = 96; // right of the diagonal, where the last labels stand

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// --- Data -------------------------------------------------------------------------------------------------

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Patterns by head and text, inflated once. A host that fetches may return a promise from `get`. */
function patternLoader(model) {
  const cache = new Map();
  const load = async (m, text, { layer, head }) => {
    const packed = (await model.get(`packed_${m}_${text}`))[layer]?.[head];
    if (packed === undefined) throw new Error("the patterns hold no such head.");
    return inflate(packed);
  };
  return (m, text, at) => {
    const key = [m, text, at.layer, at.head].join();
    if (!cache.has(key)) cache.set(key, load(m, text, at));
    return cache.get(key);
  };
}

/** A[q, k]; null above the diagonal, where a causal head cannot look. */
const weightOf = (bytes, query, key) => (key <= query ? bytes[(query * (query + 1)) / 2 + key] / 255 : null);

/** The strongest link that is neither a self link nor a sink: a place worth showing first. */
function strongestLink(bytes, tokens) {
  let best = { query: tokens.length - 1, key: 0, weight: -1 };
  for (let query = 2; query < tokens.length; query++) {
    for (let key = 1; key < query; key++) {
      const weight = bytes[(query * (query + 1)) / 2 + key];
      if (weight > best.weight) best = { query, key, weight };
    }
  }
  return best;
}

// --- Tokens as visible text -------------------------------------------------------------------------------

// Characters that show nothing or reorder what follows: a reader must see that they are there.
const HIDDEN = /[\p{Cc}\p{Zl}\p{Zp}\p{Cf}\p{Cs}\u034F\u115F\u1160\u17B4\u17B5\u3164\uFFA0\u{E0100}-\u{E01EF}]/u;
const JOINER = /[\u200C\u200D]/; // shapes emoji, Indic and Persian text: legitimate between visible characters
const MARKS = { "\n": "\u23CE", "\t": "\u21E5", "\u007F": "\u2421", "\u200B": "ZWSP", "\u00AD": "SHY" };

function markFor(character) {
  const code = character.codePointAt(0);
  if (MARKS[character]) return MARKS[character];
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code >= 0xd800 && code <= 0xdfff) return "\uFFFD";
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A token as runs of {text, mark}: marks stand for characters that would not be seen. */
function runsOf(token) {
  if (token === "") return [{ text: "empty", mark: true }];
  const characters = [...token];
  const seen = characters.some((c) => !HIDDEN.test(c));
  const runs = characters.map((character) => {
    const mark = HIDDEN.test(character) && !(seen && JOINER.test(character));
    return { text: mark ? markFor(character) : character, mark };
  });
  // A combining mark has nothing to combine with at the start of a token, and would sit on the one before.
  if (/^\p{M}/u.test(token)) runs.unshift({ text: "\u25CC", mark: true });
  return runs;
}

/** The runs as nodes; neighbours are joined, so that combined characters stay combined. */
function nodesOf(runs) {
  const nodes = [];
  for (const { text, mark } of runs) {
    const last = nodes.at(-1);
    if (mark) nodes.push(make("span", text.length > 1 ? "mark boxed" : "mark", text));
    else if (last?.nodeType === Node.TEXT_NODE) last.data += text;
    else nodes.push(document.createTextNode(text));
  }
  return nodes;
}

/** A short label for a place without context: spaces show as a mark too. */
function labelOf(token, className) {
  const label = make("span", className);
  label.append(
    ...nodesOf(runsOf(token).map((run) => (/^\s$/u.test(run.text) ? { text: "\u2423", mark: true } : run))),
  );
  return label;
}

// --- The text ---------------------------------------------------------------------------------------------

function tokenElements(tokens) {
  return tokens.map((token, i) => {
    const element = make("span", "token");
    element.setAttribute("role", "option");
    element.tabIndex = -1;
    element.dataset.position = i;
    element.append(...nodesOf(runsOf(token)));
    return element;
  });
}

/** The elements of a text in reading order; a newline shows as its mark and then breaks the line. */
function laidOut(elements, tokens) {
  return elements.flatMap((element, i) =>
    tokens[i].includes("\n") ? [element, document.createElement("br")] : [element],
  );
}

function colourText(elements, weights) {
  elements.forEach((element, i) => {
    element.classList.toggle("heat", weights[i] !== null);
    element.classList.toggle("beyond", weights[i] === null);
    element.style.setProperty("--heat", weights[i] ?? 0);
  });
}

function markText(elements, { query, key, pinned }) {
  elements.forEach((element, i) => {
    element.classList.toggle("is-query", i === query);
    element.classList.toggle("is-key", i === key);
    element.setAttribute("aria-selected", String(i === pinned));
  });
}

// --- The matrix -------------------------------------------------------------------------------------------

/** The colours of the style sheet's ramp as 256 RGB triples: read back, so that there is one ramp. */
function readRamp(el) {
  const probe = make("span", "heat");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [256, 1];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  el.append(probe);
  for (let i = 0; i < 256; i++) {
    probe.style.setProperty("--heat", i / 255);
    context.fillStyle = getComputedStyle(probe).backgroundColor;
    context.fillRect(i, 0, 1, 1);
  }
  probe.remove();
  return context.getImageData(0, 0, 256, 1).data;
}

/** One pixel per entry; what lies above the diagonal stays transparent. */
function patternImage(bytes, size, ramp) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [size, size];
  const image = new ImageData(size, size);
  for (let query = 0, entry = 0; query < size; query++) {
    for (let key = 0; key <= query; key++, entry++) {
      const from = 4 * bytes[entry];
      image.data.set(ramp.subarray(from, from + 4), 4 * (query * size + key));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Cells are whole device pixels where they fit, so that none is wider than its neighbour. */
function layout(size, room) {
  const ratio = window.devicePixelRatio || 1;
  const wanted = Math.min(LARGEST, Math.max(120, room - LABEL_ROOM), size * LARGEST_CELL);
  const whole = Math.floor((wanted * ratio) / size);
  const pixels = whole >= 1 ? whole * size : Math.round(wanted * ratio);
  return { pixels, side: pixels / ratio, cell: pixels / ratio / size, crisp: whole >= 1 };
}

function resize(canvas, { pixels, side }) {
  canvas.width = canvas.height = pixels;
  canvas.style.width = canvas.style.height = `${side}px`;
}

/** Labels right of the diagonal name a row and a column at once; small cells get positions instead. */
function diagonalLabels(tokens, cell) {
  const step = cell >= 11 ? 1 : [8, 16, 32, 64, 128].find((s) => s * cell >= 40) ?? 256;
  return tokens.flatMap((token, i) => {
    if (i % step !== 0) return [];
    const label = step === 1 ? labelOf(token, "diagonal") : make("span", "diagonal position", String(i));
    label.dataset.position = i;
    label.style.left = `${(i + 1) * cell + 4}px`;
    label.style.top = `${(i + 0.5) * cell}px`;
    return [label];
  });
}

function matrixOf(el) {
  const frame = make("div", "matrix");
  const [pattern, overlay] = [make("canvas", "pattern"), make("canvas", "overlay")];
  const labels = make("div", "labels");
  pattern.setAttribute("role", "img");
  labels.setAttribute("aria-hidden", "true");
  frame.append(pattern, overlay, labels);
  el.append(frame);
  let shape = null;

  const draw = (bytes, tokens, room, label) => {
    shape = { size: tokens.length, ...layout(tokens.length, room) };
    resize(pattern, shape);
    resize(overlay, shape);
    pattern.setAttribute("aria-label", label);
    const context = pattern.getContext("2d");
    context.imageSmoothingEnabled = !shape.crisp;
    context.imageSmoothingQuality = "high";
    context.drawImage(patternImage(bytes, shape.size, readRamp(el)), 0, 0, shape.pixels, shape.pixels);
    labels.replaceChildren(...diagonalLabels(tokens, shape.cell));
    frame.style.width = `${shape.side + LABEL_ROOM}px`;
    frame.style.height = `${shape.side}px`;
  };
  const mark = (at) => {
    if (shape) crosshair(overlay, shape, at);
    for (const label of labels.children) {
      const position = Number(label.dataset.position);
      label.classList.toggle("marked", position === at.query || position === at.key);
    }
  };
  /** The (query, key) under the pointer, or null above the diagonal and outside. */
  const under = (event) => {
    if (!shape) return null;
    const box = overlay.getBoundingClientRect();
    const key = Math.floor((event.clientX - box.left) / shape.cell);
    const query = Math.floor((event.clientY - box.top) / shape.cell);
    return key >= 0 && key <= query && query < shape.size ? { query, key } : null;
  };
  return { overlay, draw, mark, under };
}

/** A row for the query, a column for the key, a frame where they meet: only what is given. */
function crosshair(canvas, { pixels, size }, { query = null, key = null }) {
  const context = canvas.getContext("2d");
  const cell = pixels / size;
  const line = Math.max(2, Math.round(1.5 * (window.devicePixelRatio || 1)));
  context.clearRect(0, 0, pixels, pixels);
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = line;
  // Drawn inwards, so that no line is cut at the edge; a cell thinner than its frame is a line.
  const box = (x, y, width, height) =>
    context.strokeRect(x + line / 2, y + line / 2, Math.max(width - line, 1), Math.max(height - line, 1));
  context.globalAlpha = query !== null && key !== null ? 0.55 : 1;
  if (query !== null) box(0, query * cell, (query + 1) * cell, cell);
  if (key !== null) box(key * cell, key * cell, cell, (size - key) * cell);
  context.globalAlpha = 1;
  if (query !== null && key !== null) box(key * cell, query * cell, cell, cell);
}

// --- Words about it ---------------------------------------------------------------------------------------

const named = (tokens, i) => {
  const name = labelOf(tokens[i], "quoted");
  name.title = `position ${i}`;
  return name;
};

function pairSentence(tokens, bytes, { query, key }) {
  const weight = weightOf(bytes, query, key);
  return [named(tokens, query), ` (${query}) → `, named(tokens, key), ` (${key}): `, make("b", "number", weight.toFixed(2))];
}

/** The three largest of a row or column, largest first. */
function summarySentence(tokens, weights, focus, mode) {
  const largest = weights
    .map((weight, i) => ({ weight, i }))
    .filter(({ weight }) => weight !== null && weight >= 0.005)
    .sort((a, b) => b.weight - a.weight)
    .slice(0, 3);
  const verb = mode === "query" ? " looks at " : " is looked at by ";
  const parts = largest.flatMap(({ weight, i }, n) => [
    n === 0 ? "" : ", ",
    named(tokens, i),
    ` (${i}) `,
    make("b", "number", weight.toFixed(2)),
  ]);
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
    const chip = make("li", above ? "above" : "", `${name ?? kind} `);
    chip.append(make("b", "number", scores.score[i].toFixed(2).replace("-", "\u2212")));
    chips.append(chip);
  }
  if (chips.children.length > 0) chips.append(make("li", "note", "Shaded: the 95 % interval lies above the null."));
  return chips;
}

// --- Controls ---------------------------------------------------------------------------------------------

function modePicker(onChoose) {
  const picker = make("fieldset", "segmented");
  picker.append(make("legend", "hidden", "What a token under the pointer shows"));
  const group = `mode-${Math.random()}`;
  for (const [mode, text] of [["query", "Where it looks"], ["key", "Who looks at it"]]) {
    const label = make("label");
    const input = make("input");
    Object.assign(input, { type: "radio", name: group, value: mode, checked: mode === "query" });
    input.addEventListener("change", () => onChoose(mode));
    label.append(input, make("span", "", text));
    picker.append(label);
  }
  return picker;
}

function textPicker(onChoose) {
  const label = make("label", "text-picker");
  const select = make("select");
  select.addEventListener("change", () => onChoose(Number(select.value)));
  label.append(make("span", "faint", "Text "), select);
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
  const heading = make("h2");
  const about = make("div", "about");
  const controls = make("div", "controls");
  const picker = textPicker(onText);
  controls.append(picker.label, modePicker(onMode));
  const readout = make("p", "readout");
  readout.setAttribute("aria-live", "polite");
  const text = make("div", "text");
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "Tokens of the text");
  const side = make("div", "side");
  const body = make("div", "attention-body");
  body.append(text, side);
  const notice = make("p", "notice");
  const matrix = matrixOf(side);
  side.append(make("p", "faint caption", "Rows are queries, columns are keys; each label names its row and its column."));
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
    if (state.pinned === null) state.focus = strongestLink(state.bytes, state.tokens)[state.mode];
    state.elements.forEach((element, i) => (element.tabIndex = i === state.focus ? 0 : -1));
    rest();
  };
  return { state, paint, rest, pin, showText, settle };
}

function listenToText(text, { state, paint, rest, pin }) {
  const position = (event) => {
    const token = event.target.closest?.(".token");
    return token ? Number(token.dataset.position) : null;
  };
  text.addEventListener("pointerover", (event) => position(event) !== null && paint(position(event)));
  text.addEventListener("pointerleave", rest);
  text.addEventListener("focusin", (event) => position(event) !== null && paint(position(event)));
  text.addEventListener("click", (event) => position(event) !== null && pin(position(event)));
  text.addEventListener("keydown", (event) => {
    const at = position(event);
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
    parts.matrix.draw(bytes, tokens, parts.side.clientWidth, label);
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

/** Redraw when room, zoom or theme change; returns what undoes it. */
function keepSharp(el, redraw) {
  let width = el.clientWidth;
  const observer = new ResizeObserver(() => {
    if (el.clientWidth === width) return; // its height changes with every drawing
    width = el.clientWidth;
    redraw();
  });
  observer.observe(el);
  const theme = window.matchMedia("(prefers-color-scheme: dark)");
  theme.addEventListener("change", redraw);
  return () => {
    observer.disconnect();
    theme.removeEventListener("change", redraw);
  };
}

export default { render };
