"""Puts a real report into the README: that of a kept trace, as `nanhunt report` prints it today. docs/generate.py writes it."""

from __future__ import annotations

import re
from pathlib import Path

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.terminal import TerminalRenderer
from nanhunt.trace.reader import Trace

__all__ = ["readme_with_report"]

README = Path(__file__).resolve().parents[1] / "README.md"
#: A demo's, of a GPT of one layer; docs/images shows the same report as a page.
TRACE = "tests/browser/traces/fp16-overflow.parquet"
#: Cells a line: what fits beside GitHub's margins.
WIDTH = 96
BEGIN, END = f"<!-- nanhunt report {TRACE}: written by docs/generate.py -->\n", "<!-- end of the report -->"
#: What the README leaves out, by how a part begins; all from the causes that were cleared on.
LEFT_OUT = ("  the first of",)
LAST = "cleared"


def readme_with_report() -> str:
    """Return the README with the report between its marks."""
    page = TerminalRenderer(width=WIDTH, color=False).render(diagnose(Trace.open(README.parent / TRACE)))
    parts = re.split(r"\n\n(?=\S|  \S)", page)
    last = next((i for i, part in enumerate(parts) if part.startswith(LAST)), len(parts))
    kept = [part.rstrip() for part in parts[:last] if not part.startswith(LEFT_OUT)]
    report = "\n\n".join([*kept, "…"])
    before, _, rest = README.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n```\n{report}\n```\n\n{END}{rest.partition(END)[2]}"
