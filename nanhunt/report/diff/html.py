"""The comparison as one HTML file, under the report's policy: verdict, curves by depth and by step, tables.

What it leaves out. A page stays below 500 kB whatever the model and the run: it draws the rows that tell (`drawn`), its
tables have the rows worth a line (`reading.story`, `reading.growth`), and it says how many there are. `--format json` has all.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff import drawn, reading
from nanhunt.report.fold import POINTS
from nanhunt.report.html.element import Markup, code, prose, tag
from nanhunt.report.html.parts import bullets, definitions, section, table
from nanhunt.report.html.shell import data_block, noscript, shell
from nanhunt.report.json import plain
from nanhunt.report.options import Options
from nanhunt.report.words import counted, number

__all__ = ["DiffHtml"]

_STYLES = ("vendor/uPlot.min.css", "assets/page.css", "assets/drawn.css", "assets/depth.css")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    # starts the name that the others put their functions into
    "assets/block.js",
    "assets/drawing.js",
    "assets/spoken.js",
    "assets/timeline.js",
    "assets/depth.js",
    "assets/page.js",
)
#: Rows of a table of depth, of settings, and of a list.
_ROWS, _SETTINGS, _ITEMS = 80, 50, 10


class DiffHtml(Options):
    """A page of below 500 kB that opens offline; text from the traces is escaped wherever it enters."""

    __slots__ = ()
    name: ClassVar[str] = "html"
    suffix: ClassVar[str] = ".html"

    def render(self, comparison: Comparison) -> str:
        """Return the page."""
        data = _data(comparison)
        parts = (
            _depth(comparison, len(data["depth"]["at"])), _steps(comparison), _others(comparison), _around(comparison),
            _next(comparison),
        )  # fmt: skip
        sections = [part for part in parts if part is not None]
        main = tag("main", _verdict(comparison), *sections, tag("footer", reading.around(comparison)))
        return shell(
            f"{reading.verdict_word(comparison)}: {reading.around(comparison)}",
            main, data_block("report", data), styles=_STYLES, scripts=_SCRIPTS,
        )  # fmt: skip


def _data(comparison: Comparison) -> dict[str, Any]:
    """Return what the page's script draws."""
    first = comparison.first
    body: dict[str, Any] = plain({
        "depth": drawn.depth(comparison), "onset": None if first is None else {"step": first.step, "lead_step": None},
        "curves": [[name, f"{label}, difference"] for name, label in reading.CURVES],
        "series": drawn.curves(comparison),
    })  # fmt: skip
    return body


def _verdict(comparison: Comparison) -> Markup:
    parted = comparison.outcome == "part"
    commands = reading.next_steps(comparison)
    facts: list[tuple[str, object]] = [("Before", prose(note)) for note in comparison.prefaces]
    facts += [("Exact", prose(said))] if (said := reading.unequal(comparison)) else []
    facts += [("Look at", Markup(f"{code(commands[0][0])}: {prose(commands[0][1])}"))] if commands else []
    return tag(
        "header",
        tag(
            "p",
            tag(
                "span",
                tag("span", "✗" if parted else "✓", class_="mark", aria_hidden="true"),
                f" {reading.verdict_word(comparison)}",
                class_="outcome",
            ),
            class_="eyebrow",
        ),
        tag("h1", prose(reading.headline(comparison))),
        definitions(facts, class_="lead"),
        tag("p", f"{reading.looked(comparison)}: {reading.counts(comparison)}", class_="run"),
        class_=f"verdict {'fault' if parted else 'healthy'}",
    )


def _depth(comparison: Comparison, drawn_rows: int) -> Markup | None:
    if not comparison.depth or comparison.outcome == "identical":
        return None
    told, hidden = reading.story(comparison, _ROWS)
    rows = [
        (
            code(reading.place(row)), reading.stage(row), number(row.rms_a), number(row.rms_b), reading.share(row.apart), reading.share(row.bound),
            tag("span", row.verdict, class_=row.verdict),
        )
        for row in told
    ]  # fmt: skip
    columns = ("observed", "phase", "rms in A", "rms in B", "apart", "rounding explains", "verdict")
    lead = (
        "Each observation in the order in which it ran: how far A and B lie apart, relative to the tensor's rms, and the "
        "dashed line of what rounding alone explains. ✗ is born there, a ring is inherited, a dot is within rounding. Move "
        "with the mouse or the arrow keys."
    )
    if not all(math.isfinite(row.apart) for row in comparison.depth):
        lead += " What has no number, beside a NaN or an Inf, lies at the top."
    if drawn_rows < len(comparison.depth):
        lead += (
            f" Of {len(comparison.depth)} observations it shows {drawn_rows}: births, the largest differences, and the "
            "extremes of each stretch. -f json has all."
        )
    folded = tag("details", tag("summary", _titled(hidden)), table(columns, rows, number=(2, 3, 4, 5)))
    return section(
        "by-depth", f"Step {comparison.depth_step} by depth", tag("div", id="depth"), noscript(), folded, lead=lead
    )


def _steps(comparison: Comparison) -> Markup | None:
    if len(comparison.by_step) < 2 or comparison.outcome == "identical":
        return None
    told, hidden = reading.growth(comparison)
    rows = [
        (
            row.step, *(_share(v) for v in (row.outputs, row.gradients, row.weights)), number(row.loss_a),
            number(row.loss_b), row.inherited or "", row.born or "",
        )
        for row in told
    ]  # fmt: skip
    columns = ("step", "outputs", "gradients", "weights", "loss in A", "loss in B", "inherited", "born")
    folded = tag("details", tag("summary", _titled(hidden)), table(columns, rows, number=range(8)))
    lead = "The largest relative difference of each step. Drag, or + − 0 and the arrows, to zoom; the line is the first difference."
    if len(comparison.by_step) > POINTS:
        lead += f" Of {len(comparison.by_step)} steps it shows the extremes of each stretch, and every step around that line."
    return section("by-step", "By step", tag("div", id="curves"), noscript(), folded, lead=lead)


def _titled(hidden: int) -> str:
    """Return what a table is called that is there for readers without the drawing."""
    return f"As a table, {counted(hidden, 'row')} left out: -f json has all" if hidden else "As a table"


def _others(comparison: Comparison) -> Markup | None:
    lines = list(reading.others(comparison, _ITEMS))
    said = reading.inherited(comparison)
    if not lines and not said:
        return None
    return section(
        "others", "What follows", tag("p", said) if said else None,
        bullets(map(prose, lines), class_="plain") if lines else None,
        lead="" if not lines else "Places where a difference is more than the differences before it explain.",
    )  # fmt: skip


def _around(comparison: Comparison) -> Markup | None:
    rows, notes = list(reading.settings(comparison, _SETTINGS)), list(reading.alone(comparison, _ITEMS))
    more = len(comparison.settings) - len(rows)
    if not rows and not notes:
        return None
    cells = [(code(name), a, b) for name, a, b in rows]
    return section(
        "around", "Around the runs", table(("differs", "A", "B"), cells) if cells else None,
        tag("p", f"and {counted(more, 'more setting')}: -f json has all", class_="note") if more > 0 else None,
        bullets(map(prose, notes), class_="plain") if notes else None,
    )  # fmt: skip


def _next(comparison: Comparison) -> Markup | None:
    found = reading.next_steps(comparison)
    rows = [tag("div", tag("dt", tag("code", what)), tag("dd", prose(why))) for what, why in found]
    return section("next", "Next", tag("dl", *rows, class_="commands")) if rows else None


def _share(value: float | None) -> str:
    return "" if value is None else reading.share(value)
