// An example, its components, and its image enlarged.
function heat(place, marks, label) {
  const columns = marks.grid[0].length,
    cells = marks.grid.flatMap((row, y) =>
      row.map((v, x) =>
        s(
          "rect",
          { x, y, width: 1, height: 1, "fill-opacity": Math.max(0, Math.min(0.85, 0.85 * v)) },
          s("title", {}, `${percent(Math.max(0, v))} of the effect is lost without this part`),
        ),
      ),
    );
  return h(
    "span",
    { class: "heat-of" },
    picture(place, label, true),
    s(
      "svg",
      { viewBox: `0 0 ${columns} ${marks.grid.length}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "over" },
      cells,
    ),
  );
}
function heatFigure(c) {
  if (!hasImages) return null;
  const shown = c.marks.filter((marks) => marks.grid.length && placeOf.has(marks.example));
  return (
    shown.length > 0 &&
    figure(
      "Which parts it depends on",
      h(
        "div",
        { class: "heats" },
        shown.map((marks) =>
          h(
            "figure",
            { class: "plain" },
            heat(placeOf.get(marks.example), marks, `example ${marks.example} with the parts that matter`),
            h("figcaption", {}, exampleLink(marks.example)),
          ),
        ),
      ),
      "Red: without this part (replaced by the image's mean colour) the component's effect on the example is lost, by leaving out one part at a time.",
    )
  );
}

const zoom = document.getElementById("zoom");
function pictureButton(place, marks) {
  const example = data.examples.shown[place];
  return h(
    "button",
    {
      type: "button",
      class: "picture",
      title: "Enlarge",
      "aria-label": `Enlarge example ${example.index}`,
      on: { click: () => enlarge(place, marks) },
    },
    picture(place, `example ${example.index}`),
  );
}
function enlarge(place, marks) {
  const example = data.examples.shown[place],
    withHeat = marks && marks.grid.length > 0;
  zoom.replaceChildren(
    h("h2", {}, `Example ${example.index}`),
    h(
      "div",
      { class: "heats" },
      picture(place, `example ${example.index}, enlarged`, true),
      withHeat && heat(place, marks, `example ${example.index} with the parts that matter`),
    ),
    h(
      "p",
      {},
      predictionOf(example),
      isWrong(example) && h("span", { class: "wrong" }, ` labelled ${className(example.label)}`),
    ),
    h(
      "form",
      { method: "dialog" },
      h("button", { autofocus: true }, "Close"),
      " ",
      h("a", { href: `#e${example.index}`, on: { click: () => zoom.close() } }, "Its components"),
    ),
  );
  zoom.showModal();
}

function exampleView(index) {
  const { table, count } = data.examples,
    row = rowOf.get(index),
    place = placeOf.get(index),
    example = place === undefined ? null : data.examples.shown[place];
  const step = (to, name, symbol) =>
    to < 0 || to >= count
      ? h("span", { class: "step", "aria-hidden": "true" }, symbol)
      : h("a", { class: "step", href: `#e${to}`, title: name, "aria-label": name }, symbol);
  const head = h(
    "header",
    {},
    h("div", { class: "title" }, h("h2", { id: "title-example", tabindex: "-1" }, `Example ${index}`)),
    h(
      "nav",
      { class: "steps", "aria-label": "Other examples" },
      step(index - 1, "Previous example", "←"),
      step(index + 1, "Next example", "→"),
    ),
  );
  if (row === undefined)
    return h("article", { class: "card" }, head, h("p", { class: "summary" }, `No component of this report shows it.`));
  const at = (column) => (column.length ? column[row] : null);
  const predicted = at(table.predicted),
    probability = at(table.probability),
    label = at(table.label),
    explained = at(table.explained);
  const components = table.components[row],
    coefficients = table.coefficients[row];
  const marked = data.components.flatMap((c) => c.marks.filter((marks) => marks.example === index).map((marks) => [c, marks]));
  return h(
    "article",
    { class: "card", "aria-labelledby": "title-example" },
    head,
    h(
      "div",
      { class: "facts" },
      predicted !== null && fact(className(predicted), `predicted${probability === null ? "" : `, ${percent(probability)}`}`),
      example && example.output && fact(example.output.map(number).join(", "), "output"),
      label !== null &&
        h(
          "div",
          { class: `fact ${predicted !== null && label !== predicted ? "wrong" : ""}` },
          h("strong", {}, className(label)),
          h("span", {}, predicted !== null && label !== predicted ? "labelled: predicted otherwise" : "labelled"),
        ),
      explained !== null && fact(percent(Math.max(0, explained)), "of its Fisher explained by all components"),
      fact(String(components.length), components.length === 6 ? "components or more" : "components"),
    ),
    example
      ? hasImages
        ? h("div", { class: "one-image" }, picture(place, `example ${index}`, true))
        : h("div", { class: "one-text segments" }, textOf(example, null, false))
      : h("p", { class: "caption" }, "What it looks like is not in this file: no component has it among the examples that it shows."),
    h(
      "section",
      {},
      h("h3", {}, "Its components"),
      h("p", { class: "caption" }, "Largest coefficient first; a click opens the component."),
      h(
        "ul",
        { class: "neighbours example-components" },
        components.map((j, k) =>
          h(
            "li",
            {},
            h("a", { href: `#c${j}` }, String(j), h("span", {}, data.components[j].headline)),
            measuredEvidence && chip(data.components[j], true),
            coefficientBar(coefficients[k], coefficients[0]),
          ),
        ),
      ),
      !components.length && h("p", {}, "No component has a positive coefficient here."),
    ),
    marked.map(([c, marks]) =>
      h(
        "section",
        {},
        h("h3", {}, `What component ${c.index} depends on here`),
        marks.grid.length && place !== undefined
          ? h("div", { class: "heats" }, heat(place, marks, `parts that matter to component ${c.index}`))
          : example && h("div", { class: "one-text segments" }, textOf(example, marks, false)),
      ),
    ),
  );
}
