"""The report as one HTML file: it opens offline, sends no request, and runs no script but its own.

How it works. What can be said is there as markup, and is read without a script. What is drawn (curves, heat map, a
tensor's history) the page draws itself, from two data blocks: the JSON report, and the series (`block`). Its `shell` lets
it run no other script and load nothing.

What it leaves out. The rows of `headroom`, a line a tensor and format, which would be most of the file: the page has the
verdicts, and draws the room of every tensor from the series. Of a long run's curves most steps (`fold`). `--format json`
has them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.formats.catalogue import BF16, E4M3FN, E5M2, FP16, FP32
from nanhunt.report import reading
from nanhunt.report.fold import POINTS, folded
from nanhunt.report.html import measured, verdict
from nanhunt.report.html.block import packed
from nanhunt.report.html.element import Markup, tag
from nanhunt.report.html.parts import section
from nanhunt.report.html.shell import data_block, noscript, shell
from nanhunt.report.json import document
from nanhunt.report.options import Options
from nanhunt.trace.schema import Phase, Role

__all__ = ["HtmlRenderer"]

_STYLES = ("vendor/uPlot.min.css", "assets/page.css", "assets/drawn.css")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "assets/block.js",
    "assets/drawing.js",
    "assets/spoken.js",
    "assets/timeline.js",
    "assets/cell.js",
    "assets/cells.js",
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
        sections = [part for part in self._sections(diagnosis) if part is not None]
        return shell(
            reading.headline(diagnosis),
            tag("main", verdict.verdict(diagnosis), _contents(sections), *sections, _footer(diagnosis)),
            data_block("report", _report_data(diagnosis)),
            tag("script", Markup(_series(diagnosis)), type="text/plain", id="series"),
            styles=_STYLES, scripts=_SCRIPTS,
        )  # fmt: skip

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
        "timeline", "Timeline", tag("div", id="curves"), noscript(), lead=f"{lead}.{short if longest > POINTS else ''}"
    )


def _heat_map(diagnosis: Diagnosis) -> Markup | None:
    if diagnosis.recording is None or not diagnosis.recording.histories.tensors:
        return None
    lead = (
        "Room of every tensor in every step to its format's end, in binades (powers of two), or its growth. Click a cell, "
        "or move with the arrow keys and press Enter, for the tensor's history and its exponents."
    )
    return section("map", "Heat map", tag("div", id="heat"), tag("div", id="tensor"), noscript(), lead=lead)


def _contents(sections: list[Markup]) -> Markup:
    """Return links to the sections that are there."""
    there = [name for name in _TITLES if any(part.startswith(f'<section id="{name}"') for part in sections)]
    return tag("nav", *(tag("a", _TITLES[name], href=f"#{name}") for name in there), aria_label="Sections")


def _footer(diagnosis: Diagnosis) -> Markup:
    versions = diagnosis.run.get("versions")
    told = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else ["nanhunt"]
    trace = diagnosis.run.get("trace")
    return tag("footer", " · ".join([*told, *([f"of {trace}"] if trace else [])]))


def _report_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the JSON report without its rows of headroom, its curves folded, and the formats' ranges."""
    onset = diagnosis.onset
    marked = (onset.step, onset.lead_step) if onset is not None else ()
    curves = {name: folded(*curve, marked) for name, curve in diagnosis.series.items()}
    body = document(replace(diagnosis, series=curves))
    return {key: value for key, value in body.items() if key != "headroom"} | {"ranges": _ranges()}


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
    return packed(diagnosis.recording.histories, frozenset(story), _telling(diagnosis))


def _telling(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Return the roles of tensors that tell of the fault, the first of which tells most: those of its phase."""
    phase = diagnosis.onset.phase if diagnosis.onset else Phase.FORWARD.value
    if phase in (Phase.BACKWARD.value, Phase.UNSCALE.value, Phase.CLIP.value):
        return Role.GRAD_OUTPUT, Role.GRAD, Role.OUTPUT
    if phase in (Phase.UPDATE.value, Phase.LOAD.value):
        return Role.UPDATE, Role.EXP_AVG_SQ, Role.WEIGHT, Role.OUTPUT
    return Role.OUTPUT, Role.GRAD_OUTPUT
