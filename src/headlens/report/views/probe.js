// How far can a probe be trusted, and which tokens of a text make it say what it says?
//
// Reads `evaluations` and `readings` and, for the text on screen only, `reading_R_D`: see probe_payload.py.
// Imports nothing: this one file is the report's view, the notebook widget and the web app's panel. So parts of it are
// as in head.js (the interval) and attention.js (tokens as visible text, the ramp). That is also why it is long.

const SIZE = 300; // of a diagram, in its own units
const MARGIN = { left: 40, bottom: 36, top: 8, right: 10 };

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** An element with children; text among them stays text. */
function filled(tag, className, ...children) {
  const element = make(tag, className);
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A true minus sign is as wide as a digit, so columns of numbers align.
const minus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212"));

const NONE = "\u2013"; // what cannot be told, such as the AUROC of one class

const shown = (number, digits = 3) => (number === null ? NONE : minus(number.toFixed(digits)));

/** Three digits that matter: contributions have a scale of their own in every probe. */
const threeDigits = (number) => (number === null ? NONE : minus(String(Number(number.toPrecision(3)))));

const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

/** The words, in a frame of their own, so that a class named "is" cannot be read as part of the sentence. */
const quoted = (name) => make("span", "quoted", name === "" ? "empty" : name);

// --- Controls ---------------------------------------------------------------------------------------------

function segmented(legend, options, chosen, onChoose) {
  const picker = filled("fieldset", "segmented", make("legend", "hidden", legend));
  const group = `probe-${Math.random()}`; // two views in one notebook must not share a radio group
  for (const [value, text] of options) {
    const input = make("input");
    Object.assign(input, { type: "radio", name: group, value, checked: value === chosen });
    input.addEventListener("change", () => onChoose(value));
    picker.append(filled("label", "", input, make("span", "", text)));
  }
  return picker;
}

/** A select with a name; none where there is nothing to choose. */
function chooser(name, options, onChoose) {
  const select = make("select");
  options.forEach((text, i) => select.append(Object.assign(make("option", "", text), { value: String(i) })));
  select.addEventListener("change", () => onChoose(Number(select.value)));
  const label = filled("label", "text-picker", make("span", "faint", name), select);
  label.hidden = options.length < 2;
  return label;
}

// --- How good it is ---------------------------------------------------------------------------------------

const METRICS = {
  accuracy: ["Accuracy", "Share of documents whose class is said right."],
  f1: ["F1", "Harmonic mean of precision and recall; of more than two classes the mean."],
  auroc: ["AUROC", "Chance that a document of the class scores above another; .5 is guessing."],
  ap: ["Average precision", "Mean precision over all that could be recalled."],
  tpr_at_fpr: ["TPR", "Share of the second class that is found while at most this share of the first is flagged."],
  ece: ["Calibration error", "Mean distance between the probability that is said and the share that is right; 0 is best."],
  brier: ["Brier score", "Mean squared distance of probabilities from the truth; 0 is best."],
  log_loss: ["Log loss", "Mean surprise at the truth, in nats; 0 is best."],
  fnr: ["Missed", "Share of the second class that is said to be the first, at the threshold (FNR)."],
  fpr: ["False alarms", "Share of the first class that is said to be the second, at the threshold (FPR)."],
};

const titleOf = ({ metric, at }) => {
  const [name, meaning] = METRICS[metric] ?? [metric, ""];
  const title = make("span", "title", at === null ? name : `${name} at FPR \u2264 ${percent(at)}`);
  if (meaning) title.title = meaning;
  return title;
};

/** Rates go from 0 to 1; what may be larger, to the next power of two. */
function scaleOf(rows) {
  const most = rows.reduce((top, row) => Math.max(top, row.value ?? 0, row.high ?? 0), 0);
  const end = most > 1 ? 2 ** Math.ceil(Math.log2(most)) : 1;
  return { end, fraction: (x) => Math.min(1, Math.max(0, x / end)) };
}

/** The interval as a bar and the value as a dot, from 0 to the end of the scale. */
function intervalBar(row, scale) {
  if (row.value === null) return make("span", "faint", "cannot be told");
  const bar = make("span", "interval");
  if (row.low !== null && row.high !== null) {
    const whisker = make("span", "whisker");
    whisker.style.left = `${100 * scale.fraction(row.low)}%`;
    whisker.style.right = `${100 - 100 * scale.fraction(row.high)}%`;
    bar.append(whisker);
  }
  const dot = make("span", "dot");
  dot.style.left = `${100 * scale.fraction(row.value)}%`;
  bar.append(dot);
  return filled("span", "scaled", make("span", "end faint number", "0"), bar, make("span", "end faint number", String(scale.end)));
}

const intervalInWords = ({ low, high }) => (low === null || high === null ? "" : `${shown(low)} to ${shown(high)}`);

/** The style sheet lays tables out as grids, which would take their meaning from a screen reader. */
function withRole(element, role) {
  element.setAttribute("role", role);
  return element;
}

/** A table of rows of [column, content]; columns are [class, title]. */
function tableOf(className, columns, rows) {
  const line = (role, contents) => {
    const cells = contents.map((content, i) => {
      const cell = withRole(filled("td", columns[i][0], content), role);
      cell.dataset.column = columns[i][1].toLowerCase();
      return cell;
    });
    return withRole(filled("tr", "", ...cells), "row");
  };
  const head = withRole(filled("thead", "", line("columnheader", columns.map(([, title]) => title))), "rowgroup");
  const body = withRole(filled("tbody", "", ...rows.map((contents) => line("cell", contents))), "rowgroup");
  return withRole(filled("table", `scores ${className}`, head, body), "table");
}

function metricTable(metrics) {
  const rows = metrics.filter((row) => row.from === null);
  const columns = [["kind", "Metric"], ["bar", "95 % interval"], ["score", "Value"], ["low-high", "From \u2013 to"], ["n", "n"]];
  const cells = rows.map((row) => [
    titleOf(row),
    intervalBar(row, scaleOf([row])),
    shown(row.value),
    intervalInWords(row),
    String(row.n),
  ]);
  return tableOf("metrics", columns, cells);
}

// --- Diagrams ---------------------------------------------------------------------------------------------

const X = (x) => MARGIN.left + x * SIZE;
const Y = (y) => MARGIN.top + (1 - y) * SIZE;

/** A square from 0 to 1 both ways, with the diagonal. */
function square(label, xTitle, yTitle, extra = 0) {
  const width = MARGIN.left + SIZE + MARGIN.right;
  const height = MARGIN.top + SIZE + MARGIN.bottom + extra;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "diagram", role: "img", "aria-label": label });
  svg.append(drawn("rect", { x: X(0), y: Y(1), width: SIZE, height: SIZE, class: "frame" }));
  svg.append(drawn("line", { x1: X(0), y1: Y(0), x2: X(1), y2: Y(1), class: "chance" }));
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    if (tick % 1) {
      svg.append(drawn("line", { x1: X(tick), y1: Y(0), x2: X(tick), y2: Y(1), class: "rule" }));
      svg.append(drawn("line", { x1: X(0), y1: Y(tick), x2: X(1), y2: Y(tick), class: "rule" }));
    }
    const text = String(tick).replace(/^0\./, ".");
    svg.append(drawn("text", { x: X(tick), y: Y(0) + 14, class: "tick", "text-anchor": "middle" }, text));
    svg.append(drawn("text", { x: X(0) - 6, y: Y(tick) + 4, class: "tick", "text-anchor": "end" }, text));
  }
  svg.append(drawn("text", { x: X(0.5), y: Y(0) + 31, class: "axis-title", "text-anchor": "middle" }, xTitle));
  const middle = `translate(11 ${Y(0.5)}) rotate(-90)`;
  svg.append(drawn("text", { transform: middle, class: "axis-title", "text-anchor": "middle" }, yTitle));
  return svg;
}

