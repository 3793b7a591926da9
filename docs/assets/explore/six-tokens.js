// Six words in a plane: one asks, one moves; scores, weights and the mix follow, written out.
// It begins with `words` that are their own queries, keys and values, or with those three, each by
// itself, and `causal` where later words can be hidden.
import { Explorable, clamp, dot, make, mix, shows, softmax } from "./base.js";

const LOW = [-1, -0.4];
const HIGH = [1, 1.6];
const UNIT = 150;
const STEP = 0.05;
const MOST = 10; // what may be typed, up or down
const KEYS = {
  ArrowLeft: [0, -STEP], ArrowRight: [0, STEP], ArrowDown: [1, -STEP], ArrowUp: [1, STEP],
  Home: [0, -5 * STEP], End: [0, 5 * STEP], PageDown: [1, -5 * STEP], PageUp: [1, 5 * STEP],
};

const place = ([x, y]) => [UNIT * (x - LOW[0]), UNIT * (HIGH[1] - y)];
const within = (x, d) => clamp(x, LOW[d], HIGH[d]);
/** A vector that leaves the plane is drawn to its edge, in its own direction. */
const drawn = ([x, y]) => {
  const share = Math.min(1, ...[x, y].map((v, d) => (v ? within(v, d) / v : 1)));
  return [x * share, y * share];
};
const rounded = (x, ten = 1e4) => Math.round(x * ten) / ten;
const give = (node, attrs) => Object.entries(attrs).forEach(([key, value]) => node.setAttribute(key, value));

/** Numbers in a line of arithmetic: four decimals, or two where that is all there is. */
const result = (x) => x.toFixed(4).replace("-", "−");
const short = (x) => (x < 0 ? `(${result(x)})` : result(x)).replace(/00(\)?)$/, "$1");
const products = (a, b, left = short) => a.map((x, i) => `${left(x)}·${short(b[i])}`).join(" + ");

/** The vector that moves: a word's or, after these, the query. */
const held = ({ asks, moves, key, query }) => key[moves] ?? query[asks];

class SixTokens extends Explorable {
  called() {
    return "Six words, to play with";
  }

  how({ words, causal }) {
    if (words) return "Drag an arrow, move its ring with the arrow keys, or type its numbers. What gives a word more weight: its direction, or its length?";
    if (causal) return "Drag the key of a word that is hidden, or move its ring with the arrow keys. What changes for the word that asks?";
    return "Drag a key, or the query, or move its ring with the arrow keys. Which key wins when the query points the other way?";
  }

  start({ words, query, key, causal }) {
    const state = { asks: 1, moves: causal ? 2 : 0, key: structuredClone(words ?? key) };
    return words ? state : { ...state, query: structuredClone(query), scale: true, temperature: 1, causal: !!causal };
  }

