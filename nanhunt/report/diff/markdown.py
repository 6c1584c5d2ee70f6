"""The comparison for an issue or a pull request: verdict and depth in view, steps and settings folded away.

How it works. GitHub takes 65 536 characters in the body of an issue. The verdict fits whatever the traces have in them; of
what is below it, a part that does not fit any more is left out, and named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from nanhunt.comparison.comparison import Comparison, DepthRow
from nanhunt.report.diff import reading
from nanhunt.report.markdown import LIMIT
from nanhunt.report.markdown_text import bullets, escape, span, table
from nanhunt.report.options import Options
from nanhunt.report.words import counted, number

__all__ = ["DiffMarkdown"]


#: What may have to be said at the end.
_RESERVE = 300


class DiffMarkdown(Options):
    """GitHub's Markdown; `top` limits the rows of depth."""

    __slots__ = ()
    name: ClassVar[str] = "markdown"
    suffix: ClassVar[str] = ".md"

    def render(self, comparison: Comparison) -> str:
        """Return the page, `LIMIT` characters at most."""
        blocks = [f"**{escape(reading.headline(comparison))}**"]
        room, left = LIMIT - len(blocks[0]) - _RESERVE, []
        for title, text in self._parts(comparison):
            if len(text) + 2 <= room:
                blocks.append(text)
                room -= len(text) + 2
            else:
                left.append(title)
        if left:
            blocks.append(f"Left out, for an issue has an end: {', '.join(left)}. `--format json` has it all.")
        return "\n\n".join(blocks) + "\n"

    def _parts(self, comparison: Comparison) -> Iterator[tuple[str, str]]:
        """Yield what is below the verdict: what it is called, and its text."""
        traces = f"A {span(comparison.a)}, B {span(comparison.b)}"
        yield "the traces", f"{traces}: {escape(reading.counts(comparison))}"
        notes = [
            *comparison.prefaces,
            *reading.alone(comparison, self.top),
            *filter(None, [reading.unequal(comparison), reading.inherited(comparison)]),
        ]
        if notes:
            yield "notes", bullets(map(escape, notes))
        if comparison.outcome == "part":
            yield "the step by depth", self._depth(comparison)
        yield "by step", _folded(*_steps(comparison))
        others = list(reading.others(comparison, self.top))
        if others:
            yield "born elsewhere as well", _folded("Born elsewhere as well", bullets(map(escape, others)))
        different = [tuple(map(escape, row)) for row in reading.settings(comparison)]
        if different:
            yield "settings that differ", _folded("Settings that differ", table(("setting", "A", "B"), different))
        commands = reading.next_steps(comparison)
        if commands:
            yield "what to do next", bullets(f"{span(what)} {escape(why)}" for what, why in commands)

    def _depth(self, comparison: Comparison) -> str:
        rows, hidden = reading.story(comparison, 2 * self.top)
        more = f", {hidden} rows left out: `-f json` has all" if hidden else ""
        columns = ("observed", "phase", "rms in A", "rms in B", "apart", "rounding explains", "")
        return f"Step {comparison.depth_step} by depth{more}:\n\n{table(columns, map(_row, rows))}"


def _row(row: DepthRow) -> tuple[str, ...]:
    sizes = (number(row.rms_a), number(row.rms_b), reading.share(row.apart), reading.share(row.bound))
    return span(reading.place(row)), escape(reading.stage(row)), *sizes, row.verdict


def _steps(comparison: Comparison) -> tuple[str, str]:
    """Return what the growth by step is called, and its table."""
    told, hidden = reading.growth(comparison)
    rows = [
        (str(r.step), *("-" if v is None else reading.share(v) for v in (r.outputs, r.gradients, r.weights)), number(r.loss_a), number(r.loss_b))
        for r in told
    ]  # fmt: skip
    more = f", {counted(hidden, 'step')} left out: -f json has all" if hidden else ""
    return f"By step{more}", table(("step", "outputs", "gradients", "weights", "loss in A", "loss in B"), rows)


def _folded(title: str, block: str) -> str:
    """Return a block under a summary that opens on a click; Markdown inside is read as such only after an empty line."""
    return f"<details><summary>{title}</summary>\n\n{block}\n\n</details>"
