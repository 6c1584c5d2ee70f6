"""The report for a terminal: the verdict first, then where, why, and what was looked at; tables last.

A wide terminal gets two columns, with spaces between them and no rule: what is piped can be searched line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import original, reading, words
from nanhunt.report.options import Options
from nanhunt.report.page import GAP, Page, column, middle
from nanhunt.report.terminal_curves import put_curves, put_ranks
from nanhunt.report.terminal_formats import put_advice, put_headroom, put_precision
from nanhunt.report.terminal_measured import put_optimizer, put_sample
from nanhunt.report.terminal_suspects import put_suspects, put_trials
from nanhunt.report.terminal_where import put_lineage, put_where

__all__ = ["TerminalRenderer"]

#: cells below which columns no longer fit side by side
_NARROWEST = 40
#: cells from which on two columns of text are wide enough each
_BESIDE = 160

_OUTCOME_STYLES = {"fault": "bold red", "healthy": "bold green", "inconclusive": "bold yellow"}


class TerminalRenderer(Options):
    """A page of at most `width` cells; without `color` there is no escape sequence in it."""

    __slots__ = ()
    name: ClassVar[str] = "terminal"
    suffix: ClassVar[str] = ".txt"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the page."""
        page = Page(max(self.width, _NARROWEST))
        for left, right in _BANDS:
            _put_band(page, left, right, diagnosis, self)
        return page.text(color=self.color)


def _put_band(
    page: Page, left: tuple[_Section, ...], right: tuple[_Section, ...], diagnosis: Diagnosis, options: Options
) -> None:
    """Print two lists of sections, side by side where the page is wide enough and each says something."""
    if page.width >= _BESIDE:
        halves = Page((page.width - GAP) // 2), Page((page.width - GAP) // 2)
        for half, sections in zip(halves, (left, right), strict=True):
            for section in sections:
                section(half, diagnosis, options)
        if all(half.lines for half in halves):
            page.beside(*halves)
            return
    for section in (*left, *right):
        section(page, diagnosis, options)


def _verdict(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    style = _OUTCOME_STYLES.get(diagnosis.outcome, "bold yellow")
    mark, _, rest = reading.headline(diagnosis).partition(" ")
    line = Text().append(rest, style)
    if diagnosis.summary:
        line.append(" · ", "dim").append(words.prose(diagnosis.summary), "bold")
    page.put(Text(f"{mark} ", style), line, indent=0)
    why = reading.why_incomplete(diagnosis)
    if why:
        page.field("why", f"the trace ends early: {why}", style="dim")
    found = reading.cure(diagnosis)
    if found:
        page.field("cure", found[1], style="green")
    suspect = reading.leading_suspect(diagnosis)
    if suspect and suspect.fixes:
        page.field("fix", words.prose(suspect.fixes[0]))
    said = reading.replayed(diagnosis)
    if said:
        page.field("run", said, style="dim")
    _original(page, diagnosis)
    if options.verbose and diagnosis.run.get("match"):
        page.field("loaded", str(diagnosis.run["match"]), style="dim")


def _original(page: Page, diagnosis: Diagnosis) -> None:
    """Print whether the replay is the run that failed, and what follows where it is not."""
    said, beware = original.follows(diagnosis), original.warning(diagnosis)
    if said and not original.is_verdict(diagnosis):
        page.field("replay", said, style="yellow" if beware else "dim")
    if beware:
        page.field("check", beware, style="yellow")


def _innocent(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    if diagnosis.cleared:
        page.heading("cleared", f"{words.counted(len(diagnosis.cleared), 'cause')} looked at, and innocent")
        page.put(Text(words.listed(diagnosis.cleared, limit=len(diagnosis.cleared)), "dim"))
    if not diagnosis.untold:
        return
    page.heading("could not tell")
    if diagnosis.outcome == "healthy" and not options.verbose:
        listed = words.listed([slug for slug, _ in diagnosis.untold], limit=len(diagnosis.untold))
        page.put(Text(f"{listed} (reasons: --verbose)", "dim"))
        return
    slugs = column((slug for slug, _ in diagnosis.untold), page.width // 2 - 2)
    for slug, reason in diagnosis.untold:
        page.put(Text(f"{middle(words.printable(slug), slugs)}  "), Text(words.prose(reason), "dim"))


def _assumptions(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    if diagnosis.assumptions:
        page.heading("assumptions")
    for text in diagnosis.assumptions:
        page.put(Text("• ", "dim"), Text(words.prose(text), "dim"))


def _next(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    page.heading("next")
    commands = reading.next_commands(diagnosis)
    longest = max(cell_len(command) for command, _ in commands)
    # with purposes only where all fit: a command is there to be copied, so it gets the whole line
    fits = all(longest + cell_len(purpose) + 6 <= page.width for _, purpose in commands)
    for command, purpose in commands:
        line = Text(command, "bold")
        page.put(line.append(f"{'':{longest - cell_len(command)}}  # {purpose}", "not bold dim") if fits else line)


_Section = Callable[[Page, Diagnosis, Options], None]

#: What stands side by side on a wide page: what happened and why at the left, what was measured at the right. On a narrow
#: one a band's sections follow each other.
_BANDS: tuple[tuple[tuple[_Section, ...], tuple[_Section, ...]], ...] = (
    ((_verdict,), ()),
    ((put_where,), (put_curves, put_ranks, put_lineage)),
    ((put_suspects,), (put_trials, put_sample)),
    ((_innocent, put_optimizer), (put_precision, put_headroom, put_advice)),
    ((_assumptions,), (_next,)),
)
