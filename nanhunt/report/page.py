"""Styled lines at a fixed width, with hanging indents, as one plain or coloured string.

Only `Text` values go in, never console markup, so a module named `[red]x[/red]` prints as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from nanhunt.report.words import printable

__all__ = ["GAP", "Page", "column", "middle"]

#: Cells between two columns of text.
GAP = 4


class Page:
    """Lines of a report; none is wider than `width` cells."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._lines: list[Text] = []

    def heading(self, title: str, aside: str = "") -> None:
        """Add an empty line and a bold title, with a quiet aside behind it."""
        self._lines.append(Text())
        self.put(Text(title, "bold"), Text(f"  {aside}" if aside else "", "dim"), indent=0)

    def field(self, label: str, value: str, *, style: str = "") -> None:
        """Add a value behind its label."""
        self.put(Text(f"{label:<9}", "dim"), Text(value, style))

    def put(self, first: Text, body: Text | None = None, *, indent: int = 2) -> None:
        """Add `first` and, beside it, `body`, whose further lines hang below its own start."""
        if body is None:
            first, body = Text(), first
        # a label that leaves no room would set its body one letter a line
        first.truncate(self.width // 2, overflow="ellipsis")
        hang = indent + first.cell_len
        lines = body.wrap(_console(self.width, color=False), max(self.width - hang, 1))
        for i, line in enumerate(lines or [Text()]):
            lead = Text(" " * indent).append_text(first) if i == 0 else Text(" " * hang)
            self._lines.append(lead.append_text(line))

    def row(self, line: Text, *, indent: int = 2) -> None:
        """Add one line, cut at the page's edge."""
        whole = Text(" " * indent).append_text(line)
        whole.truncate(self.width, overflow="ellipsis")
        self._lines.append(whole)

    def beside(self, left: Page, right: Page) -> None:
        """Add the lines of two pages side by side, four spaces between them: no rule, so that `grep` finds plain text."""
        for one, other in zip_longest(left.lines, right.lines, fillvalue=Text()):
            line = one.copy()
            if other.plain:
                line.truncate(left.width, pad=True)
                line.append(" " * GAP).append_text(other)
            self._lines.append(line)

    @property
    def lines(self) -> tuple[Text, ...]:
        """The lines, for a live view that draws them again and again."""
        return tuple(self._lines)

    def text(self, *, color: bool) -> str:
        """Return the page; without colour there is no escape sequence in it and no space at a line's end."""
        console = _console(self.width, color=color)
        for line in self._lines:
            line.rstrip()
            # the last border: what no section made inert loses its colours here, not the reader's terminal
            console.print(line if line.plain.isprintable() else Text(printable(line.plain)), soft_wrap=True)
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()


def _console(width: int, *, color: bool) -> Console:
    """Return a console that writes to memory and asks the environment nothing."""
    return Console(
        file=StringIO(),
        width=width,
        # a height as well: with TERM=dumb, rich falls back to 80 columns unless both are given
        height=25,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def column(texts: Iterable[str], most: int) -> int:
    """Return the cells that a column of these texts takes, at most `most`."""
    return min(max((cell_len(printable(text)) for text in texts), default=0), max(most, 1))


def middle(text: str, width: int) -> str:
    """Return text padded or cut to exactly `width` cells; the middle goes, for it is the end of a dotted name that tells.

    The end starts behind a dot or a slash where that leaves it half of the width or less: `transformer.h…attn.c_proj`. A
    last part that is longer keeps two thirds of the width.
    """
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    end = text[_end(text, width) :]
    return set_cell_size(text, max(width - 1 - cell_len(end), 0)) + "…" + end


def _end(text: str, width: int) -> int:
    """Return where the end of a text begins that is kept of it."""
    # a file keeps its suffix: train.py:89 is one part
    starts = [i for i, sign in enumerate(text[:-1], start=1) if sign in "./" and not text.startswith("py:", i)]
    for start in starts:
        if cell_len(text[start:]) <= width // 2:
            return start
    last = starts[-1] if starts else 0
    start, room = len(text), min(2 * width // 3, width - 1)
    while start > last and cell_len(text[start - 1 :]) <= room:
        start -= 1
    # an accent does not go without its letter
    while start < len(text) and cell_len(text[start]) == 0:
        start += 1
    return start
