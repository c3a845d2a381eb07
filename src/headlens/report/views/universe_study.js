// Does like find like across models, and which heads do not fit in? Retrieval, its baselines, and outliers.
//
// Reads `universe` (for its heads) and `study`: see universe_payload.py. Reads and sets `selected` ({model, layer, head},
// with `show` where the reader wants to see it).

import {
  chooser, filled, intervalBar, make, numbered, scaled, scaleOf, segmented, shown, tableOf,
} from "./common.js";

const OURS = "phase 2";
const FEW = 12; // outliers on screen, until all are asked for
const SPLITS = {
  "family left out": ["Family left out", "The space was fitted without any model of the query's family, which joined afterwards."],
  "heads held out": ["Heads held out", "The space was fitted without the query head, but with others of its family."],
};
const SPACES = {
  [OURS]: "Where each head lies in the universe.",
  random: "Numbers drawn at random.",
  "relative depth": "How deep the head's layer is.",
  "same index": "Number of its layer and head.",
  RDM: "Which of some texts it treats alike.",
  "mean pattern PCA": "Its mean pattern over texts, on words, in 32 components.",
};

const counted = (n) => n.toLocaleString("en");
const plural = (n, noun) => `${counted(n)} ${noun}${n === 1 ? "" : "s"}`;
const span = ([, low, high]) => (low === null || high === null ? "" : `${shown(low, 2)} to ${shown(high, 2)}`);
const signed = (x) => (x === null ? "" : `${x > 0 ? "+" : ""}${shown(x, 2)}`);

// --- Heads ------------------------------------------------------------------------------------------------

function readHeads({ heads, models, kinds }) {
  return heads.model.map((m, i) => ({
    i, model: models[m].model, family: models[m].family, layer: heads.layer[i], head: heads.head[i],
    labels: heads.kinds[i].map((kind) => kinds[kind].name),
  }));
}

const nameOf = ({ layer, head }) => `L${layer}H${head}`;
const fullName = (head) => `${nameOf(head)} of ${head.model}`;
const sameHead = (a, b) => Boolean(a && b) && a.model === b.model && a.layer === b.layer && a.head === b.head;

// --- Spaces -----------------------------------------------------------------------------------------------

/** A value from 0 to 1 with its interval, and chance as a tick. */
function shareCell([value, low, high], prevalence) {
  if (value === null) return "";
  const ticks = prevalence === null ? [] : [{ value: prevalence, title: `chance ${shown(prevalence, 2)}` }];
  const bar = intervalBar({ score: value, low, high }, { fraction: (x) => Math.min(1, Math.max(0, x)) }, ticks);
  const cell = filled("span", "measured", bar, make("b", "number", shown(value, 2)));
  cell.title = span([value, low, high]);
  return cell;
}

/** What each space finds of one kind; the first column chooses whose ranking is shown. */
function spacesTable(rows, chosen, choose) {
  const tested = rows.some(({ f1 }) => f1[0] !== null);
  const columns = [["kind", "Space"], ["bar", "Recall at R"], ["bar", "MRR"], ["bar", "AP"], ["null", "Gain"], ...(tested ? [["bar", "F1"], ["null", "F1 gain"]] : []), ["n", "Queries"]];
  const ahead = (gain) => (gain[0] === null ? "" : Object.assign(make("span", gain[1] > 0 ? "sure" : "", signed(gain[0])), { title: span(gain) }));
  const cells = rows.map((row) => {
    const button = filled("button", "choice", row.space === OURS ? "the universe" : row.space);
    button.type = "button";
    button.title = SPACES[row.space] ?? "";
    button.setAttribute("aria-pressed", String(row.space === chosen));
    button.addEventListener("click", () => choose(row.space));
    const f1 = tested ? [shareCell(row.f1, null), ahead(row.f1_gain)] : [];
    return [button, shareCell(row.recall, row.prevalence), shareCell(row.mrr, null), shareCell(row.ap, row.prevalence), ahead(row.gain), ...f1, counted(row.queries)];
  });
  return filled("div", "scroller", tableOf("scores spaces", columns, cells, (i) => (rows[i].space === OURS ? "labelled" : "")));
}

const RETRIEVAL = "Each head of the kind is a query; candidates are all heads of other families, nearest first. Recall at R: of the R that are of " +
  "the kind, found among the first R. MRR: 1 / place of the first. AP: mean precision where each is found. F1: a linear test whose threshold comes " +
  "from other families. Bars: 95 % intervals over models; tick: chance. Gain: the universe's AP, or F1, above this one's, bold where its interval is above 0.";

