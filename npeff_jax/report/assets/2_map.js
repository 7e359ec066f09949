// Components as points: the closer, the more alike.
const mainClass = (c) => (c.predicted_mix.length ? c.predicted_mix[0][0] : 0);
const byClass = (c) => `var(--class-${mainClass(c) % 10})`;
const byEvidence = (c) => `var(--${evidenceKeys[c.evidence.mark]})`;
const evidenceKeys = {
  "used by the model": "used",
  "weak evidence": "weak",
  "no evidence": "none",
  "not measured": "unmeasured",
};
const measuredEvidence = data.components.some((c) => c.evidence.mark !== "not measured");

// Discs get smaller as there are more of them: together they never cover more than about a quarter of the map.
function map(colour) {
  const many = data.components.length,
    size = many > 100 ? 640 : 380;
  const largestRadius = Math.min(17, (0.36 * size) / Math.sqrt(many)),
    smallest = Math.max(2, 0.3 * largestRadius);
  const at = (v) => largestRadius + 5 + v * (size - 2 * largestRadius - 10),
    largest = Math.max(...data.components.map((c) => c.share)) || 1;
  const least = many > 100 ? 0.7 : 0.35;
  const links = data.components.flatMap((c) =>
    c.neighbours
      .filter(([k, v]) => v >= least && (k > c.index || !data.components[k].neighbours.some((n) => n[0] === c.index)))
      .map(([k, v]) =>
        s("line", {
          class: "link",
          x1: at(data.map[c.index][0]),
          y1: at(data.map[c.index][1]),
          x2: at(data.map[k][0]),
          y2: at(data.map[k][1]),
          "stroke-opacity": v ** 2,
        }),
      ),
  );
  // Large ones first, so that small ones stay on top and can be clicked; numbers last, so that no disc covers them.
  const labels = [];
  const points = [...data.components]
    .sort((a, b) => b.share - a.share)
    .map((c, rank) => {
      const r = smallest + (largestRadius - smallest) * Math.sqrt(c.share / largest),
        [x, y] = data.map[c.index].map(at);
      if (many > 100 ? rank < 24 : r >= 7) {
        const at = { x, y: y + 3.5, "text-anchor": "middle" };
        labels.push(s("text", { ...at, class: "point-label", "data-component": c.index }, c.index));
      }
      return s(
        "a",
        { href: `#c${c.index}`, tabindex: "-1", class: "map-point", "data-component": c.index },
        s("title", {}, `${c.index}: ${c.headline} (${c.evidence.mark})`),
        s("circle", { cx: x, cy: y, r, class: "point", fill: colour(c) }),
      );
    });
  return frame(
    size,
    size,
    "Map of the components: similar ones lie close together. The same is in each card's list of similar components.",
    links,
    points,
    labels,
  );
}

// What the colours mean, as far as they are distinct.
function mapLegend(colour) {
  const entry = (fill, name) => h("span", {}, h("i", { class: "swatch", style: { background: fill } }), name);
  if (colour === byEvidence) {
    return h(
      "p",
      { class: "legend" },
      Object.entries(evidenceKeys)
        .filter(([mark]) => data.components.some((c) => c.evidence.mark === mark))
        .map(([mark, key]) => entry(`var(--${key})`, mark)),
    );
  }
  const shown = [...new Set(data.components.filter((c) => c.predicted_mix.length).map(mainClass))].sort(
    (a, b) => a - b,
  );
  return (
    shown.length > 0 &&
    data.class_names.length <= 10 &&
    h(
      "p",
      { class: "legend" },
      shown.map((c) => entry(`var(--class-${c})`, className(c))),
    )
  );
}

function mapFigure() {
  const classes = data.components[0].predicted_mix.length > 0,
    holder = h("div", { class: "map" });
  const choices = [classes && ["class", byClass], measuredEvidence && ["evidence", byEvidence]].filter(Boolean);
  const draw = (colour) => {
    holder.replaceChildren(...[map(colour), mapLegend(colour)].filter(Boolean));
    dimMap();
  };
  const select = h(
    "select",
    {
      "aria-label": "Colour of the map",
      on: { change: (event) => draw(choices[event.target.selectedIndex][1]) },
    },
    choices.map(([name]) => h("option", {}, `colour: ${name}`)),
  );
  const start = choices.length > 1 && data.class_names.length > 10 ? 1 : 0;
  if (choices.length) select.selectedIndex = start;
  draw(choices.length ? choices[start][1] : byClass);
  const colour = classes ? "By class: the class most often predicted for its top examples. " : "";
  return figure(
    "Which components are alike",
    [choices.length > 1 && select, holder],
    `Each disc is a component, larger if it carries more; the closer, the more alike (lines: |cosine| of ${data.components.length > 100 ? "0.7" : "0.35"} and more). ${colour}Pale: not in the list as it is searched and filtered. Click one to open it.`,
    data.components.length > 100,
  );
}

// Components that the list does not show are pale on the map.
function dimMap() {
  const shown = new Set(order);
  for (const point of document.querySelectorAll(".map-point, .map .point-label"))
    point.classList.toggle("dim", !shown.has(Number(point.dataset.component)));
}
