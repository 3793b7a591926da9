// What explorables share: an element with a state, controls that change it, numbers that show it.
// Whoever has no script sees the drawing inside; whoever prints gets it on paper.

export const sum = (xs) => xs.reduce((total, x) => total + x, 0);
export const dot = (a, b) => sum(a.map((x, i) => x * b[i]));
export const mix = (weights, rows) => rows[0].map((_, d) => sum(weights.map((w, i) => w * rows[i][d])));

/** Largest score and log-sum-exp; -Infinity where every score is. */
export const logSumExp = (scores) => {
  const most = Math.max(...scores);
  return most === -Infinity ? most : most + Math.log(sum(scores.map((s) => Math.exp(s - most))));
};

/** Weights; all zero where every score is -Infinity, as in the package. */
export const softmax = (scores) => {
  const level = logSumExp(scores);
  return scores.map((s) => (level === -Infinity ? 0 : Math.exp(s - level)));
};

const SVG = new Set(["svg", "g", "line", "path", "circle", "rect", "text", "title"]);

/** An element: attributes, listeners ("oninput"), and what is inside. */
export const make = (name, attrs = {}, ...inside) => {
  const node = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attrs)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...inside.flat());
  return node;
};

/** A place for a number of `numbers()`; what is no number is shown as it is. */
export const shows = (key, digits = 4, name = "span", attrs = {}) =>
  make(name, { "data-n": key, "data-digits": digits, ...attrs });

const write = (value, digits) => {
  if (typeof value !== "number") return value;
  const text = Number.isFinite(value) ? Math.abs(value).toFixed(digits) : "∞";
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
};

export const clamp = (x, least, most) => Math.min(most, Math.max(least, x));

/** The share of the accent behind a number from 0 to 1; text stays readable on all of it. */
export const shade = (share) =>
  `color-mix(in srgb, var(--figure-accent) ${(45 * Math.min(1, Math.max(0, share))).toFixed(1)}%, transparent)`;

/** What a control of numbers says, in its range and on its steps. */
const within = ({ type, value, min, max, step }) => {
  const x = Number(value);
  return type === "number" ? clamp(step === "1" ? Math.round(x) : x, Number(min), Number(max)) : x;
};

const STYLE = `
  :host{display:block}
  .live{font:.65rem/1.45 system-ui,sans-serif;color:var(--figure-ink);font-variant-numeric:tabular-nums;
    border:1px solid color-mix(in srgb,var(--figure-faint) 35%,transparent);border-radius:.3rem;padding:.6rem .7rem}
  p{margin:.35em 0}
  .how,.said{color:var(--figure-faint)}
  .said{min-height:2.9em;margin:.4em 0 0}
  .row{display:flex;flex-wrap:wrap;gap:.3rem .9rem;align-items:center}
  label,fieldset{display:inline-flex;gap:.4em;align-items:center;border:0;margin:0;padding:0;min-height:1.3rem}
  button,select,input{font:inherit;color:inherit;background:var(--figure-paper);accent-color:var(--figure-accent)}
  button,select,input[type=number]{border:1px solid var(--figure-faint);border-radius:.2rem;padding:.1em .5em;min-height:1.3rem}
  input[type=checkbox]{width:1rem;height:1rem;margin:0}
  input[type=range]{flex:1;min-width:4rem;width:100%;margin:0;height:1.2rem}
  input[type=number]{width:4.6em;box-sizing:border-box}
  button{cursor:pointer}
  button,input,select,[tabindex]{scroll-margin-block:4rem}
  :focus-visible{outline:2px solid var(--figure-accent);outline-offset:2px}
  table{border-collapse:collapse;margin:.4em 0;width:100%}
  caption{text-align:left;color:var(--figure-faint);padding:.2em 0}
  th{font-weight:400;text-align:left;color:var(--figure-faint);padding:.1em .4em .1em 0}
  td,thead th:not(:first-child){text-align:right}
  td{padding:.1em .3em}
  code{font-family:ui-monospace,monospace}
  svg{display:block;max-width:100%;height:auto;touch-action:pan-y}
  svg text{fill:var(--figure-ink);font:12px system-ui,sans-serif}
  slot{display:none}
  @media print{.live{display:none}slot{display:contents}}
`;

export class Explorable extends HTMLElement {
  /** Called each time that the element comes into a page; what it made before stays. */
  connectedCallback() {
    if (this.shadowRoot || !this.dataset.given) return;
    this.given = JSON.parse(this.dataset.given);
    this.state = this.start(this.given);
    const again = make("button", { type: "button", onclick: () => this.begin() }, "Start again");
    this.live = make("div", { class: "live", role: "group", "aria-label": this.called(this.given) });
    this.said = make("p", { class: "said", role: "status" });
    this.live.append(make("p", { class: "how" }, this.how(this.given)), ...this.build(this.given));
    if (!this.live.contains(this.said)) this.live.append(this.said);
    this.live.append(again);
    this.attachShadow({ mode: "open" }).append(make("style", {}, STYLE + (this.style_ ?? "")), this.live, make("slot"));
    this.show();
  }

  begin() {
    this.was = undefined; // what a sentence compares with
    this.set(this.start(this.given));
  }

  set(change) {
    Object.assign(this.state, change);
    this.show();
  }

  /** Controls follow the state too, for there are several ways to change it. */
  show() {
    const numbers = this.numbers(this.state, this.given);
    for (const place of this.live.querySelectorAll("[data-n]")) {
      place.textContent = write(numbers[place.dataset.n], place.dataset.digits);
    }
    for (const control of this.live.querySelectorAll("[data-state]")) {
      const value = control.dataset.state.split(".").reduce((at, key) => at[key], this.state);
      if (control.type === "checkbox") control.checked = value;
      else if (control.matches(":focus") && Number(control.value) === value) continue;
      else control.value = value;
    }
    this.paint(numbers, this.state, this.given);
    this.said.textContent = this.sentence(numbers, this.state, this.given);
  }

  /** A bar behind each weight, as long as it is. */
  bars(numbers) {
    for (const cell of this.live.querySelectorAll("[data-weight]")) {
      const share = 100 * numbers[`weights.${cell.dataset.weight}`];
      cell.style.background = `linear-gradient(to right, ${shade(1)} ${share}%, transparent ${share}%)`;
    }
  }

  /** A control for `path` of the state, "scores.0" say; `attrs` are those of the input. */
  control(path, label, attrs, { hidden = false } = {}) {
    const change = ({ target }) => {
      if (target.value === "") return;
      const value = target.type === "checkbox" ? target.checked : within(target);
      const state = structuredClone(this.state);
      const keys = path.split(".");
      const last = keys.pop();
      keys.reduce((at, key) => at[key], state)[last] = value;
      this.set(state);
    };
    const left = ({ target }) => target.value === "" && this.show();
    const input = make("input", { ...attrs, "data-state": path, oninput: change, onblur: left, "aria-label": hidden ? label : undefined });
    if (hidden) return input;
    return attrs.type === "checkbox" ? make("label", {}, input, label) : make("label", {}, label, input);
  }

  /** One of several: `options` are texts, the state is the index. */
  choice(path, label, options) {
    const select = make(
      "select",
      { "data-state": path, "aria-label": label, onchange: ({ target }) => this.set({ [path]: Number(target.value) }) },
      options.map((option, i) => make("option", { value: i }, option)),
    );
    return make("label", {}, label, select);
  }
}
