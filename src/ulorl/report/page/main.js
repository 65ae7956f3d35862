// Puts the page together.

function headOf(run) {
  const [before, after] = run.evaluations;
  const big = (one, better) => element("span", { class: "big" }, element("span", { class: better ? "after" : null }, `${(100 * one.value).toFixed(1)}%`), element("small", {}, ` ${one.limits ? `${one.limits}, ` : ""}at step ${one.step}`));
  const arrow = element("span", { class: "big arrow", role: "img", "aria-label": "to" }, "→");
  const accuracy = before
    ? [element("p", { class: "numbers" }, big(before), ...(after ? [arrow, big(after, after.value > before.value)] : [])),
       element("p", { class: "quiet" }, `${run.evaluation_size}; ranges are 95% intervals.${after ? "" : " No second evaluation yet."}`)]
    : [element("p", {}, "No evaluation yet.")];
  return [
    element("section", { class: "panel hero", "aria-label": `Held-out accuracy of ${run.name}` }, element("h2", { class: "quiet" }, "Accuracy on held-out problems"), ...accuracy),
    element("dl", { class: "cards" }, ...run.cards.map(({ label, value, note }) => element("div", { class: "panel" }, element("dt", {}, label), element("dd", {}, element("div", { class: "value" }, value), element("div", { class: "quiet" }, note))))),
  ];
}

function overlaidHead() {
  const cards = [...new Set(runs.flatMap((run) => run.cards.map(({ label }) => label)))];
  const accuracies = (run) => run.evaluations.map(({ value, step }) => `${(100 * value).toFixed(1)}% (step ${step})`).join(" → ") || "–";
  const swatch = (run) => element("span", {}, element("span", { class: "swatch", style: `--swatch: var(--s${page.arms.findIndex((arm) => arm.runs.includes(runs.indexOf(run))) % SERIES})` }), run.name);
  const rows = runs.map((run) => [swatch(run), page.arms.find((arm) => arm.runs.includes(runs.indexOf(run))).label, accuracies(run), ...cards.map((label) => run.cards.find((card) => card.label === label)?.value ?? "–")]);
  return [element("div", { class: "panel" }, table("The runs. Those whose settings differ in the seed only have one colour.", ["run", "what differs", "held-out accuracy", ...cards], rows))];
}

function fillHead() {
  document.getElementById("head").replaceChildren(
    element("h1", {}, several ? plural(runs.length, "run") : runs[0].name),
    element("p", { class: "quiet" }, several ? runs.map((run) => run.name).join(" · ") : runs[0].lead),
    ...(several ? overlaidHead() : headOf(runs[0])));
}

function thinned() {
  const texts = runs.filter((run) => stepsOf(run).length < run.counts.steps_logged).map((run) => `${several ? `${run.name}: ` : ""}${stepsOf(run).length} of ${run.counts.steps_logged} logged steps, evenly spaced and where main metrics are lowest and highest.`);
  return `Hover shows the values of a step in all charts; a drag zooms all of them${several ? "; runs have colours, curves of one run have dashes" : ""}. ${texts.length ? `Shown are ${texts.join(" ")}` : ""}`;
}

function runChooser() {
  if (!several) return null;
  return element("div", { class: "panel controls" }, labelled("Run of timeline, samples and parts of a whole", element("select", { onchange: ({ target }) => setRun(Number(target.value)) }, ...runs.map((run, place) => option(place, run.name, view.run)))));
}

function section(id, title, ...children) {
  return element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), ...children);
}

function build() {
  view.step = lastStep();
  const names = [...new Set(page.figures.map((figure) => figure.section))];
  const idOf = (name) => name.toLowerCase().replaceAll(" ", "-");
  const about = element("p", { class: "quiet" }, thinned());
  on("data", () => { about.textContent = thinned(); });
  const sections = names.map((name) => section(idOf(name), name, element("div", { class: "figures" }, ...page.figures.filter((figure) => figure.section === name).map((figure) => chartCard(figure).card))));
  fillHead();
  document.getElementById("main").append(
    about, runChooser() ?? "", ...sections,
    section("timeline", "Samples over time", timelineCard()),
    section("samples", "Samples", liveSamples() ?? "", samplesSection()),
    section("metrics", "Metrics", metricsSection()),
    section("recipe", "Recipe", recipeSection()),
    section("environment", "Environment", environmentSection()));
  makeToolbar([...names.map((name) => [idOf(name), name]), ["timeline", "Timeline"], ["samples", "Samples"], ["metrics", "Metrics"], ["recipe", "Recipe"], ["environment", "Environment"]]);
  on("run", drawCharts);
  on("data", fillHead);
  redraw();
  fillSteps();
  listSamples();
  showChosen();
  samples.extra.textContent = leftOutOfSamples();
}

// Charts are drawn in the colours of now, so they are drawn again when the theme changes and for paper.
function redraw() {
  drawCharts();
  drawTimeline();
  for (const part of document.querySelectorAll("#main > section")) {
    const cards = part.querySelectorAll(".card");
    part.hidden = cards.length > 0 && [...cards].every((card) => card.hidden);
  }
  const [entry] = drawn();
  if (entry) showRange(entry);
}

build();
on("data", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); redraw(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); redraw(); });

// Only a change of the width resizes the charts. The height changes with each sample that is chosen, and ECharts draws
// again on each resize: a click whose press and release have one between them would be lost.
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === width) return;
  width = contentRect.width;
  for (const { chart } of [...drawn(), timeline]) chart?.resize();
  drawn().forEach(movePointer);
}).observe(document.getElementById("main"));
if (page.live) startLive();
