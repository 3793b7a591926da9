// Rules of who sees whom, put together: the grid, the tiles that may be skipped, and the code for it.
import { Explorable, make, shade, shows } from "./base.js";

const SIDE = 2; // queries and keys of a tile; a kernel's has 64 or 128
const RULES = { causal: "causal", window: "sliding_window", first: "first_tokens", prefix: "prefix_lm", second: "document", real: "padding" };
const NAMES = [...Object.values(RULES), "shift"].sort();

/** What each rule has when it is off. */
const off = (n) => ({ causal: false, window: 0, first: 0, prefix: 0, second: 0, real: n });

const sees = (s, q, k) =>
  (!s.causal || k <= q || k < s.prefix) &&
  ((!s.window && !s.first) || (k <= q && q - k < s.window) || k < s.first) &&
  q >= s.second === k >= s.second &&
  k < s.real;

/** True or false for each query that is asked, from the first on, and each key. */
const table = (s, n) =>
  Array.from({ length: n - s.start }, (_, i) => Array.from({ length: n }, (_, k) => sees(s, s.start + i, k)));

/** For each pair, whether its tile is hidden wholly. Tiles count from the first query that is asked. */
const skipped = (grid) => {
  const tile = (i, k) => `${Math.floor(i / SIDE)} ${Math.floor(k / SIDE)}`;
  const needed = new Set(grid.flatMap((row, i) => row.flatMap((seen, k) => (seen ? [tile(i, k)] : []))));
  return grid.map((row, i) => row.map((_, k) => !needed.has(tile(i, k))));
};

/** Rules that are on and change nothing. Without `causal` there is no prefix, so that goes first. */
const idle = (s, n) => {
  const grid = String(table(s, n));
  const on = Object.entries(off(n)).filter(([rule, none]) => s[rule] !== none && (s.causal || rule !== "prefix"));
  const same = on.filter(([rule, none]) => !(rule === "causal" && s.prefix) && String(table({ ...s, [rule]: none }, n)) === grid);
  return same.map(([rule]) => RULES[rule]).join(", ") || "none";
};

const code = (s, n) => {
  const near = [s.window && `sliding_window(${s.window})`, s.first && `first_tokens(${s.first})`].filter(Boolean);
  const rules = [
    s.causal && (s.prefix ? `prefix_lm(${s.prefix})` : "causal"),
    near.length > 1 ? `or_masks(${near.join(", ")})` : near[0],
    s.second && "document(ids)",
    s.real < n && "padding(lengths)",
  ].filter(Boolean);
  const line = `mask = ${rules.length > 1 ? `and_masks(${rules.join(", ")})` : rules[0] ?? "None"}`;
  const body = [
    s.second && `ids = torch.tensor([${Array.from({ length: n }, (_, k) => Number(k >= s.second)).join(", ")}])`,
    s.real < n && `lengths = torch.tensor([${s.real}])`,
    line.length > 79 ? `mask = and_masks(\n    ${rules.join(",\n    ")},\n)` : line,
    s.start && rules.length && `mask = shift(mask, q=${s.start}, kv=0)`,
  ].filter(Boolean).join("\n");
  const from = (where, names) => {
    const used = names.filter((name) => body.includes(name));
    return used.length && `from ${where} import ${used.join(", ")}`;
  };
  const head = [
    body.includes("torch.") && "import torch",
    from("attention", NAMES),
    from("torch.nn.attention.flex_attention", ["and_masks", "or_masks"]),
  ].filter(Boolean);
  return head.length ? `${head.join("\n")}\n\n${body}` : body;
};

class Masks extends Explorable {
  called() {
    return "Masks, to put together";
  }

  how() {
    return "Change the rules. Which of them leave a tile (a heavy frame) with no pair to see, so that a kernel need not compute it?";
  }

  /** The mask of the page: a window of three, and the first token. */
  start({ tokens }) {
    return { ...off(tokens.length), causal: true, window: 3, first: 1, start: 0 };
  }

  build({ tokens }) {
    const n = tokens.length;
    const slide = (path, label, max) => [
      make("span", {}, label),
      this.control(path, label, { type: "range", min: 0, max, step: 1 }, { hidden: true }),
      shows(path, 0),
    ];
    const rows = tokens.map((token, q) =>
      make("tr", {}, make("th", { scope: "row" }, token), tokens.map((_, k) => shows(`cell.${q}.${k}`, 0, "td", { "data-q": q, "data-k": k }))));
    const columns = tokens.map((token) => make("th", { scope: "col" }, token));
    this.code = shows("code", 0, "code");
    return [
      make("div", { class: "sides" },
        make("div", { class: "rules" },
          this.control("causal", "causal", { type: "checkbox" }),
          slide("prefix", "prefix, read both ways", n),
          slide("window", "window", n),
          slide("first", "first tokens", n),
          slide("second", "second text from", n - 1),
          slide("real", "real keys", n),
          slide("start", "queries from", n - 1)),
        make("table", {},
          make("caption", {}, "Queries (rows) and keys: 1 seen, 0 hidden, – skipped"),
          make("thead", {}, make("tr", {}, make("td"), columns)), make("tbody", {}, rows))),
      make("p", {}, "Of ", shows("pairs", 0), " pairs ", shows("seen", 0), " are seen, ", shows("wasted", 0), " computed and hidden, ",
        shows("spared", 0), " skipped with ", shows("skipped", 0), " of ", shows("tiles", 0), " tiles."),
      make("p", {}, "Could be left out, for the same grid: ", shows("idle", 0), "."),
      make("pre", {}, this.code),
      make("button", { type: "button", onclick: () => this.copy() }, "Copy the code"),
    ];
  }

