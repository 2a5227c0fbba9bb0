// The page: its header, the filters, and a section for each question.

const ALL = "";
const NAMES = distinct(data.cells.map((cell) => cell.cohort));
const state = {
  cohort: data.cohorts[0]?.name ?? NAMES[0],
  set: data.cohorts[0]?.headline ?? ALL,
  metric: data.shown[0],
  gap: null, performance: null, matrix: null, attribute: null, groupMetric: null, method: ALL,
};
const main = document.getElementById("main");
const better = (metric) => (lower.has(metric) ? "less is better" : "more is better");
const width = () => main.clientWidth;
const wanted = () => (state.cohort === ALL ? data.cohorts : data.cohorts.filter((c) => c.name === state.cohort));
const setOf = (cohort) => (cohort.sets.includes(state.set) ? state.set : cohort.headline);
/** The value if it is one of the options, else the first option. */
const among = (value, options) => (options.includes(value) ? value : options[0]);

function header() {
  const unfinished = data.cells.filter((cell) => !cell.complete);
  const simulated = data.cohorts.filter((cohort) => cohort.simulated).map((cohort) => cohort.name);
  const fact = (name, ...value) => [h("dt", {}, name), h("dd", {}, value)];
  const codes = (names) => names.flatMap((name, k) => [k ? " or " : null, h("code", {}, name)]);
  const dark = h("button", { type: "button", class: "plain", id: "dark", onclick: () => appearance(dark.getAttribute("aria-pressed") !== "true") }, "Dark");
  const appearance = (on) => {
    document.documentElement.style.colorScheme = on ? "dark" : "light";
    dark.setAttribute("aria-pressed", on);
  };
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  dark.setAttribute("aria-pressed", preferred.matches);
  preferred.addEventListener("change", (event) => appearance(event.matches));
  const { machine } = data;
  const versions = Object.entries(machine.packages).map(([name, version]) => `${name} ${version}`).join(", ");
  document.getElementById("top").append(
    h("div", { class: "bar" }, h("p", { class: "eyebrow" }, "medprism benchmark report"), dark),
    h("h1", {}, data.name),
    h("p", { class: "lead" }, data.title),
    simulated.length ? h("p", { class: "note" }, h("strong", {}, "Simulated data: "), `${simulated.join(", ")}. Their samples were made by a program and measured on nobody.`) : "",
    h("dl", { class: "facts" },
      fact("Command", h("code", {}, data.command)),
      fact("Selection", "Epochs are chosen by ", codes(data.selection), " on the validation part; nothing is chosen on a test part."),
      data.search ? fact("Search", `${data.trials} settings of every method for each seed and fold; the best on the validation part stands for it. All are listed under Runs.`) : [],
      fact("Seeds", `${data.seeds.length} (${data.seeds.join(", ")})${data.folds ? `, ${data.folds} folds each; out-of-fold predictions are pooled` : ""}. Means and standard deviations (SD, ddof 1) are over seeds.`),
      fact("Intervals", `95 % bootstrap intervals over subjects, ${data.resamples} resamples, the same for all methods.`),
      fact("Differences", `Paired, to ${label(data.reference)}; p by the bootstrap, corrected by Holm over the methods for each metric.`),
      data.ceiling ? fact("Ceiling", `${label(data.ceiling)} is no competitor: it takes no part in fronts and ranks.`) : [],
      fact("Machine", h("details", {}, h("summary", {}, `${machine.device}, Python ${machine.python}`),
        h("p", {}, versions), h("p", {}, "Data ", h("code", {}, machine.data)), h("p", {}, "Code of the runs ", codes(machine.code))))),
    unfinished.length
      ? h("div", { class: "note", id: "incomplete" }, h("strong", {}, "Not as asked for. "), "Incomplete seeds are left out, and incomplete cells are not compared on fronts or by ranks.",
        h("details", {}, h("summary", {}, `${unfinished.length} of ${data.cells.length} cells`),
          h("ul", {}, unfinished.map((cell) => h("li", {}, `${label(cell.method)} on ${cell.cohort}: ${cell.state}`)))))
      : "",
  );
}

