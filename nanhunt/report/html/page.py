"""The report as one HTML file: it opens offline, sends no request, and runs no script but its own.

How it works. What can be said is there as markup, and is read without a script. What is drawn (curves, heat map, a
tensor's history) the page draws itself, from two data blocks: the JSON report, and the series (`block`). Its policy,
`default-src 'none'`, allows by hash the one style and the one script that were written into it, so that markup which got
out of a name could neither run nor fetch anything; that it cannot get out is `element`'s part.

What it leaves out. The rows of `headroom`, a line a tensor and format, which would be most of the file: the page has the
verdicts, and draws the room of every tensor from the series. Of a long run's curves most steps (`fold`). `--format json`
has them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.formats.catalogue import BF16, E4M3FN, E5M2, FP16, FP32
from nanhunt.report import reading
from nanhunt.report.fold import POINTS, folded
from nanhunt.report.html import measured, verdict
from nanhunt.report.html.block import packed
from nanhunt.report.html.element import Markup, tag
from nanhunt.report.html.parts import section
from nanhunt.report.json import document
from nanhunt.report.options import Options

__all__ = ["HtmlRenderer"]

_STYLES = ("vendor/uPlot.min.css", "assets/page.css", "assets/drawn.css")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "assets/block.js",
    "assets/drawing.js",
    "assets/timeline.js",
    "assets/heatmap.js",
    "assets/tensor.js",
    "assets/page.js",
)
#: Formats whose ranges are drawn.
_RANGES = (FP32, BF16, FP16, E5M2, E4M3FN)
_TITLES = {
    "where": "Where", "timeline": "Timeline", "map": "Heat map", "lineage": "Path", "suspects": "Suspects",
    "trials": "Trials", "adam": "Optimizer", "sample": "Sample", "formats": "Formats", "assumptions": "Assumptions",
}  # fmt: skip


class HtmlRenderer(Options):
    """A page of below 500 kB; text from the trace is escaped wherever it enters, in markup as in the data blocks."""

    __slots__ = ()
    name: ClassVar[str] = "html"
    suffix: ClassVar[str] = ".html"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the page."""
        style, script = _joined(_STYLES), _joined(_SCRIPTS)
        sections = [part for part in self._sections(diagnosis) if part is not None]
        title = f"{reading.headline(diagnosis)} · nanhunt"
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
            tag("title", title),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("style", Markup(style)),
        )
        body = tag(
            "body",
            tag("main", verdict.verdict(diagnosis), _contents(sections), *sections, _footer(diagnosis)),
            tag("script", Markup(_report_data(diagnosis)), type="application/json", id="report"),
            tag("script", Markup(_series(diagnosis)), type="text/plain", id="series"),
            tag("script", Markup(script)),
        )
        return f"<!doctype html>{tag('html', head, body, lang='en')}\n"

    def _sections(self, diagnosis: Diagnosis) -> tuple[Markup | None, ...]:
        """Return the sections in the order of the page."""
        return (
            verdict.where(diagnosis),
            _timeline(diagnosis),
            verdict.ranks(diagnosis),
            _heat_map(diagnosis),
            verdict.lineage(diagnosis),
            verdict.suspects(diagnosis, self.top),
            verdict.trials(diagnosis),
            measured.adam(diagnosis),
            measured.sample(diagnosis),
            measured.formats(diagnosis),
            measured.others(diagnosis),
            measured.assumptions(diagnosis),
            measured.next_steps(diagnosis),
        )


def _timeline(diagnosis: Diagnosis) -> Markup | None:
    if not diagnosis.series:
        return None
    onset = diagnosis.onset
    lead = (
        "Drag over a curve, or use the keys + − 0 and the arrows, to zoom; a double click shows all. ✗ is a NaN or Inf"
    )
    if onset is not None:
        has_lead = onset.lead_step is not None and onset.lead_step != onset.step
        lead += ", the line the onset" + (", the dotted one its first sign" if has_lead else "")
    longest = max(len(steps) for steps, _ in diagnosis.series.values())
    short = f" Of {longest} steps it shows the extremes of each stretch, and every step around the onset."
    return section(
        "timeline", "Timeline", tag("div", id="curves"), _noscript(), lead=f"{lead}.{short if longest > POINTS else ''}"
    )


def _heat_map(diagnosis: Diagnosis) -> Markup | None:
    if diagnosis.recording is None or not diagnosis.recording.histories.tensors:
        return None
    lead = (
        "Room of every tensor in every step to its format's end, in binades (powers of two), or its growth. Click a cell, "
        "or move with the arrow keys and press Enter, for the tensor's history and its exponents."
    )
    return section(
        "map", "Heat map", tag("div", id="heat"), tag("div", id="tensor", aria_live="polite"), _noscript(), lead=lead
    )  # fmt: skip


def _noscript() -> Markup:
    return tag(
        "noscript", tag("p", "This is drawn by the page's own script, which is switched off here.", class_="note")
    )


def _contents(sections: list[Markup]) -> Markup:
    """Return links to the sections that are there."""
    there = [name for name in _TITLES if any(part.startswith(f'<section id="{name}"') for part in sections)]
    return tag("nav", *(tag("a", _TITLES[name], href=f"#{name}") for name in there), aria_label="Sections")


def _footer(diagnosis: Diagnosis) -> Markup:
    versions = diagnosis.run.get("versions")
    told = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else ["nanhunt"]
    trace = diagnosis.run.get("trace")
    return tag("footer", " · ".join([*told, *([f"of {trace}"] if trace else [])]))


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _joined(names: tuple[str, ...]) -> str:
    """Return files of this package as one text; each script keeps its names to itself but for what it puts into `nh`."""
    texts = [files("nanhunt.report.html").joinpath(name).read_text(encoding="utf-8") for name in names]
    return "\n".join(text.strip() for text in texts)


def _report_data(diagnosis: Diagnosis) -> str:
    """Return the JSON report without its rows of headroom, and the formats' ranges, harmless inside a script element."""
    onset = diagnosis.onset
    marked = (onset.step, onset.lead_step) if onset is not None else ()
    curves = {name: folded(*curve, marked) for name, curve in diagnosis.series.items()}
    body = {key: value for key, value in document(replace(diagnosis, series=curves)).items() if key != "headroom"}
    body |= {"ranges": _ranges()}
    # in a script element only "<" means anything: "</script" ends it, "<!--" hides its end
    return json.dumps(body, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _ranges() -> list[dict[str, Any]]:
    """Return the formats' ends as powers of two, and the names under which a trace has them."""
    return [
        {
            "format": fmt.name,
            "aliases": fmt.aliases,
            "max": math.log2(fmt.max),
            "normal": math.log2(fmt.smallest_normal),
            "smallest": math.log2(fmt.smallest),
        }
        for fmt in _RANGES
    ]


def _series(diagnosis: Diagnosis) -> str:
    if diagnosis.recording is None:
        return ""
    story = {hop[1] for hop in diagnosis.lineage} | {s.location.module or "" for s in diagnosis.suspects}
    story |= {diagnosis.onset.module} if diagnosis.onset else set()
    return packed(diagnosis.recording.histories, frozenset(story))
