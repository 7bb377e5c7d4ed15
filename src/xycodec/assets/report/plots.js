// Bars with intervals, and quality over rate.

const OPINION = new Set(["pesq_wb", "pesq_nb", "utmos", "dnsmos"]); // scales that begin at 1

const share = (part, low, high) => `${(100 * part) / (high - low || 1)}%`;
const place = (value, low, high) => share(value - low, low, high);
const track = (...children) => h("div", { class: "track" }, ...children);
const zero = (value, low, high) => h("div", { class: "zero", style: { left: place(value, low, high) } });
const span = (one, low, high) => {
  if (one.low === null) return null;
  return h("div", {
    class: "span",
    style: { left: place(one.low, low, high), width: share(one.high - one.low, low, high) },
  });
};

const bars = (metric) => {
  const ones = tables.codecs.map((codec) => [codec, scoreOf(tables.overall, codec, metric)]).filter(([, one]) => one);
  const ends = ones.flatMap(([, one]) => [one.value, one.low ?? one.value, one.high ?? one.value]);
  const origin = OPINION.has(metric.name) ? 1 : 0;
  const [low, high] = [Math.min(origin, ...ends), Math.max(origin, ...ends)];
  const bar = ([codec, one]) => {
    const [left, width] = [Math.min(origin, one.value), Math.abs(one.value - origin)];
    const fill = { left: place(left, low, high), width: share(width, low, high) };
    return h("div", {
      class: "bar",
      title: `${codec.title}: ${interval(one, metric.digits)}, ${count(one.clips, "clip")}`,
      "--color": colour.get(codec.name) ?? "var(--soft)",
    },
      h("span", {}, codec.title),
      track(
        h("div", { class: "fill", style: fill }),
        low < origin ? zero(origin, low, high) : null,
        span(one, low, high),
      ),
      h("span", {}, fixed(one.value, metric.digits)));
  };
  return panel(`${metric.title}, ${metric.better} is better`,
    ones.length ? ones.map(bar) : note("No clip has this metric."),
    note(`Bars begin at ${origin}; the thin line is the 95\u2009% interval.`));
};

// ---- quality over rate ----

const [LEFT, BOTTOM, HEIGHT, NARROW] = [46, 44, 400, 520];
const TICKS = [100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000];
const WAYS = [[1, 0.35], [-1, 0.35], [0, -1], [0, 1.5], [0.8, -0.7], [0.8, 1.2], [-0.8, -0.7], [-0.8, 1.2]];
const AROUND = [10, 26, 42, 60, 80].flatMap((far) => WAYS.map((way) => [far, ...way]));

const measuredPoints = (metric) =>
  measured.filter((codec) => codec.bitrate && scoreOf(tables.overall, codec, metric)).map((codec) => ({
    name: codec.title,
    rate: codec.bitrate,
    colour: colour.get(codec.name),
    ...scoreOf(tables.overall, codec, metric),
  }));
const publishedPoints = (metric) =>
  tables.published.filter((point) => point.bitrate && metric.name in point.values).map((point) => ({
    name: point.codec,
    rate: point.bitrate,
    value: point.values[metric.name],
    low: null,
    high: null,
    source: `${point.source}; ${point.data}`,
  }));

const scales = (points, width) => {
  const rates = points.map((point) => Math.log(point.rate));
  const ends = points.flatMap((point) => [point.value, point.low ?? point.value, point.high ?? point.value]);
  const [left, right] = [Math.min(...rates) - 0.35, Math.max(...rates) + 0.35];
  const reach = Math.max(...ends) - Math.min(...ends) || Math.abs(ends[0]) || 1;
  const [low, high] = [Math.min(...ends) - 0.08 * reach, Math.max(...ends) + 0.08 * reach];
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => (high - low) / size <= 6);
  const first = Math.ceil(low / step);
  return {
    x: (rate) => LEFT + ((Math.log(rate) - left) / (right - left)) * (width - LEFT - 12),
    y: (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - BOTTOM - 14),
    ticks: TICKS.filter((rate) => Math.log(rate) > left && Math.log(rate) < right),
    levels: [0, 1, 2, 3, 4, 5, 6].map((index) => (first + index) * step).filter((level) => level <= high),
    digits: Math.max(0, -Math.floor(Math.log10(step))),
    holds: (value) => value > low && value < high,
  };
};

