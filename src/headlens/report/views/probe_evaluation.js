// How far can a probe be trusted? Metrics with intervals beside what needs no model, ROC, calibration, errors by length.
//
// Reads `evaluations`: see probe_payload.py. Several are compared first, and one of them is looked at below.

import {
  chooser, drawn, filled, intervalBar, make, quoted, scaled, segmented, shown, tableOf, threeDigits, titled,
} from "./common.js";

const SIZE = 300; // of a diagram, in its own units
const MARGIN = { left: 40, bottom: 36, top: 8, right: 10 };

const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

const counted = (n) => n.toLocaleString("en");

const intervalInWords = ({ low, high }) => (low === null || high === null ? "" : `${shown(low)} to ${shown(high)}`);

const notice = (text) => make("p", "notice", text);

// --- Bars -------------------------------------------------------------------------------------------------

/** Rates go from 0 to 1; what may be larger, to the next power of two. */
function rateScale(rows) {
  const most = rows.reduce((top, row) => Math.max(top, row.value ?? 0, row.high ?? 0), 0);
  const end = most > 1 ? 2 ** Math.ceil(Math.log2(most)) : 1;
  return { end, fraction: (x) => Math.min(1, Math.max(0, x / end)) };
}

/** The interval of a row from 0 to the end of its scale; `marks` are what to compare it with. */
function barOf(row, scale, marks = []) {
  if (row.value === null) return make("span", "faint", "cannot be told");
  const ticks = marks.map(({ name, value }) => ({ value, title: `${name} ${shown(value)}` }));
  return scaled(intervalBar({ ...row, score: row.value }, scale, ticks), 0, scale.end);
}

// --- Metrics ----------------------------------------------------------------------------------------------

/** Names and meanings; "documents" stands for what the evaluation counts. */
const METRICS = {
  accuracy: ["Accuracy", "Share of documents of which the right class is said."],
  f1: ["F1", "Harmonic mean of precision and recall; of more than two classes, the mean over them."],
  auroc: ["AUROC", "Chance that one of the class scores above one that is not; .5 is guessing."],
  ap: ["Average precision", "Mean precision over all that could be recalled; guessing has the class's share."],
  tpr_at_fpr: ["TPR", "Share of the second class that is found where at most this share of the first may be flagged."],
  ece: ["Calibration error", "Mean distance between the probability that is said and the share that is right; 0 is best."],
  brier: ["Brier score", "Mean squared distance of probabilities from the truth; 0 is best."],
  log_loss: ["Log loss", "Mean surprise at the truth, in nats; 0 is best."],
  fnr: ["Missed", "Share of the second class that is said to be the first, at the threshold in use (FNR)."],
  fpr: ["False alarms", "Share of the first class that is said to be the second, at the threshold in use (FPR)."],
};

const nameOf = ({ metric, at }) => {
  const name = METRICS[metric]?.[0] ?? metric;
  return at === null ? name : `${name} at FPR \u2264 ${percent(at)}`;
};

const overall = (evaluation) => evaluation.metrics.filter((row) => row.from === null);

const sameMetric = (a) => (b) => a.metric === b.metric && a.at === b.at;

function metricTable(evaluation) {
  const { beside } = evaluation;
  const rows = overall(evaluation);
  const columns = [["kind", "Metric"], ["bar", "95 % interval"], ["score", "Value"], ["low-high", "From \u2013 to"], ["n", "n"]];
  const cells = rows.map((row) => {
    const marks = beside.map(({ name, metrics }) => ({ name, row: metrics.find(sameMetric(row)) ?? { value: null } }));
    const ticks = marks.map(({ name, row: { value } }) => ({ name, value }));
    return [
      make("span", "title", nameOf(row)),
      barOf(row, rateScale([row, ...ticks]), ticks),
      shown(row.value),
      intervalInWords(row),
      counted(row.n),
      ...marks.map(({ row: other }) => Object.assign(make("span", "", shown(other.value)), { title: intervalInWords({ low: null, high: null, ...other }) })),
    ];
  });
  return tableOf("scores metrics", [...columns, ...beside.map(({ name }) => ["beside", name])], cells);
}

/** What the names mean, once for all rows of one name. */
function meanings(evaluation) {
  const list = make("dl");
  for (const metric of new Set(overall(evaluation).map((row) => row.metric))) {
    const [name, meaning] = METRICS[metric] ?? [metric, ""];
    if (meaning) list.append(make("dt", "", name), make("dd", "", meaning.replace("documents", evaluation.unit)));
  }
  return filled("details", "meanings", make("summary", "", "What these mean"), list);
}

