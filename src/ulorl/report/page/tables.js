// Tables: every metric at the chosen step, the recipe, and the environment.

function table(caption, head, rows) {
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": caption },
    element("table", {}, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows.map(([first, ...rest]) => element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell)))))));
}

const metrics = { search: "" };

function metricNames() {
  return [...new Set(runs.flatMap((run) => Object.keys(run.columns)))].filter((name) => name !== "step").sort();
}

function fillMetrics() {
  const names = metricNames().filter((name) => name.includes(metrics.search));
  metrics.body.replaceChildren(...names.map((name) => element("tr", { "data-metric": name }, element("th", { scope: "row" }, name), ...runs.map((run) => {
    const found = valueAt(run, name, view.step);
    return element("td", { "data-value": found ? found[1] : null }, found ? formatted(found[1]) : "–", found && found[0] !== view.step ? ` (step ${found[0]})` : "");
  }))));
}

function metricsSection() {
  metrics.body = element("tbody");
  const search = element("input", { type: "search", oninput: ({ target }) => { metrics.search = target.value.toLowerCase(); fillMetrics(); } });
  const shown = element("caption", {}, "Every metric at the chosen step; where it has none, its newest value before.");
  on("step", fillMetrics);
  on("data", fillMetrics);
  fillMetrics();
  return element("div", { class: "panel" }, element("div", { class: "controls" }, labelled("metric", search)),
    element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Metrics" },
      element("table", { id: "metrics-table" }, shown, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "metric"), ...runs.map((run) => element("th", { scope: "col" }, run.name)))), metrics.body)));
}

const written = (value) => (value === null || value === undefined ? "none" : typeof value === "string" ? value : JSON.stringify(value));

function recipeSection() {
  const readable = runs.filter((run) => run.settings.changed);
  const keys = [...new Set(readable.flatMap((run) => run.settings.changed.map(([key]) => key)))];
  const rows = keys.map((key) => {
    const of = readable.map((run) => run.settings.changed.find(([name]) => name === key));
    const byDefault = of.find(Boolean)[2];
    return [key, written(byDefault), ...of.map((found) => written(found ? found[1] : byDefault))];
  });
  const made = table("Settings that differ from their defaults", ["key", "default", ...readable.map((run) => run.name)], rows);
  const unread = runs.filter((run) => !run.settings.changed).map((run) => element("p", { class: "quiet" }, `${run.name}: this version cannot read its configuration, so it is shown whole only.`));
  const whole = runs.map((run) => element("details", {}, element("summary", {}, `Whole configuration of ${run.name}`),
    element("pre", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Configuration of ${run.name}` }, JSON.stringify(run.config, null, 2))));
  return element("div", { class: "panel" }, readable.length ? made : null, ...unread, ...whole);
}

function environmentSection() {
  const known = runs.filter((run) => Object.keys(run.environment).length);
  const names = [...new Set(known.flatMap((run) => Object.keys(run.environment)))];
  if (!names.length) return element("div", { class: "panel" }, element("p", { class: "quiet" }, "An earlier version wrote this run and stored no environment."));
  return element("div", { class: "panel" }, table("Versions and machine of the last start", ["what", ...known.map((run) => run.name)], names.map((name) => [name, ...known.map((run) => run.environment[name] ?? "–")])));
}
