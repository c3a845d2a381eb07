// What several views draw in the same way: elements, numbers, controls, intervals, tables, tokens, the matrix.
//
// A view takes what it needs with one line, `import { make, shown } from "./common.js";`. A page holds this file once,
// inlined (see page.py); any other host serves it beside the views. It imports nothing and holds no state, so that
// views cannot disturb each other.

// --- Elements ---------------------------------------------------------------------------------------------

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** An element with children; text among them stays text. */
export function filled(tag, className, ...children) {
  const element = make(tag, className);
  element.append(...children);
  return element;
}

/** An element of a drawing (SVG), with its attributes. */
export function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A drawn element that says something when it is pointed at. */
export const titled = (element, title) => {
  element.append(drawn("title", {}, title));
  return element;
};

/** The style sheet lays some elements out in ways that would take their meaning from a screen reader. */
export function withRole(element, role) {
  element.setAttribute("role", role);
  return element;
}

/** A place for what went wrong, out of sight until `report` is called with an error. */
export function failure(sentence) {
  const notice = Object.assign(make("p", "notice"), { hidden: true });
  const report = ({ message }) => Object.assign(notice, { textContent: `${sentence}: ${message}`, hidden: false });
  return { notice, report };
}

// --- Numbers ----------------------------------------------------------------------------------------------

// A true minus sign is as wide as a digit, so columns of numbers align.
export const minus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212"));

const NONE = "\u2013"; // what cannot be told, such as the AUROC of one class

export const shown = (number, digits = 3, absent = NONE) => (number === null ? absent : minus(number.toFixed(digits)));

/** Three digits that matter: what has a scale of its own in every model. */
export const threeDigits = (number) => (number === null ? NONE : minus(String(Number(number.toPrecision(3)))));

/** A number among others of which the largest is `extent`: as many decimals as give that one three digits. */
export const aligned = (number, extent) =>
  shown(number, Math.min(12, Math.max(0, 2 - Math.floor(Math.log10(extent || 1)))));

export const numbered = (text) => make("b", "number", text);

/** The words, in a frame of their own, so that a class named "is" cannot be read as part of the sentence. */
export const quoted = (name) => make("span", "quoted", name === "" ? "empty" : name);

// --- Controls ---------------------------------------------------------------------------------------------

/** Radio buttons drawn as one control: arrow keys and labels come with the browser. Options are [value, text]. */
export function segmented(legend, options, chosen, onChoose) {
  const picker = filled("fieldset", "segmented", make("legend", "hidden", legend));
  const group = `group-${Math.random()}`; // two views in one notebook must not share a radio group
  for (const [value, text] of options) {
    const input = make("input");
    Object.assign(input, { type: "radio", name: group, value, checked: value === chosen });
    input.addEventListener("change", () => onChoose(value));
    picker.append(filled("label", "", input, make("span", "", text)));
  }
  picker.choose = (value) => {
    for (const input of picker.querySelectorAll("input")) input.checked = input.value === value;
  };
  return picker;
}

/** A select with a name; nothing to see where there is nothing to choose. */
export function chooser(name, options, chosen, onChoose) {
  const select = make("select");
  options.forEach((text, i) => select.append(Object.assign(make("option", "", text), { value: String(i) })));
  select.value = String(chosen);
  select.addEventListener("change", () => onChoose(Number(select.value)));
  const label = filled("label", "text-picker", make("span", "faint", name), select);
  label.hidden = options.length < 2;
  return label;
}

/** A list of buttons, one an item, of which one is chosen by a click; up and down go from one to the next. */
export function chosenFromList(list, choose) {
  list.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (button) choose(button);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
    const next = step && event.target.closest?.("li")?.[step]?.querySelector("button");
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  });
}

// --- Scores -----------------------------------------------------------------------------------------------

export const LEVELS = ["low", "medium", "high"];

/** From the least to the largest number; the ends are 0 or a power of two (1, 1/2, 1/4 ...). It reaches as far as
    `least`, and what is little beside that is no end of its own: noise has no strong colours. */
