// Which heads do what? Per model a layer x head grid, coloured by one kind of score, and its strongest heads.
//
// Reads `heads`, `kinds`, `scores`, and from `patterns` only whether there are any; sets `kind` (a name) and `selected` ({model, layer, head}).
// Imports nothing: this one file is the report's view, the notebook widget and the web app's panel.

const ROOMY = 12; // a grid of up to this many heads per layer has room for numbers in its cells
const WIDE = 16; // and one of more than this many needs the width of the page

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// A true minus sign is as wide as a digit, so columns of numbers align.
const shown = (number, digits = 3) =>
  number === null ? "no value" : number.toFixed(digits).replace("-", "\u2212");

const sameHead = (a, b) => a && b && a.model === b.model && a.layer === b.layer && a.head === b.head;

// --- Data -------------------------------------------------------------------------------------------------

/** Rows of the score table by kind, and a lookup by head. */
function readScores(model) {
  const columns = model.get("scores");
  const names = model.get("heads").map((entry) => entry.model);
  const kinds = model.get("kinds").map((entry) => entry.kind);
  const rows = columns.score.map((score, i) => ({
    model: names[columns.model[i]],
    kind: kinds[columns.kind[i]],
    layer: columns.layer[i],
    head: columns.head[i],
    score,
    low: columns.low[i],
    high: columns.high[i],
    null: columns.null[i],
    n: columns.n[i],
  }));
  const key = (at) => JSON.stringify([at.kind, at.model, at.layer, at.head]);
  const byHead = new Map(rows.map((row) => [key(row), row]));
  return {
    of: (kind) => rows.filter((row) => row.kind === kind),
    at: (kind, head) => byHead.get(key({ kind, ...head })) ?? null,
  };
}

const strongest = (rows) => rows.filter((row) => row.score !== null).sort((a, b) => b.score - a.score);

/** One scale for all models, so that their colours compare; its ends are 0 or a power of two (1, 1/2, 1/4 ...). */
function scaleOf(rows) {
  const numbers = rows.flatMap((row) => [row.score, row.null]).filter((x) => x !== null);
  const beyond = (largest) => (largest > 0 ? 2 ** Math.ceil(Math.log2(largest)) : 0);
  const start = -beyond(numbers.reduce((most, x) => Math.max(most, -x), 0));
  const end = beyond(numbers.reduce((most, x) => Math.max(most, x), start < 0 ? 0 : 1e-3));
  return { start, end, fraction: (x) => Math.min(1, Math.max(0, (x - start) / (end - start))) };
}

// --- Parts ------------------------------------------------------------------------------------------------

/** Radio buttons drawn as one control: arrow keys and labels come with the browser. */
function kindPicker(kinds, chosen, onChoose) {
  const picker = make("fieldset", "segmented");
  picker.append(make("legend", "hidden", "What the colours show"));
  const group = `kind-${Math.random()}`; // two grids in one notebook must not share a radio group
  for (const { kind, name } of kinds) {
    const label = make("label");
    const input = make("input");
    Object.assign(input, { type: "radio", name: group, value: kind, checked: kind === chosen });
    input.addEventListener("change", () => onChoose(kind));
    label.append(input, make("span", "", name ?? kind));
    picker.append(label);
  }
  return picker;
}

function legend() {
  const row = make("div", "legend");
  const start = make("span", "number");
  const end = make("span", "number");
  const missing = make("span", "missing");
  missing.append(make("span", "cell empty"), "no value");
  row.append(start, make("span", "ramp"), end, missing);
  const update = ({ start: low, end: high }) => {
    start.textContent = String(low).replace("-", "\u2212");
    end.textContent = String(high);
  };
  return { row, update };
}

/** The interval as a bar, the score as a dot, the null as a tick: all on the scale of the colours. */
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
  return bar;
}

function inWords(head, row, kindName) {
  const place = `Layer ${head.layer}, head ${head.head}`;
  if (row === null || row.score === null) return `${place}: no value`;
  const interval = row.low === null ? "" : `, 95 % interval ${shown(row.low)} to ${shown(row.high)}`;
  return `${place}: ${kindName} ${shown(row.score)}${interval}, null ${shown(row.null)}, n ${row.n}`;
}

function gridOf({ model: name, layers, heads }) {
  const grid = make("div", heads <= ROOMY ? "grid roomy" : "grid");
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", `Heads of ${name}: rows are layers, columns are heads`);
  grid.style.setProperty("--heads", heads);
  const every = (count) => Math.ceil(count / 16); // labels of small cells would run into each other
  const cells = [];
  const header = gridRow(grid, make("span", "corner"));
  for (let head = 0; head < heads; head++) {
    header.append(labelled("columnheader", head % every(heads) ? "" : String(head), `Head ${head}`));
  }
  for (let layer = 0; layer < layers; layer++) {
    const row = gridRow(grid, labelled("rowheader", layer % every(layers) ? "" : String(layer), `Layer ${layer}`));
    cells.push(Array.from({ length: heads }, (_, head) => cellOf(name, layer, head)));
    row.append(...cells[layer]);
  }
  return { grid, cells };
}

