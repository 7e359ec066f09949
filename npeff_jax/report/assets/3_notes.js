// Notes of the reader: kept by the browser for this very report, and exported as a file for write_report(notes=...).
const notesKey = `npeff-report ${data.run.model} ${data.run.n_components} ${data.about.date} ${data.title}`;
const notes = (() => {
  try {
    return JSON.parse(localStorage.getItem(notesKey)) || {};
  } catch {
    return {}; // a browser without storage: notes last as long as the page
  }
})();
const noteOf = (c) => (notes[c.index] === undefined ? c.note : notes[c.index]);
function keepNote(c, text) {
  if (text === c.note) delete notes[c.index];
  else notes[c.index] = text;
  try {
    localStorage.setItem(notesKey, JSON.stringify(notes));
  } catch {
    // as above
  }
  items[c.index].classList.toggle("noted", Boolean(noteOf(c)));
}
const allNotes = () => Object.fromEntries(data.components.filter(noteOf).map((c) => [c.index, noteOf(c)]));
function noteField(c) {
  const field = h("textarea", {
    rows: 1,
    "aria-label": `Your note on component ${c.index}`,
    placeholder: "Your note … (kept in this browser)",
    on: { input: (event) => keepNote(c, event.target.value) },
  });
  field.value = noteOf(c);
  return h(
    "div",
    { class: "your-note" },
    field,
    h(
      "button",
      {
        type: "button",
        title: "All notes of this report, for write_report(notes=...)",
        on: { click: () => download("notes.json", "application/json", JSON.stringify(allNotes(), null, 1)) },
      },
      "Export notes",
    ),
  );
}
