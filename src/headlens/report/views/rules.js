// When does a feature that a head writes fire? Its rules in words, how well they tell it, and where it fires.
//
// Reads `rules` and, for the feature on screen only, `rules_R_F`: see rules_payload.py.

import {
  chooser, chosenFromList, drawn, failure, filled, intervalBar, labelOf, laidOut, make, minus, numbered, positionOf,
  scaled, scaleOf, segmented, shown, tableOf, threeDigits, titled, tokenElements, withRole,
} from "./common.js";

const FEW = 10; // rules on screen, until all are asked for
const NONE = -1; // whatever the query

const counted = (n) => n.toLocaleString("en");
const plural = (n, noun) => `${counted(n)} ${noun}${n === 1 ? "" : "s"}`;
const percent = (share) => (share === null ? shown(null) : `${shown(100 * share, 0)} %`);
const signed = (x) => (x === null ? shown(null) : `${x > 0 ? "+" : ""}${threeDigits(x)}`);
const notice = (text) => make("p", "notice", text);
const span = ([, low, high]) => (low === null || high === null ? "" : `${threeDigits(low)} to ${threeDigits(high)}`);

// --- Names ------------------------------------------------------------------------------------------------

/** An input feature by its label, with its number; or that there is none in particular. */
function named(feature, { labels }) {
  if (feature === NONE) return make("span", "source faint", "anything");
  const label = labels[feature];
  if (label === undefined) return make("span", "source unnamed", `feature ${feature}`);
  return filled("span", "named", make("span", "source", label), make("span", "faint number", ` ${feature}`));
}

const inWords = (feature, { labels }) => (feature === NONE ? "anything" : (labels[feature] ?? `feature ${feature}`));

/** A rule in one line of words. */
function sentence([query, key, effect], content) {
  const where = query === NONE ? [] : [" seen from ", named(query, content)];
  return [named(key, content), ...where, effect < 0 ? " lowers it " : " raises it ", numbered(signed(effect))];
}

// --- Rules ------------------------------------------------------------------------------------------------

/** How far a rule moves the feature: to the right up, to the left down, in units of the largest. */
function effectBar(effect, extent) {
  const amount = make("span", effect < 0 ? "amount heat against" : "amount heat");
  amount.style.setProperty("--heat", 0.5);
  amount.style.width = `${(50 * Math.abs(effect)) / (extent || 1)}%`;
  return filled("span", effect < 0 ? "effect down" : "effect", amount);
}

const RULES = "Effect: what a rule adds to the feature where it matches, to first order, on average. Matches: at what share of " +
  "all that fires. In order of both; a rule that is chosen is marked in the examples below.";

/** The rules as a table whose first column chooses one. */
function rulesTable(content, state, choose) {
  const rows = content.rules.slice(0, state.all ? undefined : FEW);
  const extent = content.rules.reduce((most, [, , effect]) => Math.max(most, Math.abs(effect)), 0);
  const columns = [["kind", "A token holds"], ["kind", "seen from one that holds"], ["bar", ""], ["score", "Effect"], ["n", "Matches"]];
  const cells = rows.map(([query, key, effect, coverage], i) => {
    const button = filled("button", "choice", named(key, content));
    button.type = "button";
    button.setAttribute("aria-pressed", String(state.rule === i));
    button.addEventListener("click", () => choose(i));
    return [button, named(query, content), effectBar(effect, extent), signed(effect), percent(coverage)];
  });
  return filled("div", "scroller", tableOf("scores ruled", columns, cells));
}

function rulesPart(content, state, redraw) {
  const heading = make("h4", "", "Rules");
  if (content.rules.length === 0) return [heading, notice("No rule was chosen: none lowers the error on texts that were held out.")];
  const choose = (i) => redraw({ rule: state.rule === i ? null : i }, i);
  const parts = [heading, rulesTable(content, state, choose)];
  const more = content.rules.length - FEW;
  if (more > 0) {
    const button = Object.assign(make("button", "release", state.all ? "The first rules only" : `${counted(more)} more`), { type: "button" });
    button.addEventListener("click", () => redraw({ all: !state.all }, "more"));
    parts.push(button);
  }
  const left = content.left_out > 0 ? ` ${plural(content.left_out, "more rule")} were chosen and are not listed.` : "";
  return [...parts, make("p", "faint caption", RULES + left)];
}