function filters() {
  const set = (key) => (value) => { state[key] = value; draw(); };
  const metrics = distinct(summary.map((row) => row.metric)).sort((a, b) => data.shown.includes(b) - data.shown.includes(a));
  const sets = distinct(data.cohorts.flatMap((cohort) => cohort.sets));
  document.getElementById("filters").append(
    choice("Cohort", [...NAMES.map((name) => [name, cohortTitle(name)]), [ALL, "all cohorts"]], state.cohort, (value) => {
      const cohort = cohortOf(value);
      state.cohort = value;
      if (cohort && state.set !== ALL) document.querySelector("[name='Test set']").value = state.set = setOf(cohort);
      draw();
    }),
    choice("Test set", [...sets.map((name) => [name, name]), [ALL, "all test sets"]], state.set, set("set")),
    choice("Metric", [...metrics.map((name) => [name, plain(name)]), [ALL, "all metrics"]], state.metric, set("metric")),
  );
}

function results() {
  const rows = summary.filter((row) =>
    (state.cohort === ALL || row.cohort === state.cohort) && (state.set === ALL || row.set === state.set) && (state.metric === ALL || row.metric === state.metric));
  const without = data.cells.filter((cell) => (state.cohort === ALL || cell.cohort === state.cohort) && !rows.some((row) => row.cohort === cell.cohort && row.method === cell.method));
  const values = rows.flatMap((row) => [row.mean, row.low, row.high]).filter((value) => value !== null);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const number = (title, key, show = fixed) => ({ title, number: true, value: (row) => row[key] ?? null, show: (row) => show(row[key] ?? null) });
  const name = (title, key, show = (value) => value) => ({ title, value: (row) => row[key] ?? "", show: (row) => show(row[key] ?? "") });
  const runs = (row) => (row.mean === undefined ? "" : h("a", { href: `#${anchor(row.cohort, row.method)}`, title: "config and predictions of the runs" }, fixed(row.mean)));
  const differences = [
    number(`Difference to ${label(data.reference)}`, "difference", signed),
    { title: "95 % interval of the difference", number: true, value: (row) => row["difference low"] ?? null, show: (row) => between(row["difference low"] ?? null, row["difference high"] ?? null, signed) },
    number("p (Holm)", "p holm"),
  ];
  const columns = [
    { title: "Method", value: (row) => label(row.method), show: (row) => methodLink(row.cohort, row.method) },
    state.cohort === ALL && name("Cohort", "cohort", cohortTitle),
    state.set === ALL && name("Test set", "set"),
    state.metric === ALL && name("Metric", "metric", plain),
    { title: "Seeds", number: true, value: (row) => row.seeds ?? 0, show: (row) => String(row.seeds ?? 0) },
    { title: "Mean", number: true, value: (row) => row.mean ?? null, show: runs },
    number("SD", "sd"),
    { title: "95 % interval", number: true, value: (row) => row.low ?? null, show: (row) => between(row.low ?? null, row.high ?? null) },
    state.metric !== ALL && { title: "", show: (row) => (row.mean === undefined ? "" : whisker(row, least, most)) },
    ...(rows.some((row) => row.difference !== null) ? differences : []),
  ].filter(Boolean);
  const what = [state.metric === ALL ? "all metrics" : `${plain(state.metric)} (${better(state.metric)})`, state.set === ALL ? "all test sets" : `test set ${state.set}`, state.cohort === ALL ? "all cohorts" : cohortTitle(state.cohort)].join(", ");
  const samples = rows.map((row) => row.samples);
  const size = rows.length && state.set !== ALL && state.cohort !== ALL ? ` ${Math.round(samples.reduce((a, b) => a + b) / samples.length)} samples of a seed, ${Math.max(...rows.map((row) => row.subjects))} subjects over all seeds.` : "";
  const status = h("p", { class: "hidden", role: "status" });
  const kind = (row) => (row.method === data.ceiling ? "ceiling" : row.method === data.reference ? "reference" : null);
  return [
    status,
    table(`${what}.${size}`, columns, [...rows, ...without.map(({ cohort, method }) => ({ cohort, method }))], { sortable: true, rowClass: kind, status }),
    without.length ? h("p", { class: "soft" }, "Rows without numbers: no seed is complete, or the metric is not defined.") : null,
  ];
}