// --- One query --------------------------------------------------------------------------------------------

/** The ranking of one query as a row of squares: filled with a tick, right; hollow, wrong. */
function stripOf(query, heads) {
  const strip = make("div", "strip");
  strip.setAttribute("aria-hidden", "true");
  query.nearest.forEach(([i, distance, right], place) => {
    const square = make("span", right ? "hit" : "miss", right ? "✓" : "");
    square.title = `${place + 1}: ${fullName(heads[i])}, distance ${shown(distance, 2)}`;
    strip.append(square);
  });
  return strip;
}

function rankedList(query, heads, select) {
  const items = query.nearest.map(([i, distance, right], place) => {
    const head = heads[i];
    const button = filled("button", "", make("span", "place faint number", String(place + 1)), make("span", right ? "hit" : "miss", right ? "✓" : "✗"),
      filled("span", "of", filled("span", "", make("b", "", nameOf(head)), ` ${head.model}`), make("span", "faint", head.labels.join(", ") || "of no kind")), make("span", "number", shown(distance, 2)));
    button.type = "button";
    button.setAttribute("aria-label", `${place + 1}: ${fullName(head)}, ${right ? "of the kind" : "not of the kind"}, distance ${shown(distance, 2)}`);
    button.addEventListener("click", () => select(head));
    return filled("li", "", button);
  });
  return filled("ol", "ranked", ...items);
}

function queryPart(query, heads, kind, select) {
  const head = heads[query.head];
  const right = query.nearest.filter(([, , good]) => good).length;
  const facts = filled("p", "facts", filled("span", "", "recall ", numbered(shown(query.recall, 2))), filled("span", "", "first right one 1 in ", numbered(query.mrr ? shown(1 / query.mrr, 0) : shown(null))),
    filled("span", "", "AP ", numbered(shown(query.ap, 2))), filled("span", "", numbered(counted(right)), ` of the first ${counted(query.nearest.length)} are of the kind`));
  return [filled("h4", "", `${fullName(head)} looks for ${kind.name.toLowerCase()}`), facts, stripOf(query, heads), rankedList(query, heads, select)];
}

/** Retrieval: kind and split are chosen above, the space in the table, the query below it. */
function retrievalPart(universe, study, heads, select) {
  const { kinds } = universe;
  const there = kinds.map((kind, k) => ({ ...kind, k })).filter(({ k }) => study.spaces.some((row) => row.kind === k));
  const heading = make("h2", "", "Does like find like?");
  if (there.length === 0) return [heading, make("p", "notice", "No kind has heads in three families or more, so there is nothing to find again.")];
  const splits = [...new Set(study.spaces.map(({ split }) => split))];
  const first = there.find(({ kind }) => kind === "induction") ?? there[0];
  const state = { kind: first.k, split: splits[0], space: OURS, query: null };
  const [about, table, below] = [make("p", "meaning"), make("div", ""), make("div", "query")];
  const redraw = (focus = null) => {
    const spaces = study.spaces.filter((row) => row.kind === state.kind && row.split === state.split);
    if (!spaces.some(({ space }) => space === state.space)) state.space = spaces[0]?.space;
    const queries = study.queries.filter((row) => row.kind === state.kind && row.split === state.split && row.space === state.space);
    const query = queries.find(({ head }) => head === state.query) ?? queries[0];
    const meaning = kinds[state.kind].meaning;
    about.textContent = `${SPLITS[state.split]?.[1] ?? ""}${meaning ? ` ${kinds[state.kind].name}: ${meaning}.` : ""}`;
    table.replaceChildren(spaces.length === 0 ? make("p", "notice", "This kind was not looked for here: too few families have such heads.") : spacesTable(spaces, state.space, (space) => {
      state.space = space;
      redraw("space");
    }));
    const pick = chooser("Query ", queries.map(({ head }) => fullName(heads[head])), Math.max(0, queries.indexOf(query)), (q) => {
      state.query = queries[q].head;
      redraw("query");
    });
    below.replaceChildren(...(query ? [pick, ...queryPart(query, heads, kinds[state.kind], select)] : []));
    if (focus === "space") table.querySelector('[aria-pressed="true"]')?.focus();
    if (focus === "query") below.querySelector("select")?.focus();
  };
  const kindPick = segmented("Kind", there.map(({ k, name }) => [String(k), name]), String(first.k), (k) => {
    state.kind = Number(k);
    redraw();
  });
  const splitPick = segmented("Split", splits.map((split) => [split, SPLITS[split]?.[0] ?? split]), state.split, (split) => {
    state.split = split;
    redraw();
  });
  redraw();
  const showQuery = (head) => {
    const known = study.queries.some((row) => row.kind === state.kind && row.split === state.split && row.head === head.i);
    if (!known || state.query === head.i) return;
    state.query = head.i;
    redraw();
  };
  const controls = filled("div", "controls", kindPick, ...(splits.length > 1 ? [splitPick] : []));
  return [heading, controls, about, table, make("p", "faint caption", RETRIEVAL), below, { showQuery }];
}

