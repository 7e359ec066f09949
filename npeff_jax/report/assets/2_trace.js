// A perturbation's way through the model: stages by positions, darker where the values change more; and what each
// layer's own parameters do to the likeliest classes.
function traceFigure(trace) {
  const largest = Math.max(...trace.change.flat(), 1e-12),
    columns = Math.max(...trace.change.map((row) => row.length));
  const cell = Math.max(7, Math.min(30, 460 / columns)),
    left = 130,
    width = left + cell * columns + 8,
    row = 16;
  const tall = columns > 40 ? 0 : Math.max(...trace.positions.map((p) => p.length)) * 5.4 + 10;
  const busiest = trace.change.map((changes, i) => [Math.max(...changes), i]).sort((a, b) => b[0] - a[0])[0][1];
  const flow = frame(
    width,
    tall + row * trace.stages.length + 8,
    `Relative change by stage and position; largest at ${trace.stages[busiest]}`,
    tall > 0 &&
      trace.positions.map((name, p) =>
        s("text", { x: 0, y: 0, transform: `translate(${left + cell * (p + 0.62)},${tall - 4}) rotate(-60)` }, name),
      ),
    trace.stages.map((name, i) => [
      s(
        "text",
        { x: left - 6, y: tall + row * i + 11.5, "text-anchor": "end" },
        name.length > 22 ? `…${name.slice(-21)}` : name,
      ),
      trace.change[i].map((v, p) =>
        s(
          "rect",
          {
            x: left + ((cell * columns) / trace.change[i].length) * p,
            y: tall + row * i,
            width: Math.max(1, (cell * columns) / trace.change[i].length - 1),
            height: row - 1,
            rx: 2,
            class: "heat",
            "fill-opacity": 0.06 + 0.94 * Math.sqrt(v / largest),
          },
          s("title", {}, `${name}, ${trace.positions[p] || p}: ${number(v)}`),
        ),
      ),
    ]),
  );
  flow.style.maxWidth = `${Math.max(520, width)}px`;
  const most = Math.max(...trace.logits.flat().map(Math.abs), 1e-12);
  return [
    flow,
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "effects" },
        h("caption", {}, "What each layer's parameters change of the logits, per unit of length"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "layer"),
            trace.classes.map((c) => h("th", { scope: "col" }, className(c))),
          ),
        ),
        h(
          "tbody",
          {},
          trace.layers.map((name, i) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              trace.logits[i].map((v) =>
                h(
                  "td",
                  {},
                  h(
                    "span",
                    { class: "signed", title: number(v), "aria-hidden": "true" },
                    h("span", { class: v < 0 ? "less" : "more", style: { width: `${(50 * Math.abs(v)) / most}%` } }),
                  ),
                  h("span", { class: "value" }, signed(v, most)),
                ),
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}