function gridRow(grid, first) {
  const row = make("div", "row");
  row.setAttribute("role", "row");
  row.append(first);
  grid.append(row);
  return row;
}

function labelled(role, text, label) {
  const element = make("span", "axis", text);
  element.setAttribute("role", role);
  element.setAttribute("aria-label", label);
  return element;
}

function cellOf(model, layer, head) {
  const cell = make("div", "cell");
  cell.setAttribute("role", "gridcell");
  cell.tabIndex = -1;
  cell.dataset.layer = layer;
  cell.dataset.head = head;
  cell.address = { model, layer, head };
  return cell;
}

/** A floating card beside the cell that is pointed at or focused. */
function tooltip() {
  const card = make("div", "tooltip");
  card.setAttribute("role", "tooltip");
  card.hidden = true;
  const hide = () => (card.hidden = true);
  const show = (cell, row, kindName, scale) => {
    const { layer, head } = cell.address;
    card.replaceChildren(make("strong", "", `L${layer}H${head}`), ...tooltipLines(row, kindName, scale));
    card.hidden = false;
    const near = cell.getBoundingClientRect();
    const left = Math.min(near.left + near.width / 2 - card.offsetWidth / 2, window.innerWidth - card.offsetWidth - 8);
    const above = near.top - card.offsetHeight - 8;
    card.style.left = `${Math.max(8, left)}px`;
    card.style.top = `${above < 8 ? near.bottom + 8 : above}px`;
  };
  return { card, show, hide };
}

function tooltipLines(row, kindName, scale) {
  if (row === null || row.score === null) return [make("span", "faint", " no value")];
  const line = make("div");
  line.append(make("span", "faint", `${kindName} `), make("b", "number", shown(row.score)));
  const interval = row.low === null ? "no interval" : `95 % interval ${shown(row.low)} to ${shown(row.high)}`;
  const rest = make("div", "faint number", `${interval}`);
  const control = make("div", "faint number", `null ${shown(row.null)} · n ${row.n}`);
  return [line, intervalBar(row, scale), rest, control];
}

// --- Behaviour --------------------------------------------------------------------------------------------

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function cellAfter(key, cells, { layer, head }) {
  if (key === "Home") return cells[layer][0];
  if (key === "End") return cells[layer].at(-1);
  const [down, right] = STEPS[key] ?? [NaN, NaN];
  return cells[layer + down]?.[head + right] ?? null;
}

/** Exactly one cell of a grid takes part in the tab order; arrow keys move from there. */
function enter(cells, cell) {
  for (const other of cells.flat()) other.tabIndex = -1;
  cell.tabIndex = 0;
}

function listen(grid, cells, { onPoint, onLeave, onChoose }) {
  const cellUnder = (event) => event.target.closest?.("[role=gridcell]");
  grid.addEventListener("pointerover", (event) => (cellUnder(event) ? onPoint(cellUnder(event)) : onLeave()));
  grid.addEventListener("pointerleave", onLeave);
  grid.addEventListener("focusin", (event) => cellUnder(event) && onPoint(cellUnder(event)));
  grid.addEventListener("focusout", onLeave);
  grid.addEventListener("click", (event) => cellUnder(event) && onChoose(cellUnder(event).address));
  grid.addEventListener("keydown", (event) => {
    const cell = cellUnder(event);
    if (!cell) return;
    if (event.key === "Escape") return onLeave();
    if (event.key === "Enter" || event.key === " ") onChoose(cell.address);
    const next = cellAfter(event.key, cells, cell.address);
    if (next) {
      enter(cells, next);
      next.focus();
    }
    if (next || event.key === "Enter" || event.key === " ") event.preventDefault();
  });
}

/** One model: its name, its grid, and the list of its strongest heads. */
function panelOf(entry, actions) {
  const panel = make("article", entry.heads > WIDE ? "panel wide" : "panel");
  const title = make("h3", "", entry.model);
  title.append(make("span", "faint", ` ${entry.layers} layers × ${entry.heads} heads`));
  const { grid, cells } = gridOf(entry);
  const scroller = make("div", "scroller");
  scroller.append(grid);
  const ranking = make("ol");
  const strongest = make("div", "ranking");
  strongest.append(rankingKey(), ranking);
  const body = make("div", "panel-body");
  body.append(scroller, strongest);
  panel.append(title, body);
  listen(grid, cells, actions);
  enter(cells, cells[0][0]);
  return { panel, entry, cells, ranking };
}

/** What the marks of the list mean, drawn with the marks themselves. */
function rankingKey() {
  const key = make("p", "key faint", "Strongest");
  for (const [name, text] of [["dot", "score"], ["whisker", "95 % interval"], ["null", "null"]]) {
    const example = make("span", "example");
    const mark = make("span", "interval");
    mark.append(make("span", name));
    example.append(mark, text);
    key.append(example);
  }
  return key;
}

