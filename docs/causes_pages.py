"""Makes docs/causes/: the page of each cause, its look-alikes linked, and the catalogue. docs/generate.py writes them."""

from __future__ import annotations

import re
from pathlib import Path

from gallery import ENTRIES

from nanhunt.commands.explain import cause_page
from nanhunt.diagnosis.cause import Cause
from nanhunt.diagnosis.causes import CAUSES

__all__ = ["causes_pages"]

ROOT = Path(__file__).resolve().parents[1]
SLUGS = "|".join(sorted((c.slug for c in CAUSES), key=len, reverse=True))


def causes_pages() -> dict[str, str]:
    """Return the pages by their names under docs/."""
    pages = {f"causes/{c.slug}.md": f"{_linked(c)}\n{_footer(c)}" for c in CAUSES}
    rows = "".join(f"| [`{c.slug}`]({c.slug}.md) | {c.fault.rstrip('.')} |\n" for c in CAUSES)
    pages["causes/README.md"] = (
        "# The causes\n\nThe thirty faults that a report asks for: how each looks, why it breaks a training, what counts as "
        "evidence, the mend, the trial that confirms it, what it is mistaken for, and where it was met. `nanhunt explain "
        "CAUSE` prints a page. [How a grade is earned](../how-it-works.md#diagnosis) · [the trials](../trials.md) · [adding a "
        f"cause](../adding-a-cause.md)\n\n| cause | the fault |\n| --- | --- |\n{rows}"
    )
    return pages


def _linked(cause: Cause) -> str:
    """Return the page with every other cause that it names as a link; references are left as they are."""
    text, heading, references = cause_page(cause).partition("\n## References\n")
    linked = re.sub(rf"(?<![\w`/-])({SLUGS})(?![\w`/-])", lambda m: _link(m[1], cause.slug), text)
    return linked + heading + references


def _link(slug: str, own: str) -> str:
    return slug if slug == own else f"[{slug}]({slug}.md)"


def _footer(cause: Cause) -> str:
    file = f"nanhunt/diagnosis/causes/{cause.slug.replace('-', '_')}.py"
    parts = [f"The code: [`{file}`](../../{file})"]
    programs = f"tests/corpus/programs/{cause.slug}"
    if (ROOT / programs).is_dir():
        parts.append(f"programs that have it: [`{programs}`](../../{programs})")
    hunts = [f"[{e.name}](../hunt.md#{e.name})" for e in ENTRIES if e.cause == cause.slug]
    if hunts:
        parts.append(f"hunted: {', '.join(hunts)}")
    return f"---\n\n{'; '.join(parts)}. [The trials](../trials.md). [All causes](README.md).\n"
