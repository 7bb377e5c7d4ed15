"""Numbers that papers report, to set beside measured ones."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class PublishedPoint:
    """A codec as a paper measured it: on other clips, and often by other rules."""

    codec: str
    bitrate: float | None
    """Bits a second."""
    frame_rate: float | None
    values: dict[str, float]
    """Values by metric, as in `xycodec.eval.results`; also `probe_wer`, and `abx_within` and `abx_across` in %."""
    source: str
    """The paper."""
    data: str
    protocol: str


@cache
def published_points() -> tuple[PublishedPoint, ...]:
    """Every point of `assets/report/published.yaml`, in its order."""
    text = files("xycodec").joinpath("assets/report/published.yaml").read_text(encoding="utf-8")
    points = []
    for group in yaml.safe_load(text):
        where = {name: group[name] for name in ("source", "data", "protocol")}
        for row in group["points"]:
            heads = {"codec": row.pop("codec"), **{name: row.pop(name, None) for name in ("bitrate", "frame_rate")}}
            points.append(PublishedPoint(**heads, values=row, **where))
    return tuple(points)
