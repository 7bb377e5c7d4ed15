// The sections of the page, in their order.

const overview = () => {
  const all = tables.overall;
  const perSecond = { about: "Seconds of audio per second of wall time.", descending: true };
  const has = ([field]) => tables.codecs.some((codec) => codec[field] !== null);
  const before = [
    ["bitrate", numbers("kbit/s", { about: "Measured over the clips, without any container." }), kilobits],
    ["entropy_bitrate", numbers("coded", { about: "kbit/s that an adaptive entropy coder would reach." }), kilobits],
    ["frame_rate", numbers("Hz", { about: "Code frames a second." }), (rate) => String(Number(rate.toFixed(2)))],
  ].filter(has);
  const after = [
    ["encode_speed", numbers("encode", perSecond), speed],
    ["decode_speed", numbers("decode", perSecond), speed],
    ["parameters", numbers("parameters"), millions],
  ].filter(has);
  const head = ([, column]) => column;
  const columns = [words("codec"), ...before.map(head), ...tables.metrics.map(metricColumn), ...after.map(head)];
  const row = (codec) => {
    const cell = ([field, , word]) => number(codec[field], word);
    const name = { sort: codec.title, show: [named(codec.name), h("span", { class: "small" }, codec.model)] };
    const scores = tables.metrics.map((metric) => estimateCell(all, codec, metric));
    return { cells: [name, ...before.map(cell), ...scores, ...after.map(cell)], reference: codec.name === ORIGINAL };
  };
  const drawn = all.units < 2 ? `no intervals, since there is only one ${all.unit}`
    : `95\u2009% intervals by bootstrap over ${count(all.units, all.unit)}`;
  return h("section", {}, table("All codecs over all clips", columns, tables.codecs.map(row)),
    note(`Under each value: ${drawn}. Bold: the best codec. \u25b2 higher is better, \u25bc lower. n: fewer than all `
      + `clips have the metric; \u201cMissing\u201d says why. Speeds are of this machine: ${tables.machine}.`));
};

const verdictOf = (one, metric) => {
  if (one.low === null || (one.low <= 0 && one.high >= 0)) return "not told apart";
  return one.value > 0 === (metric.better === "higher") ? "better" : "worse";
};

const differences = (metric) => {
  const found = (codec) => tables.differences[codec.name]?.[metric.name];
  const ones = measured.filter(found).map((codec) => [codec.name, found(codec)]);
  if (!ones.length) return null;
  const reach = Math.max(...ones.flatMap(([, one]) => [one.value, one.low, one.high].map(Math.abs))) || 1;
  const row = ([name, one]) => {
    const verdict = verdictOf(one, metric);
    const dot = h("div", { class: "dot", style: { left: place(one.value, -reach, reach) } });
    const drawing = track(zero(0, -reach, reach), span(one, -reach, reach), dot);
    const mark = { better: "up", worse: "down" }[verdict] ?? null;
    const range = h("span", { class: "small" }, interval(one, metric.digits, signed));
    return { cells: [
      codecCell(name),
      { sort: one.value, show: [signed(one.value, metric.digits), range] },
      { sort: one.value, class: "wide", show: h("div", { "--color": colour.get(name) }, drawing) },
      { sort: verdict, show: h("span", { class: mark }, verdict) },
      number(one.better, percent),
      number(one.equal, percent),
      number(one.clips, String),
    ] };
  };
  const columns = [
    words("codec"), numbers("difference", { descending: true }), words(`${MINUS} 0 +`, { descending: true }),
    words("verdict"), numbers("clips better", { descending: true }), numbers("equal"), numbers("clips"),
  ];
  const base = title(tables.baseline);
  return h("section", {},
    h("h3", {}, `${metric.title} against ${base}, on the clips both have`),
    table(`Differences in ${metric.title}`, columns, ones.map(row)),
    note(`Each codec less ${base}, with the 95\u2009% interval over the same resamples for both. `
      + "Better or worse is said where the interval leaves out 0."));
};

const breakdown = (metric, kind, groups, total) => {
  if (groups.length < 2) return null;
  const descending = metric.better === "higher";
  const columns = [
    words(kind), numbers("clips", { descending: true }),
    ...tables.codecs.map((codec) => numbers(codec.title, { descending })),
  ];
  const rows = groups.map((group) => ({ cells: [
    text(group.name), number(group.clips, String), ...tables.codecs.map((codec) => estimateCell(group, codec, metric)),
  ] }));
  const units = [...new Set(groups.map((group) => `${group.unit}s`))].join(" or ");
  const rest = total > groups.length ? ` ${groups.length} of ${total}: those with the most clips; ` : "";
  return h("section", {},
    h("h3", {}, `${metric.title} by ${kind}`),
    table(`${metric.title} by ${kind}`, columns, rows),
    note(`Intervals draw ${units}.`, rest, rest ? "report.json has them all." : ""));
};

const byMetric = () => {
  const area = h("div");
  const show = (metric) => {
    const parts = [
      note(about(metric)),
      h("div", { class: "pair" }, bars(metric), rates(metric)),
      differences(metric),
      breakdown(metric, "source", tables.sources, tables.sources.length),
      breakdown(metric, "speaker", tables.speakers, tables.speaker_count),
    ];
    area.replaceChildren(...parts.filter((part) => part !== null));
  };
  const chip = (metric, index) => {
    const checked = index ? null : "";
    const radio = { type: "radio", name: "metric", value: metric.name, checked, onchange: () => show(metric) };
    return h("label", {}, h("input", radio), metric.title);
  };
  show(tables.metrics[0]);
  const legend = h("legend", { class: "hidden" }, "Metric");
  return section("By metric", h("fieldset", { class: "chips" }, legend, tables.metrics.map(chip)), area);
};

