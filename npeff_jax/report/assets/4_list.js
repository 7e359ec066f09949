// The list of components: search, sort, and which one is open.
const orders = {
  share: ["largest share first", (c) => -c.share],
  index: ["number", (c) => c.index],
  kl: ["KL ratio", (c) => -((c.causal && c.causal.kl_ratio) || 0)],
  net: [
    "KL ratio over its null",
    (c) => -(c.causal && c.causal.null_kl_ratio ? (c.causal.kl_ratio || 0) / c.causal.null_kl_ratio : 0),
  ],
  stability: ["stability over runs", (c) => -(c.stability || 0)],
  class: ["predicted class", (c) => (c.predicted_mix.length ? c.predicted_mix[0][0] - c.predicted_mix[0][1] * 0.9 : 0)],
  purity: ["one class first", (c) => -(c.predicted_mix.length ? c.predicted_mix[0][1] : 0)],
  narrow: ["fewest examples first", (c) => c.breadth],
};
const available = Object.entries(orders).filter(
  ([key]) =>
    ((key !== "kl" && key !== "net") || data.components.some((c) => c.causal)) &&
    (key !== "stability" || data.components.some((c) => c.stability !== null)),
);
const search = document.getElementById("search"),
  sort = document.getElementById("sort"),
  list = document.getElementById("list");
sort.append(...available.map(([key, [name]]) => h("option", { value: key }, name)));

const largestShare = Math.max(...data.components.map((c) => c.share));
const items = data.components.map((c) => {
  const first = c.top.length ? data.examples.shown[c.top[0][0]] : null;
  return h(
    "li",
    {},
    h(
      "a",
      { href: `#c${c.index}`, class: "item" },
      h("span", { class: "number" }, c.index),
      h(
        "span",
        { class: "what" },
        h("span", { class: "headline" }, c.headline),
        hasImages &&
          h(
            "span",
            { class: "strip" },
            c.top.slice(0, 6).map(([place]) => picture(place)),
          ),
        !hasImages && first && first.text && h("span", { class: "snippet" }, first.text.join(" ⟶ ")),
      ),
      h(
        "span",
        { class: "figures" },
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
let order = [];
function refresh() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean),
    key = orders[sort.value][1];
  order = data.components
    .map((c) => c.index)
    .filter((i) =>
      words.every((word) =>
        /^\d+$/.test(word) && Number(word) < data.components.length
          ? i === Number(word) ||
            searchText[i]
              .split("\n")
              .slice(2)
              .some((line) => line.split(/\W+/).includes(word))
          : searchText[i].includes(word),
      ),
    );
  order.sort((a, b) => key(data.components[a]) - key(data.components[b]) || a - b);
  list.replaceChildren(...order.map((i) => items[i]));
  document.getElementById("count").textContent =
    order.length === data.components.length
      ? plural(order.length, "component")
      : `${order.length} of ${plural(data.components.length, "component")}`;
}
search.addEventListener("input", refresh);
sort.addEventListener("change", refresh);
