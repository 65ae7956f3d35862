// A page that `ulorl watch` sent asks for what is new and adds it: no reload.

const PAUSE = 2000; // milliseconds between two questions
const live = { cursor: page.cursor ?? "" };

function liveSamples() {
  if (!page.live) return null;
  live.choice = element("select", { onchange: ({ target }) => target.value && loadSamples(Number(target.value)) });
  live.status = element("p", { class: "live", role: "status" }, "live");
  document.getElementById("head").before(live.status);
  fillStoredSteps();
  return element("div", { class: "panel controls" }, labelled("load every sample of step", live.choice));
}

function fillStoredSteps() {
  live.choice.replaceChildren(option("", "–", null), ...runs[0].counts.stored_steps.map((step) => option(step, String(step), null)));
}

async function asked(path) {
  const answer = await fetch(path, { cache: "no-store" });
  return answer.json();
}

function addSamples(found) {
  const known = new Map(runs[0].samples.map((one) => [keyOf(one), one]));
  for (const one of found) known.set(keyOf(one), one);
  runs[0].samples = [...known.values()];
}

async function loadSamples(step) {
  addSamples(await asked(`samples?step=${step}`));
  Object.assign(samples, { step: String(step), verdict: "", search: "", values: false });
  samples.form.reset();
  tell("data");
  samples.steps.value = String(step);
  listSamples();
}

function addRows(rows) {
  const columns = runs[0].columns;
  columns.step ??= [];
  for (const one of rows.filter(({ step }) => step > (columns.step.at(-1) ?? -1))) {
    const place = columns.step.length;
    for (const name of Object.keys(one)) columns[name] ??= Array(place).fill(null);
    for (const name of Object.keys(columns)) columns[name].push(one[name] ?? null);
  }
}

function addNews(news) {
  if (news.restarted) Object.assign(runs[0], { columns: {}, samples: [] });
  addRows(news.rows);
  addSamples(news.samples);
  Object.assign(runs[0], news.run);
  Object.assign(runs[0].counts, news.counts);
  if (view.follow || news.restarted) view.step = lastStep();
  fillStoredSteps();
  tell("data");
}

async function ask() {
  try {
    const news = await asked(`news?cursor=${encodeURIComponent(live.cursor)}`);
    if (news.error) throw new Error(news.error);
    live.cursor = news.cursor;
    if (news.rows.length || news.restarted) addNews(news);
    live.status.textContent = news.finished ? `finished · step ${lastStep()}` : `live · step ${lastStep()}`;
  } catch (error) {
    live.status.textContent = error instanceof TypeError ? "no connection to ulorl watch" : error.message;
  }
  setTimeout(ask, PAUSE);
}

function startLive() {
  view.follow = true;
  ask();
}
