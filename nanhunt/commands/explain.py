"""`nanhunt explain`: the catalogue of causes, and each cause's own page."""

from __future__ import annotations

import difflib
import json
import re
import textwrap

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.diagnosis.cause import Cause
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.errors import UsageError

__all__ = ["cause_page", "explain", "find_cause"]


def explain(slug: str | None, *, format: str | None = None) -> str:
    """Return the list of causes, or the page of the one that `slug` names. Raises UsageError for an unknown one."""
    if format not in (None, "terminal", "json", "markdown"):
        raise UsageError(f"--format {format}: causes can be shown as terminal, json or markdown")
    chosen = [find_cause(slug)] if slug else list(CAUSES)
    if format == "json":
        return json.dumps([{"cause": c.slug, "fault": c.fault, "page": c.doc.strip()} for c in chosen], indent=2) + "\n"
    if slug:
        return cause_page(chosen[0]) if format == "markdown" else _printed(chosen[0])
    return _listed(chosen)


def find_cause(slug: str) -> Cause:
    """Return the cause of that slug."""
    for cause in CAUSES:
        if cause.slug == slug.lower().replace("_", "-"):
            return cause
    near = difflib.get_close_matches(slug.lower(), [c.slug for c in CAUSES], n=3, cutoff=0.5)
    told = _that_tell_of(slug)
    hint = f"did you mean {' or '.join(near)}?" if near else "`nanhunt explain` lists them all"
    if told and not near:
        hint = f"it is spoken of in {', '.join(told)}"
    raise UsageError(f"explain {slug}: there is no such cause", hint=hint)


def _that_tell_of(word: str, most: int = 4) -> list[str]:
    """Return the causes whose pages use a word (`sqrt`, `clip`), those that use it most first."""
    counts = {c.slug: len(re.findall(rf"\b{re.escape(word.lower())}", c.doc.lower())) for c in CAUSES}
    return [slug for slug in sorted(counts, key=lambda s: -counts[s]) if counts[slug]][:most]


def cause_page(cause: Cause) -> str:
    """Return the page as Markdown: the slug as its title, the docstring's underlined lines as headings."""
    lines = cause.doc.strip().splitlines()
    page = [f"# `{cause.slug}`", ""]
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if _is_rule(line):
            continue
        page.append(f"## {line}" if _is_rule(following) else line)
    return "\n".join(page) + "\n"


def _printed(cause: Cause) -> str:
    """Return the page for a terminal, headings bold where colour is wanted."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if color_wanted() else ("", "")
    lines = [f"{bold}{cause.slug}{plain}", ""]
    source = cause.doc.strip().splitlines()
    for index, line in enumerate(source):
        following = source[index + 1] if index + 1 < len(source) else ""
        if not _is_rule(line):
            lines.append(f"{bold}{line}{plain}" if _is_rule(following) else line)
    return "\n".join(lines) + "\n"


def _is_rule(line: str) -> bool:
    return len(line) >= 3 and not line.strip("-")


def _listed(causes: list[Cause]) -> str:
    width = max(len(c.slug) for c in causes) + 2
    room = max(30, terminal_width() - width)
    lines = []
    for cause in causes:
        first, *rest = textwrap.wrap(cause.fault, room) or [""]
        lines.append(f"{cause.slug:<{width}}{first}")
        lines += [" " * width + line for line in rest]
    return "\n".join([*lines, "", "nanhunt explain CAUSE prints a cause's page"]) + "\n"