export function scaleOf(numbers, least = 0) {
  const beyond = (largest) => (largest > 0 ? 2 ** Math.ceil(Math.log2(largest)) : 0);
  const below = numbers.reduce((most, x) => Math.max(most, -x), 0);
  const start = -beyond(below > least / 16 ? below : 0);
  const end = beyond(numbers.reduce((most, x) => Math.max(most, x), Math.max(least, start < 0 ? 0 : 1e-3)));
  return { start, end, fraction: (x) => Math.min(1, Math.max(0, (x - start) / (end - start))) };
}

/** The interval as a bar, the score as a dot, what it compares with as ticks: each only where it is not null. */
export function intervalBar({ low, high, score, null: control }, { fraction }, ticks = [{ value: control }]) {
  const bar = make("span", "interval");
  const percent = (x) => `${100 * fraction(x)}%`;
  if (low !== null && high !== null) {
    const whisker = make("span", "whisker");
    whisker.style.left = percent(low);
    whisker.style.right = `${100 - 100 * fraction(high)}%`;
    bar.append(whisker);
  }
  const place = (name, { value, title }) => {
    if (value === null) return;
    const mark = make("span", name);
    mark.style.left = percent(value);
    if (title) mark.title = title;
    bar.append(mark);
  };
  for (const tick of ticks) place("null", tick);
  place("dot", { value: score });
  return bar;
}

/** A bar between the ends of its scale. */
export function scaled(bar, start, end) {
  const text = (x) => make("span", "end faint number", minus(String(x)));
  return filled("span", "scaled", text(start), bar, text(end));
}

/** A table of rows of cells, with its roles; columns are [class, title]. `rowClass` names the class of the i-th row. */
export function tableOf(className, columns, rows, rowClass = () => "") {
  const line = (name, role, contents) => {
    const cells = contents.map((content, i) => {
      const cell = withRole(filled("td", columns[i][0], content), role);
      cell.dataset.column = columns[i][1].toLowerCase();
      return cell;
    });
    return withRole(filled("tr", name, ...cells), "row");
  };
  const head = filled("thead", "", line("", "columnheader", columns.map(([, title]) => title)));
  const body = filled("tbody", "", ...rows.map((contents, i) => line(rowClass(i), "cell", contents)));
  return withRole(filled("table", className, withRole(head, "rowgroup"), withRole(body, "rowgroup")), "table");
}

// --- Packed numbers ---------------------------------------------------------------------------------------

/** The bytes of what was compressed into text, as an ArrayBuffer. */
export async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Where the entry of a query and a key stands, among those with key <= query, row by row. */
export const below = (query, key) => (query * (query + 1)) / 2 + key;

/** Patterns by model, head and text as bytes, inflated once. A host that fetches may return a promise from `get`. */
export function patternLoader(model) {
  const cache = new Map();
  const load = async (m, text, { layer, head }) => {
    const packed = (await model.get(`packed_${m}_${text}`))[layer]?.[head];
    if (packed === undefined) throw new Error("the patterns hold no such head.");
    return new Uint8Array(await inflate(packed));
  };
  return (m, text, at) => {
    const key = [m, text, at.layer, at.head].join();
    if (!cache.has(key)) cache.set(key, load(m, text, at));
    return cache.get(key);
  };
}