// --- The curve --------------------------------------------------------------------------------------------

const SIZE = { width: 330, height: 210, left: 38, top: 10, right: 118, bottom: 38 };
const METRICS = [["ap", "AP"], ["f1", "F1"], ["precision", "Precision"], ["recall", "Recall"], ["spearman", "Spearman"], ["r2", "R²"]];
const PREDICTORS = {
  rules: ["Rules", "Pairs of a query feature and a key feature, as chosen."],
  key_only: ["Key features alone", "Rules that name no query feature."],
  random: ["Random pairs", "As many pairs of features, drawn."],
  unigram: ["Query token alone", "The mean at each query token: nothing of other tokens."],
  full: ["All pairs", "The model's own pre-activation: what all pairs with all else at its true value would give."],
};

const Y = (v, [low, high]) => SIZE.top + SIZE.height * (1 - (v - low) / (high - low));

/** Numbers of labels, moved apart until none covers another, within the frame. */
function apart(ys, room = 14) {
  const order = ys.map((y, i) => ({ y, i })).sort((a, b) => a.y - b.y);
  order.forEach((one, k) => k > 0 && (one.y = Math.max(one.y, order[k - 1].y + room)));
  const over = order.length > 0 ? Math.max(0, order.at(-1).y - (SIZE.top + SIZE.height)) : 0;
  for (let k = order.length - 1; k >= 0; k--) order[k].y = Math.min(order[k].y - (k === order.length - 1 ? over : 0), k < order.length - 1 ? order[k + 1].y - room : Infinity);
  const found = [];
  for (const { y, i } of order) found[i] = y;
  return found;
}

/** A frame with ticks; xs are [place from 0 to 1, text], ys numbers within `range`. */
function plotFrame(label, xs, ys, range, xTitle, yTitle) {
  const [width, height] = [SIZE.left + SIZE.width + SIZE.right, SIZE.top + SIZE.height + SIZE.bottom];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "diagram", role: "img", "aria-label": label });
  svg.append(drawn("rect", { x: SIZE.left, y: SIZE.top, width: SIZE.width, height: SIZE.height, class: "frame" }));
  for (const tick of ys) {
    const y = Y(tick, range);
    svg.append(drawn("line", { x1: SIZE.left, y1: y, x2: SIZE.left + SIZE.width, y2: y, class: "rule" }));
    svg.append(drawn("text", { x: SIZE.left - 6, y: y + 4, class: "tick", "text-anchor": "end" }, minus(String(tick))));
  }
  for (const [u, text] of xs) {
    svg.append(drawn("text", { x: SIZE.left + u * SIZE.width, y: SIZE.top + SIZE.height + 15, class: "tick", "text-anchor": "middle" }, text));
  }
  const middle = SIZE.left + SIZE.width / 2;
  svg.append(drawn("text", { x: middle, y: SIZE.top + SIZE.height + 32, class: "axis-title", "text-anchor": "middle" }, xTitle));
  if (yTitle) svg.append(drawn("text", { x: SIZE.left, y: SIZE.top - 14, class: "axis-title" }, yTitle));
  return svg;
}

/** Ticks of a range: about five, at round numbers. */
function ticksOf([low, high]) {
  const rough = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((one) => one >= rough - 1e-9);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) found.push(Number((k * step).toPrecision(6)));
  return found;
}

