// What is this head? All its scores, the heads that are most like it, and the tokens that it writes and matches.
//
// Reads `selected` ({model, layer, head}), `heads`, `kinds`, `scores`, `circuits` and, for the head on screen only,
// `circuits_M`; sets `selected`. Where no head has a level or circuits there is nothing to add to the other views.
// Imports nothing: this one file is the report's view, the notebook widget and the web app's panel. So parts of it
// are as in head_grid.js (the interval) and attention.js (tokens as visible text).

const LEVELS = ["low", "medium", "high"];
const NEAREST = 5;

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

// A true minus sign is as wide as a digit, so columns of numbers align.
const minus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212"));

const shown = (number, digits = 3) => (number === null ? "" : minus(number.toFixed(digits)));

/** Three digits that matter: direct logits have a scale of their own in every model. */
const threeDigits = (number) => (number === null ? "" : minus(Number(number.toPrecision(3)).toString()));

const shownRate = (q) => (q === null ? "" : q < 0.001 ? "< .001" : q.toFixed(3).replace(/^0/, ""));

// --- Data -------------------------------------------------------------------------------------------------

const keyOf = (m, layer, head) => `${m},${layer},${head}`;

/** Rows of the score table by head (`m`: index of its model), each in the order of kinds. */
function readHeads(model) {
  const columns = model.get("scores");
  const found = new Map();
  for (let i = 0; i < columns.score.length; i++) {
    const [m, layer, head] = [columns.model[i], columns.layer[i], columns.head[i]];
    const key = keyOf(m, layer, head);
    if (!found.has(key)) found.set(key, { m, layer, head, rows: [] });
    const row = { kind: columns.kind[i] };
    for (const name of ["score", "low", "high", "null", "n", "weighted", "q", "level", "detail"]) {
      row[name] = columns[name]?.[i] ?? null;
    }
    found.get(key).rows.push(row);
  }
  for (const { rows } of found.values()) rows.sort((a, b) => a.kind - b.kind);
  return found;
}

/** By kind, the scale that the grid has: its ends are 0 or a power of two, and it reaches as far as `high`. */
function scalesOf(model) {
  const columns = model.get("scores");
  const most = model.get("kinds").map(() => ({ low: 0, high: 0 }));
  columns.score.forEach((score, i) => {
    for (const x of [score, columns.null[i]]) {
      if (x === null) continue;
      const ends = most[columns.kind[i]];
      ends.low = Math.min(ends.low, x);
      ends.high = Math.max(ends.high, x);
    }
  });
  const beyond = (largest) => (largest > 0 ? 2 ** Math.ceil(Math.log2(largest)) : 0);
  const decided = Array.isArray(columns.level);
  return most.map(({ low, high }, kind) => {
    const least = decided ? (model.get("kinds")[kind].high ?? 0) : 0;
    const start = -beyond(-low > least / 16 ? -low : 0);
    const end = beyond(Math.max(high, least, start < 0 ? 0 : 1e-3));
    return { start, end, fraction: (x) => Math.min(1, Math.max(0, (x - start) / (end - start))) };
  });
}

/** Excess over the null by kind, in units of what its kind calls high: a profile that kinds of all sizes shape. */
function profileOf(rows, kinds) {
  const profile = new Map();
  for (const { kind, score, null: control } of rows) {
    if (score !== null && control !== null) profile.set(kind, (score - control) / (kinds[kind].high ?? 1));
  }
  return profile;
}

/** 1 - |a - b| / (|a| + |b|) over the kinds that both have: 1 for equal profiles, 0 for opposite ones. */
function similarity(a, b) {
  const sums = { apart: 0, a: 0, b: 0, kinds: 0 };
  for (const [kind, x] of a) {
    if (!b.has(kind)) continue;
    const y = b.get(kind);
    sums.apart += (x - y) ** 2;
    sums.a += x ** 2;
    sums.b += y ** 2;
    sums.kinds += 1;
  }
  const size = Math.sqrt(sums.a) + Math.sqrt(sums.b);
  return { kinds: sums.kinds, value: size === 0 ? 1 : 1 - Math.sqrt(sums.apart) / size };
}

