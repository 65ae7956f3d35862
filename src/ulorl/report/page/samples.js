// The stored samples: filters, a search, a list, and the one that is chosen.

const VERDICTS = ["right", "wrong", "truncated", "unscored"];
const ORDERS = {
  step: ["step and id", (a, b) => a.step - b.step || a.sample - b.sample],
  segments: ["most segments", (a, b) => b.segments - a.segments],
  longest: ["longest", (a, b) => b.tokens - a.tokens],
  shortest: ["shortest", (a, b) => a.tokens - b.tokens],
};
const LISTED = 200; // entries of the list
const samples = { verdict: "", step: "", order: "step", search: "", values: false, colouring: "version", chosen: null };

const keyOf = (sample) => `${sample.step}/${sample.sample}`;
const textOf = (sample) =>
  `${sample.sample} ${sample.problem ?? ""} ${sample.prompt} ${sample.answer ?? ""} ${sample.error ?? ""} ` +
  (sample.pieces ?? []).map(({ text, tail }) => text + (tail ?? "")).join("") + (sample.token_values?.text ?? []).join("");

function matching() {
  const wanted = samples.search.toLowerCase();
  return runs[view.run].samples
    .filter((one) => (!samples.verdict || one.verdict === samples.verdict) && (!samples.step || one.step === Number(samples.step)) && (!samples.values || hasTokens(one)) && (!wanted || textOf(one).toLowerCase().includes(wanted)))
    .sort(ORDERS[samples.order][1]);
}

function entryOf(sample) {
  const chosen = samples.chosen === keyOf(sample);
  return element("li", {}, element("button", { type: "button", class: "entry", "aria-pressed": String(chosen), "data-key": keyOf(sample), onclick: () => chooseSample(sample) },
    element("span", { class: `verdict ${sample.verdict}` }, sample.verdict), ` step ${sample.step}, sample ${sample.sample} `,
    element("span", { class: "quiet" }, `${plural(sample.tokens ?? 0, "token")}, ${plural(sample.segments, "segment")}${hasTokens(sample) ? ", token values" : ""}`)));
}

function listSamples() {
  const found = matching();
  const shown = found.slice(0, LISTED);
  const focused = samples.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  samples.list.replaceChildren(...shown.map(entryOf));
  if (focused) samples.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  samples.count.textContent = `${plural(found.length, "sample")}${found.length > LISTED ? `, of which the first ${LISTED} are listed` : ""}`;
  if (!shown.some((one) => keyOf(one) === samples.chosen)) chooseSample(shown[0] ?? null);
}

// After a change of the filters the first of the list is chosen.
function filtered() {
  samples.chosen = null;
  listSamples();
  samples.list.parentElement.scrollTop = 0;
}