  style_ = `.sides{display:flex;flex-wrap:wrap;gap:.4rem 1.2rem}.sides>*{flex:1 1 13rem;min-width:0}
    .rules{display:grid;grid-template-columns:auto minmax(3rem,1fr) 4.1em;gap:0 .6em;align-items:center;align-content:start}.rules label{grid-column:1/4}
    table{table-layout:fixed;font-size:.56rem}th{padding:0;letter-spacing:-.02em}
    td,thead th:not(:first-child){text-align:center}tbody td{height:1.3rem;padding:0;border:1px solid color-mix(in srgb,var(--figure-faint) 30%,transparent)}
    .top{border-top:2px solid var(--figure-ink)}.left{border-left:2px solid var(--figure-ink)}.right{border-right:2px solid var(--figure-ink)}.bottom{border-bottom:2px solid var(--figure-ink)}
    .gone{background:repeating-linear-gradient(135deg,transparent 0 3px,color-mix(in srgb,var(--figure-faint) 25%,transparent) 3px 4px);color:var(--figure-faint)}
    .unasked{visibility:hidden}.unasked td{border-color:transparent}pre{white-space:pre-wrap;font-size:.6rem;margin:.5em 0;min-height:5.8em}`;

  async copy() {
    try {
      await navigator.clipboard.writeText(this.code.textContent);
      this.said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(this.code); // where a page may not write there
    }
  }

  numbers(s, { tokens }) {
    const n = tokens.length;
    const grid = table(s, n);
    const gone = skipped(grid);
    const count = (cells) => cells.flat().filter(Boolean).length;
    const across = Math.ceil(n / SIDE);
    const [pairs, seen, spared] = [grid.length * n, count(grid), count(gone)];
    const out = {
      pairs, seen, spared, wasted: pairs - seen - spared, code: code(s, n), idle: idle(s, n),
      tiles: Math.ceil(grid.length / SIDE) * across,
      skipped: count(gone.map((row, i) => row.map((x, k) => x && i % SIDE === 0 && k % SIDE === 0))),
      window: s.window || "off", first: s.first || "off", prefix: (s.causal && s.prefix) || "off",
      second: s.second ? tokens[s.second] : "off", real: s.real < n ? s.real : "all", start: tokens[s.start],
    };
    tokens.forEach((_, q) => tokens.forEach((_, k) => {
      const i = q - s.start;
      out[`cell.${q}.${k}`] = i < 0 ? "" : grid[i][k] ? "1" : gone[i][k] ? "–" : "0";
    }));
    return out;
  }

  paint(numbers, s, { tokens }) {
    const last = tokens.length - 1;
    this.live.querySelector("[data-state=prefix]").disabled = !s.causal;
    for (const cell of this.live.querySelectorAll("[data-q]")) {
      const [q, k] = [Number(cell.dataset.q), Number(cell.dataset.k)];
      const classes = { gone: cell.textContent === "–", top: (q - s.start) % SIDE === 0, left: k % SIDE === 0, right: k === last, bottom: q === last };
      for (const [name, is] of Object.entries(classes)) cell.classList.toggle(name, is);
      cell.style.background = cell.textContent === "1" ? shade(1) : "";
      cell.parentElement.classList.toggle("unasked", q < s.start);
    }
  }

  sentence(numbers, s, { tokens }) {
    const grid = String(table(s, tokens.length)) + s.start;
    const same = grid === this.was ? "The same pairs as before. " : "";
    this.was = grid;
    const alone = !s.window && s.first ? `No window: of what is before, the first ${s.first} alone. ` : "";
    const seen = (q) => tokens.filter((_, k) => numbers[`cell.${q}.${k}`] === "1");
    const blind = tokens.filter((_, q) => q >= s.start && seen(q).length === 0);
    const last = tokens.length - 1;
    return blind.length
      ? `${same}${alone}Nothing to see, and zeros for an output: ${blind.join(", ")}.`
      : `${same}${alone}${tokens[last]} sees ${seen(last).join(", ")}.`;
  }
}

customElements.get("explore-masks") ?? customElements.define("explore-masks", Masks);