  build({ tokens, words, value, causal }) {
    const names = words ? tokens : [...tokens, "query"];
    this.inputs = this.state.key[0].map((_, d) => make("input", {
      type: "number", step: STEP, "aria-label": `number ${d + 1}`,
      oninput: ({ target }) => target.value && this.move(d, Number(target.value)),
      onblur: () => this.show(),
    }));
    this.handle = make("circle", {
      r: 9, class: "grab", tabindex: 0, role: "slider", "aria-label": "tip of the arrow",
      "aria-valuemin": -MOST, "aria-valuemax": MOST,
      onkeydown: (event) => {
        const [d, by] = KEYS[event.key] ?? [];
        if (!by) return;
        event.preventDefault();
        this.move(d, rounded(held(this.state)[d] + by));
      },
    });
    this.arrows = names.map((name, i) => ({
      share: make("circle"), arrow: make("path"), grab: make("circle", { r: 12, class: "grab", "data-at": i }), name: make("text", {}, name),
    }));
    const axes = make("path", { class: "axis", d: `M${place([LOW[0], 0])}L${place([HIGH[0], 0])}M${place([0, LOW[1]])}L${place([0, HIGH[1]])}` });
    this.plane = make("svg", {
      viewBox: "-10 -10 320 320",
      onpointerdown: (event) => this.take(event),
      onpointermove: (event) => this.drag(event),
      onlostpointercapture: () => (this.grip = undefined),
    }, axes, make("text", { class: "axis", x: 300, y: 254, "text-anchor": "end" }, "first number →"), make("text", { class: "axis", x: 144, y: 4, "text-anchor": "end" }, "second number ↑"), ["share", "arrow", "name", "grab"].flatMap((layer) => this.arrows.map((one) => one[layer])), this.handle);
    const rows = tokens.map((token, i) => make("tr", {},
      make("th", { scope: "row" }, token), shows(`scores.${i}`, 4, "td"), shows(`weights.${i}`, 4, "td", { "data-weight": i })));
    const head = ["word", "score", "weight"].map((text) => make("th", { scope: "col" }, text));
    const context = (value ?? words)[0].flatMap((_, d) => [d ? ", " : "context vector ", shows(`context.${d}`)]);
    const heat = { type: "range", min: 0.05, max: 4, step: 0.05 };
    return [
      make("div", { class: "row" },
        this.choice("asks", "query", tokens),
        this.choice("moves", "move", words ? tokens : names.map((name, i) => (tokens[i] ? `key of ${name}` : name))),
        make("span", { class: "row" }, "numbers", this.inputs)),
      words ? "" : make("div", { class: "row" },
        this.control("scale", "divide by √D", { type: "checkbox" }),
        causal ? this.control("causal", "hide the future", { type: "checkbox" }) : "",
        make("label", {}, "temperature ", shows("temperature", 2), this.control("temperature", "temperature", heat, { hidden: true }))),
      make("div", { class: "row beside" }, this.plane, make("div", {}, this.said,
        make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)), make("p", {}, context))),
      make("div", { class: words ? "own sums" : "sums" }, make("p", {}, shows("product")), make("p", {}, shows("mix"))),
    ];
  }

  style_ = `
    .row .row{gap:.3rem}
    .beside>svg{flex:1 1 13rem;max-width:16rem;margin:auto}.beside>div{flex:1 1 12rem}
    .sums{min-height:6.5em}.sums.own{min-height:5em}
    @media(max-width:44.9375em){.sums{min-height:12.3em}.sums.own{min-height:10.9em}}
    input[type=number]{width:6em;padding-right:0}
    circle{fill:color-mix(in srgb,var(--figure-accent) 30%,transparent)}
    .grab{fill:transparent;cursor:grab;touch-action:none}.grab[role]{stroke:var(--figure-accent);stroke-width:2}
    path{fill:none;stroke:var(--figure-ink);stroke-width:1.5}
    path.axis,path.off{stroke:var(--figure-faint);stroke-width:1}path.off{stroke-dasharray:3}svg :is(.axis,text.off){fill:var(--figure-faint)}
    text{paint-order:stroke;stroke:var(--figure-paper);stroke-width:3px;pointer-events:none}
    path.asks{stroke:var(--figure-accent);stroke-width:2.5}svg text.asks{fill:var(--figure-accent);font-weight:600}`;

  move(d, x) {
    held(this.state)[d] = clamp(x, -MOST, MOST);
    this.show();
  }

  /** Where a pointer is, in numbers of the plane. */
  point({ clientX, clientY }) {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(this.plane.getScreenCTM().inverse());
    return [x / UNIT + LOW[0], HIGH[1] - y / UNIT];
  }

  take(event) {
    if (!event.target.matches(".grab")) return;
    event.preventDefault();
    this.plane.setPointerCapture(event.pointerId);
    this.handle.focus({ preventScroll: true });
    this.set({ moves: Number(event.target.dataset.at ?? this.state.moves) });
    const tip = drawn(held(this.state));
    this.grip = this.point(event).map((x, d) => tip[d] - x); // to take a tip beside its middle moves nothing
  }

  drag(event) {
    if (this.grip) this.point(event).forEach((x, d) => this.move(d, rounded(within(x + this.grip[d], d), 100)));
  }

  numbers({ asks, moves, key, query, scale, temperature = 1, causal }, { tokens, words, value }) {
    const asking = (query ?? key)[asks];
    const values = words ? key : value;
    const root = scale ? Math.sqrt(asking.length) : 1;
    const hidden = (j) => causal && j > asks;
    const scores = key.map((k, j) => (hidden(j) ? -Infinity : dot(asking, k) / root / temperature));
    const weights = softmax(scores);
    const context = mix(weights, values);
    const most = weights.indexOf(Math.max(...weights));
    const j = key[moves] ? moves : most; // while the query moves: the word that it finds
    const score = dot(asking, key[j]);
    let product = words ? `${tokens[asks]}·${tokens[j]}` : `query of ${tokens[asks]} · key of ${tokens[j]}`;
    product += ` = ${products(asking, key[j])} = ${result(score)}`;
    if (scale) product += `, over √${asking.length} = ${result(score / root)}`;
    if (temperature !== 1) product += `, over ${temperature.toFixed(2)} = ${result(score / root / temperature)}`;
    if (hidden(j)) product += ", hidden: −∞";
    const first = `context, first number = ${products(weights, values.map(([x]) => x), result)} = ${result(context[0])}`;
    const out = { temperature, most, j, product, mix: first };
    for (const [name, xs] of Object.entries({ scores, weights, context })) xs.forEach((x, i) => (out[`${name}.${i}`] = x));
    return out;
  }

  paint(numbers, state, { words }) {
    const vector = held(state);
    const all = words ? state.key : [...state.key, state.query[state.asks]];
    const tips = all.map((v) => place(drawn(v)));
    const [left, base] = place([0, 0]);
    tips.forEach(([x, y], i) => {
      const { share, arrow, grab, name } = this.arrows[i];
      const asks = i === (words ? state.asks : state.key.length);
      const kind = asks ? "asks" : numbers[`scores.${i}`] === -Infinity ? "off" : "";
      const turn = Math.atan2(y - base, x - left);
      const barb = (by) => `${x - 8 * Math.cos(turn + by)} ${y - 8 * Math.sin(turn + by)}`;
      const whole = all[i].slice(0, 2);
      const head = String(drawn(whole)) === String(whole) ? `M${barb(0.5)}L${x} ${y}L${barb(-0.5)}` : ""; // else it goes on
      give(arrow, { class: kind, d: `M${left} ${base}L${x} ${y}${head}` });
      give(share, { cx: x, cy: y, r: 20 * Math.sqrt(numbers[`weights.${i}`] ?? 0) }); // its area is the weight
      give(grab, { cx: x, cy: y });
      give(name, { class: kind });
    });
    // Names from the top down, each below those that it would cover.
    const set = [];
    tips.map((tip, i) => [...tip, this.arrows[i].name]).sort((a, b) => a[1] - b[1]).forEach(([x, y, name]) => {
      const end = x + 11 + 7 * name.textContent.length > 310;
      const low = set.reduce((at, [u, v]) => (Math.abs(u - x) < 60 ? Math.max(at, v + 13) : at), y + 4);
      give(name, { x: end ? x - 11 : x + 11, y: low, "text-anchor": end ? "end" : "start" });
      set.push([x, low]);
    });
    const [across, up] = vector.map((x) => x.toFixed(2));
    const [cx, cy] = tips[state.moves];
    const where = `${this.arrows[state.moves].name.textContent}: ${across} across, ${up} up`;
    give(this.handle, { cx, cy, "aria-valuenow": across, "aria-valuetext": where });
    this.inputs.forEach((input, d) => Number(input.value) === vector[d] || (input.value = rounded(vector[d])));
    this.bars(numbers);
  }

  sentence(numbers, { asks }, { tokens }) {
    const { most, j } = numbers;
    const share = (i) => numbers[`weights.${i}`].toFixed(4);
    if (numbers[`scores.${j}`] === -Infinity) return `${tokens[j]} is hidden from ${tokens[asks]}: its key makes no difference.`;
    if (j === most) return `The largest weight of ${tokens[asks]}, ${share(j)}, goes to ${tokens[j]}.`;
    return `${tokens[asks]} gives ${tokens[j]} ${share(j)} of its weight, and the most, ${share(most)}, to ${tokens[most]}.`;
  }
}

customElements.get("explore-six-tokens") ?? customElements.define("explore-six-tokens", SixTokens);
