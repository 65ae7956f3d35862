// The charts over the steps: every figure of the page's data as a card with a chart, its values at the chosen step as
// text, and its course in words. All of them share the chosen step and the range of steps.

const GROUP = "steps";
const FEW_POINTS = 40; // up to so many points each gets a marker: a line alone hides single points
const charts = []; // { figure, chart, card, legend, hidden }

// The curves of a panel: one for each line and run; of parts of a whole, those of the chosen run.
function curvesOf(panel) {
  const shown = panel.stacked ? [runs[view.run]] : runs;
  return panel.lines.flatMap((line, lineAt) =>
    shown.map((run) => {
      const place = runs.indexOf(run);
      const arm = page.arms.findIndex((one) => one.runs.includes(place));
      const overlaid = several && !panel.stacked;
      return {
        line, run, place, arm,
        name: overlaid ? `${line.label} · ${run.name}` : line.label,
        color: overlaid ? arm : lineAt,
        dash: overlaid ? DASHES[lineAt % DASHES.length] : "solid",
        points: points(run, line.key, panel.stacked ? 0 : null),
      };
    }),
  ).filter((curve) => curve.points.length && !(panel.stacked && curve.points.every(([, value]) => !value)));
}

function targetOf(panel) {
  if (panel.reference !== null) return [{ value: panel.reference, name: "" }];
  if (!panel.target) return [];
  const found = new Map();
  for (const run of runs) {
    const settings = run.settings.targets;
    const holds = !panel.when || settings[panel.when[0]] === panel.when[1];
    if (holds && typeof settings[panel.target] === "number") found.set(settings[panel.target], `target ${settings[panel.target]}`);
  }
  return [...found].map(([value, name]) => ({ value, name }));
}

function axisLabel(unit) {
  return (value) => (unit === "percent" ? `${Number((100 * value).toPrecision(4))}%` : value >= 1e4 ? `${value / 1e3}k` : `${Number(value.toPrecision(4))}`);
}

function bandSeries(panel, at) {
  if (!panel.band || several) return [];
  const [low, high] = panel.band.map((key) => new Map(points(runs[0], key)));
  const both = [...low.keys()].filter((step) => high.has(step));
  const shared = { type: "line", xAxisIndex: at, yAxisIndex: at, stack: `band${at}`, symbol: "none", silent: true, lineStyle: { opacity: 0 }, animation: false };
  return [
    { ...shared, name: "band low", data: both.map((step) => [step, low.get(step)]) },
    { ...shared, name: "band high", data: both.map((step) => [step, high.get(step) - low.get(step)]), areaStyle: { color: seriesColor(0), opacity: 0.15 } },
  ];
}

function seriesOf(panel, at, curves) {
  const target = targetOf(panel);
  const made = curves.map((curve, place) => ({
    type: "line", name: curve.name, xAxisIndex: at, yAxisIndex: at,
    data: curve.points, animation: false, step: panel.stacked ? "middle" : false,
    stack: panel.stacked ? `parts${at}` : undefined,
    areaStyle: panel.stacked ? { opacity: 0.75 } : undefined,
    showSymbol: !panel.stacked && curve.points.length <= FEW_POINTS, symbol: "circle", symbolSize: 4,
    lineStyle: { width: panel.stacked ? 0 : 1.8, type: curve.dash },
    itemStyle: { color: seriesColor(curve.color) }, emphasis: { disabled: true },
    markLine: place || !target.length ? undefined : {
      silent: true, symbol: "none", animation: false,
      lineStyle: { color: color("muted"), type: [4, 3], width: 1 },
      label: { color: color("muted"), formatter: ({ data }) => data.name, position: "insideStartBottom" },
      data: target.map(({ value, name }) => ({ yAxis: value, name })),
    },
  }));
  return [...bandSeries(panel, at), ...made];
}

