// Building elements. Text from the data only ever becomes a text node, so it stays text.
const data = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (name === "style") for (const [property, v] of Object.entries(value)) node.style.setProperty(property, v);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Numbers as a person reads them.
const percent = (v) => (v === null ? "–" : v > 0 && v < 0.0095 ? "<1%" : `${Math.round(100 * v)}%`);
const times = (v) =>
  v === null || v === undefined
    ? "–"
    : `${v >= 100 ? Math.round(v) : v >= 10 ? v.toFixed(1) : v >= 0.005 || v === 0 ? v.toFixed(2) : "<0.01"}×`;
const number = (v) =>
  v === null || v === undefined
    ? "–"
    : Math.abs(v) >= 1000
      ? Math.round(v).toLocaleString("en")
      : v === 0
        ? "0"
        : Math.abs(v) < 1e-4
          ? v.toExponential(0)
          : String(Number(v.toPrecision(3)));
// On axes: 100k rather than 100,000, which would not fit beside them.
const short = (v) =>
  Math.abs(v) >= 1e6 ? `${number(v / 1e6)}M` : Math.abs(v) >= 1e4 ? `${number(v / 1e3)}k` : number(v);
const signed = (v, most) =>
  Math.abs(v) < most / 500 ? "≈ 0" : (v < 0 ? "−" : "+") + number(Number(Math.abs(v).toPrecision(2)));
const className = (c) => (data.class_names[c] === undefined ? String(c) : data.class_names[c]);
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b),
    middle = (sorted.length - 1) / 2;
  return sorted.length ? (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2 : null;
}

// Where an example stands: among those shown, and in the table of all.
const placeOf = new Map(data.examples.shown.map((example, place) => [example.index, place]));
const rowOf = new Map(data.examples.table.index.map((index, row) => [index, row]));

// A page inside a notebook has no address of its own: there the place is kept here.
const embedded = location.protocol === "about:";
let embeddedPlace = "";
const whereNow = () => (embedded ? embeddedPlace : location.hash);
function go(place) {
  if (!embedded) location.hash = place;
  else {
    embeddedPlace = place;
    arrive();
  }
}

const sheets = data.examples.image_sheets.map((sheet) => {
  const picture = new Image();
  picture.src = sheet.url;
  return { ...sheet, picture, ready: picture.decode() };
});
const hasImages = sheets.length > 0;
const hasText = data.examples.shown.some((example) => example.text !== null);

// One image cut from its sheet; drawn when it comes into view.
const drawer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries)
      if (entry.isIntersecting) {
        drawer.unobserve(entry.target);
        entry.target.draw();
      }
  },
  { rootMargin: "200px" },
);
function picture(place, label, enlarged) {
  let sheet = 0,
    within = place;
  while (within >= sheets[sheet].count) within -= sheets[sheet++].count;
  const { columns, width, height, ready, picture: source } = sheets[sheet];
  // A browser enlarges pixels of small images sharply and photographs smoothly.
  const canvas = h("canvas", {
    width,
    height,
    class: [Math.max(width, height) < 48 && "pixels", enlarged && "enlarged"].filter(Boolean).join(" ") || null,
    ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }),
  });
  canvas.draw = () =>
    ready.then(() =>
      canvas
        .getContext("2d")
        .drawImage(
          source,
          (within % columns) * width,
          Math.floor(within / columns) * height,
          width,
          height,
          0,
          0,
          width,
          height,
        ),
    );
  drawer.observe(canvas);
  return canvas;
}
