// The bar that stays on top: the chosen step, the range of steps that all charts show, and the sections.

const toolbar = {};

function makeToolbar(sections) {
  const number = (label, key) => {
    toolbar[key] = element("input", { type: "number", step: 1, inputmode: "numeric", onchange: () => zoomTo(Number(toolbar.from.value), Number(toolbar.to.value)) });
    return labelled(label, toolbar[key]);
  };
  toolbar.slider = element("input", { type: "range", step: 1, id: "step", oninput: () => setStep(Number(toolbar.slider.value)) });
  toolbar.shown = element("output", { for: "step" });
  document.getElementById("toolbar").append(
    element("div", { class: "controls" },
      element("label", { class: "step" }, "Step ", toolbar.shown, toolbar.slider),
      number("from", "from"), number("to", "to"),
      element("button", { type: "button", onclick: () => zoomTo(firstStep(), lastStep()) }, "All steps"),
      element("button", { type: "button", id: "newest", onclick: () => setStep(lastStep()) }, "Newest step")),
    element("div", { class: "sections" }, ...sections.map(([id, title]) => element("a", { href: `#${id}` }, title))));
  on("step", showStep);
  on("data", showSteps);
  showSteps();
}

function showSteps() {
  for (const control of [toolbar.slider, toolbar.from, toolbar.to]) {
    control.min = firstStep();
    control.max = lastStep();
  }
  showStep();
}

function showStep() {
  toolbar.slider.value = view.step;
  toolbar.shown.textContent = view.step;
  for (const entry of drawn()) {
    writeLegend(entry);
    movePointer(entry);
  }
}

function zoomTo(from, to) {
  const [entry] = drawn();
  if (entry && to > from) entry.chart.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, startValue: from, endValue: to });
}

// Writes the range that a chart shows into the fields.
function showRange(entry) {
  const [{ startValue, endValue }] = entry.chart.getOption().dataZoom;
  toolbar.from.value = Math.max(firstStep(), Math.ceil(startValue));
  toolbar.to.value = Math.min(lastStep(), Math.floor(endValue));
}
