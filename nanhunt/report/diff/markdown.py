"""The comparison for an issue or a pull request: verdict and depth in view, steps and settings folded away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from nanhunt.comparison.comparison import Comparison
from nanhunt.report.diff import reading
from nanhunt.report.markdown_text import bullets, escape, span, table
from nanhunt.report.options import Options
from nanhunt.report.words import number

__all__ = ["DiffMarkdown"]


class DiffMarkdown(Options):
    """GitHub's Markdown; `top` limits the rows of depth."""

    __slots__ = ()
    name: ClassVar[str] = "markdown"
    suffix: ClassVar[str] = ".md"

    def render(self, comparison: Comparison) -> str:
        """Return the page."""
        return "\n\n".join(self._blocks(comparison)) + "\n"

    def _blocks(self, comparison: Comparison) -> Iterator[str]:
        yield f"**{escape(reading.headline(comparison))}**"
        yield f"A {span(comparison.a)}, B {span(comparison.b)}: {escape(reading.counts(comparison))}"
        notes = [
            *comparison.prefaces,
            *reading.alone(comparison, self.top),
            *filter(None, [reading.inherited(comparison)]),
        ]
        if notes:
            yield bullets(escape(note) for note in notes)
        rows, hidden = reading.story(comparison, 2 * self.top)
        if comparison.outcome == "part":
            cells = [
                (span(reading.place(r)), escape(r.phase), number(r.rms_a), number(r.rms_b), reading.share(r.apart), reading.share(r.bound), r.verdict)
                for r in rows
            ]  # fmt: skip
            more = f", {hidden} rows left out" if hidden else ""
            yield f"Step {comparison.depth_step} by depth{more}:"
            yield table(("observed", "phase", "rms in A", "rms in B", "apart", "rounding explains", ""), cells)
        steps = [
            (str(r.step), *("-" if v is None else reading.share(v) for v in (r.outputs, r.gradients, r.weights)), number(r.loss_a), number(r.loss_b))
            for r in comparison.by_step
        ]  # fmt: skip
        yield from _folded(
            "By step", table(("step", "outputs", "gradients", "weights", "loss in A", "loss in B"), steps)
        )
        others = list(reading.others(comparison, self.top))
        if others:
            yield from _folded("Born elsewhere as well", bullets(escape(line) for line in others))
        different = [tuple(map(escape, row)) for row in reading.settings(comparison)]
        if different:
            yield from _folded("Settings that differ", table(("setting", "A", "B"), different))
        commands = reading.next_steps(comparison)
        if commands:
            yield bullets(f"{span(what)} {escape(why)}" for what, why in commands)


def _folded(title: str, block: str) -> Iterator[str]:
    yield f"<details><summary>{title}</summary>"
    yield block
    yield "</details>"