/** The heads most like one, nearest first; of equals, the one that comes first in the report. */
function nearest(heads, own, kinds) {
  const profile = profileOf(own.rows, kinds);
  if (profile.size < 2) return []; // one number is no profile
  return [...heads.values()]
    .filter((other) => other !== own)
    .map((other) => ({ other, ...similarity(profile, profileOf(other.rows, kinds)) }))
    .filter(({ kinds: shared }) => 2 * shared >= profile.size) // fewer would say little
    .sort((a, b) => b.value - a.value || a.other.m - b.other.m || a.other.layer - b.other.layer || a.other.head - b.other.head)
    .slice(0, NEAREST);
}

// --- Tokens as visible text -------------------------------------------------------------------------------

// Characters that show nothing or reorder what follows: a reader must see that they are there.
const HIDDEN = /[\p{Cc}\p{Zl}\p{Zp}\p{Cf}\p{Cs}\u034F\u115F\u1160\u17B4\u17B5\u3164\uFFA0\u{E0100}-\u{E01EF}]/u;
const JOINER = /[\u200C\u200D]/; // shapes emoji, Indic and Persian text: legitimate between visible characters
const MARKS = { "\n": "\u23CE", "\t": "\u21E5", "\u007F": "\u2421", "\u200B": "ZWSP", "\u00AD": "SHY" };

function markFor(character) {
  const code = character.codePointAt(0);
  if (MARKS[character]) return MARKS[character];
  if (isSpace(character)) return "\u2423";
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code >= 0xd800 && code <= 0xdfff) return "\uFFFD";
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

const isSpace = (character) => /\s/u.test(character) && !HIDDEN.test(character);

/** A token in a frame of its own, spaces and what else would not be seen as marks. */
function tokenOf(token) {
  const element = make("span", "quoted");
  if (token === "") element.append(make("span", "mark boxed", "empty"));
  const characters = [...token];
  const seen = characters.some((c) => !HIDDEN.test(c));
  let run = "";
  const flush = () => {
    element.append(run);
    run = "";
  };
  if (/^\p{M}/u.test(token)) element.append(make("span", "mark", "\u25CC")); // a combining mark needs a letter
  for (const character of characters) {
    const hidden = (HIDDEN.test(character) && !(seen && JOINER.test(character))) || isSpace(character);
    if (!hidden) {
      run += character;
      continue;
    }
    flush();
    const mark = markFor(character);
    element.append(make("span", mark.length > 1 ? "mark boxed" : "mark", mark));
  }
  flush();
  return element;
}

// --- Scores -----------------------------------------------------------------------------------------------

/** The interval as a bar, the score as a dot, the null as a tick, between the ends of the grid's scale. */
function intervalBar(row, scale) {
  const bar = make("span", "interval");
  const percent = (x) => `${100 * scale.fraction(x)}%`;
  if (row.low !== null && row.high !== null) {
    const whisker = make("span", "whisker");
    whisker.style.left = percent(row.low);
    whisker.style.right = `${100 - 100 * scale.fraction(row.high)}%`;
    bar.append(whisker);
  }
  for (const [name, x] of [["null", row.null], ["dot", row.score]]) {
    if (x === null) continue;
    const mark = make("span", name);
    mark.style.left = percent(x);
    bar.append(mark);
  }
  const ends = [scale.start, scale.end].map((x) => make("span", "end faint number", minus(String(Number(x.toPrecision(2))))));
  return filled("span", "scaled", ends[0], bar, ends[1]);
}

const COLUMNS = [
  ["kind", "Kind"],
  ["bar", "95 % interval"],
  ["score", "Score"],
  ["null", "Null"],
  ["weighted", "Weighted"],
  ["level", "Level"],
  ["q", "q"],
  ["n", "n"],
];

const EXPLAINED =
  "Bar: 95 % interval, dot: score, tick: null (what a head without the behaviour would score). Weighted: keys count by " +
  "what they write. q: false-discovery rate of a score above its null.";