function front(cohort) {
  const own = fronts.filter((row) => row.cohort === cohort.name);
  if (!own.length) return h("p", {}, "This cohort has no gap: no attribute with groups, and no shifted test sets.");
  const performances = distinct(own.map((row) => JSON.stringify([row.set, row.metric])));
  state.performance = among(state.performance, [...performances.filter((key) => JSON.parse(key)[0] === setOf(cohort)), ...performances]);
  const [set, metric] = JSON.parse(state.performance);
  const seen = own.filter((row) => row.set === set && row.metric === metric);
  const gaps = distinct(seen.map((row) => row.gap));
  state.gap = among(state.gap, gaps);
  const points = seen.filter((row) => row.gap === state.gap);
  const shift = state.gap === "same minus inverted";
  const gapName = (gap) => (gap === "same minus inverted" ? `|same − inverted|, ${plain(metric)}` : plain(gap));
  const change = (key) => (value) => { state[key] = value; draw(key); };
  const best = points.filter((p) => p.front).map((p) => label(p.method));
  const space = width() > 850 ? (width() - 30) / 2 : width();
  return [
    h("div", { class: "controls" },
      choice("Performance", performances.map((key) => [key, `${plain(JSON.parse(key)[1])}, ${JSON.parse(key)[0]}`]), state.performance, change("performance")),
      choice("Gap", gaps.map((gap) => [gap, gapName(gap)]), state.gap, change("gap"))),
    h("div", { class: "pair" },
      h("figure", {},
        scatter(points, space, `${gapName(state.gap)} (less is better)`, `${plain(metric)}, ${set} (${better(metric)})`,
          `${plain(metric)} on ${set} against ${gapName(state.gap)}, ${points.length} methods. On the front: ${best.join(", ") || "none"}.`),
        h("figcaption", {}, `Filled: on the Pareto front, no method beats it in both. Dashed: not compared (incomplete, or the ceiling).${shift ? " The gap is the size of what the metric loses when the confounders are turned round." : ""}`)),
      table(`${cohortTitle(cohort.name)}: values of the figure`, [
        { title: "Method", value: (p) => label(p.method), show: (p) => [`${points.indexOf(p) + 1} `, methodLink(cohort.name, p.method)] },
        { title: plain(metric), number: true, value: (p) => p.value, show: (p) => fixed(p.value) },
        { title: "gap", number: true, value: (p) => p["gap value"], show: (p) => fixed(p["gap value"]) },
        { title: "front", value: (p) => String(p.front), show: (p) => (p.front ? "yes" : p.compared ? "" : "not compared") },
      ], points, { sortable: true })),
  ];
}

function shifts(cohort) {
  if (cohort.sets.length < 2) return h("p", {}, "This cohort has one test set.");
  const metric = state.metric === ALL ? data.shown[0] : state.metric;
  const rows = summary.filter((row) => row.cohort === cohort.name && row.metric === metric);
  const methods = distinct(rows.map((row) => row.method));
  const marks = (method) => rows.filter((row) => row.method === method).map((row) => ({ ...row, name: row.set, kind: cohort.sets.indexOf(row.set) }));
  const of = (set) => (method) => rows.find((row) => row.method === method && row.set === set)?.mean ?? null;
  return [
    h("figure", {}, legend(cohort.sets),
      lines(methods.map((method) => [label(method), marks(method)]), width(), `${plain(metric)} (${better(metric)})`,
        `${plain(metric)} of ${methods.length} methods on the test sets ${cohort.sets.join(", ")}.`),
      h("figcaption", {}, "Marks: means over seeds. Bands: 95 % intervals. The closer the marks of a method, the less it leans on the confounders.")),
    numbers(`${plain(metric)} by test set`, [
      { title: "Method", show: (method) => methodLink(cohort.name, method) },
      ...cohort.sets.map((set) => ({ title: set, number: true, value: of(set), show: (method) => fixed(of(set)(method)) })),
    ], methods),
  ];
}

