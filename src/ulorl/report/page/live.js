// A page that `ulorl watch` sent asks for what is new and adds it: no reload.

const PAUSE = 2000; // milliseconds between two questions
const MOST_SAMPLES = 2000; // in the page: of more, those that were loaded first are dropped
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

const problem = (error) => (error instanceof TypeError ? "no connection to ulorl watch" : error.message);

// Screen readers say a status when it is written, so it is written on a change only.
function say(text) {
  if (live.status.textContent !== text) live.status.textContent = text;
}

async function asked(path) {
  const answer = await fetch(path, { cache: "no-store" });
  const found = await answer.json();
  if (found.error) throw new Error(found.error);
  return found;
}

function addSamples(found) {
  const known = new Map(runs[0].samples.map((one) => [keyOf(one), one]));
  for (const one of found) {
    known.delete(keyOf(one));
    known.set(keyOf(one), one);
  }
  runs[0].samples = [...known.values()].slice(-MOST_SAMPLES);
}

async function loadSamples(step) {
  try {
    addSamples(await asked(`samples?step=${step}`));
  } catch (error) {
    samples.missing.textContent = problem(error);
    return;
  }
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
  addRows(news.rows);
  addSamples(news.samples);
  Object.assign(runs[0], news.run);
  Object.assign(runs[0].counts, news.counts);
  if (view.follow) view.step = lastStep();
  fillStoredSteps();
  tell("data");
}

async function ask() {
  try {
    const news = await asked(`news?cursor=${encodeURIComponent(live.cursor)}`);
    if (news.restarted || news.start !== page.start) { // another run, or a new start of it
      location.reload();
      return;
    }
    live.cursor = news.cursor;
    if (news.rows.length) addNews(news);
    say(news.finished ? `finished · step ${lastStep()}` : `live · step ${lastStep()}`);
  } catch (error) {
    say(problem(error));
  }
  setTimeout(ask, PAUSE);
}

function startLive() {
  view.follow = true;
  ask();
}
