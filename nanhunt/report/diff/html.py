"""The comparison as one HTML file, under the report's policy: verdict, curves by depth and by step, tables."""

from __future__ import annotations

from typing import Any, ClassVar

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff import reading
from nanhunt.report.html.element import Markup, code, prose, tag
from nanhunt.report.html.parts import bullets, definitions, section, table
from nanhunt.report.html.shell import data_block, noscript, shell
from nanhunt.report.json import plain
from nanhunt.report.options import Options
from nanhunt.report.words import number

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
#: Rows of a table by step.
_MOST = 60


class DiffHtml(Options):
    """A page that opens offline; text from the traces is escaped wherever it enters."""

    __slots__ = ()
    name: ClassVar[str] = "html"
    suffix: ClassVar[str] = ".html"

    def render(self, comparison: Comparison) -> str:
        """Return the page."""
        parts = (
            _depth(comparison), _steps(comparison), _others(comparison), _around(comparison), _next(comparison),
        )  # fmt: skip
        sections = [part for part in parts if part is not None]
        main = tag("main", _verdict(comparison), *sections, tag("footer", reading.around(comparison)))
        return shell(
            f"{reading.verdict_word(comparison)}: {reading.around(comparison)}",
            main, data_block("report", _data(comparison)), styles=_STYLES, scripts=_SCRIPTS,
        )  # fmt: skip


def _data(comparison: Comparison) -> dict[str, Any]:
    """Return what the page's script draws."""
    first = comparison.first
    rows = [
        {
            "place": reading.place(row), "phase": row.phase, "rms_a": row.rms_a, "rms_b": row.rms_b, "apart": row.apart,
            "bound": row.bound if row.bound > 0 else 0.0, "verdict": row.verdict,
        }
        for row in comparison.depth
    ]  # fmt: skip
    curves = reading.curves(comparison)
    body: dict[str, Any] = plain({
        "rows": rows, "onset": None if first is None else {"step": first.step, "lead_step": None},
        "curves": [[name, f"{label}, relative difference"] for name, label in reading.CURVES],
        "series": {name: {"steps": steps, "values": values} for name, (steps, values) in curves.items()},
    })  # fmt: skip
    return body


def _verdict(comparison: Comparison) -> Markup:
    parted = comparison.outcome == "part"
    commands = reading.next_steps(comparison)
    facts: list[tuple[str, object]] = [("Before", prose(note)) for note in comparison.prefaces]
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


def _depth(comparison: Comparison) -> Markup | None:
    if not comparison.depth or comparison.outcome == "identical":
        return None
    rows = [
        (
            code(reading.place(row)), row.phase, number(row.rms_a), number(row.rms_b), reading.share(row.apart), reading.share(row.bound),
            tag("span", row.verdict, class_=row.verdict),
        )
        for row in comparison.depth
    ]  # fmt: skip
    columns = ("observed", "phase", "rms in A", "rms in B", "apart", "rounding explains", "verdict")
    lead = (
        "Each observation in the order in which it ran: how far A and B lie apart, relative to the tensor's rms, and the "
        "dashed line of what rounding alone explains. ✗ is born there, a ring is inherited. Move with the mouse or the arrow keys."
    )
    folded = tag("details", tag("summary", "As a table"), table(columns, rows, number=(2, 3, 4, 5)))
    return section(
        "by-depth", f"Step {comparison.depth_step} by depth", tag("div", id="depth"), noscript(), folded, lead=lead
    )


def _steps(comparison: Comparison) -> Markup | None:
    if len(comparison.by_step) < 2 or comparison.outcome == "identical":
        return None
    every = -(-len(comparison.by_step) // _MOST)
    rows = [
        (
            row.step, *(_share(v) for v in (row.outputs, row.gradients, row.weights)), number(row.loss_a),
            number(row.loss_b), row.inherited or "", row.born or "",
        )
        for row in comparison.by_step[::every]
    ]  # fmt: skip
    columns = ("step", "outputs", "gradients", "weights", "loss in A", "loss in B", "inherited", "born")
    title = "As a table" if every == 1 else f"As a table, every {every} steps"
    folded = tag("details", tag("summary", title), table(columns, rows, number=range(8)))
    lead = "The largest relative difference of each step. Drag, or + − 0 and the arrows, to zoom; the line is the first difference."
    return section("by-step", "By step", tag("div", id="curves"), noscript(), folded, lead=lead)


def _others(comparison: Comparison) -> Markup | None:
    lines = list(reading.others(comparison, 20))
    said = reading.inherited(comparison)
    if not lines and not said:
        return None
    return section(
        "others", "What follows", tag("p", said) if said else None,
        bullets(map(prose, lines), class_="plain") if lines else None,
        lead="" if not lines else "Places where a difference is more than the differences before it explain.",
    )  # fmt: skip


def _around(comparison: Comparison) -> Markup | None:
    rows, notes = list(reading.settings(comparison)), list(reading.alone(comparison, 20))
    if not rows and not notes:
        return None
    cells = [(code(name), a, b) for name, a, b in rows]
    return section(
        "around", "Around the runs", table(("differs", "A", "B"), cells) if cells else None,
        bullets(map(prose, notes), class_="plain") if notes else None,
    )  # fmt: skip


def _next(comparison: Comparison) -> Markup | None:
    found = reading.next_steps(comparison)
    rows = [tag("div", tag("dt", tag("code", what)), tag("dd", prose(why))) for what, why in found]
    return section("next", "Next", tag("dl", *rows, class_="commands")) if rows else None


def _share(value: float | None) -> str:
    return "" if value is None else reading.share(value)
