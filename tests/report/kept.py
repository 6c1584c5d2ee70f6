"""The kept reports of six faults, as a terminal and an issue show them: `make examples` writes them again.

They are made of the traces that the browser's tests keep, so that no machine's timing or rounding is in them, and no path:
a report depends on nothing but its trace. Whoever changes a report sees in the diff what a reader gets to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.markdown import MarkdownRenderer
from nanhunt.report.terminal import TerminalRenderer
from nanhunt.trace.reader import Trace
from tests.browser.kept import FAULTS, trace_of

__all__ = ["FAULTS", "FOLDER", "WIDTHS", "diagnosis_of", "reports"]

FOLDER = Path(__file__).with_name("reports")
WIDTHS = (80, 200)


@cache
def diagnosis_of(fault: str) -> Diagnosis:
    """Return the diagnosis of a kept trace, as of a file in the current folder."""
    diagnosis = diagnose(Trace.open(trace_of(fault)))
    return replace(diagnosis, run=diagnosis.run | {"trace": "trace.parquet"})


def reports(fault: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each report of a fault."""
    diagnosis = diagnosis_of(fault)
    for width in WIDTHS:
        yield f"{fault}.{width}.txt", TerminalRenderer(width=width).render(diagnosis)
    yield f"{fault}.md", MarkdownRenderer().render(diagnosis)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in FAULTS:
        for file, text in reports(name):
            (FOLDER / file).write_text(text, encoding="utf-8")
