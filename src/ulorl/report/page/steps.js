// The data of the page, and the step that the reader looks at.

const page = JSON.parse(document.getElementById("data").textContent);
const runs = page.runs;
const several = runs.length > 1;

// step: the one whose values are shown; follow: it is the newest one, also when new ones come; run: whose samples,
// timeline and parts of a whole are shown.
const view = { step: 0, follow: true, run: 0 };
const listeners = { step: [], run: [], data: [] };

function on(event, listener) {
  listeners[event].push(listener);
}

function tell(event) {
  for (const listener of listeners[event]) listener();
}

const stepsOf = (run) => run.columns.step ?? [];
const firstStep = () => Math.min(...runs.map((run) => stepsOf(run)[0] ?? 0));
const lastStep = () => Math.max(...runs.map((run) => stepsOf(run).at(-1) ?? 0));

// The place of the newest shown step of a run up to `step`, -1 without one.
function placeOf(run, step) {
  const steps = stepsOf(run);
  let low = 0;
  let high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// The newest value of a metric up to `step`, as [step, value]; null without one.
function valueAt(run, key, step) {
  const values = run.columns[key];
  if (!values) return null;
  for (let place = placeOf(run, step); place >= 0; place--) {
    if (values[place] !== null) return [stepsOf(run)[place], values[place]];
  }
  return null;
}

// The values of a metric as [step, value]. missing: what stands where a step has none; null: the step is left out.
function points(run, key, missing = null) {
  const values = run.columns[key];
  return values ? stepsOf(run).map((step, place) => [step, values[place] ?? missing]).filter(([, value]) => value !== null) : [];
}

// The reader who chooses the newest step follows the run: new steps are shown as they come.
function setStep(step) {
  const bounded = Math.min(Math.max(step, firstStep()), lastStep());
  const follow = bounded === lastStep();
  if (bounded === view.step && follow === view.follow) return;
  Object.assign(view, { step: bounded, follow });
  tell("step");
}

function setRun(place) {
  view.run = place;
  tell("run");
}