/** One metric against the number of rules: each predictor as a line with intervals and its name at the end. */
function curvePlot(curve, metric) {
  const sizes = [...new Set(curve.map(({ rules }) => rules).filter((n) => n !== null))].sort((a, b) => a - b);
  const most = Math.max(8, ...sizes);
  const place = (n) => (n < 2 ? 0 : (Math.log2(n) - 1) / (Math.log2(most) - 1));
  const told = curve.filter((row) => row[metric][0] !== null);
  const least = told.reduce((low, row) => Math.min(low, row[metric][0]), 0);
  const range = [Math.max(-1, Math.floor(4 * least) / 4), 1];
  const inside = (v) => Math.min(range[1], Math.max(range[0], v));
  const steps = [0, 4, 16, 64, 256, 1024, 4096].filter((n) => n <= most && (n === 0 || n === most || place(most) - place(n) > 0.07));
  const title = METRICS.find(([name]) => name === metric)[1];
  const ends = [...new Set([...steps, ...(sizes.length > 0 ? [most] : [])])];
  const svg = plotFrame(`${title} against the number of rules`, ends.map((n) => [place(n), counted(n)]), ticksOf(range), range, "Rules", "");
  const names = Object.keys(PREDICTORS).filter((name) => told.some(({ predictor }) => predictor === name));
  const lasts = names.map((name) => told.findLast(({ predictor }) => predictor === name));
  const labels = apart(lasts.map((row) => Y(inside(row[metric][0]), range)));
  names.toReversed().forEach((name) => {
    const rows = told.filter(({ predictor }) => predictor === name);
    const flat = rows[0].rules === null;
    const at = flat ? [[0, rows[0]], [1, rows[0]]] : rows.map((row) => [place(row.rules), row]);
    const points = at.map(([u, row]) => [SIZE.left + u * SIZE.width, Y(inside(row[metric][0]), range), row]);
    for (const [x, , row] of flat ? points.slice(-1) : points) {
      const [, low, high] = row[metric];
      if (low === null || high === null) continue;
      svg.append(drawn("line", { x1: x, x2: x, y1: Y(inside(low), range), y2: Y(inside(high), range), class: `whisker ${name}` }));
    }
    svg.append(drawn("path", { d: `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`, class: `series ${name}` }));
    for (const [x, y, row] of flat ? [] : points) {
      const [value, low, high] = row[metric];
      const words = `${PREDICTORS[name][0]}, ${counted(row.rules)}: ${shown(value)}${low === null ? "" : ` (${shown(low)} to ${shown(high)})`}`;
      svg.append(titled(drawn("circle", { cx: x, cy: y, r: 3.2, class: `point ${name}` }), words));
    }
    const end = SIZE.left + SIZE.width;
    const y = labels[names.indexOf(name)];
    const from = points.at(-1);
    svg.append(drawn("path", { d: `M${from[0]} ${from[1]}L${end} ${from[1]}L${end + 5} ${y}L${end + 9} ${y}`, class: "leader" }));
    svg.append(titled(drawn("text", { x: end + 12, y: y + 4, class: `series-name ${name}` }, PREDICTORS[name][0]), PREDICTORS[name][1]));
  });
  return svg;
}

/** All figures of a curve, as a table folded away. */
function curveNumbers(curve) {
  const columns = [["kind", "Predictor"], ["n", "Rules"], ...METRICS.map(([, title]) => ["score", title])];
  const cells = curve.map((row) => [
    make("span", "", PREDICTORS[row.predictor]?.[0] ?? row.predictor), row.rules === null ? "" : counted(row.rules),
    ...METRICS.map(([name]) => Object.assign(make("span", "", shown(row[name][0])), { title: span(row[name]) })),
  ]);
  return filled("details", "", make("summary", "", "As numbers"), filled("div", "scroller", tableOf("scores levels", columns, cells)));
}

/** The curve with a choice of metric. */
function curveFigure(title, curve, about, state) {
  const stage = make("div", "stage");
  const redraw = () => stage.replaceChildren(curvePlot(curve, state.metric));
  const picker = segmented("Metric", METRICS, state.metric, (metric) => {
    state.metric = metric;
    redraw();
  });
  redraw();
  return filled("figure", "curve-figure", make("h4", "", title), filled("div", "controls", picker), stage, make("p", "faint caption", about), curveNumbers(curve));
}

// --- Exemplars --------------------------------------------------------------------------------------------

const WAYS = [["rules", "What rules match"], ["adds", "What each token adds"]];