// The ends of an axis, with space around the curves; curves that do not change are in the middle.
function bounds(panel) {
  const target = targetOf(panel).map(({ value }) => value);
  if (panel.stacked && panel.unit === "percent") return { min: 0, max: 1, interval: 0.5 };
  if (panel.reference !== null) {
    const reach = ({ min, max }) => 1.2 * Math.max(Math.abs(max - panel.reference), Math.abs(min - panel.reference), 0.002);
    return { min: (ends) => panel.reference - reach(ends), max: (ends) => panel.reference + reach(ends) };
  }
  if (panel.from_zero) return { min: 0, max: ({ max }) => 1.08 * (Math.max(max, ...target) || (panel.unit === "percent" ? 0.01 : 1)) };
  const margin = ({ min, max }) => 0.06 * (max - min || Math.abs(max) || 1);
  return { min: (ends) => ends.min - margin(ends), max: (ends) => ends.max + margin(ends) };
}

function chartOption(figure, panels) {
  const places = panels.length === 1 ? [{ top: 10, bottom: 24 }] : [{ top: 10, bottom: "55%" }, { top: "52%", bottom: 24 }];
  const axis = { axisLine: { lineStyle: { color: color("grid") } }, axisTick: { show: false }, splitLine: { lineStyle: { color: color("grid") } }, axisLabel: { color: color("muted"), fontSize: 11, hideOverlap: true } };
  return {
    animation: false, backgroundColor: "transparent", textStyle: { fontFamily: "inherit" },
    grid: places.map((place) => ({ left: 52, right: 14, ...place })),
    xAxis: panels.map((_, at) => ({
      ...axis, type: "value", gridIndex: at, min: firstStep(), max: Math.max(lastStep(), firstStep() + 1), minInterval: 1, splitLine: { show: false },
      axisLabel: { ...axis.axisLabel, show: at === panels.length - 1 },
      axisPointer: { show: true, snap: false, triggerTooltip: false, label: { show: false }, lineStyle: { opacity: 0 } }, // `pointer` is drawn
    })),
    yAxis: panels.map(({ panel }, at) => ({
      ...axis, type: panel.log ? "log" : "value", gridIndex: at, splitNumber: panels.length > 1 ? 3 : 4, ...(panel.log ? {} : bounds(panel)),
      axisLabel: { ...axis.axisLabel, formatter: panel.log ? (value) => value.toExponential(0) : axisLabel(panel.unit), showMinLabel: panel.from_zero || panel.log ? undefined : false, showMaxLabel: panel.log || panel.stacked ? undefined : false },
      axisPointer: { show: false },
    })),
    axisPointer: { link: [{ xAxisIndex: "all" }] },
    legend: { show: false },
    toolbox: { itemSize: 0, feature: { dataZoom: { yAxisIndex: "none", brushStyle: { color: color("s0"), opacity: 0.15 } } } },
    dataZoom: [{ type: "inside", xAxisIndex: panels.map((_, at) => at), zoomOnMouseWheel: "ctrl", moveOnMouseMove: false, moveOnMouseWheel: false, preventDefaultMouseMove: false, filterMode: "filter" }],
    series: panels.flatMap(({ panel, curves }, at) => seriesOf(panel, at, curves)),
  };
}

// A course in words, for readers who cannot see the chart.
function inWords(figure, panels) {
  const text = panels.flatMap(({ panel, curves }) =>
    curves.slice(0, 12).map(({ name, points: found }) => {
      const values = found.map(([, value]) => value);
      const at = ([step, value]) => `${formatted(value, panel.unit)} at step ${step}`;
      const ends = found.length === 1 ? at(found[0]) : `${at(found[0])}, ${at(found.at(-1))}`;
      return `${name}: ${ends}, lowest ${formatted(Math.min(...values), panel.unit)}, highest ${formatted(Math.max(...values), panel.unit)}`;
    }),
  );
  return `${figure.title}. ${text.join("; ")}`;
}

