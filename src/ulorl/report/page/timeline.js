// Samples over time: a line for each sample and a bar for each of its segments, in the colour of the version that
// decoded it; below, how full each of several engines is, and how many samples decode at once.

const ENDS = { c: "complete", t: "cut at the maximum length", u: "carried over" };
const STRIP = 9; // pixels of an engine
const timeline = { chart: null };

const stripsOf = (data) => STRIP * data.engines.length; // pixels of all of them; none for a single engine

function timelineRows(data) {
  let gaps = 0; // a gap between groups
  return data.samples.map((_, place) => {
    if (place && data.groups[place] !== data.groups[place - 1]) gaps += 0.8;
    return place + gaps;
  });
}

function drawTimeline() {
  const data = runs[view.run].timeline;
  timeline.card.hidden = !data;
  if (!data) return;
  const rows = timelineRows(data);
  const first = data.steps[0].step;
  const last = data.steps.at(-1).step;
  const which = first === last ? `step ${first}` : `steps ${first} to ${last}`;
  const many = data.samples.length === data.total ? `All ${data.total}` : `${data.samples.length} of ${data.total.toLocaleString("en-US")}`;
  timeline.note.textContent =
    `${many} samples of ${which}, a line each; those of one problem are side by side. A bar is a segment, in the colour of the version that decoded it. ` +
    "A circle is the end of an output, a cross its cut at the maximum length; between two bars a sample waits. " +
    (data.engines.length ? `The strips below are ${enginesShown(data)}: the darker, the more of its slots decode. ` : "") +
    "Below: how many of all samples decode" +
    `${data.slots ? `, of ${data.slots} slots` : ""}. Ctrl and the wheel, or the slider, zoom; a click on a bar shows the sample, where it is stored.`;
  timeline.box.style.height = `${Math.min(640, 150 + 9 * (rows.at(-1) + 2)) + 120 + stripsOf(data)}px`;
  timeline.chart ??= made();
  timeline.chart.resize();
  timeline.chart.setOption(timelineOption(data, rows), { notMerge: true });
  timeline.box.setAttribute("aria-label", `Samples over time, ${which}. ${timelineInWords(data)}`);
  const versions = [...new Set(data.steps.map(({ version }) => version))];
  timeline.legend.replaceChildren(...versions.map((version) => element("span", { class: "key" }, element("span", { class: "swatch", style: `--swatch: var(--bar${version % HUES})` }), `version ${version}`)));
}

function made() {
  const chart = echarts.init(timeline.box, null, { renderer: "svg" });
  chart.on("click", ({ data, seriesId }) => seriesId === "bars" && showSample(runs[view.run].timeline.samples[data[0]]));
  return chart;
}

function timelineInWords(data) {
  const spans = new Map();
  for (const [place, , , version] of data.bars) spans.set(place, (spans.get(place) ?? new Set()).add(version));
  const spanning = [...spans.values()].filter((versions) => versions.size > 1).length;
  const peak = Math.max(...data.decoding.map(([, number]) => number));
  return `${spanning} of ${spans.size} shown samples were written by more than one version; at most ${formatted(peak, "count")} samples decode at once.${enginesInWords(data)}`;
}

function enginesShown(data) {
  return `${data.engines.length < data.engine_count ? `${data.engines.length} of ` : ""}${data.engine_count} engines`;
}

function enginesInWords(data) {
  if (!data.engines.length) return "";
  const means = data.engines.map((_, place) => data.load.filter(([at]) => at === place).reduce((sum, [, start, end, number]) => sum + (end - start) * number, 0) / data.length);
  return ` On average ${formatted(Math.min(...means), "count")} to ${formatted(Math.max(...means), "count")} samples decode on each of ${enginesShown(data)}.`;
}

// Text of the box beside the pointer. It is an element, so that ECharts inserts no markup.
function barText(data, bar) {
  const [place, start, end, version, status, tokens, step, engine] = bar;
  return element("div", {},
    element("b", {}, `Sample ${data.samples[place]}`), element("br"),
    `step ${step}, version ${version}${data.engines.length ? `, engine ${engine}` : ""}`, element("br"),
    `${plural(tokens, "token")}, ${ENDS[status] ?? status}`, element("br"),
    `${formatted(start, "count")} to ${formatted(end, "count")} ${data.unit}`);
}

