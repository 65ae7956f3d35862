// One sample: its prompt, and its output coloured by version, log-prob, entropy, mask or advantage.

const COLOURINGS = {
  version: "version that wrote it",
  logprob: "log-prob when it was drawn",
  entropy: "entropy under the policy that trained",
  masked: "masked in the loss",
  advantage: "advantage",
};
const SCALES = { logprob: [0, 4], entropy: [0, 2] }; // nats, from no colour to full colour
const MOST_TOKENS = 4000; // that are put on the page at once

const hasTokens = (sample) => Boolean(sample.token_values);
const hasValues = (sample, name) => hasTokens(sample) && Array.isArray(sample.token_values[name]);

// Why a sample has no values of its tokens, and which setting stores more.
function whyNoTokens() {
  const stored = runs[view.run].config.log?.token_samples;
  if (stored === undefined) return "An earlier version wrote this run and stored no values of single tokens.";
  if (!stored) return "This run stores no values of single tokens: log.token_samples is 0.";
  return `No values of its tokens are stored: this run stores them for ${plural(stored, "trained sample")} of each step, and a run with a higher log.token_samples for more. “with token values” lists the samples that have them.`;
}

// Why a colouring cannot be shown of a sample; null where it can.
function whyNot(sample, colouring) {
  if (colouring === "version") return null;
  if (colouring === "advantage") {
    return sample.advantage === undefined || sample.advantage === null ? "No advantage is stored for this sample: it was not trained, or an earlier version wrote it." : null;
  }
  if (!hasTokens(sample)) return whyNoTokens();
  return hasValues(sample, colouring) ? null : "This sample has no such values: it was not trained, because all members of its group have the same reward, or it was left out.";
}

function shade(value, [low, high], hue) {
  const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
  return share < 0.02 ? "" : `background: color-mix(in srgb, var(--${hue}) ${Math.round(75 * share)}%, transparent)`;
}

function styleOf(sample, colouring, at, version) {
  if (colouring === "version" && version !== null) return `background: var(--v${version % HUES})`;
  if (colouring === "advantage") return shade(Math.abs(sample.advantage), [0, 2], sample.advantage >= 0 ? "green" : "red");
  const values = sample.token_values;
  if (colouring === "logprob") return shade(-values.logprob[at], SCALES.logprob, "red");
  if (colouring === "entropy") return shade(values.entropy[at], SCALES.entropy, "s0");
  if (colouring === "masked") return values.masked[at] ? "background: color-mix(in srgb, var(--s1) 55%, transparent)" : "";
  return "";
}

function tokenText(sample, at) {
  const values = sample.token_values;
  const parts = [`token ${(values.index?.[at] ?? at) + 1} of ${sample.tokens}`, `version ${values.version[at] ?? "not stored"}`];
  const logprob = values.logprob?.[at] ?? null; // null: what was stored is not a finite number
  const entropy = values.entropy?.[at] ?? null;
  if (values.logprob) parts.push(logprob === null ? "log-prob not a number" : `log-prob ${formatted(logprob)} (probability ${formatted(Math.exp(logprob), "percent")})`);
  if (values.entropy) parts.push(entropy === null ? "entropy not a number" : `entropy ${formatted(entropy)} nats`);
  if (values.masked) parts.push(values.masked[at] ? "masked" : "in the loss");
  return parts.join(" · ");
}

const tag = (version, tokens) => element("span", { class: "tag", title: plural(tokens, "token") }, `v${version}`);
const leftOut = (what) => element("span", { class: "cut" }, ` [${what} left out] `);

function pieceElements(sample, colouring) {
  return sample.pieces.map((piece) => {
    const style = colouring === "version" || colouring === "advantage" ? styleOf(sample, colouring, 0, piece.version) : "";
    return element("span", { class: "piece", style },
      piece.version === null ? null : tag(piece.version, piece.tokens), piece.text,
      piece.left_out ? leftOut(plural(piece.left_out, "character")) : null, piece.tail ?? null);
  });
}

function tokenElements(sample, colouring) {
  const values = sample.token_values;
  const shown = [];
  for (let at = 0; at < Math.min(values.text.length, MOST_TOKENS); at++) {
    if (values.version[at] !== null && values.version[at] !== values.version[at - 1]) shown.push(tag(values.version[at], sample.tokens));
    if (at && values.index && values.index[at] !== values.index[at - 1] + 1) shown.push(leftOut(plural(values.index[at] - values.index[at - 1] - 1, "token")));
    shown.push(element("span", { class: "token", "data-at": at, style: styleOf(sample, colouring, at, values.version[at]) }, values.text[at] || "▯"));
  }
  if (values.text.length > MOST_TOKENS) shown.push(leftOut(plural(values.text.length - MOST_TOKENS, "token")));
  return shown;
}

// The output as an element. The token under the pointer, or chosen by the arrow keys, is described below it.
function outputView(sample, colouring) {
  const reason = whyNot(sample, colouring);
  const byToken = hasTokens(sample);
  const about = element("p", { class: "quiet about", role: "status" }, reason ?? (byToken ? "Point at a token, or go to the output and use the arrow keys. ▯ has no text, such as the token that ends an output." : whyNoTokens()));
  const output = element("div", { class: "output", tabindex: 0, role: "group", "aria-label": "Output" },
    ...(byToken ? tokenElements(sample, reason ? "" : colouring) : pieceElements(sample, reason ? "" : colouring)));
  if (byToken) {
    let chosen = -1;
    const choose = (at) => {
      output.querySelector(".chosen")?.classList.remove("chosen");
      const found = output.querySelector(`[data-at="${at}"]`);
      if (!found) return;
      chosen = at;
      found.classList.add("chosen");
      found.scrollIntoView({ block: "nearest" });
      about.textContent = `${sample.token_values.text[at] ? `“${sample.token_values.text[at]}”` : "no text (the end of the output, or a part of a character)"}: ${tokenText(sample, at)}`;
    };
    output.addEventListener("pointerover", ({ target }) => target.dataset?.at && choose(Number(target.dataset.at)));
    output.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      choose(Math.max(0, chosen + move));
    });
  }
  return [output, about];
}

function scaleOf(colouring) {
  const gradient = (hue, from, to) => element("span", { class: "scale" }, from, element("span", { class: "ramp", style: `--to: var(--${hue})` }), to);
  if (colouring === "logprob") return gradient("red", "0 (certain)", "−4 nats and less");
  if (colouring === "entropy") return gradient("s0", "0", "2 nats and more");
  if (colouring === "masked") return element("span", { class: "scale" }, element("span", { class: "swatch", style: "--swatch: var(--s1)" }), "left out of the loss");
  if (colouring === "advantage") return element("span", { class: "scale" }, "green: more likely after the update, red: less likely");
  return element("span", { class: "scale" }, "a colour and a tag for each version; colours repeat after six");
}
