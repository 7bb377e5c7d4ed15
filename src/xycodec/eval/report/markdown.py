"""The report as Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from xycodec.eval.report.statistics import Estimate
from xycodec.eval.report.tables import CodecRow, Group, Tables
from xycodec.eval.results import ORIGINAL, Metric

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}


def make_markdown(tables: Tables) -> str:
    """Every table of the report but those by speaker. Intervals are those of 95 %."""
    title_of = {codec.name: codec.title for codec in tables.codecs}
    parts = [
        [f"# {_plain(tables.title)}", *(f"**Warning: {_plain(line)}.**" for line in tables.warnings), _about(tables)],
        ["## Overall", _overall(tables)],
        ["## By source", *(_by_source(tables, metric) for metric in tables.metrics)] if len(tables.sources) > 1 else [],
        _differences(tables, title_of),
        _expected(tables, title_of),
        _sections(tables),
        ["## Missing", _missing(tables, title_of)],
        _words(tables, title_of),
        ["## Speed and codes", _codes(tables)],
        ["## Protocol", _facts(tables)],
    ]
    return "\n\n".join(block for part in parts for block in part) + "\n"


def _about(tables: Tables) -> str:
    group = tables.overall
    drawn = f"intervals of 95 % by jackknife and t over {group.units} {group.unit}s"
    arrows = f"{ARROWS['higher']} higher is better, {ARROWS['lower']} lower is better"
    return f"{group.clips} clips, {group.seconds:.1f} s, {len(tables.sources)} sources; {drawn}. {arrows}."


def _overall(tables: Tables) -> str:
    heads = ["codec", "kbit/s", *(_head(metric) for metric in tables.metrics)]
    rows = (
        [
            codec.title,
            _number(codec.bitrate, 1000),
            *(_estimate(tables.overall, codec.name, metric) for metric in tables.metrics),
        ]
        for codec in tables.codecs
    )
    return _table(heads, rows)


def _by_source(tables: Tables, metric: Metric) -> str:
    rows = (
        [group.name, str(group.clips), *(_estimate(group, codec.name, metric) for codec in tables.codecs)]
        for group in tables.sources
    )
    return f"{_head(metric)}\n\n" + _table(["source", "clips", *(codec.title for codec in tables.codecs)], rows)


def _differences(tables: Tables, title_of: dict[str, str]) -> Iterator[str]:
    if not tables.differences or tables.baseline is None:
        return
    yield f"## Against {_plain(title_of[tables.baseline])}"
    yield "Over the clips that have the metric of both: each codec less this one, and how many clips are better."
    rows = (
        [
            title_of[codec],
            metric.title,
            f"{found.value:+.{metric.digits}f}{_interval(found.low, found.high, metric.digits, '+')}",
            f"{found.better:.0%}",
            f"{found.equal:.0%}",
            str(found.clips),
        ]
        for codec, differences in tables.differences.items()
        for metric in tables.metrics
        if (found := differences.get(metric.name))
    )
    yield _table(["codec", "metric", "difference", "better", "equal", "clips"], rows)


def _expected(tables: Tables, title_of: dict[str, str]) -> Iterator[str]:
    if not tables.expected:
        return
    yield "## Expected values"
    yield f"From {_plain(tables.expected_source or 'an unnamed source')}."
    metrics = {metric.name: metric for metric in tables.metrics}
    rows = (
        [
            title_of[one.codec],
            metrics[one.metric].title,
            *(f"{value:{form}}" if value is not None else "-" for value, form in values),
        ]
        for one in tables.expected
        for digits in [metrics[one.metric].digits]
        for values in [((one.expected, f".{digits}f"), (one.measured, f".{digits}f"), (one.difference, f"+.{digits}f"))]
    )
    yield _table(["codec", "metric", "expected", "measured", "difference"], rows)


def _sections(tables: Tables) -> Iterator[str]:
    for section in tables.sections:
        yield f"## {_plain(section.title)}"
        yield _table(section.heads, section.rows)
        if section.note:
            yield _plain(section.note)


def _missing(tables: Tables, title_of: dict[str, str]) -> str:
    if not tables.gaps:
        return "Nothing: every clip has every metric of every codec."
    metrics = {metric.name: metric.title for metric in tables.metrics}
    rows = (
        [
            title_of[gap.codec],
            "the whole clip" if gap.metric is None else metrics[gap.metric],
            str(gap.clips),
            gap.reason,
            ", ".join(gap.examples) + (", ..." if gap.clips > len(gap.examples) else ""),
        ]
        for gap in tables.gaps
    )
    return _table(["codec", "what", "clips", "why", "which"], rows)


def _words(tables: Tables, title_of: dict[str, str]) -> Iterator[str]:
    if not tables.words:
        return
    yield "## Words"
    yield "References: text, or, for clips without one, what the same recogniser hears in the original."
    rows = (
        [
            title_of[one.codec],
            "text" if one.reference == "text" else "heard in the original",
            str(one.clips),
            _rate(one.wer),
            _rate(one.wer_capped),
            str(one.looped),
        ]
        for one in tables.words
    )
    yield _table(["codec", "reference", "clips", "WER", "WER capped", "looped"], rows)
    yield "Looped: clips of which the recogniser repeated itself, and was asked again (see the protocol)."


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _codes(tables: Tables) -> str:
    heads = ["codec", "model", "Hz", "encode", "decode", "parameters", "codes used", "entropy, bits", "coded, kbit/s"]
    rows = (
        [
            codec.title,
            codec.model,
            _number(codec.frame_rate),
            _number(codec.encode_speed, ending=" x"),
            _number(codec.decode_speed, ending=" x"),
            _number(codec.parameters, 1e6, " M"),
            *_use(codec),
            _number(codec.entropy_bitrate, 1000),
        ]
        for codec in tables.codecs
        if codec.name != ORIGINAL
    )
    note = "Speeds are seconds of audio per second. Codes used and entropy are those of each codebook in turn."
    return f"{_table(heads, rows)}\n\n{note}"


def _use(codec: CodecRow) -> tuple[str, str]:
    used = " ".join(f"{100 * book.used:.0f}" for book in codec.codebooks)
    entropy = " ".join(f"{book.entropy_bits:.2f}" for book in codec.codebooks)
    return (f"{used} %" if used else "-"), entropy or "-"


def _facts(tables: Tables) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in tables.versions.items())
    facts = {**tables.protocol, "machine": tables.machine, "versions": versions}
    facts |= {metric.title: metric.about for metric in tables.metrics}
    return "\n".join(f"* {_plain(name)}: {_plain(words)}" for name, words in facts.items())


# ---- cells -------------------------------------------------------------------------------------


def _head(metric: Metric) -> str:
    return f"{metric.title} {ARROWS[metric.better]}"


def _estimate(group: Group, codec: str, metric: Metric) -> str:
    found: Estimate | None = group.scores[codec].get(metric.name)
    if found is None:
        return f"- (n 0 of {group.clips})"
    lacking = f" (n {found.clips} of {group.clips})" if found.clips < group.clips else ""
    return f"{found.value:.{metric.digits}f}{_interval(found.low, found.high, metric.digits)}{lacking}"


def _interval(low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    return "" if low is None or high is None else f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def _number(value: float | None, unit: float = 1, ending: str = "") -> str:
    return "-" if value is None else f"{value / unit:.4g}{ending}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Put text on one line, without what Markdown or HTML would take for a sign."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{sign}" if sign in "\\|`*" else sign for sign in text)
