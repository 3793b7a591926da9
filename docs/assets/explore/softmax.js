// Six scores become six shares: drag a score, divide them all, see who pays.
import { Explorable, dot, logSumExp, make, shade, shows, softmax } from "./base.js";

/** Scores as the softmax gets them: over the temperature or, of a head size, times its root. */
const pushed = ({ scores, temperature, size, divide }) => {
  const factor = size === undefined ? 1 / temperature : divide ? 1 : Math.sqrt(2 ** size);
  return scores.map((score) => score * factor);
};

/** From about -3 to about 5 for every word, so that places compare, on a grid that has the score. */
const STEP = 0.1;
const reach = (score) => {
  const below = Math.floor((score + 3) / STEP + 1e-9);
  return { min: score - STEP * below, max: score + STEP * (80 - below) };
};

class Softmax extends Explorable {
  called({ sizes }) {
    return sizes ? "Softmax, by head size" : "Softmax, to play with";
  }

  how({ sizes }) {
    return sizes
      ? "Six scores of one query, as large as this head size makes them. What is left to learn from? Divide, and look again."
      : "Move a score. What does its weight gain, and who pays?";
  }

  start({ scores, sizes }) {
    return sizes ? { scores: [...scores], size: 6, divide: false } : { scores: [...scores], temperature: 1 };
  }

  build({ tokens, scores, sizes }) {
    const rows = tokens.map((token, i) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, token),
        make("td", { class: "wide" }, this.control(`scores.${i}`, `score of ${token}`, {
          type: "range", ...reach(scores[i]), step: STEP,
        }, { hidden: true })),
        make("td", {}, shows(`scores.${i}`)),
        make("td", { "data-weight": i }, shows(`weights.${i}`)),
      ));
    const head = ["word", "", sizes ? "score" : "score / T", "weight"].map((text) => make(text ? "th" : "td", text ? { scope: "col" } : {}, text));
    const cells = tokens.map((token, i) =>
      make("tr", {}, make("th", { scope: "row" }, token), tokens.map((_, j) => shows(`jacobian.${i}.${j}`, 2, "td"))));
    const columns = tokens.map((token) => make("th", { scope: "col" }, token));
    const pushing = sizes
      ? [
          make("label", {}, "head size ", shows("size", 0), this.control("size", "head size, as a power of two", { type: "range", min: 0, max: 9, step: 1 }, { hidden: true })),
          this.control("divide", "divide by √(head size)", { type: "checkbox" }),
        ]
      : [make("label", {}, "temperature T ", shows("temperature", 2), this.control("temperature", "temperature", { type: "range", min: 0.05, max: 4, step: 0.05 }, { hidden: true }))];
    return [
      make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)),
      make("div", { class: "row" }, pushing),
      make("p", {}, "log-sum-exp ", shows("lse"), sizes ? [", trace of the Jacobian ", shows("trace")] : []),
      make("table", { class: "jacobian" },
        make("caption", {}, "How fast each weight (row) changes with each score (column)"),
        make("thead", {}, make("tr", {}, make("td"), columns)), make("tbody", {}, cells)),
    ];
  }

  style_ = ".wide{width:40%}.wide input{display:block}.jacobian{table-layout:fixed;font-size:.56rem}.jacobian th{letter-spacing:-.02em;padding-right:0}";

  numbers(state) {
    const scores = pushed(state);
    const weights = softmax(scores);
    const trace = 1 - dot(weights, weights);
    const out = { lse: logSumExp(scores), trace, temperature: state.temperature, size: 2 ** state.size };
    scores.forEach((score, i) => {
      out[`scores.${i}`] = score;
      out[`weights.${i}`] = weights[i];
      scores.forEach((_, j) => {
        out[`jacobian.${i}.${j}`] = weights[i] * ((i === j) - weights[j]);
      });
    });
    return out;
  }

  paint(numbers) {
    this.bars(numbers);
    for (const cell of this.live.querySelectorAll(".jacobian td[data-n]")) {
      cell.style.background = shade(4 * Math.abs(numbers[cell.dataset.n]));
    }
  }

  /** Who has most and, after a move, who gained and who paid. */
  sentence(numbers, state, { tokens, sizes }) {
    const weights = tokens.map((_, i) => numbers[`weights.${i}`]);
    const by = weights.map((w, i) => w - (this.was ?? weights)[i]);
    this.was = weights;
    const most = weights.indexOf(Math.max(...weights));
    const [gains, pays] = [by.indexOf(Math.max(...by)), by.indexOf(Math.min(...by))];
    const held = `${tokens[most]} has the largest weight, ${weights[most].toFixed(4)}.`;
    if (sizes) return `${held} Trace of the Jacobian ${numbers.trace.toFixed(4)}: ${["almost nothing", "little", "much"][(numbers.trace > 0.01) + (numbers.trace > 0.2)]} is left to learn from.`;
    if (by[gains] < 5e-5) return held;
    return `${tokens[gains]} gained ${by[gains].toFixed(4)}; ${tokens[pays]} paid most, ${(-by[pays]).toFixed(4)}. ${held}`;
  }
}

customElements.get("explore-softmax") ?? customElements.define("explore-softmax", Softmax);