const expectations = () => {
  if (!tables.expected.length) return null;
  const row = (one) => {
    const { title: name, digits } = metrics.get(one.metric);
    return { cells: [
      codecCell(one.codec),
      text(name),
      number(one.expected, (value) => fixed(value, digits)),
      number(one.measured, (value) => fixed(value, digits)),
      number(one.difference, (value) => signed(value, digits)),
    ] };
  };
  const columns = [
    words("codec"), words("metric"), numbers("expected"), numbers("measured"), numbers("difference"),
  ];
  return section("Expected values",
    table("Expected and measured", columns, tables.expected.map(row)),
    note(`Expected values are from: ${tables.expected_source || "no source was given"}.`));
};

const gaps = () => {
  if (!tables.gaps.length) return section("Missing", note("Nothing: every clip has every metric of every codec."));
  const row = (gap) => {
    const what = gap.metric ? metrics.get(gap.metric).title : "the whole clip";
    const which = gap.examples.join(", ") + (gap.clips > gap.examples.length ? ", \u2026" : "");
    return { cells: [codecCell(gap.codec), text(what), number(gap.clips, String), wide(gap.reason), wide(which)] };
  };
  const columns = [words("codec"), words("what"), numbers("clips", { descending: true }), words("why"), words("which")];
  return section("Missing",
    note(`Of ${count(tables.overall.clips, "clip")}. What is missing counts in no average.`),
    table("Missing values", columns, tables.gaps.map(row)));
};

const wordErrors = () => {
  if (!tables.words.length) return null;
  const row = (one) => ({ cells: [
    codecCell(one.codec),
    text(one.reference === "text" ? "text" : "heard in the original"),
    number(one.clips, String),
    number(one.wer, (value) => fixed(value, 3)),
    number(one.wer_capped, (value) => fixed(value, 3)),
    number(one.looped, String),
  ] });
  const columns = [
    words("codec"), words("reference"), numbers("clips"), numbers("WER"), numbers("WER capped"),
    numbers("looped", { about: "Clips of which the recogniser repeated itself, and was asked again." }),
  ];
  return section("Words",
    note("References: text, or, for clips without one, what the same recogniser hears in the original."),
    table("Word errors by reference", columns, tables.words.map(row)));
};

const warnings = () =>
  tables.warnings.length ? h("div", {}, tables.warnings.map((line) => h("p", { class: "lacks" }, `Warning: ${line}.`))) : null;

const sections = () => {
  const one = ({ title: name, heads, rows, note: below }) => section(name,
    table(name, heads.map((head) => words(head)), rows.map((row) => ({ cells: row.map((cell) => text(cell)) }))),
    below ? note(below) : null);
  return tables.sections.length ? h("div", {}, tables.sections.map(one)) : null;
};

const codebooks = () => {
  const used = measured.filter((codec) => codec.codebooks.length);
  if (!used.length) return null;
  const books = (codec, height, tip) => {
    const book = (one, index) =>
      h("div", { "--share": `${100 * height(one)}%`, title: `codebook ${index + 1}: ${tip(one)}` });
    return h("div", { class: "books", "--color": colour.get(codec.name) }, codec.codebooks.map(book));
  };
  const shown = (codec) => {
    const mean = (field) => codec.codebooks.reduce((sum, book) => sum + book[field], 0) / codec.codebooks.length;
    const most = Math.max(...codec.codebooks.map((book) => book.entropy_bits)) || 1;
    return panel(named(codec.name),
      note(`${percent(mean("used"))} of the codes occur, mean of ${count(codec.codebooks.length, "codebook")}`),
      books(codec, (book) => book.used, (book) => percent(book.used)),
      note(`${mean("entropy_bits").toFixed(2)} bits of entropy a code; the highest bar has ${most.toFixed(2)}`),
      books(codec, (book) => book.entropy_bits / most, (book) => `${book.entropy_bits.toFixed(2)} bits`));
  };
  return section("Codebooks",
    h("div", { class: "players" }, used.map(shown)),
    note("One bar for each codebook, the first at the left. Few clips leave codes unused that many would use."));
};

const published = () => {
  if (!tables.published.length) return null;
  const shown = tables.metrics.filter((metric) => tables.published.some((point) => metric.name in point.values));
  const columns = [
    words("codec"), numbers("kbit/s"), numbers("Hz"), ...shown.map(metricColumn),
    words("source"), words("measured on"), words("how"),
  ];
  const rows = tables.published.map((point) => ({ cells: [
    text(point.codec),
    number(point.bitrate, kilobits),
    number(point.frame_rate, String),
    ...shown.map((metric) => number(point.values[metric.name], (value) => fixed(value, 2))),
    wide(point.source),
    wide(point.data),
    wide(point.protocol),
  ] }));
  return section("Published",
    note("What papers report. Other clips and other protocols than above: for orientation, not for a ranking."),
    table("Published numbers", columns, rows));
};

const protocol = () => {
  const versions = Object.entries(tables.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  return section("Protocol",
    facts([...Object.entries(tables.protocol), ["machine", tables.machine], ["versions", versions]]),
    h("h3", {}, "Metrics"),
    facts(tables.metrics.map((metric) => [metric.title, about(metric)])));
};

const lead = () => h("p", { class: "lead" }, [
  count(measured.length, "codec"),
  `${count(tables.overall.clips, "clip")}, ${duration(tables.overall.seconds)}`,
  count(tables.sources.length, "source"),
  tables.speaker_count ? count(tables.speaker_count, "named speaker") : "no named speakers",
].join(" \u00b7 "));

const parts = [
  lead, warnings, overview, byMetric, listening, expectations, sections, gaps, wordErrors, codebooks, published, protocol,
];
page.append(...parts.map((part) => part()).filter((part) => part !== null));
