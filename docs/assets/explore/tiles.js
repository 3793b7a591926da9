// Scores made and forgotten a tile at a time: what a strip of queries carries, and what is held.
import { Explorable, dot, make, shade, shows, sum } from "./base.js";

const STRIPS = [1, 2, 3];
const TILES = [1, 2, 3, 6];
const cut = (n, size) =>
  Array.from({ length: Math.ceil(n / size) }, (_, t) => Array.from({ length: Math.min(size, n - t * size) }, (_, i) => t * size + i));

/** The tiles that are made, in their order, and how many are skipped. */
const plan = ({ n_q, n_k, last, causal }, { names, tokens }) => {
  const tiles = cut(tokens.length, TILES[n_k]);
  if (last) tiles.reverse();
  const all = cut(names.length, STRIPS[n_q]).flatMap((rows) => tiles.map((cols) => ({ rows, cols })));
  const hidden = ({ rows, cols }) => causal && cols[0] > rows.at(-1);
  return { made: all.filter((tile) => !hidden(tile)), skipped: all.filter(hidden) };
};

/** One query takes in its tiles; `factor` is how much the last of them shrank what was there. */
const carry = (tiles, values) =>
  tiles.reduce(({ largest, total, mixed }, { scores, cols }) => {
    const most = Math.max(largest, ...scores);
    if (most === -Infinity) return { largest, total, mixed, factor: "" };
    const factor = Math.exp(largest - most);
    const powers = scores.map((s) => Math.exp(s - most));
    return {
      largest: most,
      factor: total ? factor : "",
      total: factor * total + sum(powers),
      mixed: factor * mixed + dot(powers, cols.map((j) => values[j][0])),
    };
  }, { largest: -Infinity, total: 0, mixed: 0, factor: "" });

class Tiles extends Explorable {
  called({ names }) {
    return names.length > 1 ? "Attention in tiles" : "Online softmax, tile by tile";
  }

  how({ names }) {
    return names.length > 1
      ? "Take in one tile after another. How many scores are there at a time, and what is carried on?"
      : "Take in one tile after another. What happens to all that was counted, when a larger score comes?";
  }

  start({ n_q, n_k }) {
    return { at: 1, n_q: STRIPS.indexOf(n_q), n_k: TILES.indexOf(n_k), last: true, causal: false };
  }

  /** With other tiles one begins again, at the first. */
  set(change) {
    const next = { ...this.state, ...change };
    if (Object.keys(next).some((key) => key !== "at" && next[key] !== this.state[key])) next.at = 1;
    super.set({ ...next, at: Math.max(0, Math.min(next.at, plan(next, this.given).made.length)) });
  }

  build({ names, tokens }) {
    const go = (by, label) => make("button", { type: "button", "aria-label": label, onclick: () => this.set({ at: this.state.at + by }) }, label);
    this.slider = this.control("at", "tile", { type: "range", min: 0, step: 1 }, { hidden: true });
    const head = (texts) => make("thead", {}, make("tr", {}, texts.map((text) => make(text ? "th" : "td", text ? { scope: "col" } : {}, text))));
    const cell = (i, j) => make("td", { "data-at": `${i} ${j}` }, shows(`score.${i}.${j}`), shows(`count.${i}.${j}`, 2));
    const grid = names.map((name, i) => make("tr", { "data-query": i }, make("th", { scope: "row" }, name), tokens.map((_, j) => cell(i, j))));
    const carried = names.map((name, i) =>
      make("tr", { "data-query": i }, make("th", { scope: "row" }, name),
        ["largest", "factor", "sum", "mix", "out"].map((what) => shows(`${what}.${i}`, 4, "td"))));
    const many = names.length > 1;
    return [
      make("div", { class: "row" }, go(-1, "previous tile"), go(1, "next tile"), this.slider,
        make("span", {}, shows("at", 0), " of ", shows("tiles", 0), many ? [", skipped: ", shows("skipped", 0)] : [])),
      make("div", { class: "row" },
        many ? this.choice("n_q", "queries in a strip", STRIPS) : [], this.choice("n_k", "keys in a tile", TILES),
        this.control("last", "last tile first", { type: "checkbox" }), many ? this.control("causal", "causal", { type: "checkbox" }) : []),
      make("table", { class: "grid" },
        make("caption", {}, "Framed, the scores of the tile. Below, what each key met counts for: e^(score − largest)"),
        head(["", ...tokens]), make("tbody", {}, grid)),
      make("table", { class: "carried" },
        make("caption", {}, "What is carried on (of the mix, the first number)"),
        head(["query", "largest", "factor", "sum", "mix", "mix / sum"]), make("tbody", {}, carried)),
      make("p", {}, "Held: ", shows("scores", 0), " scores, which the exponentials replace, and ", shows("state", 0), " numbers carried on: ",
        shows("bytes", 0), " bytes. All scores at once: ", shows("table", 0), ", ", shows("table_bytes", 0), " bytes; of 4096 words ", shows("long"), ", with no more held than here."),
    ];
  }

