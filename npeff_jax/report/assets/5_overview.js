// The first page: how much was found, how far to trust it, and a map.
function figure(title, chart, caption, wide) {
  return h("figure", { class: wide ? "wide" : null }, h("h3", {}, title), chart, h("figcaption", {}, caption));
}
function fact(value, name) {
  return h("div", { class: "fact" }, h("strong", {}, value), h("span", {}, name));
}
function overview() {
  const { run, examples } = data, loss = run.losses[run.losses.length - 1];
  const causal = data.components.map((c) => c.causal).filter((v) => v && v.kl_ratio !== null);
  const pick = (name) => causal.map((v) => v[name]).filter((v) => v !== null);
  return [
    h("section", { class: "lead" },
      h("h2", {}, "Overview"),
      h("p", { class: "summary" }, `${plural(run.n_components, "component")} reproduce ${loss === undefined ? "part" : percent(1 - loss)} of how `
        + `${plural(run.n_decomposed, "prediction")} react to the model's ${run.n_parameters.toLocaleString("en")} parameters. Each component is a direction in the `
        + `parameters shared by a group of examples: what the model computes the same way for all of them. Pick one in the list to see its examples.`),
      h("div", { class: "facts" },
        fact(run.n_components.toLocaleString("en"), run.flavour === "low_rank" ? "components (LRM-NPEFF)" : "components (D-NPEFF)"),
        fact(loss === undefined ? "–" : percent(1 - loss), "explained (squared norm)"),
        examples.explained !== null && fact(percent(examples.explained), "explained, held out"),
        fact(examples.count.toLocaleString("en"), `${examples.source} examples shown from`),
        examples.accuracy !== null && fact(percent(examples.accuracy), "of them predicted as labelled"),
        causal.length > 0 && fact(times(median(pick("kl_ratio"))), `median KL ratio (null ${times(median(pick("null_kl_ratio")))})`))),
    h("section", { class: "grid" },
      figure("Which components are alike", map(), ["Each disc is a component, larger if it carries more; the closer, the more alike the parameters they move "
        + "(lines: |cosine| of 0.35 and more). ", data.components[0].predicted_mix.length ? "Colour: the class most often predicted for its top examples. " : "", "Click one to open it."]),
      causal.length > 0 && figure("Is it what the model uses?", ratioRows({ label: `Median KL ratio ${times(median(pick("kl_ratio")))}, null ${times(median(pick("null_kl_ratio")))}, PEF norms ${times(median(pick("pef_norm_ratio")))}`,
        ceiling: data.selectivity_ceiling, rows: [{ name: "KL ratio", class: "kl", values: pick("kl_ratio") }, { name: "null", class: "null", values: pick("null_kl_ratio") },
          { name: "PEF norms", class: "norms", values: pick("pef_norm_ratio") }] }),
      "A tick a component, the disc their median. KL ratio: how much more a component's own perturbation changes its top examples than others. Null: the same for other components' "
        + "perturbations. PEF norms: how much more these examples react to anything. Trust components whose KL ratio stands well right of both."),
      figure("Where the components live", placesTable(data.places.mean, null), "Mean share of the components' energy in each layer and kind of parameter.", data.places.layers.length > 12 || data.places.kinds.length > 4),
      data.components.some((c) => c.stability !== null) && figure("Found again in other runs", histogram({ ...bins(data.components.map((c) => c.stability).filter((v) => v !== null), 0, 1, 20),
        label: "Histogram of the components' stability", xLabel: "similarity with the match in other runs", yLabel: "components" }), "1: the same component came out of another start; near 0: it did not, and may be an accident."),
      run.losses.length > 1 && figure("Loss", lineChart({ label: `The loss fell from ${number(run.losses[0])} to ${number(loss)}`, logY: run.losses[0] / loss > 5,
        series: [{ points: run.steps.map((step, i) => [step, run.losses[i]]) }], xLabel: "iteration", yLabel: "unexplained fraction of ‖F‖²" }), run.stopped),
      figure("Coefficients", histogram({ ...data.coefficients, label: "Histogram of the coefficients", xLabel: "coefficient (logarithmic)", yLabel: "pairs of example and component",
        xFormat: (t) => Number.isInteger(t) ? `1e${t}` : "" }), `How much of a component is in an example's Fisher; never negative. ${percent(data.zero_coefficients)} are exactly zero and left out here.`),
      examples.kept_energy && figure("Energy kept", histogram({ ...examples.kept_energy, label: "Histogram of kept energy", xLabel: "fraction of the Fisher's trace", yLabel: "examples", xFormat: percent }),
        `Of each example's Fisher ${number(run.pefs.keep)} entries are kept; this is the part of its trace in them.`)),
    h("details", { class: "settings" }, h("summary", {}, "Settings"), h("dl", {}, Object.entries({ model: run.model, ...run.pefs, ...run.settings, "package": run.code_version })
      .flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value))]))),
  ];
}
function bins(values, low, high, count) {
  const edges = Array.from({ length: count + 1 }, (_, i) => low + (high - low) * i / count), counts = new Array(count).fill(0);
  for (const v of values) counts[Math.min(count - 1, Math.max(0, Math.floor((v - low) / (high - low) * count)))]++;
  return { edges, counts };
}
// Layers by kinds, each cell shaded by its share; beside it the layer's whole share, a tick where the mean component has it.
function placesTable(shares, mean) {
  const totals = shares.map((row) => row.reduce((a, b) => a + b, 0)), largest = Math.max(...shares.flat(), 1e-9);
  const most = Math.max(...totals, ...(mean || []).map((row) => row.reduce((a, b) => a + b, 0)), 1e-9);
  return h("div", { class: "scroll" }, h("table", { class: "places" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "layer"), data.places.kinds.map((kind) => h("th", { scope: "col" }, h("i", { class: "swatch", style: { background: kindColor(kind) } }), kind)), h("th", { scope: "col" }, "together"))),
    h("tbody", {}, shares.map((row, i) => h("tr", {}, h("th", { scope: "row" }, data.places.layers[i]),
      row.map((v, k) => data.places.sizes[i][k] === 0 ? h("td", { class: "none" }) : h("td", { title: `${number(data.places.sizes[i][k])} parameters`,
        style: { background: `color-mix(in oklab, ${kindColor(data.places.kinds[k])} ${(85 * Math.sqrt(v / largest)).toFixed(0)}%, transparent)` } }, percent(v))),
      h("td", { class: "together" }, h("span", { class: "stack" }, row.map((v, k) => v > 0 && h("span", { style: { width: `${100 * v / most}%`, background: kindColor(data.places.kinds[k]) } })),
        mean && h("b", { title: `mean over components: ${percent(mean[i].reduce((a, b) => a + b, 0))}`, style: { left: `${100 * mean[i].reduce((a, b) => a + b, 0) / most}%` } })),
        h("span", { class: "total" }, percent(totals[i]))))))));
}
