"""The page of `nanhunt formats --trace`: what formats would do to the tensors of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.text import Text

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.format_verdict import FormatVerdict
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import BlockFormat
from nanhunt.report.headroom import FormatLine, format_lines, judged_rows, looked
from nanhunt.report.headroom_page import LEVEL_STYLES, put_formats, put_table, table_cells
from nanhunt.report.json import headroom_entry, plain, verdict_entry
from nanhunt.report.markdown_text import bullets, escape, span, table
from nanhunt.report.page import Page
from nanhunt.report.words import counted, place

__all__ = ["TraceFormats"]

_LEGEND = (
    "margins in binades, the tensor as it is; 'to zero' without a scale, 'per tensor', 'per row' and 'per block' what such "
    "a scale leaves of it; a block is 128×128, of outputs and their gradients 1×128"
)
_LEGEND_OF_BLOCKS = (
    "margins in binades; 'to zero' under the format's own scales, of blocks along the last dimension only, which is not the "
    "one that a weight's gradient is summed over"
)
#: where a format's figures are for other scales than those of the recipe that has its name
_OTHER_SCALES = {
    "mxfp4": "scales never cut the largest off, where the recipe's follow OCP's floor rule and can",
    "nvfp4": "every block is 1×16, where the recipe's weights have 16×16",
}
_LARGE = "; shares of tensors from 2^15 elements on are estimates by a sample of tiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormats:
    """Headroom of one trace: `whole` formats are tables of every tensor, else all are a summary."""

    trace: str
    rows: tuple[HeadroomRow, ...]
    verdicts: tuple[FormatVerdict, ...]
    whole: bool

    def render(self, *, width: int, color: bool) -> str:
        """Return the page for a terminal."""
        page = Page(max(width, 40))
        lines, count = self._lines(), self._count()
        if not self.whole:
            page.put(Text(f"{counted(count, 'tensor')} of {self.trace}, over all steps", "bold"), indent=0)
            put_formats(page, lines, roomy=True, tight=True)
            return page.text(color=color)
        for at, line in enumerate(lines):
            if at:
                page.put(Text())
            head = Text(f"{line.format} {line.mark} ", f"bold {LEVEL_STYLES[line.level]}")
            page.put(head, Text(line.text, LEVEL_STYLES[line.level]), indent=0)
            rows = self._of(line.format)
            page.put(
                Text(f"{counted(count, 'tensor')} of {self.trace}, over all steps: {self._legend(line.format)}", "dim"),
                indent=0,
            )
            page.put(Text())
            put_table(page, rows)
        return page.text(color=color)

    def markdown(self) -> str:
        """Return the page as Markdown, in full detail."""
        lines = self._lines()
        blocks = [f"{counted(self._count(), 'tensor')} of {span(self.trace)}, over all steps"]
        if not self.whole:
            blocks.append(bullets(f"{span(line.format)} {line.mark} {escape(line.text)}" for line in lines))
            cells = [
                (span(line.format), span(place(t.module, t.name)), escape(t.role), escape(f"{t.text} {t.per}".rstrip()))
                for line in lines
                for t in line.tensors
            ]
            blocks.append(table(("format", "tensor that decides", "role", "number"), cells))
        for line in lines if self.whole else ():
            rows = self._of(line.format)
            titles, numbers = table_cells(rows)
            named = [
                (span(place(row.module, row.name)), *map(escape, numbers_of))
                for (row, _), numbers_of in zip(judged_rows(rows), numbers, strict=True)
            ]
            blocks += [f"## {span(line.format)} {line.mark} {escape(line.text)}", escape(self._legend(line.format))]
            blocks.append(table(("tensor", *titles), named))
        return "\n\n".join(blocks) + "\n"

    def document(self) -> str:
        """Return verdicts and headroom as one JSON document."""
        body = {
            "schema": 1,
            "trace": self.trace,
            "verdicts": [verdict_entry(verdict) for verdict in self.verdicts],
            "headroom": [
                headroom_entry(row) for line in self._lines() for row, _ in judged_rows(self._of(line.format))
            ],
        }
        return json.dumps(plain(body), indent=2, allow_nan=False) + "\n"

    def _lines(self) -> list[FormatLine]:
        return format_lines(self.verdicts, self.rows)

    def _of(self, name: str) -> list[HeadroomRow]:
        return [row for row in self.rows if row.headroom.format == name]

    def _count(self) -> int:
        return len({(row.module, row.role, row.name) for row in self.rows})

    def _legend(self, name: str) -> str:
        """Return what the table's columns mean, and what its numbers rest on."""
        rows = self._of(name)
        on = next((looked(verdict, "") for verdict in self.verdicts if verdict.format == name), "")
        measured = any(row.measured for row in rows)
        if any(row.scaled for row in rows):
            steps = f"; rows and blocks {on}, all else on every one" if on and measured else ""
            sampled = "; of large tensors, whole blocks of a sample" if any(row.sampled for row in rows) else ""
            missing = "" if measured else "; rows and blocks were not looked at in this trace"
            return _LEGEND + steps + sampled + missing + _LARGE
        if not isinstance(lookup(name), BlockFormat):
            return "margins in binades, the tensor as it is" + _LARGE
        if not measured:
            return "margins in binades; each element in the block that suits it best, as blocks were not looked at"
        other = f"; {_OTHER_SCALES[name]}" if name in _OTHER_SCALES else ""
        return _LEGEND_OF_BLOCKS + other + (f"; blocks {on}, margins on every one" if on else "")
