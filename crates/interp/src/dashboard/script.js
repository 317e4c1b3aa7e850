"use strict";
const { tokens, features } = JSON.parse(document.getElementById("data").textContent);
const MOST_ROWS = 400;
const columns = { index: 0, density: 1, max: 2, mean: 3, promoted: 4, suppressed: 5, bars: 6, examples: 7 };
const rows = document.getElementById("rows");
const panel = document.getElementById("feature");
const search = document.getElementById("search");
const state = { sort: columns.density, up: false, selected: null };

// Sets text content only, never markup: tokens are untrusted.
function element(name, text, properties = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return Object.assign(made, properties);
}

// A token in a list: spaces at its ends, which would not be seen, are marked.
function shown(token) {
  const marked = tokens[token].replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  return marked === "" ? "(empty)" : marked;
}

function number(x) {
  return x === 0 ? "0" : Math.abs(x) < 0.001 ? x.toExponential(1) : x.toPrecision(3);
}

// What a search matches: the promoted tokens and the strongest token of each excerpt.
const words = features.map((f) => {
  const promoted = f[columns.promoted].map(([token]) => token);
  const fired = f[columns.examples].map(([places, , strongest]) => places[strongest]);
  return [...promoted, ...fired].map((token) => tokens[token].toLowerCase());
});

function matches(position, query) {
  if (query === "") return true;
  if (/^\d+$/.test(query)) return features[position][columns.index] === Number(query);
  return words[position].some((word) => word.includes(query));
}

function list() {
  const query = search.value.trim().toLowerCase();
  const found = features.map((_, position) => position).filter((position) => matches(position, query));
  const sign = state.up ? 1 : -1;
  found.sort((a, b) => sign * (features[a][state.sort] - features[b][state.sort]) || a - b);
  rows.replaceChildren(...found.slice(0, MOST_ROWS).map(row));
  const listed = Math.min(found.length, MOST_ROWS);
  document.getElementById("count").textContent =
    `${found.length} of ${features.length} features` + (listed < found.length ? `, the first ${listed} shown` : "");
  for (const button of document.querySelectorAll("[data-sort]")) {
    if (Number(button.dataset.sort) === state.sort) button.dataset.order = state.up ? "up" : "down";
    else delete button.dataset.order;
  }
  return found;
}

function row(position) {
  const f = features[position];
  const made = element("tr", undefined, { tabIndex: 0 });
  made.setAttribute("aria-selected", position === state.selected);
  made.append(
    element("td", f[columns.index]),
    element("td", `${(100 * f[columns.density]).toPrecision(3)} %`),
    element("td", number(f[columns.max])),
    element("td", number(f[columns.mean])),
    element("td", f[columns.promoted].slice(0, 3).map(([token]) => shown(token)).join("  ")),
  );
  made.onclick = () => show(position);
  made.onkeydown = (event) => event.key === "Enter" && show(position);
  return made;
}

function logits(title, pairs) {
  const part = element("div");
  const entries = element("ol");
  for (const [token, logit] of pairs) {
    const entry = element("li");
    entry.append(element("code", shown(token)), element("span", logit.toFixed(3)));
    entries.append(entry);
  }
  part.append(element("h3", title), entries);
  return part;
}

function histogram(bars) {
  const most = Math.max(1, ...bars.map(([, count]) => count));
  const part = element("div");
  const chart = element("div", undefined, { className: "bars" });
  for (const [middle, count] of bars) {
    const bar = element("div", undefined, { title: `${number(middle)}: ${count} tokens` });
    bar.style.height = `${(100 * count) / most}%`;
    chart.append(bar);
  }
  const axis = element("div", undefined, { className: "axis" });
  const ends = [bars[0], bars[bars.length - 1]];
  if (bars.length > 0) axis.append(...ends.map(([middle]) => element("span", number(middle))));
  part.append(element("h3", "Non-zero activations"), chart, axis);
  return part;
}

function example([places, active, strongest], max) {
  const line = element("p", undefined, { className: "text", dir: "auto" });
  const values = new Map();
  for (let i = 0; i < active.length; i += 2) values.set(active[i], active[i + 1]);
  places.forEach((token, position) => {
    const span = element("span", tokens[token]);
    const value = values.get(position) ?? 0;
    span.title = `${shown(token)}: ${number(value)}`;
    if (value > 0) span.style.backgroundColor = `rgb(var(--heat-rgb) / ${0.12 + (0.68 * value) / max})`;
    if (position === strongest) span.className = "strongest";
    line.append(span);
  });
  return line;
}

function show(position) {
  state.selected = position;
  const f = features[position];
  const title = element("h2", `Feature ${f[columns.index]}`);
  const facts = element(
    "p",
    `active on ${(100 * f[columns.density]).toPrecision(3)} % of tokens · max ${number(f[columns.max])} · mean ${number(f[columns.mean])} where active`,
  );
  const pair = element("div", undefined, { className: "pair" });
  pair.append(logits("Promotes", f[columns.promoted]), logits("Suppresses", f[columns.suppressed]));
  const texts = f[columns.examples].map((excerpt) => example(excerpt, f[columns.max]));
  const heading = element("h3", texts.length > 0 ? "Strongest excerpts" : "Active on none of the tokens read");
  panel.replaceChildren(title, facts, histogram(f[columns.bars]), pair, heading, ...texts);
  history.replaceState(null, "", `#${f[columns.index]}`);
  list();
}

search.oninput = list;
for (const button of document.querySelectorAll("[data-sort]")) {
  button.onclick = () => {
    const sort = Number(button.dataset.sort);
    state.up = state.sort === sort ? !state.up : sort === columns.index;
    state.sort = sort;
    list();
  };
}
const named = features.findIndex((f) => `#${f[columns.index]}` === location.hash);
const first = list()[0];
if (named >= 0 || first !== undefined) show(named >= 0 ? named : first);
