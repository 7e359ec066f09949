// What the numbers of a component say, in words.
// The two classes that most top examples are undecided between, where that says more than the predicted class alone.
const mainPair = (c) => (c.tells_apart ? c.pair_mix[0] : null);
const wordName = ([segment, word]) => {
  const name = data.examples.segment_names[segment];
  return `“${word}”${name ? ` in the ${name}` : ""}`;
};
function mainPlace(c) {
  let best = [0, 0, 0];
  c.places.forEach((row, i) =>
    row.forEach((v, k) => {
      if (v > best[2]) best = [i, k, v];
    }),
  );
  return { layer: data.places.layers[best[0]], kind: data.places.kinds[best[1]], share: best[2] };
}
const titleOf = (c) => `Component ${c.index}${c.name === null ? "" : ` · ${c.name}`}`;
// What its top examples are.
function aboutExamples(c) {
  const said = [],
    pair = mainPair(c),
    [k, f] = c.predicted_mix[0] || [];
  if (pair) {
    said.push(
      `Of its top ${c.n_mix} examples ${percent(pair[2])} (of all: ${percent(pair[3])}) have “${className(pair[0])}” and “${className(pair[1])}” ` +
        "as their two likeliest classes: it is about telling these two apart.",
    );
  } else if (k !== undefined) {
    const base = data.examples.predicted_rate[k];
    said.push(
      f > 0.5
        ? `Of its top ${c.n_mix} examples ${percent(f)} (of all: ${percent(base)}) are predicted “${className(k)}”.`
        : `Its top ${c.n_mix} examples are predicted as several classes, most often “${className(k)}” (${percent(f)}; of all: ${percent(base)}).`,
    );
  }
  if (c.words.length) {
    said.push(
      `More of them than of others have ${c.words
        .slice(0, 3)
        .map((word) => `${wordName(word)} (${percent(word[2])}; of all: ${percent(word[3])})`)
        .join(", ")}.`,
    );
  }
  const wrong = data.examples.accuracy === null ? null : 1 - data.examples.accuracy;
  if (c.wrong !== null && wrong !== null && c.wrong >= 0.2 && c.wrong >= 2 * wrong) {
    said.push(
      `${percent(c.wrong)} of them (of all: ${percent(wrong)}) are predicted otherwise than labelled: it may stand for a flawed heuristic.`,
    );
  }
  return said;
}
// Whether the model uses it, and where it lives.
function aboutModel(c) {
  const said = [],
    causal = c.causal,
    place = mainPlace(c);
  if (causal && causal.kl_ratio !== null) {
    const beside = [
      causal.null_kl_ratio !== null &&
        `other components' perturbations reach ${times(causal.null_kl_ratio)} on these examples`,
      causal.pef_norm_ratio !== null && `${times(causal.pef_norm_ratio)} is how much more these react to anything`,
    ].filter(Boolean);
    said.push(
      `Moving the parameters along it changes the predictions of its top examples ${times(causal.kl_ratio)} as much as those of others${beside.length ? ` (${beside.join("; ")})` : ""}: ${verdict(c)}.`,
    );
  }
  said.push(
    `${percent(place.share)} of its energy is in ${place.kind === "other" ? "" : `${place.kind} parameters of `}${place.layer}.`,
  );
  return said;
}
const verdicts = {
  "used by the model": "the model uses it for these",
  "weak evidence": "weak evidence that the model uses it for these",
  "no evidence": "no evidence that the model uses it for these in particular",
};
const verdict = (c) => verdicts[c.evidence.mark] || c.evidence.mark;
const sentences = (c) =>
  c.top.length ? [...aboutExamples(c), ...aboutModel(c)] : ["No example uses this component: nothing to see here."];

// What is searched: of each component what its card says, and the texts of its top examples, each read once.
const searchText = data.components.map((c) =>
  [
    c.index,
    `component ${c.index}`,
    c.note,
    c.frozen ? "frozen" : "",
    c.name || "",
    c.evidence.mark,
    ...c.predicted_mix.filter(([, f]) => f >= 0.1).map(([k]) => className(k)),
    ...c.pair_mix.flatMap(([a, b, f]) => (f >= 0.3 ? [className(a), className(b)] : [])),
    ...c.words.map(([, word]) => word),
    ...(c.label_mix || []).filter(([, f]) => f >= 0.1).map(([k]) => className(k)),
    mainPlace(c).layer,
    mainPlace(c).kind,
  ]
    .join("\n")
    .toLowerCase(),
);
const loweredTexts = [];
const lowered = (place) => (loweredTexts[place] ??= (data.examples.shown[place].text || []).join("\n").toLowerCase());
function componentsWith(word) {
  const number = /^\d+$/.test(word),
    whole = new RegExp(`(?<!\\w)${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?!\\w)`);
  const has = number ? (text) => whole.test(text) : (text) => text.includes(word);
  const found = hasText ? data.examples.shown.map((_, place) => has(lowered(place))) : [];
  return (c) =>
    number && Number(word) < data.components.length && c.index === Number(word)
      ? true
      : has(number ? searchText[c.index].split("\n").slice(2).join("\n") : searchText[c.index]) ||
        has((notes[c.index] || "").toLowerCase()) ||
        c.top.some(([place]) => found[place]);
}