const besideNote = ({ beside }) =>
  beside.length === 0 ? [] : [make("p", "faint caption", "Marks on the bars, and the columns on the right: simple rivals, judged in the same way.")];

// --- Several evaluations ----------------------------------------------------------------------------------

/** One row an evaluation, on one scale; the button of a row chooses what is looked at below. */
function comparison(evaluations, onChoose) {
  const metrics = [];
  for (const row of evaluations.flatMap(overall)) if (!metrics.some(sameMetric(row))) metrics.push(row);
  const start = Math.max(0, metrics.findIndex(({ metric }) => metric === "auroc"));
  const stage = make("div", "scroller");
  const buttons = evaluations.map(({ short, name }, i) => {
    const button = Object.assign(make("button", "choice", short), { type: "button", title: name });
    button.addEventListener("click", () => onChoose(i));
    return button;
  });
  const columns = [["kind", "Probe"], ["bar", "95 % interval"], ["score", "Value"], ["low-high", "From \u2013 to"], ["n", "n"]];
  const draw = (k) => {
    const found = evaluations.map((one) => overall(one).find(sameMetric(metrics[k])) ?? { value: null, low: null, high: null, n: 0 });
    const scale = rateScale(found);
    const cells = found.map((row, i) => [buttons[i], barOf(row, scale), shown(row.value), intervalInWords(row), counted(row.n)]);
    stage.replaceChildren(tableOf("scores compared", columns, cells));
  };
  draw(start);
  const about = make("p", "faint caption", "Each interval is one probe's own: of two that were judged on the same documents, one can be surely better although they overlap.");
  const mark = (chosen) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  return { mark, part: filled("div", "comparison", chooser("Compared by ", metrics.map(nameOf), start, draw), stage, about) };
}

// --- Diagrams ---------------------------------------------------------------------------------------------

const X = (u) => MARGIN.left + u * SIZE;
const Y = (y) => MARGIN.top + (1 - y) * SIZE;

/** Where rates stand along an axis, from 0 to 1. */
const LINEAR = { name: "linear", ticks: [0, 0.25, 0.5, 0.75, 1], at: (x) => x, steps: 1 };

/** Decades, down to the smallest rate of the curves; all below stand at the left end, 0 too. */
function logarithmic(curves) {
  const least = curves.reduce((most, { fpr }) => Math.min(most, fpr.find((x) => x > 0) ?? 1), 0.1);
  const decades = Math.ceil(-Math.log10(least) - 1e-9);
  const ticks = Array.from({ length: decades + 1 }, (_, i) => Number(`1e-${decades - i}`));
  return { name: "log", ticks, at: (x) => Math.max(0, 1 + Math.log10(Math.max(x, 1e-300)) / decades), steps: 40 };
}

const tickText = (tick) => (tick > 0 && tick < 1e-4 ? `1e\u2212${Math.round(-Math.log10(tick))}` : String(tick).replace(/^0\./, "."));

/** A line from point to point; what is straight on a linear axis is bent on another, so it is drawn in steps. */
function pathOf(points, axis) {
  const found = [];
  points.forEach(([x, y], i) => {
    const [x0, y0] = i === 0 ? [x, y] : points[i - 1];
    const steps = x !== x0 && y !== y0 ? axis.steps : 1;
    for (let k = 1; k <= steps; k++) {
      // Steps shrink towards the start, where a logarithmic axis has the most room.
      const t = steps === 1 ? 1 : (k / steps) ** 4;
      found.push(`${X(axis.at(x0 + t * (x - x0))).toFixed(2)} ${Y(y0 + t * (y - y0)).toFixed(2)}`);
    }
  });
  return `M${found.join("L")}`;
}

/** A square from 0 to 1 upwards, with the diagonal; its x-axis is linear or not. */
function square(label, xTitle, yTitle, axis = LINEAR, extra = 0) {
  const width = MARGIN.left + SIZE + MARGIN.right;
  const height = MARGIN.top + SIZE + MARGIN.bottom + extra;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "diagram", role: "img", "aria-label": label });
  svg.append(drawn("rect", { x: X(0), y: Y(1), width: SIZE, height: SIZE, class: "frame" }));
  for (const tick of LINEAR.ticks) {
    svg.append(drawn("line", { x1: X(0), y1: Y(tick), x2: X(1), y2: Y(tick), class: "rule" }));
    svg.append(drawn("text", { x: X(0) - 6, y: Y(tick) + 4, class: "tick", "text-anchor": "end" }, tickText(tick)));
  }
  for (const tick of axis.ticks) {
    const u = axis.at(tick);
    svg.append(drawn("line", { x1: X(u), y1: Y(0), x2: X(u), y2: Y(1), class: "rule" }));
    svg.append(drawn("text", { x: X(u), y: Y(0) + 14, class: "tick", "text-anchor": "middle" }, tickText(tick)));
  }
  svg.append(drawn("path", { d: pathOf([[0, 0], [1, 1]], axis), class: "chance" }));
  svg.append(drawn("text", { x: X(0.5), y: Y(0) + 31, class: "axis-title", "text-anchor": "middle" }, xTitle));
  const middle = `translate(11 ${Y(0.5)}) rotate(-90)`;
  svg.append(drawn("text", { transform: middle, class: "axis-title", "text-anchor": "middle" }, yTitle));
  return svg;
}

