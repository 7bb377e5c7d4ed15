"""The report as one HTML page that needs nothing beside it: its tables are drawn by a script from data within."""

import html
import json
from dataclasses import asdict, replace
from importlib.resources import files
from string import Template
from typing import Any

from xycodec.eval.report.listen import ListenClip
from xycodec.eval.report.tables import Tables

SHOWN_SPEAKERS = 40

_SCRIPTS = ("elements.js", "plots.js", "listen.js", "report.js")


def make_page(tables: Tables, clips: tuple[ListenClip, ...]) -> str:
    """HTML in UTF-8, without any address outside of itself. Of many speakers it has the 40 with the most clips."""
    speakers = sorted(tables.speakers, key=lambda group: -group.clips)[:SHOWN_SPEAKERS]
    shown = replace(tables, speakers=tuple(sorted(speakers, key=lambda group: group.name)))
    return Template(_asset("page.html")).substitute(
        title=html.escape(tables.title),
        style=_asset("report.css"),
        script="\n".join(map(_asset, _SCRIPTS)),
        tables=_embedded(shown.to_dict()),
        listen=_embedded([asdict(clip) for clip in clips]),
    )


def _asset(name: str) -> str:
    return files("xycodec").joinpath("assets", "report", name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that ends no script element and begins no comment, whatever names it holds."""
    return json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
