"""The inspection as Markdown, for an issue or a pull request: verdict, findings, census."""

from __future__ import annotations

from typing import ClassVar

from nanhunt.inspection.finding import Finding, Inspection
from nanhunt.inspection.reading import apart, census, place_in_run, size, summary
from nanhunt.report import words
from nanhunt.report.options import Options

__all__ = ["InspectionMarkdown"]

_SPECIAL = "\\`*_{}[]<>()#+!|~"


class InspectionMarkdown(Options):
    """A short page; names from the file are escaped, so that none of them becomes markup."""

    __slots__ = ()
    name: ClassVar[str] = "markdown"
    suffix: ClassVar[str] = ".md"

    def render(self, inspection: Inspection) -> str:
        """Return the page."""
        facts = inspection.facts
        lines = [f"# {inspection.outcome}: {_text(summary(inspection))}", "", f"Checkpoint {_text(facts.path)}, "
                 f"{facts.container}, {size(facts.bytes)}{place_in_run(facts)}.", ""]  # fmt: skip
        if inspection.origin is not None:
            lines += [f"**Origin:** {_text(inspection.origin.claim)}", ""]
            lines += [*(f"- {_text(reason)}" for reason in inspection.origin.reasons), ""]
        for finding in inspection.findings:
            lines += _finding(finding)
        lines += ["| kind | dtype | tensors | elements | size |", "| --- | --- | ---: | ---: | ---: |"]
        lines += [f"| {r.role} | {r.dtype} | {r.tensors} | {r.elements:,} | {size(r.bytes)} |" for r in census(facts)]
        lines += (
            ["", *(f"- average {_text(f'{a.name}: {apart(a)}')}" for a in facts.averages)] if facts.averages else []
        )
        return "\n".join(lines) + "\n"


def _finding(finding: Finding) -> list[str]:
    cause = f" (`{finding.cause}`)" if finding.cause else ""
    told = [f"- **{finding.severity}** {_text(finding.claim)}{cause}"]
    told += [f"  - {_text(line)}" for line in finding.evidence]
    told += [f"  - fix: {_text(finding.fix)}"] if finding.fix else []
    return [*told, ""]


def _text(text: str) -> str:
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in words.prose(text))