// --- Outliers ---------------------------------------------------------------------------------------------

const rate = (q) => (q === null ? "" : q < 0.001 ? "< .001" : q.toFixed(3).replace(/^0/, ""));

function outlierTable(study, heads, rows, select) {
  const columns = [["kind", "Head"], ["null", "KL of position only"], ["bar", "Unclonable"], ["q", "q"], ["bar", "Uncompressible"], ["q", "q"], ["least", "Best of what knows less"], ["level", "Flagged"]];
  const scales = [2, 5].map((c) => scaleOf(study.outliers.map((row) => row[c] ?? 0)));
  const bar = (value, which) => {
    if (value === null) return "";
    const middle = study.medians[["unclonable", "uncompressible"][which]];
    const ends = scaled(intervalBar({ score: value, low: null, high: null }, scales[which], [{ value: middle, title: `median ${shown(middle, 2)}` }]), scales[which].start, scales[which].end);
    return filled("span", "measured", ends, make("span", "number", shown(value, 2)));
  };
  const least = (left) => {
    const order = study.less.map((method, m) => [left[m], method]).sort(([a], [b]) => a - b);
    const [value, method] = order[0];
    return Object.assign(filled("span", "", make("span", "number", shown(value, 2)), make("span", "faint", ` ${method}`)), {
      title: order.map(([each, name]) => `${name} ${shown(each, 2)}`).join(", "),
    });
  };
  const cells = rows.map(([i, kl, unclonable, u, first, uncompressible, c, second, left]) => {
    const head = heads[i];
    const button = filled("button", "choice", make("b", "", nameOf(head)), make("span", "faint", ` ${head.model}`));
    button.type = "button";
    button.addEventListener("click", () => select(head));
    const flags = [first ? "unclonable" : "", second ? "uncompressible" : ""].filter(Boolean).map((name) => make("span", "level high", name));
    return [button, shown(kl, 2), bar(unclonable, 0), rate(u), bar(uncompressible, 1), rate(c), least(left), filled("span", "flags", ...flags)];
  });
  return tableOf("scores outliers", columns, cells);
}

const OUTLIERS = "Unclonable: share of what position leaves open that a map for this one head misses; what it looks for is not in the encoder's " +
  "states. Uncompressible: share that is lost where the head is few numbers and its family is new. Tick: median over heads; q: false-discovery rate " +
  "of so large a value. Best of what knows less: the smallest share that mean patterns, symbols, another head's clone or a clone shown another " +
  "text miss of the same head; where that is less than its own clone misses, the clone is at fault. Heads that position tells already are not judged.";

function outlierPart(study, heads, select) {
  const heading = make("h2", "", "Which heads do not fit in?");
  if (study.judged === 0) return [heading, make("p", "notice", "No head was judged: position tells all of them.")];
  const flagged = study.flagged === 0 ? "No head is flagged" : `${plural(study.flagged, "head")} ${study.flagged === 1 ? "is" : "are"} flagged`;
  const said = make("p", "meaning", `${flagged} at 5 % false discoveries, of ${plural(study.judged, "head")} judged.`);
  const stage = make("div", "scroller");
  let all = false;
  const redraw = () => {
    stage.replaceChildren(outlierTable(study, heads, study.outliers.slice(0, all ? undefined : FEW), select));
    more.textContent = all ? `The first ${FEW} only` : `All ${counted(study.outliers.length)} heads`;
  };
  const more = Object.assign(make("button", "release"), { type: "button", hidden: study.outliers.length <= FEW });
  more.addEventListener("click", () => {
    all = !all;
    redraw();
  });
  redraw();
  return [heading, said, stage, more, make("p", "faint caption", OUTLIERS)];
}

// --- How well patterns are told ---------------------------------------------------------------------------