/** Of each token, what it counts for: the sum of the rules that match it (or of the chosen one), or what it adds. */
function weightsOf(exemplar, content, { way, rule }) {
  if (way === "adds") return exemplar.adds;
  const counts = (place) => (rule === null || place === rule ? content.rules[place][2] : 0);
  return exemplar.marks.map((places) => places.reduce((sum, place) => sum + counts(place), 0));
}

/** Words for one token: what it adds, and the rules that it matches. */
function tokenWords(exemplar, i, content) {
  const places = exemplar.marks[i];
  const strongest = [...places].sort((a, b) => Math.abs(content.rules[b][2]) - Math.abs(content.rules[a][2])).slice(0, 2);
  const rules = strongest.flatMap((place, k) => [k === 0 ? ": " : "; ", ...sentence(content.rules[place], content)]);
  const added = exemplar.adds[i];
  const adds = added === null ? [] : [" adds ", numbered(`${added > 5e-4 ? "+" : ""}${shown(added)}`)];
  const last = i === exemplar.tokens.length - 1 ? " (where it fires)" : "";
  return [labelOf(exemplar.tokens[i]), ` ${i}${last}`, ...adds, places.length === 0 ? ", matches no rule" : `, matches ${plural(places.length, "rule")}`, ...rules];
}

/** Colour tokens by a share of the largest; what lowers has the other colour and a dashed line. */
function paint(elements, weights, extent) {
  elements.forEach((element, i) => {
    const heat = Math.min(1, Math.abs(weights[i] ?? 0) / (extent || 1));
    element.classList.toggle("heat", heat > 0);
    element.classList.toggle("against", weights[i] < 0 && heat > 0);
    element.classList.toggle("strongly", weights[i] < 0 && heat > 0);
    element.style.setProperty("--heat", 0.75 * heat);
  });
}

function exemplarsPart(content, state, redraw) {
  const heading = make("h4", "", "Where it fires most");
  if (content.exemplars.length === 0) return [heading, notice("It fires nowhere in the texts that it was judged on.")];
  const all = content.exemplars.map((exemplar) => weightsOf(exemplar, content, state));
  const extent = all.flat().reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 0);
  const readout = make("p", "readout");
  readout.setAttribute("aria-live", "polite");
  const rest = () => readout.replaceChildren(make("span", "faint", "Point at a token to see what it adds and which rules it matches."));
  const items = content.exemplars.map((exemplar, e) => {
    const elements = tokenElements(exemplar.tokens);
    elements.at(-1)?.classList.add("is-query");
    elements.forEach((element, i) => (element.tabIndex = i === elements.length - 1 ? 0 : -1));
    paint(elements, all[e], extent);
    const text = withRole(filled("div", "exemplar-text", ...laidOut(elements, exemplar.tokens)), "listbox");
    text.setAttribute("aria-label", `Example ${e + 1}: the feature fires at the last token, ${threeDigits(exemplar.activation)}`);
    listenTo(text, elements, (i) => readout.replaceChildren(...tokenWords(exemplar, i, content)), rest);
    return filled("li", "", make("span", "number", shown(exemplar.activation, 2)), text);
  });
  rest();
  const ways = segmented("Colour", WAYS, state.way, (way) => redraw({ way }, "way"));
  const low = all.flat().some((x) => x < 0);
  const legend = extent === 0 ? "" : filled("div", "legend diverging", ...(low ? [make("span", "number", signed(-extent)), make("span", "ramp against")] : []),
    make("span", "number", "0"), make("span", "ramp"), make("span", "number", signed(extent)));
  const chosen = state.rule === null ? "" : ` Marked: tokens that match rule ${state.rule + 1} of the table.`;
  const about = `Activation, and the text up to the token in a frame, at which it fires. Blue raises the feature; orange with a dashed line lowers it.${state.way === "rules" ? " Rules on one token are added up." : " What a token adds: attention times what it writes."}`;
  return [heading, filled("div", "controls", ways, legend), readout, filled("ol", "exemplars", ...items), make("p", "faint caption", about + (state.way === "rules" ? chosen : ""))];
}