const pathOf = ({ fpr, tpr }) => fpr.map((x, i) => `${i === 0 ? "M" : "L"}${X(x).toFixed(2)} ${Y(tpr[i]).toFixed(2)}`).join("");

/** The curves, one of them in front, and a point that walks along it: by slider, or under the pointer. */
function rocFigure(evaluation) {
  const { roc, classes, metrics } = evaluation;
  if (roc.length === 0) return filled("figure", "roc", make("h3", "", "ROC"), notice("There is no curve: it needs documents of both classes."));
  const svg = square("ROC curve: share found against share of false alarms", "False alarms (FPR)", "Found (TPR)");
  const paths = roc.map((curve) => drawn("path", { d: pathOf(curve), class: "curve" }));
  const used = thresholdMark(metrics);
  const walker = drawn("circle", { r: 5, class: "walker" });
  svg.append(...paths, ...used, walker);
  const slider = Object.assign(make("input"), { type: "range", min: "0" });
  slider.setAttribute("aria-label", "Threshold");
  const words = make("p", "faint number caption");
  let front = 0;
  const walk = (i) => {
    const { fpr, tpr, threshold } = roc[front];
    slider.value = String(i);
    walker.setAttribute("cx", X(fpr[i]));
    walker.setAttribute("cy", Y(tpr[i]));
    const at = threshold[i] === null ? "Above every score" : `From score ${threeDigits(threshold[i])} on`;
    words.textContent = `${at}: finds ${shown(tpr[i])}, false alarms ${shown(fpr[i])}`;
    slider.setAttribute("aria-valuetext", words.textContent);
  };
  const choose = (k) => {
    front = k;
    paths.forEach((path, i) => path.classList.toggle("front", i === k));
    svg.insertBefore(paths[k], walker);
    slider.max = String(roc[k].fpr.length - 1);
    walk(startOf(roc[k], evaluation.threshold));
  };
  slider.addEventListener("input", () => walk(Number(slider.value)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const unit = (MARGIN.left + SIZE + MARGIN.right) / box.width;
    const x = ((event.clientX - box.left) * unit - MARGIN.left) / SIZE;
    const y = 1 - ((event.clientY - box.top) * unit - MARGIN.top) / SIZE;
    walk(nearestPoint(roc[front], x, y));
  });
  choose(0);
  const picker = roc.length < 2 ? "" : chooser("Class against the others ", roc.map(({ of }) => classes[of]), choose);
  const about = evaluation.threshold === null ? "" : `Ring: the threshold in use, ${threeDigits(evaluation.threshold)}.`;
  return filled("figure", "roc", make("h3", "", "ROC"), picker, svg, slider, words, make("p", "faint caption", about));
}