// --- ROC --------------------------------------------------------------------------------------------------

const rateOf = (evaluation, name) => overall(evaluation).find(({ metric }) => metric === name) ?? { value: null };

/** Where the probe stands at its threshold: a ring, and bars for the intervals of both rates. */
function thresholdMark(evaluation, axis) {
  const [missed, alarms] = [rateOf(evaluation, "fnr"), rateOf(evaluation, "fpr")];
  if (missed.value === null || alarms.value === null) return [];
  const [x, y] = [X(axis.at(alarms.value)), Y(1 - missed.value)];
  const bars = [];
  if (alarms.low !== null) bars.push({ x1: X(axis.at(alarms.low)), x2: X(axis.at(alarms.high)), y1: y, y2: y });
  if (missed.low !== null) bars.push({ x1: x, x2: x, y1: Y(1 - missed.low), y2: Y(1 - missed.high) });
  return [...bars.map((bar) => drawn("line", { ...bar, class: "in-use" })), drawn("circle", { cx: x, cy: y, r: 7, class: "in-use" })];
}

/** The curves as a drawing; `front` is in front, those of other probes stay thin. */
function rocPlot(evaluation, others, front, axis) {
  const svg = square("ROC curve: share found against share of false alarms", axis === LINEAR ? "False alarms (FPR)" : "False alarms (FPR); none: at the left end", "Found (TPR)", axis);
  const points = ({ fpr, tpr }) => fpr.map((x, i) => [x, tpr[i]]);
  const thin = [
    ...others.map(({ short, roc }) => [short, roc[0]]),
    ...evaluation.roc.filter((_, k) => k !== front).map((curve) => [evaluation.classes[curve.of], curve]),
  ];
  for (const [name, curve] of thin) svg.append(titled(drawn("path", { d: pathOf(points(curve), axis), class: "curve" }), name));
  svg.append(drawn("path", { d: pathOf(points(evaluation.roc[front]), axis), class: "curve front" }));
  const walker = drawn("circle", { r: 5, class: "walker" });
  svg.append(...thresholdMark(evaluation, axis), walker);
  return { svg, walker };
}

/** The last point that lies above the threshold; of many classes, the one nearest to finding all without alarm. */
function startOf({ fpr, tpr, threshold }, inUse) {
  if (inUse === null) return nearestPoint({ fpr, tpr }, 0, 1, LINEAR);
  return Math.max(0, threshold.findLastIndex((cut) => cut !== null && cut > inUse));
}

function nearestPoint({ fpr, tpr }, u, y, axis) {
  let best = 0;
  const apart = (i) => (axis.at(fpr[i]) - u) ** 2 + (tpr[i] - y) ** 2;
  for (let i = 1; i < fpr.length; i++) if (apart(i) < apart(best)) best = i;
  return best;
}

/** The curves, on a linear or logarithmic axis, and a point that walks along: by slider, or under the pointer. */
function rocFigure(evaluation, others) {
  const { roc, classes, threshold } = evaluation;
  if (roc.length === 0) return filled("figure", "roc", make("h3", "", "ROC"), notice("There is no curve: it needs documents of both classes."));
  const log = logarithmic([...roc, ...others.flatMap((other) => other.roc)]);
  const state = { front: 0, axis: LINEAR, at: startOf(roc[0], threshold), plot: null };
  const stage = make("div", "stage");
  const words = make("p", "number caption walked");
  const slider = Object.assign(make("input"), { type: "range", min: "0" });
  slider.setAttribute("aria-label", "Threshold");
  const walk = (at) => walkTo(evaluation, state, Object.assign(slider, { value: String((state.at = at)) }), words);
  const redraw = () => {
    state.plot = rocPlot(evaluation, others, state.front, state.axis);
    stage.replaceChildren(state.plot.svg);
    slider.max = String(roc[state.front].fpr.length - 1);
    walk(state.at);
  };
  slider.addEventListener("input", () => walk(Number(slider.value)));
  stage.addEventListener("pointermove", (event) => walk(underPointer(event, state, roc[state.front])));
  const axes = segmented("Axis of the false alarms", [["linear", "Linear"], ["log", "Logarithmic"]], "linear", (name) => {
    state.axis = name === "log" ? log : LINEAR;
    redraw();
  });
  const curves = chooser("Against all others ", roc.map(({ of }) => classes[of]), 0, (k) => {
    Object.assign(state, { front: k, at: startOf(roc[k], threshold) });
    redraw();
  });
  redraw();
  const controls = filled("div", "controls", axes, curves);
  return filled("figure", "roc", make("h3", "", "ROC"), controls, stage, slider, words, rocCaption(evaluation, others));
}