function scoreTable(rows, kinds, scales) {
  const row = (className, role, contents) => {
    const cells = contents.map(([name, content], i) => {
      const cell = withRole(make("td", name), role);
      if (content !== "") cell.append(content);
      cell.dataset.column = COLUMNS[i][1].toLowerCase();
      return cell;
    });
    return withRole(filled("tr", className, ...cells), "row");
  };
  const head = row("", "columnheader", COLUMNS);
  const lines = rows.map((r) => {
    const { kind, name, meaning } = kinds[r.kind];
    const title = filled("span", "title", name ?? kind);
    if (meaning) title.title = meaning;
    const label = filled("span", "", title);
    if (r.detail !== null) label.append(make("span", "faint detail", ` ${r.detail}`));
    const cells = {
      kind: label,
      bar: r.score === null ? make("span", "faint", "no value") : intervalBar(r, scales[r.kind]),
      score: shown(r.score),
      null: shown(r.null),
      weighted: shown(r.weighted),
      level: r.level === null ? "" : make("span", `level ${LEVELS[r.level]}`, LEVELS[r.level]),
      q: shownRate(r.q),
      n: r.n === null ? "" : String(r.n),
    };
    return row(r.level > 0 ? "labelled" : "", "cell", COLUMNS.map(([column]) => [column, cells[column]]));
  });
  const table = withRole(filled("table", "scores", withRole(filled("thead", "", head), "rowgroup")), "table");
  table.append(withRole(filled("tbody", "", ...lines), "rowgroup"));
  return table;
}

/** The style sheet lays tables out as grids, which would take their meaning from a screen reader. */
function withRole(element, role) {
  element.setAttribute("role", role);
  return element;
}

/** What the head is, in words. */
function labelChips(rows, kinds) {
  const chips = make("ul", "chips");
  const found = rows.filter((row) => row.level > 0).sort((a, b) => b.level - a.level || a.kind - b.kind);
  for (const { kind, level } of found) {
    chips.append(filled("li", level === 2 ? "above" : "", `${kinds[kind].name ?? kinds[kind].kind} `, make("b", "", LEVELS[level])));
  }
  const decided = rows.filter((row) => row.level !== null).length;
  if (found.length === 0 && decided > 0) chips.append(make("li", "note", `Of none of the ${decided} kinds.`));
  return chips;
}

function similarList(found, model, onChoose) {
  const names = model.get("heads");
  const kinds = model.get("kinds");
  const items = found.map(({ other, value, kinds: shared }) => {
    const { model: name } = names[other.m];
    const labels = other.rows.filter((row) => row.level > 0).map((row) => kinds[row.kind].name ?? kinds[row.kind].kind);
    const button = filled(
      "button",
      "",
      make("span", "name", `L${other.layer}H${other.head}`),
      filled("span", "of", make("span", "", name), make("span", "faint", labels.join(", "))),
      make("span", "number", value.toFixed(2)),
    );
    button.type = "button";
    button.title = `over ${shared} kinds`;
    button.setAttribute("aria-label", `Layer ${other.layer}, head ${other.head} of ${name}: similarity ${value.toFixed(2)} over ${shared} kinds`);
    button.addEventListener("click", () => onChoose({ model: name, layer: other.layer, head: other.head }));
    return filled("li", "", button);
  });
  return filled("ol", "", ...items);
}

// --- Circuits ---------------------------------------------------------------------------------------------

const OV = [
  ["copied", "Copies most", "Own logit of what it reads, and how many others it raises more.", 1],
  ["suppressed", "Suppresses most", "Own logit of what it reads.", -1],
  ["raised", "Raises most", "What it reads \u2192 what it makes likelier.", 1],
  ["lowered", "Lowers most", "What it reads \u2192 what it makes less likely.", -1],
];

/** One list of tokens or pairs. Of a token that is copied, also which place among all logits it takes. */
function tokenList(title, meaning, rows, tokens) {
  const items = rows.map(([list, , source, target, value, place]) => {
    const single = list === "copied" || list === "suppressed";
    const words = filled("span", "words", tokenOf(tokens[source]));
    if (!single) words.append(list === "matched" ? " \u2192 after " : " \u2192 ", tokenOf(tokens[target]));
    if (list === "copied" && place !== null) words.append(make("span", "faint number", place === 0 ? " first" : ` ${place} above`));
    return filled("li", "", words, make("span", "number", threeDigits(value)));
  });
  if (items.length === 0) items.push(make("li", "faint", "none"));
  return filled("section", "tokens", make("h4", "", title), make("p", "faint", meaning), filled("ol", "", ...items));
}

