// What the numbers of a component say, in words.
function headline(c) {
  if (c.note) return c.note;
  const pair = mainPair(c);
  if (pair) return pair[2] < 0.995 ? `“${className(pair[0])}” or “${className(pair[1])}” ${percent(pair[2])}` : `“${className(pair[0])}” or “${className(pair[1])}”`;
  if (!c.predicted_mix.length) return c.top.length ? `${plural(c.top.length, "top example")}` : "no example uses it";
  return c.predicted_mix.slice(0, 3).filter(([, f]) => f >= 0.1).map(([k, f]) => `“${className(k)}” ${percent(f)}`).join(" · ") || "many classes";
}
// The two classes that most top examples are undecided between, where that says more than the predicted class alone.
function mainPair(c) {
  return c.pair_mix.length && c.pair_mix[0][2] >= 0.6 && c.predicted_mix[0][1] < 0.9 ? c.pair_mix[0] : null;
}
function mainPlace(c) {
  let best = [0, 0, 0];
  c.places.forEach((row, i) => row.forEach((v, k) => { if (v > best[2]) best = [i, k, v]; }));
  return { layer: data.places.layers[best[0]], kind: data.places.kinds[best[1]], share: best[2] };
}
function sentences(c) {
  const said = [];
  if (!c.top.length) return ["No example uses this component: nothing to see here."];
  if (c.predicted_mix.length) {
    const pair = mainPair(c);
    if (pair) said.push(`For ${percent(pair[2])} of its top ${c.n_mix} examples the two likeliest classes are “${className(pair[0])}” and “${className(pair[1])}”: it is about telling these two apart.`);
    const [k, f] = c.predicted_mix[0], base = data.examples.predicted_rate[k];
    if (!pair) said.push(f > 0.5 ? `Of its top ${c.n_mix} examples ${percent(f)} are predicted “${className(k)}”, against ${percent(base)} of all examples.`
      : `Its top ${c.n_mix} examples are predicted as several classes, most often “${className(k)}” (${percent(f)}, against ${percent(base)} of all).`);
  }
  if (c.label_mix && c.predicted_mix.length) {
    const label = c.label_mix[0], predicted = c.predicted_mix[0];
    if (label[0] !== predicted[0] && label[1] > 0.3) said.push(`Most of them are labelled “${className(label[0])}”: a heuristic that may be wrong.`);
  }
  const causal = c.causal;
  if (causal && causal.kl_ratio !== null) {
    const rest = [causal.null_kl_ratio !== null && `${times(causal.null_kl_ratio)} for other components' perturbations on the same examples`,
      causal.pef_norm_ratio !== null && `${times(causal.pef_norm_ratio)} in how strongly these examples react to anything`].filter(Boolean);
    said.push(`Moving the parameters along it changes their predictions ${times(causal.kl_ratio)} as much as those of random examples${rest.length ? ` (${rest.join("; ")})` : ""}.`);
  }
  const place = mainPlace(c);
  said.push(`${percent(place.share)} of its energy is in ${place.kind === "other" ? "" : `${place.kind} parameters of `}${place.layer}.`);
  return said;
}
const searchText = data.components.map((c) => [c.index, `component ${c.index}`, c.note, c.frozen ? "frozen" : "",
  ...c.predicted_mix.filter(([, f]) => f >= 0.1).map(([k]) => className(k)), ...c.pair_mix.flatMap(([a, b, f]) => f >= 0.3 ? [className(a), className(b)] : []), ...(c.label_mix || []).filter(([, f]) => f >= 0.1).map(([k]) => className(k)),
  mainPlace(c).layer, mainPlace(c).kind,
  ...c.top.flatMap(([place]) => data.examples.shown[place].text || [])].join("\n").toLowerCase());