function loadText(data, span) {
  const [place, start, end, number] = span;
  return element("div", {},
    element("b", {}, `Engine ${data.engines[place]}`), element("br"),
    `${formatted(number, "count")}${data.engine_slots ? ` of ${data.engine_slots} slots` : " samples"} decode`, element("br"),
    `${formatted(start, "count")} to ${formatted(end, "count")} ${data.unit}`);
}

function drawLoad(data) {
  const full = data.engine_slots || Math.max(1, ...data.load.map(([, , , number]) => number));
  return (params, api) => {
    const [place, start, end, number] = data.load[params.dataIndex];
    const area = params.coordSys;
    const [left, middle] = api.coord([start, place]);
    const [right] = api.coord([end, place]);
    const from = Math.max(left, area.x);
    const to = Math.min(right, area.x + area.width);
    if (to <= from) return null;
    const style = { fill: color("s0"), opacity: Math.min(1, 0.06 + 0.94 * (number / full)) };
    return { type: "rect", shape: { x: from, y: middle - STRIP / 2 + 0.5, width: to - from, height: STRIP - 1 }, style, emphasis: { style: { ...style, stroke: color("text"), lineWidth: 1 } } };
  };
}

function drawBar(data, rows) {
  return (params, api) => {
    const bar = data.bars[params.dataIndex];
    const [left, middle] = api.coord([bar[1], rows[bar[0]]]);
    const [right] = api.coord([bar[2], rows[bar[0]]]);
    const height = Math.max(2, api.size([0, 1])[1] * 0.72);
    const area = params.coordSys;
    const from = Math.max(left, area.x);
    const to = Math.min(Math.max(right, left + 1), area.x + area.width);
    if (to <= from) return null;
    const fill = versionColor(bar[3]); // also under the pointer, where ECharts would take a lighter colour
    const emphasis = { style: { fill, stroke: color("text"), lineWidth: 1 } };
    const children = [{ type: "rect", shape: { x: from, y: middle - height / 2, width: to - from, height }, style: { fill }, emphasis }];
    const mark = Math.max(1.5, Math.min(3, height / 3));
    if (bar[4] === "c" && right <= to) children.push({ type: "circle", shape: { cx: right, cy: middle, r: mark }, style: { fill: color("card"), stroke: color("text"), lineWidth: 1 } });
    if (bar[4] === "t" && right <= to) {
      for (const sign of [-1, 1]) children.push({ type: "line", shape: { x1: right - mark, y1: middle - sign * mark, x2: right + mark, y2: middle + sign * mark }, style: { stroke: color("text"), lineWidth: 1.2 } });
    }
    return { type: "group", children };
  };
}

// Of each sample: its place, and the beginning of its first and the end of its last bar, between which it may wait.
function lives(data) {
  const ends = new Map();
  for (const [place, start, end] of data.bars) {
    const [low, high] = ends.get(place) ?? [start, end];
    ends.set(place, [Math.min(low, start), Math.max(high, end)]);
  }
  return [...ends].map(([place, [start, end]]) => [place, start, end]);
}

function drawLife(rows) {
  return (params, api) => {
    const area = params.coordSys;
    const inside = (x) => Math.min(Math.max(x, area.x), area.x + area.width);
    const [left, y] = api.coord([api.value(1), rows[api.value(0)]]);
    const [right] = api.coord([api.value(2), rows[api.value(0)]]);
    return { type: "line", silent: true, shape: { x1: inside(left), y1: y, x2: inside(right), y2: y }, style: { stroke: color("muted"), lineWidth: 0.7, opacity: 0.6 } };
  };
}