function listenTo(text, elements, tell, rest) {
  const at = (event) => positionOf(event) !== null && tell(positionOf(event));
  text.addEventListener("pointerover", at);
  text.addEventListener("focusin", at);
  text.addEventListener("pointerleave", rest);
  text.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = step && elements[positionOf(event) + step];
    if (!next) return;
    event.preventDefault();
    for (const element of elements) element.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

// --- Absences ---------------------------------------------------------------------------------------------

const MEASURED = {
  without_it: ["Pre-activation without it", "Where the rule matches in texts and the distractor is not in view."],
  with_it: ["Pre-activation with it", "Where the rule matches in texts and the distractor is in view."],
  put_in: ["Put in: change", "A token that carries it in place of a neutral token, less another neutral token there."],
  taken_out: ["Taken out: change", "A neutral token in place of what carries it, less one in place of another neutral token."],
};

function absenceCard(absence, content) {
  const { rule, distractor, outcompetes, measured } = absence;
  const how = outcompetes ? " outcompetes it " : " cancels it ";
  const said = filled("p", "said", ...sentence(rule, content), ", unless ", named(distractor[1], content), how, numbered(signed(distractor[2])));
  const rows = Object.keys(MEASURED).filter((name) => measured[name][0] > 0);
  const scale = scaleOf(rows.flatMap((name) => measured[name].slice(1).filter((x) => x !== null)));
  const columns = [["kind", "Measured"], ["bar", "95 % interval"], ["score", "Mean"], ["low-high", "From – to"], ["n", "n"]];
  const cells = rows.map((name) => {
    const [n, mean, low, high] = measured[name];
    const title = Object.assign(make("span", "title", MEASURED[name][0]), { title: MEASURED[name][1] });
    const bar = mean === null ? "" : scaled(intervalBar({ score: mean, low, high, null: 0 }, scale), scale.start, scale.end);
    return [title, bar, signed(mean), span([mean, low, high]), counted(n)];
  });
  const parts = [said];
  if (absence.fires_with !== null) parts.push(firesLine(absence));
  parts.push(filled("div", "scroller", tableOf("scores withs", columns, cells)));
  return filled("article", absence.confirmed ? "panel finding" : "panel finding tried", ...parts);
}

/** Two bars: how often it fires with the distractor put in, and with a neutral token in the same place. */
function firesLine({ fires_with: own, fires_without: control, measured }) {
  const bar = (share, name) => {
    const amount = make("span", "amount heat");
    amount.style.setProperty("--heat", 0.5);
    amount.style.width = `${100 * share}%`;
    return filled("div", "share", make("span", "", name), filled("span", "track", amount), numbered(percent(share)));
  };
  const about = make("p", "faint", `Share of ${plural(measured.put_in[0], "text")} that fire`);
  return filled("div", "shares", about, bar(control ?? 0, "with a neutral token"), bar(own ?? 0, "with the distractor there"));
}

const HOLDS = "Tick: 0. An absence holds if putting the distractor in lowers the feature and stops at least half of what fires, and taking it out raises it.";

function absencesPart(content) {
  const heading = make("h4", "", "Absences: rules that do not hold beside a distractor");
  return [heading, ...found(content.absences, "absence", "distractor", (one) => absenceCard(one, content), HOLDS)];
}

/** Cards of what was confirmed; of what was tried and does not hold, folded away; or that there is nothing. */
function found(all, noun, tried, card, about) {
  const [held, others] = [all.filter(({ confirmed }) => confirmed), all.filter(({ confirmed }) => !confirmed)];
  const parts = held.length > 0 ? [filled("div", "findings", ...held.map(card))] : [];
  if (all.length === 0) return [notice(`No ${noun} was confirmed: no ${tried} was suspected, so none was tried.`)];
  if (held.length === 0) parts.push(notice(`No ${noun} was confirmed; ${plural(others.length, tried)} ${others.length === 1 ? "was" : "were"} tried.`));
  if (others.length > 0) {
    parts.push(filled("details", "", make("summary", "", `Tried, not confirmed (${others.length})`), filled("div", "findings", ...others.map(card))));
  }
  return [...parts, make("p", "faint caption", about)];
}

// --- Counts -----------------------------------------------------------------------------------------------

const DOSES = [["fires", "Share that fires"], ["pre", "Pre-activation"]];

/** What happens as n grows, a line for each m, each with the place where the ratio says that it turns. */
function dosePlot({ doses, ratio, suppress }, way) {
  const value = way === "fires" ? ([, , , fires]) => fires : ([, , pre]) => pre;
  const most = Math.max(1, ...doses.map(([n]) => n));
  const values = doses.map(value).filter((x) => x !== null);
  const range = way === "fires" ? [0, 1] : [Math.min(0, ...values), Math.max(0, ...values, 1e-3)];
  const x = (n) => SIZE.left + (n / most) * SIZE.width;
  const steps = Array.from({ length: Math.min(most, 8) + 1 }, (_, i) => Math.round((i * most) / Math.min(most, 8)));
  const svg = plotFrame("How the feature does as the first is dealt out more often", steps.map((n) => [n / most, String(n)]), ticksOf(range), range, "n: how often the first is there", "");
  const ms = [...new Set(doses.map(([, m]) => m))];
  const half = way === "fires" ? 0.5 : 0;
  svg.append(drawn("line", { x1: SIZE.left, x2: x(most), y1: Y(half, range), y2: Y(half, range), class: "chance" }));
  const last = (m) => doses.filter((dose) => dose[1] === m).at(-1);
  const labels = apart(ms.map((m) => Y(value(last(m)) ?? 0, range)));
  ms.forEach((m, k) => {
    const own = doses.filter((dose) => dose[1] === m && value(dose) !== null);
    const style = `dose-${k % 3}`;
    const turns = suppress === null ? ratio : ratio * m;
    if (turns > 0 && turns <= most) {
      svg.append(titled(drawn("line", { x1: x(turns), x2: x(turns), y1: SIZE.top, y2: SIZE.top + SIZE.height, class: `turn ${style}` }), `the ratio says ${threeDigits(turns)}`));
    }
    svg.append(drawn("path", { d: `M${own.map((dose) => `${x(dose[0])} ${Y(value(dose), range)}`).join("L")}`, class: `series ${style}` }));
    for (const dose of own) {
      svg.append(titled(drawn("circle", { cx: x(dose[0]), cy: Y(value(dose), range), r: 3, class: `point ${style}` }), `n ${dose[0]}, m ${m}: ${way === "fires" ? percent(dose[3]) : signed(dose[2])}`));
    }
    const end = x(most);
    svg.append(drawn("path", { d: `M${end} ${Y(value(last(m)) ?? 0, range)}L${end + 4} ${labels[k]}L${end + 9} ${labels[k]}`, class: "leader" }));
    svg.append(drawn("text", { x: end + 12, y: labels[k] + 4, class: `series-name ${style}` }, suppress === null ? "alone" : `m = ${m}`));
  });
  return svg;
}

function countCard(count, content) {
  const { query, attract, suppress, ratio, doses } = count;
  const first = ["Fires from more than ", numbered(threeDigits(ratio)), " × ", named(attract, content)];
  const each = suppress === null ? [] : [" for each ", named(suppress, content)];
  const seen = query === NONE ? [] : [", seen from ", named(query, content)];
  const said = filled("p", "said", ...first, ...each, ...seen);
  const card = (...parts) => filled("article", count.confirmed ? "panel finding" : "panel finding tried", said, ...parts);
  if (doses.length === 0) return card(make("p", "faint", "No dose curve: at both ends of the doses it does the same, or there is no token to deal out."));
  const stage = make("div", "stage");
  const redraw = (way) => stage.replaceChildren(dosePlot(count, way));
  const picker = segmented("Measure", DOSES, "fires", redraw);
  redraw("fires");
  const second = suppress === null ? "" : " and m of the second,";
  const about = `${plural(count.contexts, "text")}; ${plural(count.places, "place")} in each hold n of the first,${second} and neutral tokens. Upright lines: where the ratio says that it turns.`;
  return card(filled("figure", "doses", filled("div", "controls", picker), stage, make("p", "faint caption", about)));
}

const NEAR = "A count holds if more than half of the texts fire from near the ratio on, and more of the second takes more of the first.";

function countsPart(content) {
  const heading = make("h4", "", "Counts: how often, and beside how many of another");
  return [heading, ...found(content.counts, "count", "count", (one) => countCard(one, content), NEAR)];
}

// --- Made to match ----------------------------------------------------------------------------------------

const MADE = "In texts where the feature is silent, tokens are replaced: by ones of the key and of the query, where it should fire; and by " +
  "neutral ones in place of either, where it should not. Agreement: share that does as it should, with its 95 % interval over texts; tick: " +
  "0.5, for a feature that does the same whatever the tokens are.";

function agreementPart(content) {
  const heading = make("h4", "", "Texts made to match, and made not to");
  const rows = content.agreement.filter(({ n }) => n > 0);
  if (rows.length === 0) return [heading, notice("No rule was tried on made texts: none raises the feature, or no text has room for its tokens.")];
  const columns = [["kind", "Rule"], ["null", "Fires: made to match"], ["null", "without the key"], ["null", "without the query"], ["bar", "Agreement"], ["score", ""], ["n", "Texts"]];
  const scale = { fraction: (x) => Math.min(1, Math.max(0, x)) };
  const cells = rows.map(({ rule, n, matching, without_key: key, without_query: query, right: [mean, low, high] }) => [
    filled("span", "", ...sentence(rule, content).slice(0, -2)), percent(matching), percent(key), query === null ? "" : percent(query),
    mean === null ? "" : scaled(intervalBar({ score: mean, low, high }, scale, [{ value: 0.5 }]), 0, 1), shown(mean, 2), counted(n),
  ]);
  return [heading, filled("div", "scroller", tableOf("scores made", columns, cells)), make("p", "faint caption", MADE)];
}

// --- The list of features ---------------------------------------------------------------------------------

const ORDERS = [
  ["number", "By number", (a, b) => a.feature - b.feature],
  ["ap", "Best told", (a, b) => (b.ap ?? -1) - (a.ap ?? -1) || a.feature - b.feature],
  ["often", "Most often", (a, b) => b.positions - a.positions || a.feature - b.feature],
  ["special", "Absences, counts", (a, b) => b.absences + b.counts - a.absences - a.counts || a.feature - b.feature],
];

function featureButton(one, f) {
  const extras = [one.absences > 0 ? plural(one.absences, "absence") : "", one.counts > 0 ? plural(one.counts, "count") : ""];
  const facts = [`${plural(one.rules, "rule")}, fires ${counted(one.positions)}×`, ...extras].filter(Boolean).join(" · ");
  const button = filled("button", "", make("span", "place number", String(one.feature)), make("span", "start", one.strongest ?? "no rule"),
    make("span", "answer", facts), make("span", "number", shown(one.ap, 2)));
  button.type = "button";
  button.dataset.feature = f;
  return button;
}

/** Features as a list of buttons; up and down go from one to the next. */
function featureList(features, choose) {
  const list = make("ol");
  const fill = (order) => {
    const [, , before] = ORDERS.find(([name]) => name === order);
    const ranked = features.map((one, f) => ({ ...one, f })).sort(before);
    list.replaceChildren(...ranked.map((one) => filled("li", "", featureButton(one, one.f))));
    list.scrollTop = 0;
    return ranked[0]?.f ?? 0;
  };
  const mark = (f) => {
    for (const button of list.querySelectorAll("button")) {
      button.classList.toggle("selected", Number(button.dataset.feature) === f);
      button.setAttribute("aria-current", String(Number(button.dataset.feature) === f));
    }
  };
  chosenFromList(list, (button) => choose(Number(button.dataset.feature)));
  return { list, fill, mark };
}

// --- The view ---------------------------------------------------------------------------------------------

const JUDGED = "On test texts that mining never saw, weighted to how often things are; bars: 95 % intervals over texts.";
const MEANS = "Means over features, on test texts that mining never saw; bars: 95 % intervals over features.";

/** One feature: all that is known of it. `redraw` takes what changed, and which control had the focus. */
function drawFeature(one, content, state, stage) {
  const [upper, examples] = [make("div", "rules-part"), make("div", "examples-part")];
  const redraw = (changed = {}, control = null) => {
    Object.assign(state, changed);
    upper.replaceChildren(...rulesPart(content, state, redraw));
    examples.replaceChildren(...exemplarsPart(content, state, redraw));
    // What was pressed is drawn anew: it must not lose the keyboard.
    if (control === "more") upper.querySelector(".release")?.focus();
    else if (control === "way") examples.querySelector("input:checked")?.focus();
    else if (control !== null) upper.querySelectorAll(".choice")[control]?.focus();
  };
  const [mined, selected, tested] = content.examples;
  const facts = filled("p", "facts", filled("span", "", "fires at ", numbered(counted(one.positions)), ` positions of ${plural(one.texts, "text")}`),
    filled("span", "", numbered(counted(one.rules)), one.rules === 1 ? " rule" : " rules"),
    filled("span", "", "judged on ", numbered(counted(tested)), ` positions, after ${counted(mined)} to mine and ${counted(selected)} to choose`));
  redraw();
  stage.replaceChildren(
    make("h3", "", `Output feature ${one.feature}`), facts, upper, curveFigure("How well they tell it", content.curve, JUDGED, state), examples,
    filled("div", "made-part", ...agreementPart(content)), filled("div", "absences-part", ...absencesPart(content)), filled("div", "counts-part", ...countsPart(content)),
  );
}

function drawResult(model, result, r, stage) {
  const state = { metric: "ap", way: "rules", rule: null, all: false, request: 0 };
  const detail = make("div", "feature");
  const { notice: wrong, report } = failure("This feature could not be read");
  const choose = async (f) => {
    const request = ++state.request;
    listed.mark(f);
    const content = await model.get(`rules_${r}_${f}`);
    if (request !== state.request) return; // another was chosen meanwhile
    Object.assign(state, { rule: null, all: false });
    drawFeature(result.features[f], content, state, detail);
  };
  const attempt = (f) => choose(f).catch(report);
  const listed = featureList(result.features, attempt);
  const special = result.features.some(({ absences, counts }) => absences + counts > 0);
  const orders = ORDERS.filter(([name]) => name !== "special" || special).map(([name, title]) => [name, title]);
  const start = special ? "special" : "number";
  const picker = segmented("Order", orders, start, (order) => listed.fill(order));
  const head = filled("p", "list-head faint", make("span", "", plural(result.features.length, "feature")), make("span", "", "AP of its rules"));
  const first = listed.fill(start);
  const several = result.features.length > 1;
  const list = filled("div", "documents ranking", picker, head, listed.list);
  const mean = several ? [curveFigure(`All ${plural(result.features.length, "feature")}`, result.curve, MEANS, { metric: "ap" })] : [];
  const unnamed = result.labelled ? [] : [make("p", "faint note", "Input features have no labels here: pass FeatureLabels of their dictionary to have words.")];
  const body = filled("div", several ? "reading-body" : "", ...(several ? [filled("div", "", list, ...mean)] : []), filled("div", "", wrong, detail));
  stage.replaceChildren(...unnamed, body);
  attempt(first);
}

function render({ model, el }) {
  el.classList.add("headlens", "rules");
  const results = model.get("rules") ?? [];
  el.hidden = results.length === 0;
  if (el.hidden) return undefined;
  const stage = make("div", "one");
  const pick = chooser("Head ", results.map(({ name }) => name), 0, (r) => drawResult(model, results[r], r, stage));
  const title = make("h2", "", results.length === 1 ? results[0].name : "Rules");
  el.replaceChildren(title, pick, stage);
  drawResult(model, results[0], 0, stage);
  return undefined;
}

export default { render };
