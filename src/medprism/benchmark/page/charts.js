// Charts as SVG, drawn to the width that they get. Each is an image with a description; its numbers stand in a table.

const picture = (width, height, description, ...children) =>
  s("svg", { role: "img", "aria-label": description, width, height, viewBox: `0 0 ${width} ${height}` }, children);

/** A linear scale over the values with a margin, and round ticks; `limits` are never left. */
function scale(values, start, end, limits = [-Infinity, Infinity]) {
  const least = Math.min(...values), most = Math.max(...values);
  const margin = (most - least || 0.1) * 0.06;
  const low = Math.max(limits[0], least - margin), high = Math.min(limits[1], most + margin);
  const at = (value) => start + ((value - low) / (high - low)) * (end - start);
  const raw = (high - low) / Math.max(2, Math.abs(end - start) / 90);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(k * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { at, ticks: ticks.map((value) => [at(value), value.toFixed(digits)]) };
}

/** Ticks and grid lines below a plot. */
const below = (x, top, bottom) => x.ticks.map(([place, text]) => [
  s("line", { class: "grid", x1: place, x2: place, y1: top, y2: bottom }),
  s("text", { class: "tick", x: place, y: bottom + 16, "text-anchor": "middle" }, text),
]);

const SHAPES = [
  (x, y) => s("circle", { class: "mark", cx: x, cy: y, r: 4.6 }),
  (x, y) => s("path", { class: "mark", d: `M${x - 5.2} ${y - 4.2}h10.4l-5.2 9z` }),
  (x, y) => s("rect", { class: "mark", x: x - 4.2, y: y - 4.2, width: 8.4, height: 8.4 }),
  (x, y) => s("path", { class: "mark", d: `M${x} ${y - 5.8}l5.4 5.8l-5.4 5.8l-5.4 -5.8z` }),
];
const shape = (k, x, y) => s("g", { class: `c${k % 4}` }, SHAPES[k % 4](x, y));
const legend = (names) => h("ul", { class: "legend" }, names.map((name, k) =>
  h("li", {}, s("svg", { width: 12, height: 12, "aria-hidden": "true" }, shape(k, 6, 6)), name)));

/** Whisker and point of a row of the results; an ornament, as the numbers stand beside it. */
function whisker(row, least, most) {
  const width = 104, x = (value) => 4 + ((value - least) / (most - least || 1)) * (width - 8);
  return s("svg", { width, height: 14, "aria-hidden": "true" },
    row.low === null ? null : s("line", { class: "ci", x1: x(row.low), x2: x(row.high), y1: 7, y2: 7 }),
    s("circle", { class: "point", cx: x(row.mean), cy: 7, r: 3.2 }));
}

/** Gap to the right, performance upwards, numbered points; steps join the front, as nothing lies between its methods. */
function scatter(points, width, xTitle, yTitle, description) {
  const height = Math.min(440, Math.max(300, width * 0.7)), left = 52, bottom = height - 46;
  const x = scale(points.map((p) => p["gap value"]), left + 8, width - 12, [0, Infinity]);
  const y = scale(points.map((p) => p.value), bottom - 6, 24);
  const front = points.filter((p) => p.front).sort((a, b) => a["gap value"] - b["gap value"]);
  const path = front.map((p, k) => (k ? `H${x.at(p["gap value"])}V${y.at(p.value)}` : `M${x.at(p["gap value"])} ${y.at(p.value)}`)).join("");
  return picture(width, height, description,
    below(x, 16, bottom),
    y.ticks.map(([place, text]) => [
      s("line", { class: "grid", x1: left, x2: width, y1: place, y2: place }),
      s("text", { class: "tick", x: left - 8, y: place + 4, "text-anchor": "end" }, text),
    ]),
    s("text", { x: 0, y: 8 }, yTitle),
    s("text", { x: width, y: height - 8, "text-anchor": "end" }, xTitle),
    s("path", { class: "front", d: path }),
    points.map((p, k) => s("g", {},
      s("circle", { class: `dot${p.front ? " on" : ""}${p.compared ? "" : " out"}`, cx: x.at(p["gap value"]), cy: y.at(p.value), r: 9 }),
      s("text", { class: `in${p.front ? " on" : ""}`, x: x.at(p["gap value"]), y: y.at(p.value) }, String(k + 1)),
      s("title", {}, `${label(p.method)}: ${fixed(p.value)}, gap ${fixed(p["gap value"])}`))));
}

/** A line of marks for each row of `[name, marks]`; marks are `{mean, low, high, kind}`. */
function lines(rows, width, title, description) {
  const narrow = width < 560, left = narrow ? 8 : Math.min(270, width * 0.36), step = narrow ? 42 : 26;
  const values = rows.flatMap(([, marks]) => marks.flatMap((m) => [m.mean, m.low, m.high])).filter((v) => v !== null);
  const x = scale(values, left, width - 12);
  const bottom = 10 + rows.length * step;
  return picture(width, bottom + 44, description,
    below(x, 6, bottom),
    s("text", { x: width, y: bottom + 38, "text-anchor": "end" }, title),
    rows.map(([name, marks], k) => {
      const y = 10 + k * step + (narrow ? step - 13 : step / 2);
      const ends = marks.map((m) => x.at(m.mean));
      return [
        s("text", narrow ? { x: 0, y: y - 14 } : { x: left - 14, y: y + 4, "text-anchor": "end" }, name),
        s("line", { class: "thin", x1: Math.min(...ends), x2: Math.max(...ends), y1: y, y2: y }),
        marks.map((m) => m.low !== null && s("g", { class: `c${m.kind % 4}` }, s("line", { class: "span", x1: x.at(m.low), x2: x.at(m.high), y1: y, y2: y }))),
        marks.map((m) => s("g", {}, shape(m.kind, x.at(m.mean), y), s("title", {}, `${name}, ${m.name}: ${fixed(m.mean)}`))),
      ];
    }));
}

/** Bars from zero, one for each group of each row of `[name, bars]`; bars are `{group, mean, low, high, kind}`. */
function bars(rows, width, title, description) {
  const thick = 13, gap = 30, left = Math.min(150, width * 0.3);
  const most = Math.max(...rows.flatMap(([, each]) => each.flatMap((b) => [b.mean, b.high ?? b.mean])));
  const x = scale([0, most], left, width - 52, [0, Infinity]);
  let y = 4;
  const drawn = rows.map(([name, each]) => {
    y += gap;
    const head = s("text", { x: 0, y: y - 9 }, name);
    return [head, each.map((bar) => {
      const top = y;
      y += thick + 2;
      return s("g", { class: `c${bar.kind % 4}` },
        s("text", { class: "soft", x: left - 8, y: top + 10.5, "text-anchor": "end" }, bar.group),
        s("rect", { class: "block", x: left, y: top, width: Math.max(0, x.at(bar.mean) - left), height: thick }),
        bar.low !== null && s("line", { class: "ci", x1: x.at(bar.low), x2: x.at(bar.high), y1: top + thick / 2, y2: top + thick / 2 }),
        s("text", { x: width, y: top + 10.5, "text-anchor": "end" }, fixed(bar.mean)));
    })];
  });
  return picture(width, y + 46, description,
    below(x, 14, y + 4),
    s("text", { x: width - 52, y: y + 40, "text-anchor": "end" }, title),
    drawn);
}

/** Mean ranks on a line, best to the left; bars join methods whose ranks do not differ. */
function critical(ranking, width, description) {
  const { methods, difference, bars: joined } = ranking, count = methods.length;
  const half = Math.ceil(count / 2), left = Math.min(210, width * 0.3), right = width - left;
  const x = (rank) => left + ((rank - 1) / (count - 1)) * (right - left);
  const start = 74 + joined.length * 9;
  return picture(width, start + half * 20 + 8, description,
    s("line", { class: "bar", x1: x(1), x2: x(Math.min(count, 1 + difference)), y1: 22, y2: 22 }),
    s("text", { x: x(1), y: 12 }, `critical difference ${difference.toFixed(2)}`),
    s("line", { class: "axis", x1: left, x2: right, y1: 58, y2: 58 }),
    Array.from({ length: count }, (_, k) => [
      s("line", { class: "axis", x1: x(k + 1), x2: x(k + 1), y1: 53, y2: 58 }),
      s("text", { class: "tick", x: x(k + 1), y: 48, "text-anchor": "middle" }, String(k + 1)),
    ]),
    joined.map(([a, b], k) => s("line", { class: "bar", x1: x(methods[a][1]) - 2, x2: x(methods[b][1]) + 2, y1: 68 + k * 9, y2: 68 + k * 9 })),
    methods.map(([method, rank], k) => {
      const first = k < half, y = start + (first ? k : count - 1 - k) * 20 + 6, end = first ? left - 8 : right + 8;
      return [
        s("path", { class: "thin", fill: "none", d: `M${x(rank)} 58V${y}H${end}` }),
        s("text", { x: first ? end - 5 : end + 5, y: y + 4, "text-anchor": first ? "end" : "start" }, `${label(method)} ${rank.toFixed(2)}`),
      ];
    }));
}