function colour(cell, row, scale, kindName) {
  const score = row?.score ?? null;
  cell.classList.toggle("empty", score === null);
  cell.classList.toggle("heat", score !== null);
  cell.style.setProperty("--heat", score === null ? 0 : scale.fraction(score));
  cell.textContent = score === null ? "" : shown(score, 2);
  cell.setAttribute("aria-label", inWords(cell.address, row, kindName));
}

function rankingItem(row, scale, kindName, onChoose) {
  const button = make("button");
  button.type = "button";
  button.address = { model: row.model, layer: row.layer, head: row.head };
  button.setAttribute("aria-label", inWords(row, row, kindName));
  button.append(
    make("span", "name", `L${row.layer}H${row.head}`),
    intervalBar(row, scale),
    make("span", "number", shown(row.score)),
  );
  button.addEventListener("click", () => onChoose(button.address));
  const item = make("li");
  item.append(button);
  return item;
}

function markSelected(panels, selected) {
  for (const { panel, cells } of panels) {
    for (const element of panel.querySelectorAll(".cell, .ranking button")) {
      const chosen = Boolean(sameHead(element.address, selected));
      element.classList.toggle("selected", chosen);
      if (element.tagName !== "BUTTON") element.setAttribute("aria-selected", String(chosen));
      if (chosen && element.tagName !== "BUTTON") enter(cells, element);
    }
  }
}

function render({ model, el }) {
  el.classList.add("headlens", "head-grid");
  const kinds = model.get("kinds");
  const scores = readScores(model);
  let current = null; // {kind, name, scale, rows} of what is on screen
  let picked = false; // until the reader picks a head, the strongest of the chosen kind is shown

  const save = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const choose = (address) => {
    picked = true;
    save("selected", address);
  };
  const tip = tooltip();
  const panels = model.get("heads").map((entry) =>
    panelOf(entry, {
      onPoint: (cell) => tip.show(cell, scores.at(current.kind, cell.address), current.name, current.scale),
      onLeave: tip.hide,
      onChoose: choose,
    }),
  );
  const meaning = make("p", "meaning");
  const scale = legend();

  const draw = () => {
    const kind = model.get("kind");
    const { name, meaning: sentence } = kinds.find((entry) => entry.kind === kind) ?? {};
    const rows = scores.of(kind);
    current = { kind, name: name ?? kind, scale: scaleOf(rows), rows };
    meaning.textContent = kinds.length === 0 ? "These results hold no scores, only patterns." : (sentence ?? "");
    scale.update(current.scale);
    for (const panel of panels) drawPanel(panel, current, scores, choose);
    for (const input of el.querySelectorAll(".segmented input")) input.checked = input.value === kind;
    const best = strongest(rows).find((row) => hasPatterns(model, row)) ?? strongest(rows)[0];
    if (!picked && best) save("selected", { model: best.model, layer: best.layer, head: best.head });
    markSelected(panels, model.get("selected"));
  };

  const all = make("div", "panels");
  all.append(...panels.map(({ panel }) => panel));
  const controls = make("div", "controls");
  const picker = kindPicker(kinds, model.get("kind"), (kind) => save("kind", kind));
  controls.append(picker, scale.row);
  el.replaceChildren(make("h2", "", "Heads"), controls, meaning, all, tip.card);

  // A host may come with its own choice; a page comes with none.
  picked = Boolean(model.get("selected"));
  if (!model.get("selected")) model.set("selected", { model: panels[0].entry.model, layer: 0, head: 0 });
  if (!model.get("kind") && kinds.length > 0) model.set("kind", kinds[0].kind);
  draw();
  model.on("change:kind", draw);
  model.on("change:selected", () => markSelected(panels, model.get("selected")));
  window.addEventListener("scroll", tip.hide, { passive: true, capture: true });
  return () => window.removeEventListener("scroll", tip.hide, { capture: true });
}

/** Whether another view has something to show of this head: the first choice should be one of those. */
const hasPatterns = (model, row) => {
  const m = model.get("heads").findIndex((entry) => entry.model === row.model);
  return Boolean(model.get("patterns")?.[m]);
};

/** As many as stand beside the grid without outgrowing it. */
const listedFor = ({ layers }) => Math.min(24, Math.max(8, layers));

function drawPanel({ entry, cells, ranking }, current, scores, choose) {
  for (const cell of cells.flat()) {
    colour(cell, scores.at(current.kind, cell.address), current.scale, current.name);
  }
  const best = strongest(current.rows.filter((row) => row.model === entry.model)).slice(0, listedFor(entry));
  ranking.parentElement.hidden = best.length === 0;
  ranking.replaceChildren(...best.map((row) => rankingItem(row, current.scale, current.name, choose)));
}

export default { render };
