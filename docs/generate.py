"""Makes the generated pages of docs/ from the code; `--check` says which are stale instead.

python docs/generate.py [--check]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from configs_page import configs_page
from formats_page import formats_page
from precision_page import precision_page
from projects_page import projects_page

from nanhunt.commands.explain import cause_page
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.trace.schema import COLUMNS, SCHEMA_VERSION, NoteKind

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- made by docs/generate.py: change the code, not this page -->\n\n"
COMMANDS = (
    "init",
    "replay",
    "report",
    "formats",
    "explain",
    "trials",
    "inspect",
    "diff",
    "watch",
    "export",
    "run",
    "demo",
)


def main() -> int:
    """Write or check the pages; return the exit code."""
    pages = {f"causes/{c.slug}.md": NOTE + cause_page(c) for c in CAUSES}
    pages |= {"causes/README.md": NOTE + causes_page(), "trace-schema.md": NOTE + schema_page()}
    pages |= {"commands.md": NOTE + commands_page(), "formats.md": NOTE + formats_page()}
    pages |= {"configs.md": NOTE + configs_page(), "precision.md": NOTE + precision_page()}
    pages |= {"projects.md": NOTE + projects_page()}
    stale = [n for n, text in pages.items() if not (DOCS / n).exists() or (DOCS / n).read_text() != text]
    if "--check" in sys.argv[1:]:
        print("".join(f"stale: docs/{name} (make docs)\n" for name in stale), end="")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(pages[name])
    print(f"{len(stale)} of {len(pages)} pages written")
    return 0


def causes_page() -> str:
    """Return the catalogue of causes."""
    rows = "".join(f"| [`{c.slug}`]({c.slug}.md) | {c.fault.rstrip('.')} |\n" for c in CAUSES)
    return f"# The causes\n\n`nanhunt explain CAUSE` prints a page.\n\n| cause | the fault |\n| --- | --- |\n{rows}"


def schema_page() -> str:
    """Return the columns and notes of a trace."""
    rows = "".join(f"| `{c.name}` | {c.type} | {c.meaning} |\n" for c in COLUMNS)
    notes = ", ".join(f"`{kind}`" for kind in NoteKind)
    return (
        f"# The trace\n\nOne Parquet file, a row an observed tensor or scalar (schema {SCHEMA_VERSION}). It opens with "
        '`pandas.read_parquet("trace.parquet")`. A null means "not measured"; a NaN means that the value was NaN. While '
        "a replay runs it is an Arrow IPC stream, `trace.parquet.partial`, that a kill cannot spoil.\n\n"
        f"| column | type | meaning |\n| --- | --- | --- |\n{rows}\n"
        "The file's key-value metadata `nanhunt` is one JSON document: the schema's version, the manifest, the notes and "
        f"whether the trace is complete. A note is a finding that cannot be a row: {notes}.\n\n"
        "`grad` is unscaled and not yet clipped. `grad_output` is as its format held it, with the loss scale in it. "
        "Scalars of one parameter are named `weight.rms_t`: see `nanhunt/probes/optimizer.py` for their formulas.\n"
    )


def commands_page() -> str:
    """Return the help of every command."""
    parts = ["# Commands\n"]
    for name in COMMANDS:
        parts.append(f"\n## `nanhunt {name}`\n\n```\n{help_of(name)}\n```\n")
    return "".join(parts)


def help_of(command: str) -> str:
    """Return a command's help as plain text at 100 columns."""
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")}
    env = {**plain, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nanhunt", command, "--help"], capture_output=True, text=True, env=env, check=True
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


if __name__ == "__main__":
    sys.exit(main())
