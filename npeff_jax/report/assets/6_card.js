// A component's card.
const AT_ONCE = 16; // examples shown before "more": a card stays a few screens long

const isWrong = (example) =>
  example.label !== null && example.predicted.length > 0 && example.label !== example.predicted[0][0];
function predictionOf(example) {
  return example.output
    ? `output ${example.output.map(number).join(", ")}`
    : example.predicted.length
      ? h(
          "span",
          { title: example.predicted.map(([c, p]) => `${className(c)} ${percent(p)}`).join(", ") },
          `${className(example.predicted[0][0])} ${percent(example.predicted[0][1])}`,
        )
      : "";
}
const exampleLink = (index) =>
  h("a", { class: "example-number", href: `#e${index}`, "aria-label": `Example ${index}` }, `#${index}`);
function coefficientBar(coefficient, largest) {
  return h(
    "span",
    { class: "coefficient", title: `coefficient ${number(coefficient)}` },
    h(
      "span",
      { class: "meter" },
      h("span", { style: { width: `${largest ? Math.min(100, (100 * coefficient) / largest) : 0}%` } }),
    ),
    h("span", {}, number(coefficient)),
  );
}

// A text with the words marked that matter; plain without marks.
function markedText(segment, spans) {
  const parts = [];
  let at = 0;
  for (const [, first, last, value] of [...spans].sort((a, b) => a[1] - b[1])) {
    if (value < 0.05) continue;
    parts.push(segment.slice(at, first));
    parts.push(
      h(
        "mark",
        {
          title: `${percent(value)} of the effect is lost without it`,
          style: { "--strength": `${Math.round(85 * Math.min(1, value))}%` },
        },
        segment.slice(first, last),
      ),
    );
    at = last;
  }
  return [...parts, segment.slice(at)];
}
function textOf(example, marks, clamped = true) {
  const named = data.examples.segment_names.length > 0,
    lines = example.text && example.text.length > 1 ? 2 : 4;
  if (example.text === null) return h("p", {}, `example ${example.index}`);
  return example.text.map((segment, i) => {
    const spans = marks ? marks.spans.filter((span) => span[0] === i) : [];
    return h(
      "p",
      { class: named ? "named" : null },
      named && h("span", { class: "segment-name" }, data.examples.segment_names[i]),
      h("span", { class: clamped ? `clamp lines-${lines}` : null }, markedText(segment, spans)),
    );
  });
}
function shownExample([place, coefficient], largest, marks) {
  const example = data.examples.shown[place],
    wrong = isWrong(example);
  const facts = [
    h("span", { class: "prediction" }, predictionOf(example)),
    wrong && h("span", { class: "wrong" }, `labelled ${className(example.label)}`),
  ];
  if (hasImages) {
    return h(
      "li",
      { class: `image ${wrong ? "is-wrong" : ""}` },
      pictureButton(place, marks),
      h("span", { class: "under" }, exampleLink(example.index), facts),
      coefficientBar(coefficient, largest),
    );
  }
  return h(
    "li",
    { class: `text ${wrong ? "is-wrong" : ""}` },
    h("div", { class: "segments" }, textOf(example, marks)),
    h("div", { class: "beside" }, exampleLink(example.index), facts, coefficientBar(coefficient, largest)),
  );
}
function examplesSection(title, caption, shown, largest, marksOf = new Map()) {
  if (!shown.length) return null;
  const one = (entry) => shownExample(entry, largest, marksOf.get(data.examples.shown[entry[0]].index));
  const holder = h("ol", { class: hasImages ? "images" : "texts" }, shown.slice(0, AT_ONCE).map(one));
  const rest = shown.slice(AT_ONCE);
  const more =
    rest.length > 0 &&
    h(
      "button",
      {
        type: "button",
        class: "more-examples",
        on: {
          click: () => {
            holder.append(...rest.map(one));
            more.remove();
            settle(holder);
          },
        },
      },
      `Show ${rest.length} more`,
    );
  return h(
    "section",
    {},
    h(
      "div",
      { class: "section-head" },
      h("h3", {}, title),
      h("span", { class: "save-row" }, tableButtons(title, () => exampleRows(shown))),
    ),
    h("p", { class: "caption" }, caption),
    holder,
    more,
  );
}
function exampleRows(shown) {
  return shown.map(([place, coefficient]) => {
    const example = data.examples.shown[place],
      texts = (example.text || []).map((segment, i) => [data.examples.segment_names[i] || `text ${i}`, segment]);
    return {
      example: example.index,
      coefficient,
      predicted: example.predicted.length ? className(example.predicted[0][0]) : null,
      probability: example.predicted.length ? example.predicted[0][1] : null,
      label: example.label === null ? null : className(example.label),
      ...Object.fromEntries(texts),
    };
  });
}
function card(c) {
  const largest = c.top.length ? c.top[0][1] : 0,
    position = order.indexOf(c.index),
    causal = c.causal,
    marksOf = new Map(c.marks.map((marks) => [marks.example, marks]));
  const step = (by, name, symbol) =>
    order[position + by] === undefined || position < 0
      ? h("span", { class: "step", "aria-hidden": "true" }, symbol)
      : h("a", { class: "step", href: `#c${order[position + by]}`, title: name, "aria-label": name }, symbol);
  const marked =
    c.marks.length > 0 &&
    (hasText
      ? " Marked in the first ones: words without which the component's effect on the example is lost, darker where more of it is (found by leaving out one at a time)."
      : " Enlarge the first ones to see which parts the component's effect on them depends on (found by leaving out one at a time).");
  return h(
    "article",
    { class: "card", "aria-labelledby": `title-${c.index}` },
    h(
      "header",
      {},
      h(
        "div",
        { class: "title" },
        h("h2", { id: `title-${c.index}`, tabindex: "-1" }, titleOf(c)),
        c.name !== null && h("span", { class: "badge" }, "asked for"),
        measuredEvidence && chip(c),
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
      c.moved && c.moved.measured !== null && fact(number(c.moved.measured), "nats, KL of its top examples under the move"),
      c.stability !== null && fact(c.stability.toFixed(2), "similarity in other runs"),
      c.wrong !== null && fact(percent(c.wrong), "of its top examples predicted wrongly"),
    ),
    noteField(c),
    examplesSection(
      "Top examples",
      `The ${data.examples.source.replace(" ", "-")} examples with most of this component, largest coefficient first. What do they share?${marked || ""}`,
      c.top,
      largest,
      marksOf,
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
      heatFigure(c),
      classesFigure(c),
      wordsFigure(c),
      auditFigure(c),
      causalFigure(c),
      fadeFigure(c),
      neighboursFigure(c),
      arraysFigure(c),
      placesFigure(c),
      traceFigures(c),
    ),
  );
}
