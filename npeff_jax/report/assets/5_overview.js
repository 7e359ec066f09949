// The first page: how much was found, how far to trust it, and a map.
function figure(title, chart, caption, wide) {
  const made = h("figure", { class: wide ? "wide" : null }, h("h3", {}, title), chart, h("figcaption", {}, caption));
  const menu = saveMenu(title, made);
  if (menu) made.firstChild.after(menu);
  return made;
}
function fact(value, name) {
  return h("div", { class: "fact" }, h("strong", {}, value), h("span", {}, name));
}
function overview() {
  const { run, examples } = data,
    lowRank = run.flavour === "low_rank",
    loss = run.losses[run.losses.length - 1];
  const measured = data.components.map((c) => c.causal).filter((causal) => causal && causal.kl_ratio !== null);
  const ratios = (name) => measured.map((causal) => causal[name]).filter((v) => v !== null);
  return [
    h(
      "section",
      { class: "lead" },
      h("h2", {}, "Overview"),
      h(
        "p",
        { class: "summary" },
        `${plural(run.n_components, "component")} reproduce ${loss === undefined ? "part" : percent(1 - loss)} of how ${plural(run.n_decomposed, "prediction")} react to the ` +
          `model's ${run.n_parameters.toLocaleString("en")} parameters. Each component is a ${lowRank ? "direction in the parameters" : "weight for every parameter"} that a group of examples shares: ` +
          "a piece of what the model does for all of them. Pick one in the list to see its examples.",
      ),
      h(
        "div",
        { class: "facts" },
        fact(run.n_components.toLocaleString("en"), lowRank ? "components (LRM-NPEFF)" : "components (D-NPEFF)"),
        fact(loss === undefined ? "–" : percent(1 - loss), "explained (squared norm)"),
        examples.explained !== null && fact(percent(examples.explained), "explained, held out"),
        fact(examples.count.toLocaleString("en"), `${examples.source} examples shown from`),
        examples.accuracy !== null && fact(percent(examples.accuracy), "of them predicted as labelled"),
        measured.length > 0 &&
          fact(times(median(ratios("kl_ratio"))), `median KL ratio (null ${times(median(ratios("null_kl_ratio")))})`),
      ),
      h(
        "p",
        { class: "save-row" },
        "All components as a table:",
        tableButtons(`${data.title} components`, componentRows),
        h(
          "button",
          {
            type: "button",
            on: { click: () => download("notes.json", "application/json", JSON.stringify(allNotes(), null, 1)) },
          },
          "Export notes",
        ),
      ),
    ),
    startHere(),
    h(
      "section",
      { class: "grid" },
      mapFigure(),
      measured.length > 0 && selectivityFigure(ratios),
      movedFigure(),
      stabilityFigure(),
      lossFigure(),
      coefficientsFigure(),
      energyFigure(),
      meanPlacesFigure(),
    ),
    settings(),
  ];
}

// Three components to begin with: the best evidence, then the most coherent examples, no two of the same kind.
function startHere() {
  const ranked = data.components
    .filter((c) => c.top.length)
    .sort((a, b) => strength[b.evidence.mark] - strength[a.evidence.mark] || b.coherence - a.coherence || b.share - a.share);
  const chosen = [];
  for (const other of [(c) => chosen.every((d) => mainClass(d) !== mainClass(c)), () => true])
    for (const c of ranked) if (chosen.length < 3 && !chosen.includes(c) && other(c)) chosen.push(c);
  const one = (c) =>
    h(
      "a",
      { class: "start", href: `#c${c.index}` },
      h("span", { class: "start-head" }, h("strong", {}, titleOf(c)), measuredEvidence && chip(c)),
      h("span", { class: "headline" }, c.headline),
      hasImages
        ? h(
            "span",
            { class: "strip" },
            c.top.slice(0, 6).map(([place]) => picture(place)),
          )
        : h("span", { class: "snippet" }, (data.examples.shown[c.top[0][0]].text || []).join(" ⟶ ").slice(0, 160)),
    );
  return (
    chosen.length > 0 &&
    h(
      "section",
      {},
      h("h3", {}, "Start here"),
      h(
        "p",
        { class: "caption" },
        measuredEvidence
          ? "Three components with good evidence that the model uses them and top examples that are alike."
          : "Three components whose top examples are alike. Whether the model uses them was not measured.",
      ),
      h("div", { class: "starts" }, chosen.map(one)),
    )
  );
}

function componentRows() {
  return data.components.map((c) => ({
    component: c.index,
    name: c.name,
    headline: c.headline,
    evidence: c.evidence.mark,
    reason: c.evidence.reason,
    share: c.share,
    breadth: c.breadth,
    coherence: c.coherence,
    kl_ratio: c.causal && c.causal.kl_ratio,
    null_kl_ratio: c.causal && c.causal.null_kl_ratio,
    pef_norm_ratio: c.causal && c.causal.pef_norm_ratio,
    moved_kl: c.moved && c.moved.measured,
    moved_kl_predicted: c.moved && c.moved.predicted,
    stability: c.stability,
    wrong: c.wrong,
    layer: mainPlace(c).layer,
    kind: mainPlace(c).kind,
    note: noteOf(c),
  }));
}