// A label stands beside its point, or at the nearest free place within `reach`, with a line to it; where all are
// taken, only the tooltip names the point.
const overlap = (one, two) => one[0] < two[2] && one[2] > two[0] && one[1] < two[3] && one[3] > two[1];
const label = (taken, px, py, name, width, reach) => {
  const length = name.length * 6.7 + 4;
  for (const [far, right, down] of AROUND.filter(([far]) => far <= reach)) {
    const [x, y] = [px + far * right, py + far * down + (far > 10 ? 4 : 0)];
    const start = right > 0 ? x : right < 0 ? x - length : x - length / 2;
    const box = [start, y - 11, start + length, y + 3];
    const inside = box[0] >= LEFT && box[2] <= width && box[1] >= 4 && box[3] <= HEIGHT - BOTTOM;
    if (inside && !taken.some((other) => overlap(box, other))) {
      taken.push(box);
      const ends = { x1: px, y1: py, x2: x, y2: down < 0 ? y + 2 : y - 5 };
      const anchor = right > 0 ? "start" : right < 0 ? "end" : "middle";
      const line = far > 10 ? s("line", { class: "leader", ...ends }) : null;
      return [line, s("text", { x, y, "text-anchor": anchor }, name)];
    }
  }
  return [];
};

const plot = (metric, points, width) => {
  if (!points.length) return note("No codec has both a rate and this metric.");
  const { x, y, ticks, levels, digits, holds } = scales(points, width);
  const taken = points.map((point) => [
    x(point.rate) - 6, y(point.high ?? point.value) - 6, x(point.rate) + 6, y(point.low ?? point.value) + 6,
  ]);
  const mark = (point) => {
    const [px, py] = [x(point.rate), y(point.value)];
    const from = point.source ? `published (${point.source})` : interval(point, metric.digits);
    const tip = `${point.name}: ${fixed(point.value, metric.digits)} at ${kilobits(point.rate)} kbit/s, ${from}`;
    const far = point.source ? (width < NARROW ? 10 : 42) : 80;
    return s("g", { class: point.source ? null : "named", "--color": point.colour ?? "" },
      s("title", {}, tip),
      label(taken, px, py, point.name, width, far),
      point.low === null ? null
        : s("line", { class: "interval", x1: px, x2: px, y1: y(point.low), y2: y(point.high) }),
      point.source ? s("path", { class: "published", d: `M${px} ${py - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z` })
        : s("circle", { class: "measured", cx: px, cy: py, r: 6.5 }));
  };
  const across = { x1: LEFT, x2: width - 4 };
  const level = (value) => [
    s("line", { class: "grid", ...across, y1: y(value), y2: y(value) }),
    s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, fixed(value, digits)),
  ];
  const tick = (rate) => [
    s("line", { class: "grid", x1: x(rate), x2: x(rate), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 5 }),
    s("text", { x: x(rate), y: HEIGHT - 24, "text-anchor": "middle" }, String(rate / 1000)),
  ];
  const original = tables.overall.scores[ORIGINAL]?.[metric.name]?.value;
  return s("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": `${metric.title} over bitrate`,
  },
    levels.map(level),
    ticks.map(tick),
    s("text", { x: width - 4, y: HEIGHT - 6, "text-anchor": "end" }, "kbit/s, logarithmic"),
    original !== undefined && holds(original)
      ? s("line", { class: "original", ...across, y1: y(original), y2: y(original) },
        s("title", {}, `original: ${fixed(original, metric.digits)}`))
      : null,
    points.map(mark));
};

const rates = (metric) => {
  const [here, papers] = [measuredPoints(metric), publishedPoints(metric)];
  const frame = h("div");
  const toggle = h("input", { type: "checkbox", checked: "" });
  const draw = () => {
    const points = [...here, ...(toggle.checked ? papers : [])];
    frame.replaceChildren(plot(metric, points, Math.max(260, frame.clientWidth)));
  };
  toggle.addEventListener("change", draw);
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(frame);
  const legend = h("div", { class: "legend" },
    h("span", {}, "\u25cf measured here"),
    h("label", {}, toggle, " \u25c7 published: other data, other protocol"));
  return panel(`${metric.title} over bitrate`, frame, papers.length ? legend : null);
};
