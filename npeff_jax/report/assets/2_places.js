// Layers by kinds, each cell shaded by its share; beside it the layer's whole share, a tick where the mean component has it.
function placesTable(shares, mean) {
  const totals = shares.map((row) => row.reduce((a, b) => a + b, 0)),
    largest = Math.max(...shares.flat(), 1e-9);
  const most = Math.max(...totals, ...(mean || []).map((row) => row.reduce((a, b) => a + b, 0)), 1e-9);
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "places" },
      h("caption", { class: "unseen" }, "Share of energy by layer and kind of parameter"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "layer"),
          data.places.kinds.map((kind) =>
            h("th", { scope: "col" }, h("i", { class: "swatch", style: { background: kindColor(kind) } }), kind),
          ),
          h("th", { scope: "col" }, "together"),
        ),
      ),
      h(
        "tbody",
        {},
        shares.map((row, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, data.places.layers[i]),
            row.map((v, k) =>
              data.places.sizes[i][k] === 0
                ? h("td", { class: "none" })
                : h(
                    "td",
                    {
                      title: `${number(data.places.sizes[i][k])} parameters`,
                      style: {
                        background: `color-mix(in oklab, ${kindColor(data.places.kinds[k])} ${(85 * Math.sqrt(v / largest)).toFixed(0)}%, transparent)`,
                      },
                    },
                    percent(v),
                  ),
            ),
            h(
              "td",
              { class: "together" },
              h(
                "span",
                { class: "stack" },
                row.map(
                  (v, k) =>
                    v > 0 &&
                    h("span", {
                      style: { width: `${(100 * v) / most}%`, background: kindColor(data.places.kinds[k]) },
                    }),
                ),
                mean &&
                  h("b", {
                    title: `mean over components: ${percent(mean[i].reduce((a, b) => a + b, 0))}`,
                    style: { left: `${(100 * mean[i].reduce((a, b) => a + b, 0)) / most}%` },
                  }),
              ),
              h("span", { class: "total" }, percent(totals[i])),
            ),
          ),
        ),
      ),
    ),
  );
}