function methodsPart(study) {
  const texts = [...new Set(study.methods.map(({ text }) => text))];
  const titles = { "held out": "Held-out texts", repeats: "Random words that come again" };
  if (texts.length === 0) return [];
  const stage = make("div", "scroller");
  const redraw = (text) => {
    const rows = study.methods.filter((row) => row.text === text).sort((a, b) => (b.skill[0] ?? -9) - (a.skill[0] ?? -9));
    const inside = (x) => (x === null ? null : Math.max(-1, x));
    const scale = scaleOf(rows.flatMap(({ skill }) => skill.filter((x) => x !== null).map(inside)), 1);
    const columns = [["kind", "Method"], ["bar", "Skill, 95 % interval"], ["score", "Skill"], ["low-high", "From – to"], ["null", "KL, nats a row"], ["n", "Heads"]];
    const cells = rows.map(({ method, skill, kl, heads }) => {
      const bar = skill[0] === null ? "" : scaled(intervalBar({ score: inside(skill[0]), low: inside(skill[1]), high: inside(skill[2]) }, scale, [{ value: 0, title: "position only" }]), scale.start, scale.end);
      return [make("span", "title", method === "clone" ? "clone: one map a head" : method), bar, signed(skill[0]), span(skill), shown(kl, 3), counted(heads)];
    });
    stage.replaceChildren(tableOf("scores methods", columns, cells, (i) => (rows[i].method === "clone" ? "labelled" : "")));
  };
  redraw(texts[0]);
  const picker = texts.length > 1 ? [filled("div", "controls", segmented("Texts", texts.map((text) => [text, titles[text] ?? text]), texts[0], redraw))] : [];
  const about = "Medians over heads that position does not tell. Skill: share of what position leaves open (tick: 0, position only) that is told; intervals over models.";
  return [make("h2", "", "How well are patterns told?"), ...picker, stage, make("p", "faint caption", about), ...fewPart(study)];
}

/** Skill by method and number of texts; the rest is told on hover. */
function fewPart({ few }) {
  if (few.length === 0) return [];
  const [counts, methods] = ["documents", "method"].map((name) => [...new Set(few.map((row) => row[name]))]);
  const best = new Map(counts.map((n) => [n, Math.max(...few.filter((row) => row.documents === n).map((row) => row.skill[0] ?? -Infinity))]));
  const columns = [["kind", "Method"], ...counts.map((n) => ["null", `${counted(n)} text${n === 1 ? "" : "s"}`])];
  const cells = methods.map((method) => [method === OURS ? "phase 2, family left out" : method, ...counts.map((n) => {
    const row = few.find((one) => one.method === method && one.documents === n);
    if (!row) return "";
    const gap = row.gap[0] === null ? [] : [`phase 2 ${signed(row.gap[0])} nats (${span(row.gap)})`];
    const cell = make("span", row.skill[0] === best.get(n) ? "sure" : "", signed(row.skill[0]));
    return Object.assign(cell, { title: [`skill ${span(row.skill)}`, `KL ${shown(row.kl, 3)} nats a row`, ...gap, `${counted(row.heads)} heads`].join("; ") });
  })]);
  const table = tableOf("scores few", columns, cells, (i) => (methods[i] === OURS ? "labelled" : ""));
  const caption = "Median skill of what is fitted on so many texts of a head, bold where it is the best. Phase 2: heads that join a decoder of other " +
    "families; all others need none. Hover for intervals, KL, and how much more phase 2 misses of the same heads.";
  return [filled("details", "", make("summary", "", "Heads that join on few texts"), filled("div", "scroller", table), make("p", "faint caption", caption))];
}

// --- The view ---------------------------------------------------------------------------------------------

function render({ model, el }) {
  el.classList.add("headlens", "universe-study");
  const [universe, study] = [model.get("universe"), model.get("study")];
  el.hidden = !study;
  if (el.hidden) return undefined;
  const heads = readHeads(universe);
  let selecting = false;
  const select = ({ model: name, layer, head }) => {
    selecting = true; // by a button here: what it stands in stays as it is
    model.set("selected", { model: name, layer, head, show: true });
    model.save_changes();
    selecting = false;
  };
  const parts = retrievalPart(universe, study, heads, select);
  const { showQuery } = parts.at(-1) instanceof Node ? { showQuery: () => {} } : parts.pop();
  const part = (...children) => filled("div", "study-part", ...children);
  el.replaceChildren(part(...parts), part(...outlierPart(study, heads, select)), part(...methodsPart(study)));
  model.on("change:selected", () => {
    const head = heads.find((one) => sameHead(one, model.get("selected")));
    if (head && !selecting) showQuery(head);
  });
  return undefined;
}

export default { render };
