// Two arrows turned by their places: the score knows the distance, as long as both are paired alike.
import { Explorable, clamp, dot, make, shows, sum } from "./base.js";

const PAIRINGS = ["interleaved", "half"];
const WORDS = ["query", "key"];
const ON = 10;

/** Which two numbers make pair i. */
const pair = (i, size, pairing) => (pairing ? [i, i + size / 2] : [2 * i, 2 * i + 1]);

const turn = (x, place, speeds, factor, pairing) => {
  const out = [...x];
  speeds.forEach((speed, i) => {
    const [a, b] = pair(i, x.length, pairing);
    const [cos, sin] = [factor * Math.cos(place * speed), factor * Math.sin(place * speed)];
    out[a] = x[a] * cos - x[b] * sin;
    out[b] = x[a] * sin + x[b] * cos;
  });
  return out;
};

class Rotary extends Explorable {
  called({ rules }) {
    return rules ? "Four turned pairs, stretched and mixed" : "Two turned arrows, to move";
  }

  how({ rules }) {
    return rules
      ? "Which rules keep all four pairs to angles that training showed? Then pair the query otherwise than the key: what does the score know now?"
      : "Move one word, then both. When does the score change?";
  }

  start({ places: [query, key] }) {
    return { query, key, rule: 0, query_pairing: 0, key_pairing: 0 };
  }