const placesBack = (offset) => (offset === 0 ? "At itself" : offset === 1 ? "One place back" : `${offset} places back`);

function circuitSections(rows, tokens) {
  const of = (list) => rows.filter((row) => row[0] === list);
  // The tokens that a head copies most may be suppressed, too, and the other way round: those do not belong there.
  const written = OV.filter(([name]) => of(name).length > 0).map(([name, title, meaning, sign]) =>
    tokenList(title, meaning, of(name).filter(([, , , , value]) => sign * value > 0), tokens),
  );
  const looked = [];
  const matched = of("matched");
  if (matched.length > 0) {
    looked.push(tokenList("Looks for what came after", "Query \u2192 the token before the key.", matched, tokens));
  }
  for (const offset of [...new Set(of("attended").map((row) => row[1]))]) {
    const some = of("attended").filter((row) => row[1] === offset);
    const title = offset === null ? "Looks at" : placesBack(offset);
    const meaning = offset === null ? "Query \u2192 key, wherever they stand." : "Query \u2192 key.";
    looked.push(tokenList(title, meaning, some, tokens));
  }
  const parts = [];
  if (written.length > 0) {
    const note = "Direct logits over single tokens, whatever the head attends to; compare them within one model.";
    parts.push(make("h3", "", "What it writes (OV)"), make("p", "faint note", note), filled("div", "lists", ...written));
  }
  if (looked.length > 0) {
    const note = "Scores of single tokens, as far above the mean over all keys of the query.";
    parts.push(make("h3", "", "What it looks for (QK)"), make("p", "faint note", note), filled("div", "lists", ...looked));
  }
  return parts;
}

// --- The view ---------------------------------------------------------------------------------------------

function render({ model, el }) {
  el.classList.add("headlens", "head");
  const names = model.get("heads").map((entry) => entry.model);
  const kinds = model.get("kinds");
  const circuits = model.get("circuits") ?? [];
  const hasLevels = Array.isArray(model.get("scores").level);
  el.hidden = !hasLevels && !circuits.some(Boolean);
  if (el.hidden) return undefined;
  const heads = readHeads(model);
  const scales = scalesOf(model);
  const heading = make("h2");
  const about = make("div", "about");
  const scores = make("div", "scroller");
  const similar = make("div", "ranking similar");
  const body = filled("div", "head-body", filled("div", "all-scores", scores, make("p", "faint caption", EXPLAINED)), similar);
  const tokens = make("div", "circuits");
  el.replaceChildren(heading, about, body, tokens);
  let request = 0;

  const choose = (address) => {
    model.set("selected", address);
    model.save_changes();
    heading.scrollIntoView({ block: "nearest" });
  };
  const drawScores = (own) => {
    body.hidden = !own;
    about.replaceChildren(own ? labelChips(own.rows, kinds) : "");
    if (!own) return;
    scores.replaceChildren(scoreTable(own.rows, kinds, scales));
    const found = nearest(heads, own, kinds);
    similar.hidden = found.length === 0;
    similar.replaceChildren(make("h3", "", "Most similar heads"), similarList(found, model, choose), make("p", "faint caption", LIKENESS));
  };
  const drawCircuits = async (m, { layer, head }) => {
    const mine = ++request;
    const found = circuits[m] ? await model.get(`circuits_${m}`) : null;
    if (mine !== request) return; // another head was chosen meanwhile
    tokens.replaceChildren(...(found ? circuitSections(found.rows[layer]?.[head] ?? [], found.tokens) : []));
  };
  const update = () => {
    const selected = model.get("selected");
    if (!selected) return;
    const m = names.indexOf(selected.model);
    heading.textContent = `Layer ${selected.layer}, head ${selected.head}`;
    heading.append(make("span", "faint", ` of ${selected.model}`));
    drawScores(heads.get(keyOf(m, selected.layer, selected.head)));
    drawCircuits(m, selected).catch((error) => {
      tokens.replaceChildren(make("p", "notice", `These circuits could not be read: ${error.message}`));
    });
  };
  model.on("change:selected", update);
  update();
  return undefined;
}

const LIKENESS =
  "By their profile: score less null of every kind that both have, in units of what that kind calls high. " +
  "1 is an equal profile, 0 an opposite one.";

export default { render };