function selectivityFigure(ratios) {
  const rows = [
    { name: "KL ratio", class: "kl", values: ratios("kl_ratio") },
    { name: "null", class: "null", values: ratios("null_kl_ratio") },
    { name: "PEF norms", class: "norms", values: ratios("pef_norm_ratio") },
  ];
  const ceiling = data.selectivity_ceiling;
  return figure(
    "Is it what the model uses?",
    ratioRows({
      label: `Medians: ${rows.map((row) => `${row.name} ${times(median(row.values))}`).join(", ")}`,
      ceiling,
      rows,
    }),
    "A tick a component, the disc their median. KL ratio: how much more a component's own perturbation changes its top examples than others. Null: the same for other components' perturbations. " +
      "PEF norms: how much more these examples react to anything. Trust components whose KL ratio stands well right of both." +
      (ceiling
        ? ` (Dashed: 1, and ${times(ceiling)}, the most there could be if the top examples counted among the others.)`
        : ""),
  );
}

// Who moves under a move of the parameters, such as one that forgets something.
function movedFigure() {
  if (data.moved_all === null) return null;
  const moved = data.components.filter((c) => c.moved && c.moved.measured !== null);
  moved.sort((a, b) => b.moved.measured - a.moved.measured);
  const row = (c) =>
    h(
      "tr",
      {},
      h("td", {}, h("a", { href: `#c${c.index}` }, titleOf(c))),
      h("td", {}, number(c.moved.measured)),
      h("td", {}, c.moved.predicted === null ? "–" : number(c.moved.predicted)),
    );
  const heads = ["component", "KL, nats", "by equation 5"].map((name) => h("th", { scope: "col" }, name));
  return figure(
    "Who else moves",
    h("table", { class: "moved" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, moved.slice(0, 12).map(row))),
    `Mean KL divergence of each component's top examples under the move; of all examples ${number(data.moved_all)}. ` +
      `${moved.length > 12 ? `The 12 largest of ${moved.length}; all` : "All"} are in the table of components.`,
  );
}

function meanPlacesFigure() {
  return figure(
    "Where the components live",
    placesTable(data.places.mean, null),
    "Mean share of the components' energy in each layer and kind of parameter.",
    data.places.kinds.length > 2,
  );
}

function stabilityFigure() {
  const values = data.components.map((c) => c.stability).filter((v) => v !== null);
  return (
    values.length > 0 &&
    figure(
      "Found again in other runs",
      histogram({
        ...bins(values, 0, 1, 20),
        label: "Histogram of the components' stability",
        xLabel: "similarity with the match in other runs",
        yLabel: "components",
      }),
      "1: the same component came out of another start; near 0: it did not, and may be an accident.",
    )
  );
}

function lossFigure() {
  const { steps, losses, stopped } = data.run,
    last = losses[losses.length - 1];
  return (
    losses.length > 1 &&
    figure(
      "Loss",
      lineChart({
        label: `The loss fell from ${number(losses[0])} to ${number(last)}`,
        xLabel: "iteration",
        yLabel: "unexplained fraction of ‖F‖²",
        series: [{ points: steps.map((step, i) => [step, losses[i]]), last: number(last) }],
      }),
      stopped,
    )
  );
}

function coefficientsFigure() {
  return figure(
    "Coefficients",
    histogram({
      ...data.coefficients,
      label: "Histogram of the coefficients",
      xLabel: "coefficient (logarithmic)",
      yLabel: "pairs of example and component",
      xFormat: (t) => (Number.isInteger(t) ? `1e${t}` : ""),
    }),
    `How much of a component is in an example's Fisher; never negative. ${percent(data.zero_coefficients)} are exactly zero and left out here.`,
  );
}

function energyFigure() {
  const kept = data.examples.kept_energy,
    keep = data.run.pefs.keep;
  return (
    kept &&
    figure(
      "Energy kept",
      histogram({
        ...kept,
        label: "Histogram of kept energy",
        xLabel: "fraction of the Fisher's trace",
        yLabel: "examples",
        xFormat: percent,
      }),
      `Of each example's Fisher ${keep === null ? "all" : number(keep)} entries are kept; this is the part of its trace in them.`,
    )
  );
}

function settings() {
  const { model, pefs, settings, code_version } = data.run,
    { about } = data;
  const said = Object.entries({ ...about, package: `npeff_jax ${code_version}` }).filter(([, value]) => value);
  const all = { "parameters (fingerprint)": model, ...pefs, ...settings };
  const text = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  const entry = ([key, value]) => [
    h("dt", {}, key),
    h("dd", {}, key === "command" ? [h("code", {}, value), " ", copyButton(value)] : text(value)),
  ];
  return h(
    "section",
    { class: "settings" },
    h("h3", {}, "How this was made"),
    h("dl", {}, said.flatMap(entry)),
    h(
      "details",
      {},
      h("summary", {}, "All settings"),
      h("dl", {}, Object.entries(all).flatMap(entry)),
    ),
  );
}
const copyButton = (text) =>
  h("button", { type: "button", on: { click: (event) => copy(text, event.currentTarget) } }, "Copy");

function bins(values, low, high, count) {
  const edges = Array.from({ length: count + 1 }, (_, i) => low + ((high - low) * i) / count),
    counts = new Array(count).fill(0);
  for (const v of values) counts[Math.min(count - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * count)))]++;
  return { edges, counts };
}
