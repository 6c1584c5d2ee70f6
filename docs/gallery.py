"""Makes docs/hunt.md: twelve faults, each trained, replayed and reported by the commands that a user would type.

python docs/gallery.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "hunt.md"
#: What the commands find in their environment.
SURROUNDINGS = {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
#: What the page leaves out of a report: it is much the same for all.
_END = "\ncleared"

HEAD = """\
<!-- made by docs/gallery.py (make gallery): change the programs in docs/gallery, not this page -->

# Twelve hunts

Each of these is a small training script with one fault. The report below it is what `nanhunt report` printed, down to
the suspects; what follows there (the causes that were cleared, headroom, assumptions) is left out. The folders hold all
that is needed:

```
cd docs/gallery/masked-row
python train.py                   # trains ten healthy steps and writes ckpt.pt
nanhunt replay ckpt.pt            # goes on from there, under watch
nanhunt report trace.parquet
```
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fault: its folder, what kind it stands for, and the cause that an expert would name."""

    name: str
    kind: str
    cause: str


ENTRIES = (
    Entry(name="squared-relu", kind="an infinity from finite numbers, forward", cause="activation-overflow"),
    Entry(name="log-of-negative", kind="a NaN from finite numbers, in one sample", cause="bad-target"),
    Entry(name="masked-row", kind="a NaN from a deliberate infinity", cause="fully-masked-softmax"),
    Entry(name="where-trap", kind="a branch that was thrown away, and comes back in backward", cause="where-trap"),
    Entry(name="root-of-zero", kind="a finite loss with gradients that are NaN", cause="singular-gradient"),
    Entry(name="clip-of-an-inf-norm", kind="after backward: the clip", cause="training-loop-bug"),
    Entry(name="adam-eps-in-fp16", kind="after backward: the optimizer's own arithmetic", cause="epsilon-underflow"),
    Entry(name="rate-of-nan", kind="after backward: the scheduler", cause="learning-rate-too-high"),
    Entry(name="erased-norm", kind="a fault that leaves no NaN", cause="activation-overflow"),
    Entry(name="gradient-penalty", kind="a loop of one's own, with two optimizers", cause="singular-gradient"),
    Entry(
        name="checkpointed-router",
        kind="a real model: activation checkpointing, tied weights, attention, experts",
        cause="naive-exp-log",
    ),
    Entry(name="flipped-bit", kind="a step that goes otherwise when it is repeated", cause="hardware-fault"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunt:
    """What came out of an entry: the report as it was printed, and as JSON."""

    text: str
    report: dict[str, Any]


def hunt(entry: Entry, folder: Path, run: Callable[..., str] | None = None) -> Hunt:
    """Run an entry's commands in a copy of its folder below `folder`, which must not hold one yet.

    `run` is given a folder and what follows `python` on its command line, and returns what that prints.
    """
    run = run or _run
    place = folder / entry.name
    shutil.copytree(
        DOCS / "gallery" / entry.name, place, ignore=shutil.ignore_patterns("__pycache__", "*.pt", "*.parquet")
    )
    run(place, "train.py")
    run(place, "-m", "nanhunt", "replay", "ckpt.pt", "--quiet")
    text = run(place, "-m", "nanhunt", "report", "trace.parquet")
    report = json.loads(run(place, "-m", "nanhunt", "report", "trace.parquet", "--format", "json"))
    return Hunt(text=text, report=report)


def section(entry: Entry, found: Hunt) -> str:
    """Return the entry's part of the page."""
    source = (DOCS / "gallery" / entry.name / "train.py").read_text()
    said = source.partition('"""')[2].partition('"""')[0].strip()
    shown, _, _ = found.text.partition(_END)
    return (
        f"\n## {entry.name}\n\nKind: {entry.kind}.\n\n{said}\n\n"
        f"[`docs/gallery/{entry.name}`](gallery/{entry.name}/train.py)\n\n"
        f"```python\n{fault_lines(source)}\n```\n\n```\n$ nanhunt report trace.parquet\n{shown.rstrip()}\n```\n"
    )


def fault_lines(source: str, around: int = 2) -> str:
    """Return the lines marked `# fault`, numbered, with a few around them."""
    lines = source.splitlines()
    at = next(i for i, line in enumerate(lines) if "# fault" in line)
    first = max(0, at - around)
    shown = lines[first : at + around + 1]
    indent = min(len(line) - len(line.lstrip()) for line in shown if line.strip())
    numbered = [(first + i + 1, line[indent:].rstrip()) for i, line in enumerate(shown)]
    return "\n".join(f"{number:>3}  {line}".rstrip() for number, line in numbered if line or number == at + 1)


def _run(place: Path, *command: str) -> str:
    environment = os.environ | SURROUNDINGS
    done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{place.name}: {' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        sections = []
        for entry in ENTRIES:
            sections.append(section(entry, hunt(entry, Path(folder))))
            print(f"{entry.name}: done")
    PAGE.write_text(HEAD + "".join(sections))


if __name__ == "__main__":
    main()