/** Where a number stands in a matrix: `leakage/BLOCK/ATTRIBUTE/METRIC` or `latent/matrix/BLOCK/ATTRIBUTE/PROBE`. */
function place(row) {
  const parts = row.what.split("/"), latent = parts[0] === "latent", inner = parts.slice(latent ? 2 : 1);
  if (inner.length < 3 || inner.at(-2) === "chance") return null;
  const what = latent ? `balanced accuracy, ${plain(inner.at(-1))} probe, on one test set` : `${plain(inner.at(-1))}, linear probe, whole test`;
  return { ...row, kind: what, attribute: inner.at(-2), block: inner.slice(0, -2).join("/"), latent };
}

function leakage(cohort) {
  const found = matrices.filter((row) => row.cohort === cohort.name).map(place).filter(Boolean);
  if (!found.length) return h("p", {}, "The runs measured no leakage.");
  const kinds = distinct(found.map((row) => row.kind));
  state.matrix = among(state.matrix, kinds);
  const rows = found.filter((row) => row.kind === state.matrix);
  const attributes = distinct(rows.map((row) => row.attribute));
  const lines = distinct(rows.map((row) => JSON.stringify([row.method, row.block]))).map((key) => JSON.parse(key));
  const at = ([method, block], attribute) => rows.find((row) => row.method === method && row.block === block && row.attribute === attribute);
  const chance = (row) => matrices.find((each) => each.cohort === row.cohort && each.method === row.method && each.what === row.what.replace(/\/([^/]*)$/, "/chance/$1"))?.mean ?? 0.5;
  const shown = table(
    `${cohortTitle(cohort.name)}: how well an attribute (column) is read from a block (row). Darker is further above chance. A block's own attribute is bold: there a high number is wanted, elsewhere it is leakage.`,
    [
      { title: "Method", show: (line) => (lines.find((each) => each[0] === line[0]) === line ? methodLink(cohort.name, line[0]) : h("span", { class: "hidden" }, label(line[0]))) },
      { title: "Block", show: (line) => line[1] },
      ...attributes.map((attribute) => ({ title: attribute, number: true, value: (line) => at(line, attribute)?.mean ?? null, show: (line) => fixed(at(line, attribute)?.mean) })),
    ], lines);
  shown.classList.add("heat");
  [...shown.querySelectorAll("tbody tr")].forEach((line, k) => [...line.cells].slice(2).forEach((cell, j) => {
    const row = at(lines[k], attributes[j]);
    if (!row) return;
    cell.className = `value${lines[k][1] === attributes[j] ? " own" : ""}`;
    const floor = chance(row);
    cell.style.setProperty("--share", Math.max(0, Math.min(1, (row.mean - floor) / (1 - floor))));
  }));
  return [h("div", { class: "controls" }, choice("Number", kinds.map((kind) => [kind, kind]), state.matrix, (value) => { state.matrix = value; draw("matrix"); })), shown];
}

function byGroup(cohort) {
  const set = setOf(cohort), own = groups.filter((row) => row.cohort === cohort.name && row.set === set);
  if (!own.length) return h("p", {}, "This test set has no groups.");
  const attributes = distinct(own.map((row) => row.attribute)), metrics = distinct(own.map((row) => row.metric));
  state.attribute = among(state.attribute, attributes);
  state.groupMetric = among(state.groupMetric, [...metrics.filter((metric) => metric === state.metric), ...metrics]);
  const rows = own.filter((row) => row.attribute === state.attribute && row.metric === state.groupMetric);
  const names = distinct(rows.map((row) => row.group)), methods = distinct(rows.map((row) => row.method));
  // many groups of many methods would be a wall of bars
  const method = methods.includes(state.method) || names.length * methods.length <= 60 ? state.method : among(data.reference, methods);
  const chosen = methods.includes(method) ? [method] : methods;
  const bar = (row) => ({ ...row, kind: names.length > 4 ? 0 : names.indexOf(row.group) });
  const change = (key) => (value) => { state[key] = value; draw(key); };
  return [
    h("div", { class: "controls" },
      choice("Attribute", attributes.map((name) => [name, name]), state.attribute, change("attribute")),
      choice("Metric", metrics.map((name) => [name, plain(name)]), state.groupMetric, change("groupMetric")),
      choice("Method", [...methods.map((name) => [name, label(name)]), ...(names.length * methods.length <= 60 ? [[ALL, "all methods"]] : [])], chosen.length === 1 ? method : ALL, change("method"))),
    h("figure", {},
      bars(chosen.map((name) => [label(name), rows.filter((row) => row.method === name).map(bar)]), Math.min(width(), 760), `${plain(state.groupMetric)}, ${set} (${better(state.groupMetric)})`,
        `${plain(state.groupMetric)} on ${set} by ${state.attribute}, ${chosen.map(label).join(", ")}.`),
      h("figcaption", {}, "Bars: means over seeds. Lines: 95 % bootstrap intervals over subjects.")),
    numbers(`${plain(state.groupMetric)} on ${set} by ${state.attribute}`, [
      { title: "Method", show: (row) => methodLink(cohort.name, row.method) },
      { title: "Group", show: (row) => row.group },
      { title: "Mean", number: true, value: (row) => row.mean, show: (row) => fixed(row.mean) },
      { title: "SD", number: true, value: (row) => row.sd, show: (row) => fixed(row.sd) },
      { title: "95 % interval", number: true, value: (row) => row.low, show: (row) => between(row.low, row.high) },
    ], rows),
  ];
}

