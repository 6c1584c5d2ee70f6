"""Makes the generated pages of docs/ from the code; `--check` says which are stale instead.

python docs/generate.py [--check]
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from causes_pages import causes_pages
from commands_page import commands_pages
from configs_page import configs_page
from formats_page import formats_page
from keys_page import keys_page
from precision_page import precision_page
from projects_page import projects_page
from readme_report import readme_with_report

from nanhunt.trace.schema import COLUMNS, SCHEMA_VERSION, NoteKind

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- made by docs/generate.py: change the code, not this page -->\n\n"
#: Folders that hold nothing but pages of ours.
OURS = ("causes", "commands")


def main() -> int:
    """Write or check the pages; return the exit code."""
    pages = {**causes_pages(), **commands_pages(), "trace-schema.md": schema_page(), "formats.md": formats_page()}
    pages |= {
        "config-keys.md": keys_page(),
        "configs.md": configs_page(),
        "precision.md": precision_page(),
        "projects.md": projects_page(),
    }
    pages = {name: NOTE + text for name, text in pages.items()}
    pages["../README.md"] = readme_with_report()
    stale = [n for n, text in pages.items() if not (DOCS / n).exists() or (DOCS / n).read_text() != text]
    left = [p for folder in OURS for p in (DOCS / folder).glob("*.md") if f"{folder}/{p.name}" not in pages]
    if "--check" in sys.argv[1:]:
        print("".join(f"stale: docs/{name} (make docs)\n" for name in [*stale, *left]), end="")
        return 1 if stale or left else 0
    for name in stale:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(pages[name])
    for page in left:
        page.unlink()
    print(f"{len(stale)} of {len(pages)} pages written")
    return 0


def schema_page() -> str:
    """Return the columns and notes of a trace."""
    rows = "".join(f"| `{c.name}` | {c.type} | {c.meaning} |\n" for c in COLUMNS)
    notes = "".join(f"| `{kind}` | {meaning} |\n" for kind, meaning in note_meanings())
    return (
        f"# The trace\n\nOne Parquet file, a row an observed tensor or scalar (schema {SCHEMA_VERSION}). It opens with "
        '`pandas.read_parquet("trace.parquet")`. A null means "not measured"; a NaN means that the value was NaN. While '
        "a replay runs it is an Arrow IPC stream, `trace.parquet.partial`, that a kill cannot spoil. Of several ranks it is "
        "a folder with a file a rank, which the same call reads.\n\n"
        f"## Columns\n\n| column | type | meaning |\n| --- | --- | --- |\n{rows}\n"
        "`grad` is unscaled and not yet clipped. `grad_output` is as its format held it, with the loss scale in it. "
        "Scalars of one parameter are named `weight.rms_t`: see `nanhunt/probes/optimizer.py` for their formulas.\n\n"
        "## Notes\n\nThe file's key-value metadata `nanhunt` is one JSON document: the schema's version, the manifest, the "
        "notes and whether the trace is complete. A note is a finding that cannot be a row.\n\n"
        f"| note | what it is about |\n| --- | --- |\n{notes}"
    )


def note_meanings() -> Iterator[tuple[str, str]]:
    """Yield each kind of note with what the comment above it says; one without a comment shares that before it."""
    text, meaning = inspect.getsource(NoteKind), ""
    for comment, value in re.findall(r'((?:    #: .*\n)*)    [A-Z_]+ = "([a-z-]+)"', text):
        meaning = " ".join(re.sub(r"(?m)^ *#: ", "", comment).split()) or meaning
        yield value, meaning.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
