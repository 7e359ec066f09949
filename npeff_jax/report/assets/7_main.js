// Which page is open, the keys, the theme.
const main = document.getElementById("main"),
  help = document.getElementById("help");
function route() {
  const found = /^#c(\d+)$/.exec(location.hash),
    c = found && data.components[Number(found[1])];
  main.replaceChildren(...(c ? [card(c)] : overview().filter(Boolean)));
  document.body.classList.toggle("has-card", Boolean(c));
  for (const item of items) item.firstChild.removeAttribute("aria-current");
  if (c) {
    items[c.index].firstChild.setAttribute("aria-current", "page");
    items[c.index].scrollIntoView({ block: "nearest" });
  }
  window.scrollTo(0, 0);
  document.title = c ? `Component ${c.index} · ${data.title}` : data.title;
  return c;
}
function step(by) {
  const found = /^#c(\d+)$/.exec(location.hash),
    at = found ? order.indexOf(Number(found[1])) : by > 0 ? -1 : order.length;
  if (order[at + by] !== undefined) location.hash = `#c${order[at + by]}`;
}
const keys = {
  j: () => step(1),
  k: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  "/": () => search.focus(),
  o: () => {
    location.hash = "#overview";
  },
  t: () => turn(),
  "?": () => help.showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (typing && event.key === "Escape") {
    search.value = "";
    refresh();
    event.target.blur();
    return;
  }
  if (typing && event.key === "Enter" && order.length) {
    location.hash = `#c${order[0]}`;
    event.target.blur();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || help.open || !keys[event.key]) return;
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
    [["j", "k"], ["/"], ["o"], ["t"], ["?"]].map((row, i) => [
      row.map((key) => h("kbd", {}, key)),
      [" next, previous; ", " search; ", " overview; ", " light or dark; ", " this page"][i],
    ]),
  ),
  h("form", { method: "dialog" }, h("button", { autofocus: true }, "Close")),
);
refresh();
route();
window.addEventListener("hashchange", () => {
  const c = route();
  if (c) document.getElementById(`title-${c.index}`).focus({ preventScroll: true });
});