  build({ words, places, speeds, rules, pairs }) {
    const most = rules ? Math.max(...places) : 30;
    const move = WORDS.flatMap((word, w) => [
      make("span", {}, `${words[w]} at`),
      this.control(word, `place of ${words[w]}`, { type: "range", min: 0, max: most, step: 1 }, { hidden: true }),
      this.control(word, `place of ${words[w]} as a number`, { type: "number", min: 0, max: rules ? 2 * most : 999, step: 1 }, { hidden: true }),
    ]);
    const arrow = (kind) => make("g", { class: kind }, make("line"), make("circle", { r: 2.4 }));
    this.planes = speeds[0].map((_, i) => {
      const labels = rules ? [] : words.map((word) => make("text", { "text-anchor": "middle" }, word));
      const svg = make("svg", { viewBox: "-60 -60 120 120", role: "img" },
        make("path", { class: "axis", d: "M-58 0H58M0-58V58" }), arrow("query ghost"), arrow("key ghost"), arrow("query"), arrow("key"), labels);
      return make("div", {}, rules ? `pair ${pairs[i]}` : "", svg, rules ? shows(`numbers.${i}`) : "");
    });
    const vector = (word) => ["(", shows(`${word}.0`), ", ", shows(`${word}.1`), ")"];
    const head = ["pair", "slowed", "turns", "in training", "angles", "score"];
    const rows = rules && pairs.map((number, i) =>
      make("tr", {}, make("th", { scope: "row" }, number),
        shows(`slowed.${i}`, 2, "td"), shows(`turns.${i}`, 2, "td"), shows(`trained.${i}`, 3, "td"), shows(`angles.${i}`, 0, "td"), shows(`scores.${i}`, 4, "td")));
    return [
      make("div", { class: "places" }, move),
      rules ? make("div", { class: "row" },
        this.choice("rule", "stretched by", rules),
        this.choice("query_pairing", "query paired", PAIRINGS),
        this.choice("key_pairing", "key paired", PAIRINGS)) : "",
      make("div", { class: "planes" }, this.planes),
      make("p", { class: "how" }, `Solid ${words[0]}, dashed ${words[1]}, faint at place 0${rules ? "; below, which of the eight numbers" : ""}.`),
      rules ? make("table", {},
        make("caption", {}, "How often each pair comes round over the distance, and over a text of training"),
        make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, rows))
        : make("p", {}, ...vector("query"), " · ", ...vector("key"), " = ", shows("score")),
      make("p", {}, `${words[0]} at `, shows("at.query", 0), `, ${words[1]} at `, shows("at.key", 0), ", key less query ", shows("distance", 0), ": score ", shows("score"), ". Both ten places on: ", shows("later"), "."),
      make("button", { type: "button", onclick: () => this.set({ query: this.state.query + ON, key: this.state.key + ON }) }, "Move both by 10"),
      " ",
    ];
  }

  style_ = `.places{display:grid;grid-template-columns:auto 1fr auto;gap:.3em .7em;align-items:center;margin-bottom:.4em}.places input[type=number]{width:5.6em}
    .planes{display:flex;gap:.5rem;justify-content:center;margin-top:.5em;text-align:center;font-size:.56rem}.planes div{flex:0 1 10rem;min-width:0}
    .planes svg{width:100%}svg text{font-size:6px}.axis{stroke:color-mix(in srgb,var(--figure-faint) 40%,transparent);stroke-width:.6}
    g line{stroke-width:2;vector-effect:non-scaling-stroke}.query{stroke:var(--figure-accent);fill:var(--figure-accent)}.key{stroke:var(--figure-ink);fill:var(--figure-ink)}
    .key line{stroke-dasharray:5 3}.ghost{opacity:.3}.ghost circle{display:none}td{padding:.1em .15em}.new{color:var(--figure-accent);font-weight:600}`;

  /** Query and key at places that lie so many further on. */
  turned(s, given, on = 0) {
    return WORDS.map((word) => turn(given[word], s[word] + on, given.speeds[s.rule], given.factors[s.rule], s[`${word}_pairing`]));
  }

  numbers(s, given) {
    const [query, key] = this.turned(s, given);
    const distance = s.key - s.query;
    const out = { "at.query": s.query, "at.key": s.key, distance, score: dot(query, key), later: dot(...this.turned(s, given, ON)) };
    [0, 1].forEach((d) => Object.assign(out, { [`query.${d}`]: query[d], [`key.${d}`]: key[d] }));
    given.speeds[s.rule].forEach((speed, i) => {
      const [first, second] = [s.query_pairing, s.key_pairing].map((pairing) => pair(i, query.length, pairing));
      const turns = (Math.abs(distance) * speed) / (2 * Math.PI);
      // the speeds are given to six digits
      const trained = (given.length * given.speeds[0][i]) / (2 * Math.PI);
      Object.assign(out, {
        [`numbers.${i}`]: first.join() === second.join() ? first.join(", ") : `${first.join(", ")} and ${second.join(", ")}`,
        [`slowed.${i}`]: given.speeds[0][i] / speed,
        [`turns.${i}`]: turns,
        [`trained.${i}`]: trained,
        [`angles.${i}`]: trained < 1 && turns > trained * (1 + 1e-5) ? "new" : "known",
        [`scores.${i}`]: sum(first.map((d) => query[d] * key[d])),
      });
    });
    return out;
  }

  paint(numbers, s, given) {
    const size = given.query.length;
    const reach = Math.max(...WORDS.flatMap((word) => given.speeds[0].flatMap((_, i) =>
      PAIRINGS.map((_, p) => Math.hypot(...pair(i, size, p).map((d) => given[word][d]))))));
    const turned = this.turned(s, given);
    this.planes.forEach((plane, i) => {
      const angles = WORDS.map((word, w) => {
        const [a, b] = pair(i, size, s[`${word}_pairing`]);
        const place = (x) => [(46 * x[a]) / reach, (-46 * x[b]) / reach];
        [given[word], turned[w]].forEach((x, moved) => {
          const arrow = plane.querySelector(`.${word}${moved ? ":not(.ghost)" : ".ghost"}`);
          const [x2, y2] = place(x);
          Object.entries({ x1: 0, y1: 0, x2, y2 }).forEach(([k, v]) => arrow.firstChild.setAttribute(k, v));
          Object.entries({ cx: x2, cy: y2 }).forEach(([k, v]) => arrow.lastChild.setAttribute(k, v));
          const label = moved && plane.querySelectorAll("text")[w];
          const past = 1 / Math.hypot(x2, y2);
          if (label) Object.entries({ x: clamp(x2 * (1 + 14 * past), -50, 50), y: y2 * (1 + 8 * past) + 2 }).forEach(([k, v]) => label.setAttribute(k, v));
        });
        return `${given.words[w]} turned by ${(s[word] * given.speeds[s.rule][i]).toFixed(2)} radians`;
      });
      plane.querySelector("svg").setAttribute("aria-label", angles.join(", "));
    });
    for (const cell of this.live.querySelectorAll("[data-n^=angles]")) cell.classList.toggle("new", cell.textContent === "new");
  }

  /** What the last move did to the score, and which pairs meet angles that no training showed. */
  sentence(numbers, s, { rules, pairs }) {
    const { score, later } = numbers;
    const before = this.was ?? score;
    this.was = score;
    const [was, is] = [before, score].map((x) => x.toFixed(4).replace("-", "−"));
    const moved = was === is ? "" : `The score was ${was} and is ${is}. `;
    const fresh = rules ? pairs.filter((_, i) => numbers[`angles.${i}`] === "new") : [];
    const met = rules ? (fresh.length ? `New angles at pair ${fresh.join(" and ")}. ` : "All four pairs keep to known angles. ") : "";
    if (s.query_pairing === s.key_pairing) return `${moved}${met}Ten places on, the score is the same: it knows the distance alone.`;
    const still = s.query && s.key ? "" : " (At place 0 nothing is turned, however it is paired.)";
    return `${moved}${met}Paired in two ways, the score is another ten places on.${still}`;
  }
}

customElements.get("explore-rotary") ?? customElements.define("explore-rotary", Rotary);