/** Where the probe stands: the false alarms and misses at its threshold. */
function thresholdMark(metrics) {
  const rate = (name) => metrics.find((row) => row.metric === name && row.from === null)?.value ?? null;
  const [missed, alarms] = [rate("fnr"), rate("fpr")];
  if (missed === null || alarms === null) return [];
  return [drawn("circle", { cx: X(alarms), cy: Y(1 - missed), r: 8, class: "in-use" })];
}

/** The last point that lies above the threshold; of many classes, the one nearest to finding all without alarm. */
function startOf({ fpr, tpr, threshold }, inUse) {
  if (inUse === null) return nearestPoint({ fpr, tpr }, 0, 1);
  return Math.max(0, threshold.findLastIndex((cut) => cut !== null && cut > inUse));
}

function nearestPoint({ fpr, tpr }, x, y) {
  let best = 0;
  const apart = (i) => (fpr[i] - x) ** 2 + (tpr[i] - y) ** 2;
  for (let i = 1; i < fpr.length; i++) if (apart(i) < apart(best)) best = i;
  return best;
}

const COUNTS = 46; // height of the counts below the diagram

function reliabilityFigure({ reliability, threshold, unit }) {
  const some = reliability.filter(([, , n]) => n > 0);
  const most = Math.max(1, ...some.map(([, , n]) => n));
  const what = threshold !== null ? "probability of the second class" : "probability of the class that is said";
  const svg = square("Calibration: share that was right against the probability that was said", `Said: ${what}`, "Was right", COUNTS + 8);
  const bottom = Y(0) + MARGIN.bottom + COUNTS + 4;
  for (const [from, to, n, mean, share] of some) {
    const title = `${shown(from, 2)} to ${shown(to, 2)}: said ${shown(mean)}, right ${shown(share)}, ${n} ${unit}`;
    const height = Math.max(1, (COUNTS * n) / most);
    const bar = { x: X(from) + 1, y: bottom - height, width: (to - from) * SIZE - 2, height, class: "count" };
    svg.append(drawn("line", { x1: X(mean), y1: Y(mean), x2: X(mean), y2: Y(share), class: "gap" }));
    const dot = { cx: X(mean), cy: Y(share), r: 2.5 + 5 * Math.sqrt(n / most), class: "bin" };
    for (const mark of [drawn("rect", bar), drawn("circle", dot)]) {
      mark.append(drawn("title", {}, title));
      svg.append(mark);
    }
  }
  svg.append(drawn("text", { x: X(0) - 6, y: bottom, class: "tick", "text-anchor": "end" }, "n"));
  const columns = [["kind", "Said"], ["score", "Mean"], ["score", "Right"], ["n", "n"]];
  const rows = some.map(([from, to, n, mean, share]) => [`${shown(from, 2)} to ${shown(to, 2)}`, shown(mean), shown(share), String(n)]);
  const numbers = filled("details", "", make("summary", "", "As numbers"), tableOf("bins", columns, rows));
  const about = make("p", "faint caption", `On the line, what is said is what happens; below it the probe says too much. Bars: ${unit}.`);
  return filled("figure", "reliability", make("h3", "", "Calibration"), svg, about, numbers);
}

