"""The report for an issue or a pull request: verdict, fix and evidence in view, the rest folded away.

How it works. A reader of an issue sees a dozen lines, and one line to open; what opens is the whole report. GitHub takes
65 536 characters in the body of an issue: sections that do not fit are left out from the end, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import original, reading, words
from nanhunt.report.markdown_sections import Section, code_lines, exhibits, sections
from nanhunt.report.markdown_text import bullets, escape, fenced, span
from nanhunt.report.options import Options

__all__ = ["LIMIT", "MarkdownRenderer"]

#: Characters of a report. GitHub takes 65 536, with two for the end of each line, and the reader has words to add.
LIMIT = 60_000
#: Exhibits in view, and source lines on each side of the onset's.
_EXHIBITS, _AROUND = 4, 1


class MarkdownRenderer(Options):
    """GitHub's Markdown; text from the trace is escaped, names stand in code spans."""

    __slots__ = ()
    name: ClassVar[str] = "markdown"
    suffix: ClassVar[str] = ".md"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the report, `LIMIT` characters at most."""
        blocks = [*_verdict(diagnosis), *_evidence(diagnosis)]
        room = LIMIT - sum(len(block) + 2 for block in blocks)
        return "\n\n".join([*blocks, *_folded(sections(diagnosis, self.top), room)]) + "\n"


def _verdict(diagnosis: Diagnosis) -> Iterator[str]:
    headline = f"**{escape(reading.headline(diagnosis))}**"
    yield f"{headline} · {escape(diagnosis.summary)}" if diagnosis.summary else headline
    why = reading.why_incomplete(diagnosis)
    if why:
        yield f"The trace ends early: {escape(why)}"
    found = reading.cure(diagnosis)
    suspect = reading.leading_suspect(diagnosis)
    lines = [f"**Fix:** {escape(suspect.fixes[0])}"] if suspect and suspect.fixes else []
    lines += [f"**Cure:** {escape(found[1])}"] if found else []
    lines += [f"**Where:** {place}"] if (place := _place(diagnosis)) else []
    if lines:
        yield bullets(lines)
    beware = original.warning(diagnosis)
    if beware:
        said = "" if original.is_verdict(diagnosis) else f"The replay {escape(original.follows(diagnosis))}. "
        yield f"{said}**Check:** {escape(beware)}"


def _place(diagnosis: Diagnosis) -> str:
    """Return step, phase, module, op and source of the onset in one line."""
    onset = diagnosis.onset
    if onset is None:
        return ""
    module = span(words.place(onset.module)) if onset.module or not onset.name else ""
    parts = (f"step {onset.step}", escape(onset.phase), module, span(onset.name), span(onset.op), span(onset.source))
    return ", ".join(part for part in parts if part)


def _evidence(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the onset's line, and what speaks against the first suspect."""
    if diagnosis.code:
        yield fenced(code_lines(diagnosis, _AROUND))
    suspect = reading.leading_suspect(diagnosis)
    if suspect is None:
        if diagnosis.onset is not None:
            yield "None of the known causes shows itself."
        return
    shown = bullets(exhibits(suspect)[:_EXHIBITS])
    if shown:
        yield f"**Evidence** against {span(suspect.cause)}, {escape(suspect.grade)}:"
        yield shown


def _folded(parts: list[Section], room: int) -> Iterable[str]:
    """Yield sections under a summary that opens on a click, as far as they fit."""
    if not parts:
        return
    texts = [(title, "\n\n".join((f"### {title}", *filter(None, blocks)))) for title, blocks in parts]
    titles = ", ".join(title.lower() for title, _ in texts)
    left = [title for title, _ in texts]
    # the tags, the summary, and what may have to be said at the end
    room -= 2 * len(titles) + 200
    # Markdown inside is read as such only after an empty line
    yield f"<details><summary>The whole report: {titles}</summary>"
    for title, text in texts:
        if len(text) + 2 <= room:
            room -= len(text) + 2
            left.remove(title)
            yield text
    if left:
        yield f"Left out, for an issue has an end: {', '.join(left).lower()}. `--format html` has it all."
    yield "</details>"
