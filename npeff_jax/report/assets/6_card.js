// A component's card.
function shownExample([place, coefficient], largest) {
  const example = data.examples.shown[place];
  const wrong = example.label !== null && example.predicted.length && example.label !== example.predicted[0][0];
  const prediction = example.output
    ? `output ${example.output.map(number).join(", ")}`
    : example.predicted.length
      ? h(
          "span",
          { title: example.predicted.map(([c, p]) => `${className(c)} ${percent(p)}`).join(", ") },
          `${className(example.predicted[0][0])} ${percent(example.predicted[0][1])}`,
        )
      : "";
  const facts = [
    h("span", { class: "prediction" }, prediction),
    wrong && h("span", { class: "wrong" }, `labelled ${className(example.label)}`),
  ];
  const coefficientBar = h(
    "span",
    { class: "coefficient", title: `coefficient ${number(coefficient)}` },
    h(
      "span",
      { class: "meter" },
      h("span", { style: { width: `${largest ? Math.min(100, (100 * coefficient) / largest) : 0}%` } }),
    ),
    h("span", {}, number(coefficient)),
  );
  const named = data.examples.segment_names.length > 0;
  if (hasImages) {
    return h(
      "li",
      { class: `image ${wrong ? "is-wrong" : ""}` },
      picture(place, `example ${example.index}`),
      h("span", { class: "under" }, facts),
      coefficientBar,
    );
  }
  return h(
    "li",
    { class: `text ${wrong ? "is-wrong" : ""}` },
    h(
      "div",
      { class: "segments" },
      example.text === null
        ? h("p", {}, `example ${example.index}`)
        : example.text.map((segment, i) =>
            h(
              "p",
              { class: named ? "named" : null },
              named && h("span", { class: "segment-name" }, data.examples.segment_names[i]),
              h("span", {}, segment),
            ),
          ),
    ),
    h("div", { class: "beside" }, facts, coefficientBar),
  );
}
function examplesSection(title, caption, shown, largest) {
  if (!shown.length) return null;
  return h(
    "section",
    {},
    h("h3", {}, title),
    h("p", { class: "caption" }, caption),
    h(
      "ol",
      { class: hasImages ? "images" : "texts" },
      shown.map((entry) => shownExample(entry, largest)),
    ),
  );
}
function card(c) {
  const largest = c.top.length ? c.top[0][1] : 0,
    position = order.indexOf(c.index),
    causal = c.causal;
  const step = (by, name, symbol) =>
    order[position + by] === undefined || position < 0
      ? h("span", { class: "step", "aria-hidden": "true" }, symbol)
      : h("a", { class: "step", href: `#c${order[position + by]}`, title: name, "aria-label": name }, symbol);
  return h(
    "article",
    { class: "card", "aria-labelledby": `title-${c.index}` },
    h(
      "header",
      {},
      h(
        "h2",
        { id: `title-${c.index}`, tabindex: "-1" },
        `Component ${c.index}`,
        c.frozen && h("span", { class: "badge" }, "frozen"),
      ),
      h(
        "nav",
        { class: "steps", "aria-label": "Other components" },
        step(-1, "Previous component (k)", "←"),
        step(1, "Next component (j)", "→"),
      ),
    ),
    c.note && h("p", { class: "note" }, c.note),
    h("p", { class: "summary" }, sentences(c).join(" ")),
    h(
      "div",
      { class: "facts" },
      fact(percent(c.share), "of all squared coefficients"),
      fact(percent(c.breadth), "of examples use it"),
      causal && causal.kl_ratio !== null && fact(times(causal.kl_ratio), "KL ratio"),
      c.stability !== null && fact(c.stability.toFixed(2), "similarity in other runs"),
    ),
    examplesSection(
      "Top examples",
      `The ${data.examples.source.replace(" ", "-")} examples with most of this component, largest coefficient first. What do they share?`,
      c.top,
      largest,
    ),
    h(
      "div",
      { class: "pair-of-sections" },
      examplesSection(
        "Near misses",
        "The component is all but absent here; of all such examples these are predicted most like the top ones. What they lack is what it stands for.",
        c.near_misses,
        largest,
      ),
      examplesSection("Random examples", "For comparison, drawn from all.", c.random, largest),
    ),
    h(
      "section",
      { class: "grid" },
      classesFigure(c),
      wordsFigure(c),
      causalFigure(c),
      fadeFigure(c),
      neighboursFigure(c),
      arraysFigure(c),
      placesFigure(c),
      traceFigures(c),
    ),
  );
}