const lengthOf = ({ from, to }) => (from === to ? String(from) : `${from}\u2013${to}`);

/** What goes wrong, by the length of the document: errors of all, and of each of two classes. */
function lengthTable(metrics) {
  const binned = metrics.filter((row) => row.from !== null);
  if (binned.length === 0) return [];
  const wrong = (row) => ({
    ...row,
    value: row.value === null ? null : 1 - row.value,
    low: row.high === null ? null : 1 - row.high,
    high: row.low === null ? null : 1 - row.low,
  });
  const kinds = [["accuracy", "Errors", wrong], ["fnr", "Missed", (row) => row], ["fpr", "False alarms", (row) => row]];
  const there = kinds.filter(([name]) => binned.some((row) => row.metric === name));
  const spans = binned.filter((row) => row.metric === "accuracy");
  const columns = [["kind", "Tokens"], ["n", "n"], ...there.map(([, title]) => ["bar", title])];
  const rows = spans.map((span) => {
    const cells = there.map(([name, title, read]) => {
      const row = read(binned.find((other) => other.metric === name && other.from === span.from));
      const cell = filled("span", "measured", intervalBar(row, scaleOf([row])), make("span", "number", shown(row.value)));
      cell.title = `${title}: ${intervalInWords(row) || "no interval"}, n ${row.n}`;
      return cell;
    });
    return [lengthOf(span), String(span.n), ...cells];
  });
  const about = make("p", "faint note", "A probe that fails on long documents, or on short ones, looks fine on average.");
  return [make("h3", "", "Errors by length"), about, filled("div", "scroller", tableOf("lengths", columns, rows))];
}

const notice = (text) => make("p", "notice", text);