function legendEntry(entry, panel, curve, label) {
  const found = valueAt(curve.run, curve.line.key, view.step);
  const shown = !entry.hidden.has(curve.name);
  const note = found && found[0] !== view.step ? ` (step ${found[0]})` : "";
  return element("button", {
    type: "button", class: "key", "aria-pressed": String(shown), title: "show or hide this curve",
    "data-metric": curve.line.key, "data-run": curve.place, "data-step": found ? found[0] : null, "data-value": found ? found[1] : null,
    onclick: () => {
      if (!entry.hidden.delete(curve.name)) entry.hidden.add(curve.name);
      entry.chart.dispatchAction({ type: shown ? "legendUnSelect" : "legendSelect", name: curve.name });
      writeLegend(entry);
      entry.legend.querySelector(`[data-metric="${CSS.escape(curve.line.key)}"][data-run="${curve.place}"]`)?.focus();
    },
  }, element("span", { class: "swatch", style: `--swatch: var(--s${curve.color % SERIES})`, "data-dash": DASHES.indexOf(curve.dash) }), `${label} `, element("b", {}, formatted(found ? found[1] : null, panel.unit)), note);
}

// The curves with their values: a row for each metric where runs are overlaid, else all in one row.
function writeLegend(entry) {
  const rows = entry.panels.flatMap(({ panel, curves }) => panel.lines.map((line) => {
    const of = curves.filter((curve) => curve.line === line);
    const overlaid = several && !panel.stacked;
    const label = overlaid && of.length ? element("span", { class: "quiet" }, line.label) : null;
    return element("span", { class: "row" }, label, ...of.map((curve) => legendEntry(entry, panel, curve, overlaid ? curve.run.name : line.label)));
  }));
  entry.legend.replaceChildren(...rows);
}

function drawChart(entry) {
  entry.panels = entry.figure.panels.map((panel) => ({ panel, curves: curvesOf(panel) })).filter(({ curves }) => curves.length);
  entry.card.hidden = !entry.panels.length;
  if (entry.card.hidden) return;
  entry.box.style.minHeight = entry.panels.length === 1 ? "206px" : "278px";
  if (!entry.chart) {
    entry.chart = echarts.init(entry.box, null, { renderer: "svg" });
    entry.box.append(entry.pointer); // after ECharts, which empties the box
    entry.chart.group = GROUP;
    entry.chart.on("updateAxisPointer", ({ axesInfo }) => {
      const info = axesInfo?.find(({ axisDim }) => axisDim === "x");
      if (info) setStep(Math.round(info.value));
    });
    entry.chart.on("datazoom", () => {
      showRange(entry);
      movePointer(entry);
    });
  }
  entry.chart.resize();
  entry.chart.setOption(chartOption(entry.figure, entry.panels), { replaceMerge: ["series", "grid", "xAxis", "yAxis"] });
  if (matchMedia("(pointer: fine)").matches) {
    entry.chart.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
  }
  entry.box.setAttribute("aria-label", inWords(entry.figure, entry.panels));
  writeLegend(entry);
  movePointer(entry);
}

// Moves the line of a chart to the chosen step.
function movePointer(entry) {
  const x = entry.chart.convertToPixel({ xAxisIndex: 0 }, view.step);
  entry.pointer.hidden = !entry.chart.containPixel({ gridIndex: 0 }, [x, 12]);
  entry.pointer.style.left = `${x}px`;
}

function chartCard(figure) {
  const box = element("div", { class: "chart", role: "img" });
  const legend = element("div", { class: "legend", role: "group", "aria-label": `Curves of ${figure.title}, with their values at the chosen step` });
  const card = element("figure", { class: "panel card" }, element("figcaption", {}, element("h3", {}, figure.title), element("p", { class: "quiet" }, figure.note)), legend, box);
  const pointer = element("div", { class: "pointer" });
  const entry = { figure, box, legend, card, pointer, hidden: new Set(), chart: null, panels: [] };
  charts.push(entry);
  return entry;
}

function drawCharts() {
  for (const entry of charts) drawChart(entry);
  echarts.connect(GROUP);
}

const drawn = () => charts.filter(({ chart, card }) => chart && !card.hidden);
