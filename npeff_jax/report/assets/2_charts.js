// Charts, each one SVG with a sentence for those who cannot see it.
const kindColors = {
  embedding: 1,
  norm: 8,
  attention: 2,
  "feed-forward": 3,
  head: 4,
  convolution: 5,
  dense: 6,
  other: 7,
};
const kindColor = (kind) => `var(--kind-${kindColors[kind] || 7})`;

function frame(width, height, label, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label }, ...children);
}
function niceTicks(low, high, wanted) {
  const span = high - low || 1,
    raw = span / wanted,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= raw);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) ticks.push(Number(t.toPrecision(12)));
  return ticks;
}
// A coordinate from data to pixels, linear or logarithmic, with its ticks.
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v,
    a = f(low),
    b = f(high) === f(low) ? f(low) + 1 : f(high);
  const at = (v) => from + ((f(v) - a) / (b - a)) * (to - from);
  let ticks = log ? [] : niceTicks(low, high, 4);
  if (log) {
    for (let p = Math.floor(a); p <= Math.ceil(b); p++)
      for (const m of b - a < 1.2 ? [1, 2, 5] : [1])
        if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) ticks.push(m * 10 ** p);
    if (ticks.length > 5) ticks = ticks.filter((_, i) => i % Math.ceil(ticks.length / 4) === 0);
  }
  return { at, ticks };
}
function axes(x, y, box, xLabel, yLabel, xFormat = short, yFormat = short) {
  return s(
    "g",
    { class: "axes", "aria-hidden": "true" },
    y &&
      y.ticks.map((t) => [
        s("line", { x1: box.left, x2: box.right, y1: y.at(t), y2: y.at(t), class: "grid" }),
        s("text", { x: box.left - 6, y: y.at(t) + 3.5, "text-anchor": "end" }, yFormat(t)),
      ]),
    x && x.ticks.map((t) => s("text", { x: x.at(t), y: box.bottom + 15, "text-anchor": "middle" }, xFormat(t))),
    s("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }),
    xLabel &&
      s(
        "text",
        { x: (box.left + box.right) / 2, y: box.bottom + 31, "text-anchor": "middle", class: "axis-label" },
        xLabel,
      ),
    yLabel && s("text", { x: box.left, y: box.top - 8, class: "axis-label" }, yLabel),
  );
}

function lineChart({ series, xLabel, yLabel, label, logX, yMax, xFormat }) {
  const box = { left: 46, right: 360, top: 24, bottom: 168 };
  const xs = series.flatMap((line) => line.points.map((p) => p[0])),
    ys = series.flatMap((line) => line.points.map((p) => p[1]));
  const x = scale(Math.min(...xs), Math.max(...xs), box.left, box.right, logX);
  const y = scale(0, yMax || Math.max(...ys), box.bottom, box.top);
  return frame(
    380,
    206,
    label,
    axes(x, y, box, xLabel, yLabel, xFormat),
    series.map((line) => [
      s("path", {
        class: `line ${line.class || ""}`,
        d: line.points.map((p, i) => `${i ? "L" : "M"}${x.at(p[0]).toFixed(1)},${y.at(p[1]).toFixed(1)}`).join(""),
      }),
      line.last &&
        s(
          "text",
          { class: "value", x: box.right, y: y.at(line.points[line.points.length - 1][1]) - 8, "text-anchor": "end" },
          line.last,
        ),
    ]),
  );
}

function histogram({ edges, counts, xLabel, yLabel, label, xFormat, marks = [] }) {
  const box = { left: 46, right: 360, top: 24, bottom: 168 };
  const x = scale(edges[0], edges[edges.length - 1], box.left, box.right),
    y = scale(0, Math.max(...counts, 1), box.bottom, box.top);
  return frame(
    380,
    206,
    label,
    axes(x, y, box, xLabel, yLabel, xFormat),
    counts.map((count, i) =>
      s("rect", {
        class: "bar",
        x: x.at(edges[i]) + 0.5,
        width: Math.max(0.5, x.at(edges[i + 1]) - x.at(edges[i]) - 1),
        y: y.at(count),
        height: box.bottom - y.at(count),
      }),
    ),
    marks.map((m) => s("line", { class: "mark", x1: x.at(m), x2: x.at(m), y1: box.top, y2: box.bottom })),
  );
}

// Several sets of ratios on one logarithmic axis, a row each: every component a tick, the median a disc.
function ratioRows({ rows, label, ceiling, xLabel = "ratio, logarithmic (1: no difference)" }) {
  const values = rows.flatMap((row) => row.values).filter((v) => v > 0);
  const low = Math.min(0.8, ...values) / 1.15,
    high = Math.max(2, ...values) * 1.1;
  const box = { left: 118, right: 368, top: 8, bottom: 12 + 34 * rows.length };
  const x = scale(low, high, box.left, box.right, true);
  return frame(
    380,
    box.bottom + 38,
    label,
    axes(x, null, box, xLabel),
    s("line", { class: "mark", x1: x.at(1), x2: x.at(1), y1: box.top, y2: box.bottom }),
    ceiling &&
      ceiling <= high &&
      s("line", { class: "mark", x1: x.at(ceiling), x2: x.at(ceiling), y1: box.top, y2: box.bottom }),
    rows.map((row, i) => {
      const centre = 25 + 34 * i,
        sorted = row.values.filter((v) => v > 0).sort((a, b) => a - b);
      const middle = median(sorted);
      return s(
        "g",
        { class: row.class },
        s("text", { x: box.left - 10, y: centre + 4, "text-anchor": "end" }, row.name),
        sorted.length > 1 &&
          sorted.map((v) => s("line", { class: "tick", x1: x.at(v), x2: x.at(v), y1: centre - 9, y2: centre + 9 })),
        sorted.length === 1 && s("line", { class: "stem", x1: x.at(1), x2: x.at(middle), y1: centre, y2: centre }),
        middle && s("circle", { cx: x.at(middle), cy: centre, r: 5.5 }),
        middle &&
          s("text", { x: x.at(middle), y: centre - 11, "text-anchor": "middle", class: "value" }, times(middle)),
      );
    }),
  );
}
