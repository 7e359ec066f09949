// Which page is open, the keys, the theme.
const main = document.getElementById("main"),
  help = document.getElementById("help");
function place() {
  const found = /^#([ce])(\d+)$/.exec(whereNow()),
    number = found && Number(found[2]);
  if (found && found[1] === "c" && data.components[number]) return { component: data.components[number] };
  if (found && found[1] === "e" && number < data.examples.count) return { example: number };
  return {};
}
function route() {
  const { component: c, example } = place();
  main.replaceChildren(
    ...(c ? [card(c)] : example !== undefined ? [exampleView(example)] : overview().filter(Boolean)),
  );
  document.body.classList.toggle("has-card", Boolean(c) || example !== undefined);
  for (const item of items) item.firstChild.removeAttribute("aria-current");
  if (c) {
    items[c.index].firstChild.setAttribute("aria-current", "page");
    if (list.offsetParent) items[c.index].scrollIntoView({ block: "nearest" });
  }
  window.scrollTo(0, 0);
  document.title = c
    ? `Component ${c.index} · ${data.title}`
    : example !== undefined
      ? `Example ${example} · ${data.title}`
      : data.title;
  settle(main);
}
function arrive() {
  route();
  const { component: c, example } = place();
  if (c) document.getElementById(`title-${c.index}`).focus({ preventScroll: true });
  else if (example !== undefined) document.getElementById("title-example").focus({ preventScroll: true });
}
// Once it is laid out: "more" where a text is cut, a hint where a table is wider than its place.
function settle(within) {
  const cut = [...within.querySelectorAll(".clamp")].filter((text) => text.scrollHeight > text.clientHeight + 2),
    wide = [...within.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1);
  for (const text of cut) {
    if (text.dataset.cut) continue;
    text.dataset.cut = "true";
    const button = h(
      "button",
      {
        type: "button",
        class: "more",
        "aria-expanded": "false",
        on: {
          click: () => {
            const open = text.classList.toggle("open");
            button.textContent = open ? "less" : "more";
            button.setAttribute("aria-expanded", open);
          },
        },
      },
      "more",
    );
    text.closest("p").after(button);
  }
  for (const one of wide) {
    if (one.dataset.hinted) continue;
    one.dataset.hinted = "true";
    one.after(h("p", { class: "hint" }, "Scroll sideways for more →"));
  }
}
function step(by) {
  const { component } = place(),
    at = component ? order.indexOf(component.index) : by > 0 ? -1 : order.length;
  if (order[at + by] !== undefined) go(`#c${order[at + by]}`);
}
const keys = {
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  "/": () => search.focus(),
  o: () => go("#overview"),
  e: () => exampleField.focus(),
  t: () => turn(),
  "?": () => help.showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.target.tagName === "TEXTAREA") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (typing && event.key === "Escape") {
    event.target.value = "";
    refresh();
    event.target.blur();
    return;
  }
  if (event.target === search && event.key === "Enter" && order.length) {
    go(`#c${order[0]}`);
    event.target.blur();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || help.open || zoom.open || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
function turn() {
  const root = document.documentElement,
    dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}
document.getElementById("theme-button").addEventListener("click", turn);
document.getElementById("help-button").addEventListener("click", () => help.showModal());
document.getElementById("print-button").addEventListener("click", () => {
  main.replaceChildren(...overview().filter(Boolean), ...order.map((i) => card(data.components[i])));
  for (const canvas of main.querySelectorAll("canvas")) canvas.draw();
  Promise.all(sheets.map((sheet) => sheet.ready)).then(() => {
    window.print();
    route();
  });
});
help.append(
  h("h2", { id: "help-title" }, "How to read this"),
  h(
    "dl",
    {},
    [
      [
        "component",
        data.run.flavour === "low_rank"
          ? "A direction in the model's parameters that many examples share: moving the parameters along it changes the predictions of these examples and hardly any others, if the model uses it. It stands for a piece of the model's processing."
          : "A weight for every parameter of the model that many examples share: these parameters matter to their predictions. It stands for a piece of the model's processing.",
      ],
      [
        "coefficient",
        "How much of a component is in an example's Fisher matrix (how its prediction reacts to the parameters). Never negative, no unit; each example's Fisher has size 1, so coefficients of different examples compare.",
      ],
      [
        "KL ratio",
        `Move the parameters a little along the component${data.run.flavour === "low_rank" ? "" : " (where it has weight, by the signs of the loss gradient on its top examples)"}, both ways, take the larger effect. KL divergence (in nats) of the predictions before and after, mean over the top examples divided by the mean over others. 1: not selective.`,
      ],
      [
        "null",
        "The same ratio for other components' perturbations on the same top examples. A KL ratio that does not exceed it says little about this component.",
      ],
      [
        "PEF norms",
        "The ratio of the sizes of the examples' Fishers, before they were scaled to 1: some examples react more to any change.",
      ],
      [
        "evidence",
        "Used by the model: the KL ratio is at least half as much again as its null, the PEF norms and 1 (or, with an audit, it passed). Weak: it exceeds them. None: it does not. The mark's tooltip says which numbers.",
      ],
      [
        "coherence",
        "By how much the fraction of its top examples with one class, pair of classes or word exceeds that of all examples.",
      ],
      ["energy", "What a parameter adds to the trace of the component's matrix; shares add up to 100 %."],
      [
        "stability",
        "Likeness to the best match in other runs, the cosine of their coefficients: 1 the same again, 0 not found again.",
      ],
    ].flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
  ),
  h(
    "p",
    {},
    "Keys: ",
    [["j", "k"], ["/"], ["e"], ["o"], ["t"], ["?"]].map((row, i) => [
      row.map((key) => h("kbd", {}, key)),
      [" next, previous; ", " search; ", " an example by its number; ", " overview; ", " light or dark; ", " this page"][i],
    ]),
  ),
  h("form", { method: "dialog" }, h("button", { autofocus: true }, "Close")),
);
refresh();
route();
window.addEventListener("hashchange", arrive);
document.addEventListener("click", (event) => {
  const link = embedded && event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
