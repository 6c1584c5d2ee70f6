"""Makes docs/commands/: a page a command, with lines to copy and the command's own help, and their index.

docs/generate.py writes and checks them. A command that `nanhunt.cli` gains has its page by itself; EXAMPLES and READ_ON
add what its help does not say.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from nanhunt.cli import app

__all__ = ["commands_pages"]

#: Lines to copy; tests/docs parses each, and runs those that cost nothing.
EXAMPLES = {
    "init": """\
nanhunt init ckpt.pt                    # a nanhunt.yaml that fits the checkpoint, and what it could not know
nanhunt init ckpt.pt -o other.yaml       # under another name""",
    "replay": """\
nanhunt replay ckpt.pt --dry-run        # what would be loaded, matched and assumed; time and memory
nanhunt replay ckpt.pt                  # writes trace.parquet
nanhunt replay nanhunt-bundle           # the newest bundle of a recorder: needs no config
nanhunt replay ckpt.pt --steps 200 --every 10 --device cuda:1
nanhunt replay ckpt.pt --trial clip-norm          # one trial more, on the trace that is there
nanhunt replay ckpt.pt --precision fp8-hybrid     # what if
torchrun --nproc-per-node 8 -m nanhunt replay ckpt.pt""",
    "report": """\
nanhunt report trace.parquet
nanhunt report trace.parquet -o report.html       # a page to look at, to keep, to send
nanhunt report trace.parquet -f markdown          # for an issue
nanhunt report trace.parquet -f json --exit-code  # for scripts: ends with 1 where there is a fault
nanhunt report trace.parquet --repro repro.py     # the op that broke, as a script of its own""",
    "formats": """\
nanhunt formats                                   # all formats
nanhunt formats --dtype bf16                      # one, exactly
nanhunt formats --value 70000                     # what each makes of a number
nanhunt formats --trace trace.parquet --dtype e4m3""",
    "explain": """\
nanhunt explain                                   # the thirty causes
nanhunt explain where-trap                        # a cause's page""",
    "trials": """\
nanhunt trials                                    # what a replay can try
nanhunt trials trace.parquet                      # what was tried, and what came out""",
    "inspect": """\
nanhunt inspect ckpt.pt
nanhunt inspect ckpt.pt --reference earlier.pt    # and what changed since
nanhunt inspect ckpt.pt -f json --exit-code""",
    "run": """\
nanhunt run train.py ARGS…
nanhunt run -m package.module ARGS…
nanhunt run --out bundles --every 20 train.py ARGS…   # nanhunt's options stand before the script""",
    "watch": """\
nanhunt watch trace.parquet.partial               # a replay that runs
nanhunt watch trace.parquet --once                # one frame""",
    "export": """\
nanhunt export trace.parquet --to tensorboard
nanhunt export trace.parquet --to csv -o rows.csv
nanhunt export trace.parquet --to json""",
    "demo": """\
nanhunt demo --list                               # the faults that can be planted
nanhunt demo bad-sample                           # trains, replays, reports""",
}
#: Pages that tell more.
READ_ON = {
    "init": "[From a checkpoint](../from-a-checkpoint.md), [recipes](../configs.md), [projects](../projects.md), "
    "[batches](../batches.md)",
    "replay": "[How it works](../how-it-works.md), [batches](../batches.md), [trials](../trials.md), "
    "[precision recipes](../precision.md), [several ranks](../ranks.md), [what it costs](../performance.md)",
    "report": "[Twelve hunts](../hunt.md), [the causes](../causes/README.md), [headroom](../how-it-works.md#headroom)",
    "formats": "[Number formats](../formats.md)",
    "explain": "[The causes](../causes/README.md), [adding one](../adding-a-cause.md)",
    "trials": "[Trials](../trials.md)",
    "inspect": "[Inspecting a checkpoint](../inspect.md)",
    "run": "[Run a script under the recorder](../run.md), [the recorder](../recorder.md)",
    "watch": "[Watch a run](../watch-and-export.md)",
    "export": "[Export](../watch-and-export.md#export), [the trace's columns](../trace-schema.md)",
    "demo": "[Twelve hunts](../hunt.md)",
}
EXIT_CODES = """\
Every command ends with 0 where its job was done, whether a fault was found or not; 1 with `--exit-code`, where one was
found; 2 on bad input, with one message that names the file or key and the mend; 3 where your own code failed before a step,
with its traceback; 70 on a defect in nanhunt; 130 when it was interrupted: the trace so far is kept. `nanhunt run` ends as
its script does.
"""


def commands_pages() -> dict[str, str]:
    """Return the pages by their names under docs/."""
    helps = {name: help_of(name) for name in names()}
    pages = {f"commands/{name}.md": _page(name, text) for name, text in helps.items()}
    rows = "".join(f"| [`nanhunt {name}`]({name}.md) | {_first_line(text)} |\n" for name, text in helps.items())
    pages["commands/README.md"] = f"# The commands\n\n| command | what it does |\n| --- | --- |\n{rows}\n{EXIT_CODES}"
    return pages


def names() -> list[str]:
    """Return the commands' names, in the order of `nanhunt --help`."""
    return [c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None]


def help_of(command: str) -> str:
    """Return a command's help as plain text at 100 columns."""
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")}
    env = {**plain, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nanhunt", command, "--help"], capture_output=True, text=True, env=env, check=True
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip().replace("python -m nanhunt", "nanhunt")


def _page(name: str, text: str) -> str:
    parts = [f"# `nanhunt {name}`\n\n{_first_line(text)}\n"]
    if name in EXAMPLES:
        parts.append(f"```\n{EXAMPLES[name]}\n```\n")
    parts.append(f"## Help\n\n```\n{text}\n```\n")
    if name in READ_ON:
        parts.append(f"## Read on\n\n{READ_ON[name]}.\n")
    return "\n".join(parts)


def _first_line(text: str) -> str:
    """Return what a command says of itself: the paragraph behind its usage, in one line."""
    return " ".join(re.split(r"\n\s*\n", text)[1].split())