function ranks() {
  const notes = data.rank_notes.length ? h("details", {}, h("summary", {}, "What is not ranked, and why"), h("ul", {}, data.rank_notes.map((note) => h("li", {}, note)))) : null;
  if (!data.rankings.length) return [h("p", {}, "Nothing is ranked: ranks need at least three cohorts on which the same three methods are complete."), notes];
  return [data.rankings.map((ranking) => h("figure", {},
    h("h3", {}, `${plain(ranking.metric)}, ${ranking.set}`),
    critical(ranking, Math.min(width(), 860), `Mean ranks over ${ranking.cohorts} cohorts: ${ranking.methods.map(([method, rank]) => `${label(method)} ${rank.toFixed(2)}`).join(", ")}.`),
    h("figcaption", {}, `${ranking.cohorts} cohorts. Bars join methods whose mean ranks differ by less than the critical difference (Nemenyi, 5 %). Friedman's test: ${ranking.p === null ? "not defined, all are tied" : `p = ${ranking.p.toPrecision(3)}`}.`))), notes];
}

function beside(cohort) {
  const found = data.tables.filter((each) => each.cohort === cohort.name);
  if (!found.length) return h("p", {}, "The runs measured nothing beside their predictions.");
  const method = (name) => data.cells.find((cell) => cell.cohort === cohort.name && label(cell.method) === name)?.method;
  return found.map(({ lead, columns, rows }) => table(lead, columns.map((title, k) => ({
    title: k ? title : "Method", number: k > 0,
    value: (row) => (k ? (row[k] === "" ? null : parseFloat(row[k].replaceAll(",", ""))) : row[k]),
    show: (row) => (k || !method(row[0]) ? row[k] : methodLink(cohort.name, method(row[0]))),
  })), rows, { sortable: true }));
}

function maps(cohort) {
  const found = data.maps.filter((each) => each.cohort === cohort.name);
  if (!found.length) return null;
  return h("div", { class: "maps" }, found.map((each) => {
    const text = `${plain(each.name)}: ${label(each.method)} on ${cohortTitle(each.cohort)}, seed ${each.seed}`;
    return h("figure", {}, h("img", { src: each.source, alt: text, loading: "lazy" }), h("figcaption", {}, text));
  }));
}