function timelineOption(data, rows) {
  const height = timeline.box.clientHeight;
  const strips = stripsOf(data);
  const grid = { left: 58, right: 14 };
  const text = { color: color("muted"), fontSize: 11 };
  const shared = { type: "value", min: 0, max: data.length, axisLine: { lineStyle: { color: color("grid") } }, axisTick: { show: false }, splitLine: { show: false } };
  const space = (timeline.box.clientWidth - 72) / data.steps.length;
  const nameOf = ({ step, version }) => (space > 76 ? `step ${step} · v${version}` : space > 26 ? `v${version}` : "");
  const marks = data.steps.map((one) => ({ xAxis: one.begins, name: nameOf(one) }));
  const groups = data.groups.filter((group, place) => group !== data.groups[place - 1]);
  const groupAt = groups.map((group) => rows[data.groups.indexOf(group)]);
  const decoding = [...data.decoding, [data.length, data.decoding.at(-1)[1]]]; // the last part has an end too
  return {
    animation: false, textStyle: { fontFamily: "inherit" },
    tooltip: { trigger: "item", confine: true, backgroundColor: color("card"), borderColor: color("line"), textStyle: { color: color("text"), fontSize: 12 }, formatter: ({ seriesId, dataIndex }) => (seriesId === "load" ? loadText(data, data.load[dataIndex]) : barText(data, data.bars[dataIndex])) },
    grid: [{ ...grid, top: 22, height: height - 22 - 170 - strips }, { ...grid, top: height - 130, height: 62 }, ...(strips ? [{ ...grid, top: height - 142 - strips, height: strips }] : [])],
    xAxis: [{ ...shared, gridIndex: 0, axisLine: { show: false }, axisLabel: { show: false } }, { ...shared, gridIndex: 1, name: `${data.unit} of rollout`, nameLocation: "middle", nameGap: 22, nameTextStyle: text, axisLabel: text }, ...(strips ? [{ ...shared, gridIndex: 2, axisLine: { show: false }, axisLabel: { show: false } }] : [])],
    yAxis: [
      { type: "value", gridIndex: 0, inverse: true, min: -0.9, max: rows.at(-1) + 0.9, name: "group", nameLocation: "middle", nameGap: 40, nameTextStyle: text, axisLine: { show: false }, axisTick: { show: false, customValues: groupAt }, splitLine: { show: false }, axisLabel: { ...text, customValues: groupAt, hideOverlap: true, formatter: (value) => String(groups[groupAt.findIndex((at) => Math.abs(at - value) < 1e-6)] ?? "") } },
      { type: "value", gridIndex: 1, splitNumber: 2, name: "decoding", nameLocation: "middle", nameGap: 40, nameTextStyle: text, axisLabel: text, splitLine: { lineStyle: { color: color("grid") } } },
      ...(strips ? [{ type: "value", gridIndex: 2, inverse: true, min: -0.5, max: data.engines.length - 0.5, name: "engine", nameLocation: "middle", nameGap: 40, nameTextStyle: text, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: false }, axisLabel: { ...text, customValues: data.engines.map((_, place) => place), hideOverlap: true, formatter: (place) => String(data.engines[place]) } }] : []),
    ],
    dataZoom: [
      { type: "inside", xAxisIndex: strips ? [0, 1, 2] : [0, 1], zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, preventDefaultMouseMove: false, filterMode: "weakFilter" },
      { type: "slider", xAxisIndex: strips ? [0, 1, 2] : [0, 1], bottom: 6, height: 18, left: 58, right: 14, showDataShadow: false, showDetail: false, borderColor: color("line"), fillerColor: `${color("s0")}33`, handleStyle: { color: color("card"), borderColor: color("muted") } },
    ],
    series: [
      { type: "custom", data: lives(data), renderItem: drawLife(rows), encode: { x: [1, 2], y: 0 }, silent: true, animation: false, tooltip: { show: false },
        markLine: { silent: true, symbol: "none", animation: false, lineStyle: { color: color("grid"), type: "solid", width: 1 }, label: { color: color("muted"), fontSize: 10.5, position: "end", align: "left", formatter: ({ data: mark }) => mark.name }, labelLayout: { hideOverlap: true }, data: marks } },
      { id: "bars", type: "custom", data: data.bars, renderItem: drawBar(data, rows), encode: { x: [1, 2], y: 0 }, animation: false },
      { type: "line", xAxisIndex: 1, yAxisIndex: 1, step: "end", data: decoding, symbol: "none", silent: true, animation: false, lineStyle: { color: color("s0"), width: 1.2 }, areaStyle: { color: color("s0"), opacity: 0.2 }, tooltip: { show: false } },
      ...(strips ? [{ id: "load", type: "custom", xAxisIndex: 2, yAxisIndex: 2, data: data.load, renderItem: drawLoad(data), encode: { x: [1, 2], y: 0 }, animation: false }] : []),
    ],
  };
}

function timelineCard() {
  timeline.box = element("div", { class: "chart timeline", role: "img" });
  timeline.note = element("p", { class: "quiet" });
  timeline.legend = element("div", { class: "legend" });
  timeline.card = element("figure", { class: "panel" }, element("figcaption", {}, timeline.note), timeline.legend, timeline.box);
  on("run", drawTimeline);
  return timeline.card;
}