function evaluationPart(evaluations) {
  const body = make("div");
  const draw = (i) => {
    const { metrics, classes, threshold, name } = evaluations[i];
    const said = filled("p", "meaning", evaluations.length > 1 ? "" : `${name}. `); // else the picker names it
    if (threshold === null) said.append("Classes: ", ...classes.flatMap((one, k) => [k === 0 ? "" : ", ", quoted(one)]), ".");
    else said.append("Tells ", quoted(classes[1]), " (found) from ", quoted(classes[0]), ".");
    const figures = filled("div", "figures", rocFigure(evaluations[i]), reliabilityFigure(evaluations[i]));
    const table = filled("div", "scroller", metricTable(metrics));
    body.replaceChildren(said, filled("div", "judged", table, figures), ...lengthTable(metrics));
  };
  const picker = chooser("Probe ", evaluations.map(({ name }) => name), draw);
  draw(0);
  return filled("div", "evaluation", make("h2", "", "How far it can be trusted"), picker, body);
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

/** A token in a frame of its own, where there is no context: spaces show as a mark too. */
function labelOf(token) {
  const runs = runsOf(token).map((run) => (/^\s$/u.test(run.text) ? { text: "\u2423", mark: true } : run));
  return filled("span", "quoted", ...nodesOf(runs));
}

const plainText = (text) => runsOf(text).map((run) => run.text).join("").trim();

function tokenElements(tokens) {
  return tokens.map((token, i) => {
    const element = withRole(filled("span", "token", ...nodesOf(runsOf(token))), "option");
    element.tabIndex = i === 0 ? 0 : -1;
    element.setAttribute("aria-selected", "false");
    element.dataset.position = i;
    return element;
  });
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

// --- What it says of texts --------------------------------------------------------------------------------

async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new DataView(await new Response(stream).arrayBuffer());
}

/** A document with its attention as one list of numbers a head. */
async function loadDocument(model, r, d, heads) {
  const found = await model.get(`reading_${r}_${d}`);
  const numbers = await inflate(found.attention);
  const n = found.tokens.length;
  const attention = Array.from({ length: heads }, (_, head) =>
    Array.from({ length: n }, (__, i) => numbers.getInt16(2 * (head * n + i), true) / 32767),
  );
  return { ...found, attention };
}

const ORDERS = [
  ["given", "As given", () => 0],
  ["high", "Highest score", (a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity)],
  ["low", "Lowest score", (a, b) => (a.score ?? Infinity) - (b.score ?? Infinity)],
  ["wrong", "Wrong first", (a, b) => (b.wrong ?? -1) - (a.wrong ?? -1) || (b.sure ?? 0) - (a.sure ?? 0)],
];

/** How sure the probe is of what it says: the surest mistakes are the ones to look at. */
const sureness = ({ score, probability, prediction, towards }) =>
  probability === null ? Math.abs(score ?? 0) : prediction === towards ? probability : 1 - probability;

function answerOf(document, reading) {
  const { label, prediction, wrong } = document;
  if (reading.by_token) {
    if (wrong === null) return make("span", "answer faint", "");
    return make("span", wrong > 0 ? "answer wrong" : "answer", wrong > 0 ? `\u2717 ${wrong} wrong` : "\u2713 all right");
  }
  if (reading.classes === null) return make("span", "answer", label === null ? "" : `is ${label}`);
  if (label === null) return make("span", "answer", prediction);
  const text = wrong > 0 ? `\u2717 says ${prediction}, is ${label}` : `\u2713 ${prediction}`;
  return make("span", wrong > 0 ? "answer wrong" : "answer", text);
}

/** One button a text: its beginning, what the probe says, and its score. */
function documentButton(document, d, reading) {
  const start = plainText(document.start);
  const button = filled(
    "button",
    "",
    make("span", "place faint number", String(d + 1)),
    make("span", "start", start === "" ? "(empty)" : start),
    answerOf(document, reading),
    make("span", "number", document.score === null ? "" : shown(document.score, 2)),
  );
  button.type = "button";
  button.dataset.document = d;
  return button;
}

/** A sentence of what is said of the whole text. */
function verdict(document, reading) {
  const { score, probability, prediction, towards, label, rest } = document;
  const said = make("p", "verdict");
  if (reading.by_token) {
    said.append("Each token is read by itself", score === null ? "." : "; the highest scores ", score === null ? "" : make("b", "number", shown(score)));
    return said;
  }
  if (reading.classes === null) said.append("Says ", make("b", "number", shown(score)));
  else said.append("Says ", quoted(prediction), `: score `, make("b", "number", shown(score)), ", probability of ", quoted(towards), " ", make("b", "number", shown(probability)));
  if (label !== null) said.append(". The label is ", quoted(label));
  const added = score === null || rest === null ? null : score - rest;
  said.append(". ", make("span", "faint number", `Tokens add ${shown(added)}, the rest is ${shown(rest)}.`));
  return said;
}

/** What a colour says of one token, in words. */
function tokenSentence(shownNow, i) {
  const { content, reading, document } = shownNow;
  const of = (values, name) => (values ? values[name][i] : document[name]);
  const parts = [labelOf(content.tokens[i]), ` (${i}) adds `, make("b", "number", threeDigits(content.contribution[i]))];
  const towards = of(content.units, "towards");
  if (towards !== null) parts.push(" to the score of ", quoted(towards));
  if (content.units) {
    parts.push(`, score ${shown(content.units.score[i])}`);
    if (reading.classes !== null) parts.push(`, probability ${shown(content.units.probability[i])}: says `, quoted(content.units.prediction[i]));
    if (content.units.label[i] !== null) parts.push(", the label is ", quoted(content.units.label[i]));
  } else {
    const shares = content.attention.map((head) => head[i]);
    const words = shares.length === 1 ? "attention" : "attention of its heads";
    parts.push(`; ${words} `, make("span", "number", shares.map((x) => shown(x, 2)).join(" \u00B7 ")));
  }
  return parts;
}

/** Values by token and the largest size among them, which has the deepest colour. */
function colouring({ content }, mode, head) {
  let values = content.contribution;
  if (mode === "attention") {
    const mean = (i) => content.attention.reduce((sum, one) => sum + one[i], 0) / content.attention.length;
    values = head === null ? content.tokens.map((_, i) => mean(i)) : content.attention[head];
  }
  const extent = values.reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 0);
  return { values, extent };
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

function legendOf() {
  const row = make("div", "legend diverging");
  const [low, high, words] = [make("span", "number"), make("span", "number"), make("span", "faint")];
  const [against, towards] = [make("span", "ramp against"), make("span", "ramp")];
  row.append(low, against, towards, high, words);
  const update = ({ values, extent }, meaning) => {
    const signed = values.some((x) => x < 0);
    against.hidden = !signed;
    low.textContent = signed ? threeDigits(-extent) : "0";
    high.textContent = threeDigits(extent);
    words.textContent = meaning;
  };
  return { row, update };
}

function readingPart(model, readings, report) {
  const state = { r: 0, d: 0, order: "given", mode: "contribution", head: null, focus: null, request: 0, now: null };
  const list = make("ol");
  const heading = make("h3");
  const said = make("div");
  const words = make("p", "readout");
  const text = withRole(make("div", "text"), "listbox");
  text.setAttribute("aria-label", "The text, token by token");
  const about = make("p", "faint caption");
  const legend = legendOf();
  const [orders, modes] = [make("div", "orders"), make("div", "controls")];
  let elements = [];

  const rest = () => {
    const { now } = state;
    if (now.content.tokens.length === 0) return words.replaceChildren("The probe read no token of this text: what it says is its bias.");
    words.replaceChildren(...tokenSentence(now, state.focus ?? strongest(now.values)));
  };
  const point = (i) => words.replaceChildren(...tokenSentence(state.now, i));
  const paint = () => {
    const { now, mode, head } = state;
    const colours = colouring(now, mode, head);
    now.values = colours.values;
    colour(elements, colours);
    elements.forEach((element, i) => element.setAttribute("aria-label", `${plainText(now.content.tokens[i])}: ${threeDigits(colours.values[i])}`));
    legend.update(colours, mode === "attention" ? "share of the token that is taken" : "what the token adds to the score");
    rest();
  };
  const showDocument = async (d) => {
    const reading = readings[state.r];
    const request = ++state.request;
    const content = await loadDocument(model, state.r, d, reading.n_heads);
    if (request !== state.request) return; // another text was chosen while this one inflated
    Object.assign(state, { d, focus: null, now: { content, reading, document: reading.documents[d], values: [] } });
    heading.textContent = `Text ${d + 1}`;
    heading.append(make("span", "faint", ` ${content.tokens.length} tokens`));
    elements = tokenElements(content.tokens);
    markLabels(elements, content.units, reading.classes);
    text.replaceChildren(...laidOut(elements, content, reading.documents[d].cut));
    text.scrollTop = 0;
    said.replaceChildren(verdict(reading.documents[d], reading));
    for (const button of list.querySelectorAll("button")) {
      button.classList.toggle("selected", Number(button.dataset.document) === d);
      button.setAttribute("aria-pressed", String(Number(button.dataset.document) === d));
    }
    paint();
  };
  const choose = (d) => showDocument(d).catch((error) => report(`This text could not be read: ${error.message}`));
  const fill = () => {
    const reading = readings[state.r];
    const ranked = reading.documents.map((document, d) => ({ ...document, d, sure: sureness(document) }));
    ranked.sort((a, b) => ORDERS.find(([name]) => name === state.order)[2](a, b) || a.d - b.d);
    list.replaceChildren(...ranked.map(({ d }) => filled("li", "", documentButton(reading.documents[d], d, reading))));
    list.scrollTop = 0;
    return ranked[0]?.d;
  };
  const chooseReading = (r) => {
    const reading = readings[r];
    Object.assign(state, { r, order: "given", mode: "contribution", head: null });
    const decided = reading.documents.some(({ wrong }) => wrong !== null);
    const scored = reading.documents.some(({ score }) => score !== null);
    const offered = ORDERS.filter(([name]) => name === "given" || (name === "wrong" ? decided : scored));
    orders.replaceChildren(segmented("Order of the texts", offered.map(([name, title]) => [name, title]), "given", (order) => {
      state.order = order;
      const first = fill();
      if (first !== undefined) choose(first);
    }));
    modes.replaceChildren(...modeControls(state, reading, paint), legend.row);
    about.replaceChildren(...(reading.by_token && reading.classes !== null && decided ? labelLegend(reading.classes) : []));
    const first = fill();
    if (first !== undefined) choose(first);
  };
  listen(text, () => elements, { point, rest, pin: (i) => pin(state, elements, i, rest) });
  list.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (button) choose(Number(button.dataset.document));
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
    const next = step && event.target.closest?.("li")?.[step]?.querySelector("button");
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  });
  const picker = chooser("Probe ", readings.map(({ name }) => name), chooseReading);
  const only = readings.length === 1 ? make("p", "meaning", `${readings[0].name}.`) : "";
  const side = filled("div", "ranking documents", orders, list);
  const main = filled("div", "reading", heading, said, modes, words, text, about);
  chooseReading(0);
  return filled("div", "readings", make("h2", "", "What it says of texts"), picker, only, filled("div", "reading-body", side, main));
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

