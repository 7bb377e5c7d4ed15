// The data, elements, words for numbers, and tables whose heads sort them.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const tables = read("tables");
const listen = read("listen");
const page = document.getElementById("page");
const ORIGINAL = "original";
const codecs = new Map(tables.codecs.map((codec) => [codec.name, codec]));
const metrics = new Map(tables.metrics.map((metric) => [metric.name, metric]));
const measured = tables.codecs.filter((codec) => codec.name !== ORIGINAL);
const colour = new Map(measured.map((codec, index) => [codec.name, `var(--c${index % 8})`]));

// ---- elements: text is always a text node, so no name can become markup ----

const build = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
};
const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const note = (...children) => h("p", { class: "note" }, ...children);
const section = (title, ...children) => h("section", {}, h("h2", {}, title), ...children);
const panel = (title, ...children) => h("div", { class: "panel" }, h("h3", {}, title), ...children);
const facts = (entries) =>
  h("dl", { class: "facts" }, entries.map(([name, words]) => [h("dt", {}, name), h("dd", {}, words)]));

// ---- words ----

const MINUS = "\u2212";
const DASH = "\u2013";
const fixed = (value, digits) => value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", MINUS);
const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
const interval = (one, digits, word = fixed) =>
  one.low === null ? "no interval" : `${word(one.low, digits)} to ${word(one.high, digits)}`;
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(100 * share)}\u2009%`;
const kilobits = (bits) => (bits >= 99500 ? String(Math.round(bits / 1000)) : (bits / 1000).toPrecision(3));
const speed = (times) => `${times >= 10 ? Math.round(times).toLocaleString("en") : times.toPrecision(2)}\u00d7`;
const millions = (number) => `${(number / 1e6).toPrecision(3)} M`;
const duration = (seconds) => {
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
};
const title = (name) => codecs.get(name).title;
const named = (name) => [
  colour.has(name) ? h("span", { class: "key", "--color": colour.get(name) }) : null,
  title(name),
];
const about = (metric) => `${metric.about} ${metric.better === "higher" ? "Higher" : "Lower"} is better.`;

// ---- tables ----

const order = (index, sign) => ({ cells: a }, { cells: b }) => {
  const [left, right] = [a[index].sort, b[index].sort];
  // What has no value stays last, whichever way.
  if (left === null || right === null) return (left === null) - (right === null);
  return sign * (typeof left === "string" ? left.localeCompare(right, "en", { numeric: true }) : left - right);
};

// columns: {title, about, number, descending}, the last for heads that first sort downwards.
// rows: {cells, reference}; a cell: {sort, show, class}.
const table = (caption, columns, rows) => {
  const heads = columns.map((column, index) =>
    h("th", { scope: "col", class: column.number ? "number" : null, title: column.about ?? null },
      h("button", { type: "button", onclick: () => sort(index) }, column.title)));
  const cell = (one, index) =>
    h(index ? "td" : "th", {
      class: [columns[index].number ? "number" : "", one.class ?? ""].join(" ").trim() || null,
      scope: index ? null : "row",
    }, one.show);
  const shown = rows.map(({ cells, reference }) => ({
    cells,
    row: h("tr", { class: reference ? "reference" : null }, cells.map(cell)),
  }));
  const body = h("tbody", {}, shown.map(({ row }) => row));
  const sort = (index) => {
    const turned = { ascending: "descending", descending: "ascending" }[heads[index].getAttribute("aria-sort")];
    const way = turned ?? (columns[index].descending ? "descending" : "ascending");
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", way);
    const sorted = [...shown].sort(order(index, way === "ascending" ? 1 : -1));
    body.append(...sorted.map(({ row }) => row));
  };
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body));
};

const words = (name, extra = {}) => ({ title: name, ...extra });
const numbers = (name, extra = {}) => ({ title: name, number: true, ...extra });
const text = (shown, extra = {}) => ({ sort: shown || null, show: shown || DASH, ...extra });
const wide = (shown) => text(shown, { class: "wide" });
const number = (value, word) =>
  value === null || value === undefined ? { sort: null, show: DASH } : { sort: value, show: word(value) };
const codecCell = (name) => ({ sort: title(name), show: named(name) });
const metricColumn = (metric) =>
  numbers(`${metric.title} ${metric.better === "higher" ? "\u25b2" : "\u25bc"}`, {
    about: about(metric),
    descending: metric.better === "higher",
  });

// ---- estimates ----

const scoreOf = (group, codec, metric) => group.scores[codec.name][metric.name] ?? null;
const bestOf = (group, metric) => {
  const values = measured.map((codec) => scoreOf(group, codec, metric)?.value).filter(Number.isFinite);
  return metric.better === "higher" ? Math.max(...values) : Math.min(...values);
};
const estimateCell = (group, codec, metric) => {
  const one = scoreOf(group, codec, metric);
  const lacks = h("span", { class: "small lacks" }, `n ${one?.clips ?? 0} of ${group.clips}`);
  if (!one) return { sort: null, show: [DASH, lacks] };
  const best = codec.name !== ORIGINAL && one.value === bestOf(group, metric);
  return {
    sort: one.value,
    show: [
      h("span", { class: best ? "best" : null }, fixed(one.value, metric.digits)),
      h("span", { class: "small" }, interval(one, metric.digits)),
      one.clips < group.clips ? lacks : null,
    ],
  };
};
