// Saving what is shown: tables as CSV and JSON, figures as SVG and PNG, to a file or the clipboard.
const fileName = (title, ending) =>
  `${title
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")}.${ending}`;

function download(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = h("a", { href: url, download: name, class: "unseen" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
function copy(text, button) {
  const done = () => {
    const said = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = said), 1200);
  };
  const byHand = () => {
    // A page opened from disk may have no clipboard of its own.
    const field = h("textarea", { class: "unseen", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    done();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand);
  else byHand();
}

// Rows are objects with the same keys. A cell that a spreadsheet would compute gets a quote before it.
function toCsv(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  return [names, ...rows.map((row) => names.map((name) => row[name]))]
    .map((row) => row.map(cell).join(","))
    .join("\r\n");
}
function tableButtons(title, rows) {
  return [
    h(
      "button",
      { type: "button", on: { click: () => download(fileName(title, "csv"), "text/csv", `\ufeff${toCsv(rows())}`) } },
      "CSV",
    ),
    h(
      "button",
      {
        type: "button",
        on: { click: () => download(fileName(title, "json"), "application/json", JSON.stringify(rows(), null, 1)) },
      },
      "JSON",
    ),
    h("button", { type: "button", on: { click: (event) => copy(toCsv(rows()), event.currentTarget) } }, "Copy"),
  ];
}
function shownRows(table) {
  const text = (cell) => cell.textContent.trim();
  const heads = [...table.tHead.rows[0].cells].map(text);
  return [...table.tBodies[0].rows].map((row) =>
    Object.fromEntries([...row.cells].map((cell, i) => [heads[i] || `column ${i}`, text(cell)])),
  );
}

// A figure alone: what the page's style gives it is written into it.
const KEPT = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-width",
  "stroke-opacity",
  "stroke-dasharray",
  "stroke-linecap",
  "font-size",
  "font-weight",
  "font-family",
  "opacity",
  "paint-order",
];
function standalone(svg) {
  const clone = svg.cloneNode(true),
    [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const from = [svg, ...svg.querySelectorAll("*")],
    to = [clone, ...clone.querySelectorAll("*")];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of KEPT) to[i].setAttribute(name, style.getPropertyValue(name));
    for (const name of ["class", "href", "tabindex"]) to[i].removeAttribute(name);
  });
  clone.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  clone.setAttribute("width", width);
  clone.setAttribute("height", height);
  const ground = getComputedStyle(document.documentElement).getPropertyValue("--panel").trim();
  clone.prepend(s("rect", { width, height, fill: ground }));
  return { source: new XMLSerializer().serializeToString(clone), width, height };
}
function savePng(title, svg) {
  const { source, width, height } = standalone(svg),
    image = new Image(),
    factor = 3;
  image.onload = () => {
    const canvas = h("canvas", { width: factor * width, height: factor * height });
    canvas.getContext("2d").drawImage(image, 0, 0, factor * width, factor * height);
    canvas.toBlob((blob) => download(fileName(title, "png"), "image/png", blob));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
}

// The small menu of a figure: what it can be saved as.
function saveMenu(title, holder) {
  const svg = holder.querySelector("svg.chart"),
    table = [...holder.querySelectorAll("table")].find((one) => one.tHead && one.tBodies.length);
  if (!svg && !table) return null;
  const first = () => holder.querySelector("svg.chart"); // a map may have been drawn anew
  return h(
    "details",
    { class: "save" },
    h("summary", { title: "Save", "aria-label": `Save: ${title}` }, "⤓"),
    h(
      "div",
      {},
      svg && [
        h(
          "button",
          {
            type: "button",
            on: { click: () => download(fileName(title, "svg"), "image/svg+xml", standalone(first()).source) },
          },
          "SVG",
        ),
        h("button", { type: "button", on: { click: () => savePng(title, first()) } }, "PNG"),
      ],
      table && tableButtons(title, () => shownRows(table)),
    ),
  );
}