const strongest = (values) => values.reduce((best, x, i) => (Math.abs(x ?? 0) > Math.abs(values[best] ?? 0) ? i : best), 0);

/** Contribution or attention, and of which head; nothing to choose where every token is read by itself. */
function modeControls(state, reading, paint) {
  if (reading.by_token) return [];
  const heads = chooser("", ["All heads, mean", ...Array.from({ length: reading.n_heads }, (_, h) => `Head ${h}`)], (chosen) => {
    state.head = chosen === 0 ? null : chosen - 1;
    paint();
  });
  heads.querySelector("select").setAttribute("aria-label", "Head");
  const several = reading.n_heads > 1;
  heads.hidden = true;
  const options = [["contribution", "What it adds"], ["attention", "Attention"]];
  const modes = segmented("What the colours show", options, "contribution", (mode) => {
    state.mode = mode;
    heads.hidden = !several || mode !== "attention";
    paint();
  });
  return [modes, heads];
}

function pin(state, elements, i, rest) {
  state.focus = state.focus === i ? null : i;
  elements.forEach((element, j) => {
    element.setAttribute("aria-selected", String(j === state.focus));
    element.tabIndex = j === i ? 0 : -1;
  });
  rest();
}

function listen(text, elementsNow, { point, rest, pin: pinAt }) {
  const position = (event) => {
    const token = event.target.closest?.(".token");
    return token ? Number(token.dataset.position) : null;
  };
  text.addEventListener("pointerover", (event) => position(event) !== null && point(position(event)));
  text.addEventListener("pointerleave", rest);
  text.addEventListener("focusin", (event) => position(event) !== null && point(position(event)));
  text.addEventListener("click", (event) => position(event) !== null && pinAt(position(event)));
  text.addEventListener("keydown", (event) => {
    const at = position(event);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (at === null || (!step && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    if (step) elementsNow()[at + step]?.focus();
    else pinAt(at);
  });
}

// --- The view ---------------------------------------------------------------------------------------------

function render({ model, el }) {
  el.classList.add("headlens", "probe");
  const [evaluations, readings] = [model.get("evaluations") ?? [], model.get("readings") ?? []];
  el.hidden = evaluations.length === 0 && readings.length === 0;
  const problem = notice("");
  problem.hidden = true;
  const report = (message) => {
    problem.textContent = message;
    problem.hidden = false;
  };
  const parts = [];
  if (evaluations.length > 0) parts.push(evaluationPart(evaluations));
  if (readings.length > 0) parts.push(readingPart(model, readings, report));
  el.replaceChildren(...parts, problem);
  return undefined;
}

export default { render };
