// A component's card.
function shownExample([place, coefficient], largest) {
  const example = data.examples.shown[place];
  const wrong = example.label !== null && example.predicted.length && example.label !== example.predicted[0][0];
  const prediction = example.output ? `output ${example.output.map(number).join(", ")}` : example.predicted.length
    ? h("span", { title: example.predicted.map(([c, p]) => `${className(c)} ${percent(p)}`).join(", ") }, `${className(example.predicted[0][0])} ${percent(example.predicted[0][1])}`) : "";
  const facts = [h("span", { class: "prediction" }, prediction), wrong && h("span", { class: "wrong" }, `labelled ${className(example.label)}`)];
  const coefficientBar = h("span", { class: "coefficient", title: `coefficient ${number(coefficient)}` },
    h("span", { class: "meter" }, h("span", { style: { width: `${largest ? Math.min(100, 100 * coefficient / largest) : 0}%` } })), h("span", {}, number(coefficient)));
  const named = data.examples.segment_names.length > 0;
  if (hasImages) {
    return h("li", { class: `image ${wrong ? "is-wrong" : ""}` },
      picture(place, `example ${example.index}`), h("span", { class: "under" }, facts), coefficientBar);
  }
  return h("li", { class: `text ${wrong ? "is-wrong" : ""}` },
    h("div", { class: "segments" }, example.text === null ? h("p", {}, `example ${example.index}`) : example.text.map((segment, i) => h("p", { class: named ? "named" : null },
      named && h("span", { class: "segment-name" }, data.examples.segment_names[i]), h("span", {}, segment)))),
    h("div", { class: "beside" }, facts, coefficientBar));
}
function examplesSection(title, caption, shown, largest) {
  if (!shown.length) return null;
  return h("section", {}, h("h3", {}, title), h("p", { class: "caption" }, caption),
    h("ol", { class: hasImages ? "images" : "texts" }, shown.map((entry) => shownExample(entry, largest))));
}
// Fractions of the component's top examples beside those of all examples.
function mixTable(title, mix, base) {
  const rows = mix.slice(0, 6), most = Math.max(...rows.map(([c, f]) => Math.max(f, base[c])), 0.01);
  return h("table", { class: "mix" }, h("caption", {}, title), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "class"), h("th", { scope: "col" }, "top examples"), h("th", { scope: "col" }, "all"))),
    h("tbody", {}, rows.map(([c, f]) => h("tr", {}, h("th", { scope: "row" }, className(c)),
      h("td", {}, h("div", { class: "bars" }, h("span", { class: "pair" }, h("span", { class: "own", style: { width: `${100 * f / most}%` } }), h("span", { class: "base", style: { width: `${100 * base[c] / most}%` } })), h("span", { class: "value" }, percent(f)))),
      h("td", { class: "muted" }, percent(base[c]))))));
}
function card(c) {
  const largest = c.top.length ? c.top[0][1] : 0, position = order.indexOf(c.index), causal = c.causal;
  const step = (by, name, symbol) => order[position + by] === undefined || position < 0 ? h("span", { class: "step", "aria-hidden": "true" }, symbol)
    : h("a", { class: "step", href: `#c${order[position + by]}`, title: name, "aria-label": name }, symbol);
  return h("article", { class: "card", "aria-labelledby": `title-${c.index}` },
    h("header", {}, h("h2", { id: `title-${c.index}`, tabindex: "-1" }, `Component ${c.index}`, c.frozen && h("span", { class: "badge" }, "frozen")),
      h("nav", { class: "steps", "aria-label": "Other components" }, step(-1, "Previous component (k)", "←"), step(1, "Next component (j)", "→"))),
    c.note && h("p", { class: "note" }, c.note),
    h("p", { class: "summary" }, sentences(c).join(" ")),
    h("div", { class: "facts" }, fact(percent(c.share), "of all coefficients' energy"), fact(percent(c.breadth), "of examples use it"),
      causal && causal.kl_ratio !== null && fact(times(causal.kl_ratio), "KL ratio"), c.stability !== null && fact(c.stability.toFixed(2), "similarity in other runs")),
    examplesSection("Top examples", `The ${data.examples.source.replace(" ", "-")} examples with most of this component, largest coefficient first. What do they share?`, c.top, largest),
    examplesSection("Near misses", "Predicted like the top examples, yet the component is all but absent: what they lack is what it stands for.", c.near_misses, largest),
    examplesSection("Random examples", "For comparison, drawn from all.", c.random, largest),
    h("section", { class: "grid" },
      c.predicted_mix.length > 0 && h("figure", {}, h("h3", {}, "Which classes"),
        c.pair_mix.length > 0 && h("p", { class: "caption" }, "Undecided between: ", c.pair_mix.filter(([, , f]) => f >= 0.05).map(([a, b, f], i) => `${i ? ", " : ""}“${className(a)}” and “${className(b)}” ${percent(f)}`), "."), mixTable(`Predictions of the top ${c.n_mix}`, c.predicted_mix, data.examples.predicted_rate),
        c.label_mix && data.examples.label_rate && mixTable(`Labels of the top ${c.n_mix}`, c.label_mix, data.examples.label_rate)),
      causal && causal.kl_ratio !== null && figure("Is it what the model uses?", ratioRows({ label: `KL ratio ${times(causal.kl_ratio)}, null ${times(causal.null_kl_ratio)}, PEF norms ${times(causal.pef_norm_ratio)}`,
        rows: [{ name: "KL ratio", class: "kl", values: [causal.kl_ratio] }, { name: "null", class: "null", values: [causal.null_kl_ratio || 0] }, { name: "PEF norms", class: "norms", values: [causal.pef_norm_ratio || 0] }] }),
        "Mean over its top examples divided by the mean over others. Above both others: moving along this component changes what it claims to explain."),
      figure("Where it lives", placesTable(c.places, data.places.mean), "Share of its energy by layer and kind of parameter; the tick is the mean over components.", data.places.kinds.length > 2),
      figure("How fast it fades", lineChart({ label: "Coefficients by rank, held out and decomposed", logX: true, yMax: 1, xLabel: "rank, fraction of the examples", yLabel: "coefficient, of the largest", xFormat: (v) => `${number(100 * v)} %`,
        series: [{ class: "other", points: data.decay_at.map((x, i) => [x, c.decomposed_decay[i]]) }, { points: data.decay_at.map((x, i) => [x, c.decay[i]]) }] }),
        [h("span", { class: "key" }, data.examples.source), data.examples.source === "decomposed" ? null : [" ", h("span", { class: "key dashed" }, "decomposed"), " Where the two agree, the component is no accident of the examples it was found in."]]),
      c.traces.map((trace) => figure(`How it reaches the output: example ${trace.example}`, traceFigure(trace),
        "A small move of the parameters along the component (its sign is arbitrary): where the values inside the model change, relative to their size, and which layers push the logits. To first order.", true)),
      c.neighbours.length > 0 && h("figure", {}, h("h3", {}, "Similar components"), h("ul", { class: "neighbours" }, c.neighbours.map(([k, v]) =>
        h("li", {}, h("a", { href: `#c${k}` }, `${k}`, h("span", {}, headline(data.components[k]))), h("span", { class: "value" }, v.toFixed(2))))),
        h("figcaption", {}, "|cosine| of what they move in the parameters: 0 nothing in common, 1 the same.")),
      h("figure", {}, h("h3", {}, "Largest parameter arrays"), h("ul", { class: "arrays" }, c.parameters.map(([name, v]) => h("li", {}, h("code", {}, name), h("span", { class: "value" }, percent(v))))))));
}