/** What was tried for a cell, if settings were searched. */
function tried(cell) {
  const found = searched.filter((row) => row.cohort === cell.cohort && row.method === cell.method);
  return found.length ? table(`Settings tried for ${label(cell.method)} on ${cohortTitle(cell.cohort)}`, [
    { title: "Settings", wrap: true, value: (row) => row.settings, show: (row) => Object.entries(JSON.parse(row.settings)).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ") || "as they are" },
    { title: "Seed", number: true, value: (row) => row.seed, show: (row) => String(row.seed) },
    { title: "Fold", number: true, value: (row) => row.fold, show: (row) => String(row.fold ?? "") },
    { title: `Validation: ${plain(found.find((row) => row.validation)?.validation ?? "")}`, number: true, value: (row) => row.value, show: (row) => (row.value === null ? row.state : fixed(row.value)) },
    { title: "Chosen", value: (row) => row.chosen, show: (row) => (row.chosen === "yes" ? "yes" : "") },
  ], found, { sortable: true }) : null;
}

function runs() {
  const linked = data.cells.some((cell) => cell.runs.some((run) => Object.keys(run.links).length));
  const files = (run) => Object.entries(run.links).flatMap(([what, path], k) => [k ? ", " : null, h("a", { href: encodeURI(path) }, what)]);
  const columns = [
    { title: "Run", show: (run) => h("code", {}, run.name) },
    { title: "Seed", number: true, show: (run) => String(run.seed) },
    { title: "Fold", number: true, show: (run) => String(run.fold ?? "") },
    { title: "State", wrap: true, show: (run) => [run.state, run.counted ? "" : h("span", { class: "tag" }, " not counted"), run.error ? `: ${run.error}` : ""] },
    { title: "Seconds", number: true, show: (run) => (run.seconds ? run.seconds.toFixed(0) : "") },
    { title: linked ? "Files" : "", show: files },
  ].slice(0, linked ? 6 : 5);
  return [
    h("p", {}, linked ? "Every number above comes from these runs." : "Every number above comes from these runs. They do not lie beside this page, so here are their names and settings."),
    data.cells.filter((cell) => state.cohort === ALL || cell.cohort === state.cohort).map((cell) => h("details", { class: "cell", id: anchor(cell.cohort, cell.method) },
      h("summary", {}, `${label(cell.method)}, ${cohortTitle(cell.cohort)} `, h("span", { class: cell.complete ? "soft" : "tag" }, `${cell.seeds} ${cell.seeds === 1 ? "seed" : "seeds"}, ${cell.state}`)),
      table(`Runs of ${label(cell.method)} on ${cohortTitle(cell.cohort)}`, columns, cell.runs),
      tried(cell),
      h("p", {}, "Settings; seed and fold vary:"), h("pre", { tabindex: 0 }, cell.settings))),
  ];
}

const each = (part) => () => wanted().map((cohort) => {
  const inside = part(cohort);
  return inside && (state.cohort === ALL ? [h("h3", {}, cohortTitle(cohort.name)), inside] : inside);
});
const SECTIONS = [
  ["results", "Results", results],
  ["front", "Performance against gaps", each(front)],
  ["shifts", "Shifts", each(shifts)],
  ["leakage", "Leakage", each(leakage)],
  ["groups", "Groups", each(byGroup)],
  ["ranks", "Ranks over cohorts", ranks],
  ["beside", "Representations, alignment, cost", each(beside)],
  ["maps", "Maps", each(maps)],
  ["runs", "Runs", runs],
].filter(([id]) => id !== "maps" || data.maps.length);
/** What a section depends on beside its own choices; without a change of it, what was opened in there stays open. */
const KEYS = { ranks: () => "", runs: () => state.cohort };

function draw(focus = null) {
  for (const [id, , part] of SECTIONS) {
    const inside = document.querySelector(`#${id} > div`);
    const key = KEYS[id]?.();
    if (key !== undefined && inside.dataset.key === key) continue;
    if (key !== undefined) inside.dataset.key = key;
    const named = inside.contains(document.activeElement) ? document.activeElement.name : null;
    inside.replaceChildren(...[part()].flat(Infinity).filter(Boolean));
    if (focus && named) inside.querySelector(`select[name="${named}"]`)?.focus();
  }
}

function open() {
  const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus();
  }
}

header();
document.getElementById("top").append(h("nav", { "aria-label": "Sections" }, h("ul", {}, SECTIONS.map(([id, title]) => h("li", {}, h("a", { href: `#${id}` }, title))))));
filters();
main.append(...SECTIONS.map(([id, title]) => h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), h("div"))));
if (data.maps_left_out) document.getElementById("maps")?.append(h("p", { class: "soft" }, `${data.maps_left_out} more figures lie in the folders of the runs.`));
draw();
open();
addEventListener("hashchange", open);
let drawn = width();
addEventListener("resize", () => {
  if (width() === drawn) return;
  drawn = width();
  delete document.querySelector("#ranks > div").dataset.key;
  draw();
});