function walkTo(evaluation, { front, axis, at, plot }, slider, words) {
  const { fpr, tpr, threshold } = evaluation.roc[front];
  plot.walker.setAttribute("cx", X(axis.at(fpr[at])));
  plot.walker.setAttribute("cy", Y(tpr[at]));
  const cut = threshold[at] === null ? "Above every score" : `From score ${threeDigits(threshold[at])} on`;
  words.textContent = `${cut}: finds ${shown(tpr[at])}, false alarms ${shown(fpr[at])}`;
  slider.setAttribute("aria-valuetext", words.textContent);
}

function underPointer(event, { axis, plot }, curve) {
  const box = plot.svg.getBoundingClientRect();
  const unit = (MARGIN.left + SIZE + MARGIN.right) / box.width;
  const u = ((event.clientX - box.left) * unit - MARGIN.left) / SIZE;
  const y = 1 - ((event.clientY - box.top) * unit - MARGIN.top) / SIZE;
  return nearestPoint(curve, u, y, axis);
}

function rocCaption(evaluation, others) {
  const { threshold, calibration } = evaluation;
  const [missed, alarms] = [rateOf(evaluation, "fnr"), rateOf(evaluation, "fpr")];
  const of = ({ value, low, high }) => `${shown(value)}${low === null ? "" : ` (${shown(low)} to ${shown(high)})`}`;
  const found = { value: 1 - missed.value, low: missed.high === null ? null : 1 - missed.high, high: missed.low === null ? null : 1 - missed.low };
  const parts = [];
  if (threshold !== null && missed.value !== null && alarms.value !== null) {
    parts.push(`Ring: the threshold in use, ${threeDigits(threshold)}, finds ${of(found)}, with false alarms ${of(alarms)}.`);
  }
  if (calibration !== null) parts.push(`Scores are log-odds after calibration (${calibration}).`);
  if (others.length > 0) parts.push("Thin: the other probes.");
  return make("p", "faint caption", parts.join(" "));
}

// --- Calibration ------------------------------------------------------------------------------------------

const COUNTS = 58; // height of the counts below the diagram

const briefly = (n) => (n < 1000 ? String(n) : `${Number((n / 1000).toPrecision(2))}k`);

/** One bin: its share with its interval, above it; how many it holds, below. */
function binMarks([from, to, n, mean, share, low, high], most, unit) {
  const between = low === null ? "" : ` (${shown(low)} to ${shown(high)})`;
  const title = `${shown(from, 2)} to ${shown(to, 2)}: said ${shown(mean)}, right ${shown(share)}${between}, ${counted(n)} ${unit}`;
  const bottom = Y(0) + MARGIN.bottom + COUNTS + 4;
  const height = Math.max(1, ((COUNTS - 12) * n) / most);
  const middle = X((from + to) / 2);
  const marks = [
    drawn("rect", { x: X(from) + 1, y: bottom - height, width: (to - from) * SIZE - 2, height, class: "count" }),
    drawn("circle", { cx: X(mean), cy: Y(share), r: 2.5 + 4 * Math.sqrt(n / most), class: "bin" }),
  ];
  if (low !== null) marks.splice(1, 0, drawn("line", { x1: X(mean), y1: Y(low), x2: X(mean), y2: Y(high), class: "bin-interval" }));
  const number = drawn("text", { x: middle, y: bottom - height - 3, class: "tick small", "text-anchor": "middle" }, briefly(n));
  return [...marks.map((mark) => titled(mark, title)), number];
}

