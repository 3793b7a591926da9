// One row of numbers, cut into heads: each adds up its own products and has its own weights.
import { Explorable, dot, make, mix, shade, shows, softmax } from "./base.js";

const TINTS = ["#0b6bcb", "#d07a10", "#2f8f46", "#a545b5"];
const tint = (h) => `color-mix(in srgb, ${TINTS[h % TINTS.length]} 17%, transparent)`;

class Heads extends Explorable {
  called() {
    return "Heads, to cut";
  }

  how({ query }) {
    return `Cut the ${query[0].length} numbers into one head, two or four. Do the heads look at the same word?`;
  }

  start({ asks, meets, heads }) {
    return { asks, meets, heads };
  }

  build({ tokens, query }) {
    const places = query[0].map((_, d) => d);
    const row = (name, ...label) =>
      make("tr", {}, make("th", { scope: "row" }, ...label), places.map((d) => shows(`${name}.${d}`, 4, "td", { "data-place": d })));
    // What a head has one of spans its numbers; paint() says how far.
    const wide = (name, ...label) =>
      make("tr", {}, make("th", { scope: "row" }, ...label), places.map((h) => shows(`${name}.${h}`, 4, "td", { "data-head": h })));
    const titles = () =>
      make("thead", {}, make("tr", {}, make("td"), places.map((h) => make("th", { "data-head": h, scope: "colgroup" }, `head ${h + 1}`))));
    this.cuts = places.filter((h) => places.length % (h + 1) === 0).map((h) =>
      make("button", { type: "button", "aria-label": h ? `${h + 1} heads` : "1 head", onclick: () => this.set({ heads: h + 1 }) }, `${h + 1}`));
    const rows = places.map((h) =>
      make("tr", { "data-row": h }, make("th", { scope: "row" }, `head ${h + 1}`), tokens.map((_, j) => shows(`weights.${h}.${j}`, 3, "td"))));
    return [
      make("div", { class: "row" },
        this.choice("asks", "query", tokens),
        make("div", { class: "row", role: "group", "aria-label": "heads" }, "heads", this.cuts),
        this.choice("meets", "key", tokens)),
      make("table", { class: "cut" }, titles(), make("tbody", {},
        row("query", "query ", shows("asks")), row("key", "key ", shows("meets")), row("product", "product"),
        wide("sum", "sum"), wide("score", "sum / √", shows("size", 0)))),
      make("table", { class: "weights" },
        make("caption", {}, "The weights of ", shows("asks"), ": each row adds up to 1 by itself"),
        make("thead", {}, make("tr", {}, make("td"), tokens.map((token, j) => make("th", { scope: "col", "data-key": j }, token)))),
        make("tbody", {}, rows)),
      make("table", { class: "cut" }, make("caption", {}, "The results, side by side"), titles(), make("tbody", {}, row("out", "context"))),
      make("p", {}, "Heads times numbers in each: ", shows("heads", 0), " · ", shows("size", 0), " = ", shows("width", 0),
        ", and as many products for each pair of words; ", shows("n_weights", 0), " weights for ", shows("asks"), "."),
    ];
  }

  style_ = `.cut,.weights{table-layout:fixed}.cut{border-collapse:separate;border-spacing:0}.cut thead th{text-align:center;padding:.1em}
    .cut td{padding:.1em .2em;text-align:center}.cut :is([data-place],[data-head]){border-left:.3rem solid transparent;background-clip:padding-box}
    .cut th:first-child,.cut thead td{width:22%}
    .weights{font-size:.56rem}.weights thead th{padding-right:0;padding-inline:0 .2em;letter-spacing:-.02em}.weights .met{color:var(--figure-ink);text-decoration:underline}
    @media(max-width:30em){.live{padding:.5rem .4rem}.cut{font-size:.56rem}.weights td{padding-inline:0 .1em}.weights th{padding:0}.said{min-height:4.4em}}
    button[aria-pressed=true]{background:${shade(0.6)};font-weight:700}`;

  numbers({ asks, meets, heads }, { tokens, query, key, value }) {
    const width = query[0].length;
    const size = width / heads;
    const out = { asks: tokens[asks], meets: tokens[meets], heads, size, width, n_weights: heads * tokens.length };
    for (let h = 0; h < width; h++) {
      const own = (row) => row.slice(h * size, (h + 1) * size);
      const there = h < heads;
      const scores = key.map((k) => dot(own(query[asks]), own(k)) / Math.sqrt(size));
      const weights = softmax(scores);
      if (there) mix(weights, value.map(own)).forEach((x, d) => (out[`out.${h * size + d}`] = x));
      out[`sum.${h}`] = there ? dot(own(query[asks]), own(key[meets])) : "";
      out[`score.${h}`] = there ? scores[meets] : "";
      weights.forEach((w, j) => (out[`weights.${h}.${j}`] = there ? w : ""));
      out[`query.${h}`] = query[asks][h];
      out[`key.${h}`] = key[meets][h];
      out[`product.${h}`] = query[asks][h] * key[meets][h];
    }
    return out;
  }

  paint(numbers, { heads, meets }) {
    const { size } = numbers;
    this.cuts.forEach((cut) => cut.setAttribute("aria-pressed", Number(cut.textContent) === heads));
    for (const cell of this.live.querySelectorAll("[data-place]")) {
      const d = Number(cell.dataset.place);
      cell.style.backgroundColor = tint(Math.floor(d / size));
      cell.style.borderLeftWidth = d % size ? 0 : "";
    }
    for (const cell of this.live.querySelectorAll("[data-head]")) {
      cell.hidden = cell.dataset.head >= heads;
      cell.colSpan = size;
      cell.style.backgroundColor = tint(cell.dataset.head);
    }
    for (const row of this.live.querySelectorAll("[data-row]")) {
      row.hidden = row.dataset.row >= heads;
      row.cells[0].style.background = tint(row.dataset.row);
      for (const cell of [...row.cells].slice(1)) cell.style.background = shade(1.5 * numbers[cell.dataset.n]);
    }
    for (const cell of this.live.querySelectorAll("[data-key]")) cell.classList.toggle("met", Number(cell.dataset.key) === meets);
  }

  sentence(numbers, { heads }, { tokens }) {
    const looks = Array.from({ length: heads }, (_, h) => {
      const row = tokens.map((_, j) => numbers[`weights.${h}.${j}`]);
      const most = Math.max(...row);
      return `head ${h + 1} at ${tokens[row.indexOf(most)]} (${most.toFixed(2)})`;
    });
    return `${numbers.asks} looks most: ${looks.join(", ")}.`;
  }
}

customElements.get("explore-heads") ?? customElements.define("explore-heads", Heads);