/** The strongest link that is neither a self link nor a sink: a place worth showing first. Else `key` of the last. */
export function strongestLink(size, weightOf, key = 0) {
  let best = { query: size - 1, key, weight: -1 };
  for (let query = 2; query < size; query++) {
    for (let key = 1; key < query; key++) {
      const weight = weightOf(query, key);
      if (weight !== null && weight > best.weight) best = { query, key, weight };
    }
  }
  return { query: best.query, key: best.key };
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
export function runsOf(token) {
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
export function nodesOf(runs) {
  const nodes = [];
  for (const { text, mark } of runs) {
    const last = nodes.at(-1);
    if (mark) nodes.push(make("span", text.length > 1 ? "mark boxed" : "mark", text));
    else if (last?.nodeType === Node.TEXT_NODE) last.data += text;
    else nodes.push(document.createTextNode(text));
  }
  return nodes;
}

/** A token in a frame of its own, where there is no context: spaces show as a mark too. */
export function labelOf(token, className = "quoted") {
  const runs = runsOf(token).map((run) => (/^\s$/u.test(run.text) ? { text: "\u2423", mark: true } : run));
  return filled("span", className, ...nodesOf(runs));
}

export const plainText = (text) => runsOf(text).map((run) => run.text).join("").trim();

// --- The text ---------------------------------------------------------------------------------------------

export function tokenElements(tokens) {
  return tokens.map((token, i) => {
    const element = withRole(filled("span", "token", ...nodesOf(runsOf(token))), "option");
    element.tabIndex = -1;
    element.dataset.position = i;
    return element;
  });
}

/** The elements of a text in reading order; a newline shows as its mark and then breaks the line. */
export function laidOut(elements, tokens) {
  return elements.flatMap((element, i) => (tokens[i].includes("\n") ? [element, document.createElement("br")] : [element]));
}

/** The position of the token that an event is about, or null. */
export function positionOf(event) {
  const token = event.target.closest?.(".token");
  return token ? Number(token.dataset.position) : null;
}

/** Colour each token by what a query gives it, from 0 to 1; null is out of its sight. */
export function colourText(elements, weights) {
  elements.forEach((element, i) => {
    element.classList.toggle("heat", weights[i] !== null);
    element.classList.toggle("beyond", weights[i] === null);
    element.style.setProperty("--heat", weights[i] ?? 0);
  });
}

// --- The matrix -------------------------------------------------------------------------------------------

const LABEL_ROOM = 96; // CSS pixels right of the diagonal, where the last labels stand, unless limits say `labels`

/** The style sheet's ramp as RGBA by step, from 0 to 255: read back, so that there is one ramp. */
export function readRamp(el, className = "heat") {
  const probe = make("span", className);
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
  const { data } = context.getImageData(0, 0, 256, 1);
  return (step) => data.subarray(4 * step, 4 * step + 4);
}

/** One pixel per entry; what lies above the diagonal, or has no colour, stays transparent. */
export function imageOf(size, colourOf) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [size, size];
  const image = new ImageData(size, size);
  for (let query = 0; query < size; query++) {
    for (let key = 0; key <= query; key++) {
      const colour = colourOf(query, key);
      if (colour) image.data.set(colour, 4 * (query * size + key));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Cells are whole device pixels where they fit, so that none is wider than its neighbour. */
function layout(size, room, { largest, largestCell, labels = LABEL_ROOM }) {
  const ratio = window.devicePixelRatio || 1;
  const wanted = Math.min(largest, Math.max(120, room - labels), size * largestCell);
  const whole = Math.floor((wanted * ratio) / size);
  const pixels = whole >= 1 ? whole * size : Math.round(wanted * ratio);
  return { size, pixels, side: pixels / ratio, cell: pixels / ratio / size, crisp: whole >= 1 };
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

/** Queries down, keys across: what an entry holds as a colour, each token's name on the diagonal, a place to mark.
    It takes at most `largest` CSS pixels, and a cell of it at most `largestCell`. */
export function matrixOf(limits) {
  const [pattern, overlay] = [withRole(make("canvas", "pattern"), "img"), make("canvas", "overlay")];
  const labels = make("div", "labels");
  labels.setAttribute("aria-hidden", "true");
  const frame = filled("div", "matrix", pattern, overlay, labels);
  let shape = null;

  /** Draw `colourOf(query, key)`, RGBA or null, in as much room as there is; `label` says it in words. */
  const draw = (tokens, colourOf, room, label) => {
    shape = layout(tokens.length, room, limits);
    resize(pattern, shape);
    resize(overlay, shape);
    pattern.setAttribute("aria-label", label);
    const context = pattern.getContext("2d");
    context.imageSmoothingEnabled = !shape.crisp;
    context.imageSmoothingQuality = "high";
    context.drawImage(imageOf(shape.size, colourOf), 0, 0, shape.pixels, shape.pixels);
    labels.replaceChildren(...diagonalLabels(tokens, shape.cell));
    frame.style.width = `${shape.side + (limits.labels ?? LABEL_ROOM)}px`;
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
  return { frame, overlay, draw, mark, under };
}

/** Redraw when room, zoom or theme change; returns what undoes it. */
export function keepSharp(el, redraw) {
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
