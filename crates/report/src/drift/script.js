"use strict";
const table = document.querySelector("table.drift");
const search = document.getElementById("search");
const sort = document.getElementById("sort");
const count = document.getElementById("count");
const numbers = (text) => (text === "" ? [] : text.split(" ").map(Number));
const features = Array.from(table.tBodies, (body) => ({
  body,
  index: Number(body.dataset.index),
  change: numbers(body.dataset.change),
  certainty: numbers(body.dataset.certainty),
  firing: numbers(body.dataset.firing),
  words: Array.from(body.querySelectorAll("mark"), (mark) => mark.textContent.toLowerCase()),
}));

// What a feature is sorted by, largest first.
function key(feature) {
  const [by, of] = sort.value.split(":");
  if (by === "index") return -feature.index;
  if (of === "all") return Math.max(...feature.change.map(Math.abs));
  const value = feature[by === "rise" || by === "fall" ? "change" : by][Number(of)];
  return by === "change" ? Math.abs(value) : by === "fall" ? -value : value;
}

function order() {
  const keyed = features.map((feature) => [key(feature), feature]);
  keyed.sort(([a, f], [b, g]) => b - a || f.index - g.index);
  table.append(...keyed.map(([, feature]) => feature.body));
}

function filter() {
  const query = search.value.toLowerCase();
  const number = /^\s*#?\d+\s*$/.test(query) ? Number(query.replace("#", "")) : null;
  // A space at the start is part of many tokens; anything else around the query is not meant.
  const word = query.trim() === "" ? "" : query.trimEnd();
  let found = 0;
  for (const feature of features) {
    const matches =
      word === "" || feature.index === number || feature.words.some((text) => text.includes(word));
    feature.body.hidden = !matches;
    found += matches;
  }
  count.textContent = `${found} of ${features.length} features`;
  document.getElementById("none").hidden = found > 0;
}

search.oninput = filter;
sort.onchange = order;
document.getElementById("controls").hidden = false;
// A browser may have kept the values of an earlier visit.
order();
filter();