function chooseSample(sample) {
  samples.chosen = sample ? keyOf(sample) : null;
  for (const button of samples.list.querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", String(button.dataset.key === samples.chosen));
  showChosen();
}

// Shows a sample by its id, from the timeline: filters that hide it are taken off.
function showSample(id) {
  const found = runs[view.run].samples.findLast((one) => one.sample === id);
  if (!found) {
    samples.missing.textContent = `Sample ${id} is not among the samples of this page.`;
    return;
  }
  Object.assign(samples, { verdict: "", step: "", search: "", values: false });
  samples.form.reset();
  samples.chosen = keyOf(found);
  listSamples();
  showChosen();
  samples.detail.scrollIntoView({ block: "nearest" });
}

const chosenSample = () => runs[view.run].samples.find((one) => keyOf(one) === samples.chosen);

function showChosen() {
  const sample = chosenSample();
  samples.shown = sample;
  samples.missing.textContent = "";
  if (!sample) {
    samples.detail.replaceChildren(element("p", { class: "quiet" }, runs[view.run].samples.length ? "No sample matches." : "No group is finished yet."));
    return;
  }
  const facts = [plural(sample.tokens ?? 0, "token"), plural(sample.segments, "segment"), `reward ${sample.reward ?? "none"}`];
  if (sample.advantage !== undefined && sample.advantage !== null) facts.push(`advantage ${formatted(sample.advantage)}`);
  if (sample.answer !== undefined) facts.push(sample.answer === null ? "no answer found" : `answer ${sample.answer}`);
  if (sample.error) facts.push(`not scored: ${sample.error}`);
  samples.detail.replaceChildren(
    element("h3", {}, `Step ${sample.step}, sample ${sample.sample} `, element("span", { class: `verdict ${sample.verdict}` }, sample.verdict)),
    element("p", { class: "quiet" }, facts.join(" · ")), siblings(sample),
    element("pre", { class: "prompt", tabindex: 0, role: "group", "aria-label": "Prompt" }, sample.prompt),
    element("p", { class: "quiet" }, `Colour: ${COLOURINGS[samples.colouring]}; `, scaleOf(samples.colouring)),
    ...outputView(sample, samples.colouring));
}

// Links to the other samples of the group that the page has, with which the advantage compares this one.
function siblings(sample) {
  const others = (sample.group ?? null) === null ? [] : runs[view.run].samples.filter((one) => one.group === sample.group && one.step === sample.step && one !== sample);
  if (!others.length) return null;
  return element("p", { class: "quiet siblings" }, "Same problem: ", ...others.map((one) =>
    element("button", { type: "button", class: "sibling", onclick: () => chooseSample(one) }, `${one.sample} ${one.verdict}${one.advantage === undefined || one.advantage === null ? "" : ` ${formatted(one.advantage)}`}`)));
}

function fillSteps() {
  const known = [...new Set(runs[view.run].samples.map(({ step }) => step))].sort((a, b) => a - b);
  samples.steps.replaceChildren(option("", "all", samples.step), ...known.map((step) => option(step, String(step), samples.step)));
}

function samplesSection() {
  const choose = (name, choices) => element("select", { onchange: ({ target }) => { samples[name] = target.value; if (name === "colouring") showChosen(); else filtered(); } }, ...choices.map(([value, label]) => option(value, label, samples[name])));
  samples.steps = choose("step", []);
  samples.form = element("form", { class: "controls", role: "search", onsubmit: (event) => event.preventDefault() },
    labelled("verdict", choose("verdict", [["", "all"], ...VERDICTS.map((one) => [one, one])])),
    labelled("step", samples.steps),
    labelled("order", choose("order", Object.entries(ORDERS).map(([key, [label]]) => [key, label]))),
    labelled("search", element("input", { type: "search", placeholder: "prompt, output, answer, id", oninput: ({ target }) => { samples.search = target.value; filtered(); } })),
    labelled("with token values", element("input", { type: "checkbox", onchange: ({ target }) => { samples.values = target.checked; filtered(); } }), { class: "check" }),
    labelled("colour", choose("colouring", Object.entries(COLOURINGS))));
  samples.count = element("p", { class: "quiet", role: "status" });
  samples.missing = element("p", { class: "quiet", role: "status" });
  samples.list = element("ul", { class: "list" });
  samples.detail = element("article", { class: "detail", "aria-label": "The chosen sample" });
  samples.extra = element("p", { class: "quiet" });
  const refresh = () => { fillSteps(); listSamples(); if (!samples.shown || chosenSample() !== samples.shown) showChosen(); samples.extra.textContent = leftOutOfSamples(); };
  on("run", refresh);
  on("data", refresh);
  return element("div", { class: "panel samples" }, samples.form, samples.extra, samples.count, samples.missing,
    element("div", { class: "browser" }, element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Samples" }, samples.list), samples.detail));
}

function leftOutOfSamples() {
  const { counts, samples: shown } = runs[view.run];
  if (page.live) return `${plural(shown.length, "sample")} loaded. Choose a step above to load all of its samples, whole.`;
  const steps = counts.sample_steps_read < counts.sample_steps ? ` of ${counts.sample_steps_read} of ${counts.sample_steps} steps` : "";
  const all = shown.length >= counts.samples_read && !steps;
  const text = all ? `All ${plural(shown.length, "stored sample")}.` : `${shown.length.toLocaleString("en-US")} of the ${plural(counts.samples_read, "stored sample")}${steps}, chosen in turn from right, wrong, truncated and unscored ones and those of most segments.`;
  return `${text} Long texts have their middle left out. ulorl watch shows every stored sample whole.`;
}
