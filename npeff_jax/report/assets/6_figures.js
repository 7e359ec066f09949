// The figures of a card, a function each; null where there is nothing to show.

// Fractions of the component's top examples beside those of all examples.
function mixTable(title, what, rows) {
  const most = Math.max(...rows.map(([, own, base]) => Math.max(own, base)), 0.01);
  const bar = (kind, v) => h("span", { class: kind, style: { width: `${(100 * v) / most}%` } });
  const row = ([name, own, base]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h(
        "td",
        {},
        h(
          "div",
          { class: "bars" },
          h("span", { class: "pair" }, bar("own", own), bar("base", base)),
          h("span", { class: "value" }, percent(own)),
        ),
      ),
      h("td", { class: "muted" }, percent(base)),
    );
  const heads = [what, "top examples", "all"].map((head) => h("th", { scope: "col" }, head));
  return h(
    "table",
    { class: "mix" },
    h("caption", {}, title),
    h("thead", {}, h("tr", {}, heads)),
    h("tbody", {}, rows.map(row)),
  );
}

function classesFigure(c) {
  if (!c.predicted_mix.length) return null;
  const rows = (mix, base) => mix.slice(0, 6).map(([k, f]) => [className(k), f, base[k]]);
  const { predicted_rate: predicted, label_rate: labelled } = data.examples;
  const labels = c.label_mix && labelled && rows(c.label_mix, labelled);
  const same = labels && String(labels) === String(rows(c.predicted_mix, predicted));
  const pairs = c.pair_mix
    .filter(([, , f]) => f >= 0.05)
    .map(([a, b, f, base]) => `“${className(a)}” and “${className(b)}” ${percent(f)} (of all: ${percent(base)})`);
  return figure(
    "Which classes",
    [
      mixTable(
        `Predictions of the top ${c.n_mix}${same ? ", and their labels, which are the same" : ""}`,
        "class",
        rows(c.predicted_mix, predicted),
      ),
      labels && !same && mixTable(`Labels of the top ${c.n_mix}`, "class", labels),
    ],
    pairs.length ? `Their two likeliest classes: ${pairs.join(", ")}.` : "",
  );
}

function wordsFigure(c) {
  if (!c.words.length) return null;
  const rows = c.words.map((word) => [wordName(word), word[2], word[3]]);
  return figure(
    "Which words",
    mixTable(`Texts of the top ${c.n_mix} that have the word`, "word", rows),
    "Words that its top examples have more often than all, by more than chance.",
  );
}

function causalFigure(c) {
  const {
    kl_ratio: kl,
    null_kl_ratio: none,
    pef_norm_ratio: norms,
    null_exceeds: exceeds,
  } = c.causal || { kl_ratio: null };
  if (kl === null) return null;
  const rows = [
    { name: "KL ratio", class: "kl", values: [kl] },
    { name: "null", class: "null", values: [none || 0] },
    { name: "PEF norms", class: "norms", values: [norms || 0] },
  ];
  return figure(
    "Is it what the model uses?",
    ratioRows({ label: `KL ratio ${times(kl)}, null ${times(none)}, PEF norms ${times(norms)}`, rows }),
    [
      "Mean over its top examples divided by the mean over others. Above both others: moving along this component changes what it claims to explain.",
      exceeds !== null &&
        ` Of the other components' perturbations ${percent(exceeds)} change these examples at least as selectively.`,
    ],
  );
}

// Its audit, check by check.
function auditFigure(c) {
  if (!c.audit) return null;
  const heads = ["check", "result", "measured", "chance", "passes from", "p"];
  const row = (check) =>
    h(
      "tr",
      { title: check.note || null },
      h("th", { scope: "row" }, check.name),
      h("td", {}, h("span", { class: `result ${check.result.replace(/ /g, "-")}` }, check.result)),
      h("td", {}, number(check.statistic)),
      h("td", {}, number(check.null)),
      h("td", {}, number(check.threshold) + (check.at_most === null ? "" : ` to ${number(check.at_most)}`)),
      h("td", {}, number(check.p_value)),
    );
  const notes = c.audit.checks.filter((check) => check.note).map((check) => `${check.name}: ${check.note}`);
  return figure(
    `Audit: ${c.audit.verdict}`,
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        { class: "audit" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            heads.map((head) => h("th", { scope: "col" }, head)),
          ),
        ),
        h("tbody", {}, c.audit.checks.map(row)),
      ),
    ),
    notes.join("; "),
  );
}

function placesFigure(c) {
  const caption = "Share of its energy by layer and kind of parameter; the tick is the mean over components.";
  return figure("Where it lives", placesTable(c.places, data.places.mean), caption, data.places.kinds.length > 2);
}

function fadeFigure(c) {
  const heldOut = data.examples.source !== "decomposed",
    points = (decay) => data.decay_at.map((x, i) => [x, decay[i]]);
  const chart = lineChart({
    label: heldOut ? "Coefficients by rank, held out and decomposed" : "Coefficients by rank",
    logX: true,
    yMax: 1,
    xLabel: "rank, fraction of the examples",
    yLabel: "coefficient, of the largest",
    xFormat: (v) => `${number(100 * v)}%`,
    series: [{ class: "other", points: points(c.decomposed_decay) }, { points: points(c.decay) }],
  });
  return figure(
    "How fast it fades",
    [
      chart,
      heldOut &&
        h(
          "p",
          { class: "legend" },
          h("span", { class: "key" }, "held out"),
          h("span", { class: "key dashed" }, "decomposed"),
        ),
    ],
    [
      "Its coefficients in descending order.",
      heldOut && " Where the two agree, the component is no accident of the examples it was found in.",
    ],
  );
}

function neighboursFigure(c) {
  if (!c.neighbours.length) return null;
  const row = ([k, v]) =>
    h(
      "li",
      {},
      h("a", { href: `#c${k}` }, `${k}`, h("span", {}, data.components[k].headline)),
      h("span", { class: "value" }, v.toFixed(2)),
    );
  return figure(
    "Similar components",
    h("ul", { class: "neighbours" }, c.neighbours.map(row)),
    "|cosine| of their pseudo-Fisher vectors: 0 no parameter in common, 1 the same.",
  );
}

function arraysFigure(c) {
  const row = ([name, v]) => h("li", {}, h("code", {}, name), h("span", { class: "value" }, percent(v)));
  return figure(
    "Largest parameter arrays",
    h("ul", { class: "arrays" }, c.parameters.map(row)),
    "Their share of its energy.",
  );
}

const traceFigures = (c) =>
  c.traces.map((trace) =>
    figure(
      `How it reaches the output: ${exampleName(trace.example)}`,
      h("div", { class: "trace" }, traceFigure(trace)),
      "A small move of the parameters along the component (its sign is arbitrary). In the picture: where the values inside the model change, relative to their size, darker where more. " +
        "In the table: which layers' parameters push the logits. To first order.",
      true,
    ),
  );
function exampleName(index) {
  const shown = data.examples.shown.find((example) => example.index === index);
  return shown && shown.text ? `“${shown.text.join(" ⟶ ")}”` : `example ${index}`;
}
