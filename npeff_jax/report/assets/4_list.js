// The list of components: search, filter by evidence, sort, and which one is open.
const strength = { "used by the model": 3, "weak evidence": 2, "no evidence": 1, "not measured": 0 };
const ratio = (c) => (c.causal && c.causal.kl_ratio) || 0;
const net = (c) => (c.causal && c.causal.null_kl_ratio ? ratio(c) / c.causal.null_kl_ratio : 0);
const orders = {
  evidence: ["evidence", (c) => -strength[c.evidence.mark] - ratio(c) / (1 + ratio(c))],
  share: ["largest share", (c) => -c.share],
  wrong: ["wrong predictions", (c) => -(c.wrong || 0)],
  stability: ["stability over runs", (c) => -(c.stability || 0)],
  coherence: ["coherence of its examples", (c) => -c.coherence],
  kl: ["KL ratio", (c) => -ratio(c)],
  net: ["KL ratio over its null", (c) => -net(c)],
  class: ["predicted class", (c) => (c.predicted_mix.length ? c.predicted_mix[0][0] - c.predicted_mix[0][1] * 0.9 : 0)],
  purity: ["one class first", (c) => -(c.predicted_mix.length ? c.predicted_mix[0][1] : 0)],
  narrow: ["fewest examples first", (c) => c.breadth],
  index: ["number", (c) => c.index],
};
const hasCausal = data.components.some((c) => c.causal);
const needed = {
  evidence: measuredEvidence,
  kl: hasCausal,
  net: hasCausal,
  wrong: data.components.some((c) => c.wrong),
  stability: data.components.some((c) => c.stability !== null),
};
const available = Object.entries(orders).filter(([key]) => needed[key] !== false);
const search = document.getElementById("search"),
  sort = document.getElementById("sort"),
  list = document.getElementById("list");
sort.append(...available.map(([key, [name]]) => h("option", { value: key }, name)));

function chip(c, brief) {
  const mark = c.evidence.mark,
    briefly = { "used by the model": "used", "weak evidence": "weak", "no evidence": "none", "not measured": "–" };
  return h(
    "span",
    { class: `chip ${evidenceKeys[mark]}`, title: `${mark}. ${c.evidence.reason}` },
    h("i", { "aria-hidden": "true" }),
    brief ? [h("span", { class: "unseen" }, mark), h("span", { "aria-hidden": "true" }, briefly[mark])] : mark,
  );
}

// The marks as filter: those that are pressed, or all.
const pressed = new Set();
const filters = document.getElementById("filters");
if (measuredEvidence) {
  for (const mark of Object.keys(strength)) {
    const count = data.components.filter((c) => c.evidence.mark === mark).length;
    if (!count) continue;
    const button = h(
      "button",
      {
        type: "button",
        class: `chip ${evidenceKeys[mark]}`,
        "aria-pressed": "false",
        on: {
          click: () => {
            pressed[pressed.has(mark) ? "delete" : "add"](mark);
            button.setAttribute("aria-pressed", pressed.has(mark));
            refresh();
          },
        },
      },
      h("i", { "aria-hidden": "true" }),
      `${mark} ${count}`,
    );
    filters.append(button);
  }
}

const largestShare = Math.max(...data.components.map((c) => c.share)) || 1;
const items = data.components.map((c) => {
  const first = c.top.length ? data.examples.shown[c.top[0][0]] : null;
  return h(
    "li",
    { class: noteOf(c) ? "noted" : null },
    h(
      "a",
      { href: `#c${c.index}`, class: "item" },
      h("span", { class: "number" }, c.index),
      h(
        "span",
        { class: "what" },
        c.name !== null && h("span", { class: "asked" }, c.name),
        h("span", { class: "headline" }, c.headline),
        hasImages &&
          h(
            "span",
            { class: "strip" },
            c.top.slice(0, 6).map(([place]) => picture(place)),
          ),
        !hasImages && first && first.text && h("span", { class: "snippet" }, first.text.join(" ⟶ ").slice(0, 160)),
      ),
      h(
        "span",
        { class: "figures" },
        measuredEvidence && chip(c, true),
        c.causal &&
          c.causal.kl_ratio !== null &&
          h("span", {}, h("span", { class: "unseen" }, "KL ratio "), times(c.causal.kl_ratio)),
        h("span", { class: "unseen" }, `share ${percent(c.share)}`),
        h(
          "span",
          { class: "meter", title: `share ${percent(c.share)}`, "aria-hidden": "true" },
          h("span", { style: { width: `${(100 * c.share) / largestShare}%` } }),
        ),
      ),
    ),
  );
});
document.getElementById("heads").append(
  h("span", {}, "no."),
  h("span", {}, "what its top examples are"),
  h(
    "span",
    {},
    [measuredEvidence && "evidence", hasCausal && "KL ratio", "share"].filter(Boolean).flatMap((name, i) => (i ? [h("br"), name] : [name])),
  ),
);

let order = [];
function refresh() {
  const tests = search.value.toLowerCase().split(/\s+/).filter(Boolean).map(componentsWith),
    key = orders[sort.value][1];
  order = data.components
    .filter((c) => (!pressed.size || pressed.has(c.evidence.mark)) && tests.every((has) => has(c)))
    .map((c) => c.index);
  order.sort((a, b) => key(data.components[a]) - key(data.components[b]) || a - b);
  list.replaceChildren(...order.map((i) => items[i]));
  document.getElementById("count").textContent =
    order.length === data.components.length
      ? plural(order.length, "component")
      : `${order.length} of ${plural(data.components.length, "component")}`;
  dimMap();
}
search.addEventListener("input", refresh);
sort.addEventListener("change", refresh);

// An example by its number.
const exampleField = document.getElementById("example");
exampleField.max = data.examples.count - 1;
exampleField.placeholder = `0 to ${(data.examples.count - 1).toLocaleString("en")}`;
exampleField.addEventListener("change", () => {
  if (/^\d+$/.test(exampleField.value)) go(`#e${Number(exampleField.value)}`);
});
