"""What needs no torch does not import it: torch takes a second or more, and a trace is often read elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, io, json, sys
from nanhunt.cli import main

for line in json.loads(sys.argv[1]):
    sys.argv = ["nanhunt", *line]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
    print(json.dumps([line[0], code or 0, bool(out.getvalue()), [m for m in %r if m in sys.modules]]))
"""


def loaded_after(lines: list[list[str]], modules: list[str], environment: dict[str, str]) -> list[list[object]]:
    """Return [command, exit code, whether it printed, which of the modules are loaded] for each line."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % modules, json.dumps(lines)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "options",
    [["--help"], ["--version"], ["replay", "--help"], ["report", "--help"], ["inspect", "--help"], ["init", "--help"]],
)
def test_help_needs_neither_torch_nor_tables(options, environment):
    modules = ["torch", "pandas", "pyarrow", "numpy"]
    assert loaded_after([options], modules, environment) == [[options[0], 0, True, []]]


def test_commands_that_read_need_no_torch(fault_trace, environment):
    # in one process: a torch that one of them loads shows in its row and in those after it
    lines = [
        ["formats"],
        ["formats", "--dtype", "bf16", "--value", "70000", "-f", "json"],
        ["explain"],
        ["explain", "-f", "json"],
        ["trials"],
        ["trials", str(fault_trace)],
        ["demo", "--list"],
        ["report", str(fault_trace)],
        ["report", str(fault_trace), "-f", "json"],
        ["report", str(fault_trace), "-f", "markdown"],
        ["report", str(fault_trace), "-f", "html"],
        ["diff", str(fault_trace), str(fault_trace)],
        ["diff", str(fault_trace), str(fault_trace), "-f", "html"],
        ["watch", str(fault_trace)],
        ["export", str(fault_trace), "--to", "json", "-o", "-"],
    ]
    found = loaded_after(lines, ["torch"], environment)
    assert found == [[line[0], 0, True, []] for line in lines]


def test_a_report_needs_no_pandas(fault_trace, environment):
    lines = [["report", str(fault_trace), "-f", format] for format in ("terminal", "json", "html")]
    assert loaded_after(lines, ["pandas"], environment) == [["report", 0, True, []]] * 3