  style_ = `.grid,.carried{table-layout:fixed}.grid{font-size:.56rem}.grid thead th{padding-right:.2em;letter-spacing:-.02em}.grid th:first-child{padding:0}
    .grid td{padding:.15em .2em;height:1.2em;border:1px solid color-mix(in srgb,var(--figure-faint) 25%,transparent)}
    .grid td span{display:block}.grid .strip span{min-height:1.45em}.grid .strip th{color:var(--figure-ink)}
    .grid thead td{border:0}.carried :is(td,th){padding-inline:0 .15em}.out{color:var(--figure-faint)}
    @media(max-width:30em){.live{padding:.5rem .4rem}.grid td{padding-inline:0 .1em}.grid :is(td,th):first-child{width:15%}.grid thead th{padding:0}.carried{font-size:.6rem}.carried :is(td,th):first-child{width:17%}.said{min-height:4.4em}}`;

  numbers(state, given) {
    const { names, tokens, query, key, value, scale } = given;
    const { made, skipped } = plan(state, given);
    const { rows, cols } = made[Math.max(state.at, 1) - 1];
    const met = made.slice(0, state.at).filter((tile) => tile.rows === rows);
    const scored = (i, j) => (state.causal && j > i ? -Infinity : scale * dot(query[i], key[j]));
    const scores = state.at ? rows.length * cols.length : 0;
    const carries = rows.length * (value[0].length + 2);
    const table = names.length * tokens.length;
    const out = {
      at: state.at, tiles: made.length, skipped: skipped.length, scores, state: carries, bytes: 4 * (scores + carries),
      table, table_bytes: 4 * table, long: names.length > 1 ? `${(4 * 4096 ** 2) / 2 ** 20} MiB` : `${(4 * 4096) / 2 ** 10} KiB`,
    };
    names.forEach((_, i) => {
      const here = rows.includes(i);
      const now = carry(here ? met.map((tile) => ({ ...tile, scores: tile.cols.map((j) => scored(i, j)) })) : [], value);
      const shown = { largest: now.total ? now.largest : "none", factor: now.factor, sum: now.total, mix: now.mixed, out: now.total ? now.mixed / now.total : 0 };
      for (const [what, x] of Object.entries(shown)) out[`${what}.${i}`] = here ? x : "";
      tokens.forEach((_, j) => {
        const has = (tile) => tile.rows.includes(i) && tile.cols.includes(j);
        const current = here && state.at && cols.includes(j);
        out[`score.${i}.${j}`] = current ? scored(i, j) : skipped.some(has) ? "skip" : "";
        out[`count.${i}.${j}`] = here && met.some(has) ? (now.total ? Math.exp(scored(i, j) - now.largest) : 0) : "";
      });
    });
    return out;
  }

  paint(numbers, state, given) {
    const { made } = plan(state, given);
    const { rows, cols } = made[Math.max(state.at, 1) - 1];
    this.slider.max = made.length;
    this.slider.value = state.at;
    for (const row of this.live.querySelectorAll("[data-query]")) {
      const here = rows.includes(Number(row.dataset.query));
      if (row.closest(".grid")) row.classList.toggle("strip", here);
      else row.hidden = !here;
    }
    for (const cell of this.live.querySelectorAll("[data-at]")) {
      const [i, j] = cell.dataset.at.split(" ").map(Number);
      const count = numbers[`count.${i}.${j}`];
      const skip = numbers[`score.${i}.${j}`] === "skip";
      cell.classList.toggle("out", skip);
      cell.style.background = skip ? "" : count !== "" ? shade(count) : i < rows[0] ? shade(0.3) : "";
      const edges = [[j === cols[0], "2px 0"], [j === cols.at(-1), "-2px 0"], [i === rows[0], "0 2px"], [i === rows.at(-1), "0 -2px"]];
      const framed = state.at && rows.includes(i) && cols.includes(j);
      cell.style.boxShadow = framed ? edges.filter(([is]) => is).map(([, to]) => `inset ${to} var(--figure-accent)`).join() : "";
    }
  }

  sentence(numbers, state, given) {
    if (!state.at) return "Nothing is met yet.";
    const { made } = plan(state, given);
    const { rows, cols } = made[state.at - 1];
    const shrunk = rows.filter((i) => numbers[`factor.${i}`] !== "" && numbers[`factor.${i}`] < 1).map((i) => `${given.names[i]} × ${numbers[`factor.${i}`].toFixed(4)}`);
    const said = `Taken in: ${cols.map((j) => given.tokens[j]).join(", ")}.`;
    const kept = rows.some((i) => numbers[`factor.${i}`] !== "") ? " No larger score: what was carried stays." : "";
    const change = shrunk.length ? ` What was carried shrank: ${shrunk.join(", ")}.` : kept;
    return said + change + (made[state.at]?.rows === rows ? "" : " All is met: mix / sum is the output.");
  }
}

customElements.get("explore-tiles") ?? customElements.define("explore-tiles", Tiles);
