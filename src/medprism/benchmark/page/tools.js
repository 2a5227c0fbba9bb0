"use strict";
// What charts and tables are built with. Text from names becomes text nodes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const records = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, k) => [name, row[k]])));
const summary = records(data.summary);
const groups = records(data.groups);
const matrices = records(data.matrices);
const fronts = records(data.front);
const searched = data.search ? records(data.search) : [];
const lower = new Set(data.lower);

const distinct = (values) => [...new Set(values)];
const label = (method) => data.labels[method] ?? method;
const ACRONYMS = { auroc: "AUROC", auprc: "AUPRC", f1: "F1", mae: "MAE", r2: "R²", knn: "k-NN", mlp: "MLP" };
const plain = (metric) => metric.split(/[_/]/).map((word) => ACRONYMS[word] ?? word).join(" ");
const cohortOf = (name) => data.cohorts.find((cohort) => cohort.name === name);
const cellOf = (cohort, method) => data.cells.find((cell) => cell.cohort === cohort && cell.method === method);
const cellsOf = (cohort) => data.cells.filter((cell) => cell.cohort === cohort);
const cohortTitle = (name) => (cohortOf(name)?.simulated ? `${name} (simulated)` : name);
const anchor = (cohort, method) => `runs-${cohort}-${method}`;

/** Three digits after the point, rounded as in the tables beside the page: ties, which are odd sixteenths, go to even. */
function fixed(value) {
  if (value === null || value === undefined) return "";
  if (Math.abs(value * 16) % 2 !== 1) return value.toFixed(3);
  const below = Math.floor(value * 1000);
  return ((below % 2 === 0 ? below : below + 1) / 1000).toFixed(3);
}
const signed = (value) => (value === null ? "" : (value >= 0 ? "+" : "−") + fixed(Math.abs(value)));
const between = (low, high, show = fixed) => (low === null || high === null ? "" : `[${show(low)}, ${show(high)}]`);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
/** An HTML element. */
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
/** An SVG element. */
const s = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A labelled choice; `options` are pairs of value and text. */
function choice(name, options, chosen, change) {
  const list = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  return h("label", {}, name, h("select", { name, onchange: (event) => change(event.target.value) }, list));
}

/**
 * A table that scrolls by itself. Columns have `title`, and of a row `value` (sorts; null goes last), `show` (text or
 * nodes) and optionally `number` and `wrap`; the first column heads its row.
 */
function table(caption, columns, rows, { sortable = false, rowClass = () => null, status = null } = {}) {
  const body = h("tbody");
  const lines = rows.map((row) =>
    h("tr", { class: rowClass(row) }, columns.map((column, k) => {
      const inside = column.show(row);
      if (k === 0) return h("th", { scope: "row" }, inside);
      const value = column.value?.(row);
      return h("td", { class: column.number ? "number" : column.wrap ? "wrap" : null, "data-value": value ?? null }, inside);
    })),
  );
  body.append(...lines);
  const heads = columns.map((column) => {
    const inside = sortable && column.value ? h("button", { type: "button", onclick: () => sort(column) }, column.title) : column.title;
    return h("th", { scope: "col", class: column.number ? "number" : null }, inside);
  });
  function sort(column) {
    const head = heads[columns.indexOf(column)];
    const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
    const direction = next === undefined ? "ascending" : next;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    if (direction) head.setAttribute("aria-sort", direction);
    const order = rows.map((row, k) => [column.value(row), k]);
    const sign = direction === "descending" ? -1 : 1;
    if (direction) {
      order.sort(([a, j], [b, k]) => {
        if (a === null || b === null) return (a === null) - (b === null) || j - k;
        return sign * (typeof a === "string" ? a.localeCompare(b) : a - b) || j - k;
      });
    }
    body.replaceChildren(...order.map(([, k]) => lines[k]));
    if (status) status.textContent = direction ? `Sorted by ${column.title}, ${direction}.` : "In the order of the suite.";
  }
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, h("span", {}, caption)), h("thead", {}, h("tr", {}, heads)), body));
}

/** The numbers of a figure, for those who do not see it. */
const numbers = (caption, columns, rows) =>
  h("details", {}, h("summary", {}, "Numbers of this figure"), table(caption, columns, rows));

/** A method's name that leads to its runs, with a mark where the cell is incomplete. */
function methodLink(cohort, method) {
  const cell = cellOf(cohort, method);
  const tags = [];
  if (method === data.ceiling) tags.push("ceiling");
  if (method === data.reference) tags.push("reference");
  const note = tags.length ? h("span", { class: "soft" }, ` ${tags.join(", ")}`) : null;
  const state = cell && !cell.complete ? h("span", { class: "tag", title: cell.state }, cell.whole ? " other code" : " incomplete") : null;
  return [h("a", { href: `#${anchor(cohort, method)}` }, label(method)), note, state];
}
