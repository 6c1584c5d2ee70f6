"""Text from a trace as GitHub's Markdown that it cannot leave: no markup, no link, no mention comes out of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nanhunt.report import words

__all__ = ["bullets", "escape", "fenced", "span", "table"]

#: Characters of one text: a message of a thousand lines says no more, and an issue has an end.
_MOST = 600
#: signs that mean something to GitHub's Markdown anywhere in a line; `$` opens a formula
_SIGNS = re.compile(r"([\\`*_\[\]~$])")
#: and those that do at the start of a list item
_STARTS = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
#: What GitHub makes a link of, whatever is escaped: mentions and addresses, issues, URLs. A space without width stops it.
_LINKED = re.compile(r"(@)(?=\w)|(#)(?=\d)|(\bGH)(?=-\d)|(\b\w+:)(?=//)|(\bwww)(?=\.)", re.IGNORECASE)
#: What stands between two single backticks is code.
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def escape(text: str) -> str:
    """Return prose in which no sign is markup, but for code between backticks."""
    parts = _CODE.split(_clipped(words.prose(text)))
    said = "".join(span(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))
    return _STARTS.sub(lambda match: f"{match[0]}\\", said)


def _escaped(text: str) -> str:
    signs = _SIGNS.sub(r"\\\1", text).translate(_ENTITIES)
    return _LINKED.sub(lambda match: f"{match[0]}&#8203;", signs)


def span(text: str | None) -> str:
    """Return a name as a code span that it cannot leave; '' for no name."""
    if not text:
        return ""
    inner = _clipped(words.printable(text))
    ticks = "`" * (_longest_run(inner) + 1)
    # where a space stands at both ends, a reader drops one at each: it is added where the name has its own, or a tick
    pad = " " if inner.strip(" ") and (inner[0] in "` " or inner[-1] in "` ") else ""
    return f"{ticks}{pad}{inner}{pad}{ticks}"


def bullets(items: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {item}" for item in items)


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table; a bar ends a cell even inside a code span, so it is escaped in every cell."""
    lines = [columns, tuple("---" for _ in columns), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(lines: Iterable[str]) -> str:
    """Return lines as a block of text, in a fence that is longer than any in it."""
    shown = [_clipped(words.printable(line)) for line in lines]
    fence = "`" * max(max(map(_longest_run, shown), default=0) + 1, 3)
    return "\n".join((f"{fence}text", *shown, fence))


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