function reliabilityFigure({ reliability, threshold, unit }) {
  const most = Math.max(1, ...reliability.map(([, , n]) => n));
  const what = threshold !== null ? "probability of the second class" : "probability of the class that is said";
  const right = threshold !== null ? "Is of the second class" : "Was right";
  const svg = square("Calibration: share that was right against the probability that was said", `Said: ${what}`, right, LINEAR, COUNTS + 8);
  for (const bin of reliability) svg.append(...binMarks(bin, most, unit));
  svg.append(drawn("text", { x: X(0) - 6, y: Y(0) + MARGIN.bottom + COUNTS + 4, class: "tick", "text-anchor": "end" }, "n"));
  const columns = [["kind", "Said"], ["score", "Mean"], ["score", "Share"], ["low-high", "From \u2013 to"], ["n", "n"]];
  const rows = reliability.map(([from, to, n, mean, share, low, high]) => [
    `${shown(from, 2)} to ${shown(to, 2)}`, shown(mean), shown(share), intervalInWords({ low, high }), counted(n),
  ]);
  const numbers = filled("details", "", make("summary", "", "As numbers"), tableOf("scores bins", columns, rows));
  const about = make("p", "faint caption", `On the dotted line what is said is what happens; below it the probe says too much. Bars: 95 % intervals, and ${unit} in each bin.`);
  return filled("figure", "reliability", make("h3", "", "Calibration"), filled("div", "stage", svg), about, numbers);
}

// --- Length -----------------------------------------------------------------------------------------------

const lengthOf = ({ from, to }) => (from === to ? String(from) : `${from}\u2013${to}`);

const less = (x) => (x === null ? null : 1 - x);

const KINDS_OF_ERRORS = [
  ["accuracy", "Errors", (row) => ({ ...row, value: less(row.value), low: less(row.high), high: less(row.low) })],
  ["fnr", "Missed", (row) => row],
  ["fpr", "False alarms", (row) => row],
];

/** What goes wrong, by the length of the document: errors of all, and of each of two classes. */
function lengthTable({ metrics }) {
  const binned = metrics.filter((row) => row.from !== null);
  if (binned.length === 0) return [];
  const there = KINDS_OF_ERRORS.filter(([name]) => binned.some((row) => row.metric === name));
  const rows = binned
    .filter((row) => row.metric === "accuracy")
    .map((span) => [lengthOf(span), ...there.map(([name, , read]) => errorCell(read(binned.find((row) => row.metric === name && row.from === span.from))))]);
  const about = make("p", "faint note", "A probe that fails on long documents, or on short ones, looks fine on average.");
  const columns = [["kind", "Tokens"], ...there.map(([, title]) => ["bar", title])];
  return [make("h3", "", "Errors by length"), about, filled("div", "scroller", tableOf("scores lengths", columns, rows))];
}

function errorCell(row) {
  const number = filled("span", "number", shown(row.value), make("span", "faint", ` of ${counted(row.n)}`));
  const cell = filled("span", "measured", barOf(row, rateScale([row])), number);
  cell.title = intervalInWords(row) || "no interval";
  return cell;
}

// --- The view ---------------------------------------------------------------------------------------------

/** One evaluation; `others` are those with the same two classes, whose curves can stand beside its own. */
function evaluationPart(evaluation, others) {
  const { classes, threshold, name } = evaluation;
  const said = filled("p", "meaning", `${name}. `);
  if (threshold === null) said.append("Classes: ", ...classes.flatMap((one, k) => [k === 0 ? "" : ", ", quoted(one)]), ".");
  else said.append("Tells ", quoted(classes[1]), " (found) from ", quoted(classes[0]), ".");
  const table = filled("div", "", filled("div", "scroller", metricTable(evaluation)), ...besideNote(evaluation), meanings(evaluation));
  const figures = filled("div", "figures", rocFigure(evaluation, others), reliabilityFigure(evaluation));
  return [said, table, figures, ...lengthTable(evaluation)];
}

const comparable = (a, b) => a !== b && a.threshold !== null && b.roc.length > 0 && a.classes.join("\n") === b.classes.join("\n");

function render({ model, el }) {
  el.classList.add("headlens", "probe");
  const evaluations = model.get("evaluations") ?? [];
  el.hidden = evaluations.length === 0;
  if (el.hidden) return undefined;
  const body = make("div", "one");
  const choose = (i) => {
    compared?.mark(i);
    body.replaceChildren(...evaluationPart(evaluations[i], evaluations.filter((other) => comparable(evaluations[i], other))));
  };
  const compared = evaluations.length > 1 ? comparison(evaluations, choose) : null;
  choose(0);
  el.replaceChildren(make("h2", "", "How far it can be trusted"), ...(compared ? [compared.part] : []), body);
  return undefined;
}

export default { render };
