"""What a long trace costs: bytes a row, compaction, and `nanhunt report`, by the number of steps; and what a start costs.

`make bench-report` runs it. Every stage is a process of its own, so that its peak memory is its own. Growth is linear
where seconds and steps double together, and memory is bounded where it does not move.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: Layers of the model, and steps of the traces: 2 500 steps are 5 million rows.
LAYERS = 11
STEPS = [313, 625, 1250, 2500]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a process took: seconds of the clock and of its own processors, and its peak memory in MB."""

    seconds: float
    busy: float
    peak: float
    output: str


def main() -> None:
    """Print a line a length, then a line a command that starts and ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--healthy", action="store_true", help="a run without a fault")
    parser.add_argument("--keep", type=Path, help="leave the traces in this folder")
    parser.add_argument("--stage", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        stage(asked.stage, layers=asked.layers, fault=not asked.healthy)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lengths(folder, asked.steps, ["--layers", str(asked.layers), *(["--healthy"] if asked.healthy else [])])
        starts(folder / "short.parquet")


def lengths(folder: Path, steps: list[int], options: list[str]) -> None:
    """Print what a trace of each length costs."""
    titles = ("steps", "rows", "bytes/row", "stream MB", "compaction s", "peak MB", "report s", "busy s", "peak MB",
              "json s", "busy s", "peak MB")  # fmt: skip
    print("  ".join(titles))
    for count in steps:
        path = folder / f"{count}.parquet"
        stream = path.with_name(path.name + ".partial")
        rows = int(run_stage(["make", str(folder), str(count), str(stream)], options).output)
        size = stream.stat().st_size / 1e6
        compaction = run_stage(["compact", str(stream), str(path)], options)
        stream.unlink()
        page, document = run(["report", str(path)]), run(["report", str(path), "--format", "json"])
        cells = [f"{count}", f"{rows}", f"{path.stat().st_size / rows:.1f}", f"{size:.0f}"]
        cells += [f"{compaction.seconds:.1f}", f"{compaction.peak:.0f}"]
        cells += [text for c in (page, document) for text in (f"{c.seconds:.1f}", f"{c.busy:.1f}", f"{c.peak:.0f}")]
        print("  ".join(cell.rjust(len(title)) for cell, title in zip(cells, titles, strict=True)), flush=True)


def starts(short: Path, rounds: int = 9) -> None:
    """Print medians of what takes no time but that of starting, and how many bare starts of Python they are."""
    bare = statistics.median(_finish([sys.executable, "-c", "pass"]).seconds for _ in range(rounds))
    print(f"\npython -c pass: {bare:.3f} s")
    for line in (["--help"], ["report", "--help"], ["formats"], ["report", str(short)]):
        costs = [run(line) for _ in range(rounds)]
        seconds, busy = (statistics.median(values) for values in ([c.seconds for c in costs], [c.busy for c in costs]))
        name = " ".join(line).replace(str(short), "short.parquet")
        print(f"nanhunt {name}: {seconds:.3f} s, {busy:.3f} s busy, {seconds / bare:.0f} bare starts")


def stage(arguments: list[str], *, layers: int, fault: bool) -> None:
    """Do one of the works that a process is kept for."""
    what, first, *rest = arguments
    if what == "make":
        from benchmarks.long_trace import replay, write_stream

        print(write_stream(replay(Path(first), layers=layers, steps=int(rest[0]), fault=fault), Path(rest[1])))
    else:
        from nanhunt.trace.compact import compact

        compact(Path(first), Path(rest[0]))


def run_stage(arguments: list[str], options: list[str]) -> Cost:
    """Run this file in a process of its own."""
    return _finish([sys.executable, "-m", "benchmarks.report", *options, "--stage", *arguments])


def run(line: list[str]) -> Cost:
    """Run a command of nanhunt."""
    return _finish([sys.executable, "-m", "nanhunt", *line])


def _finish(command: list[str]) -> Cost:
    """Run a process to its end and return what it took."""
    # compiled modules are kept, as they are where nanhunt is installed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    # kilobytes on Linux, bytes on macOS
    peak = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return Cost(seconds=time.perf_counter() - began, busy=usage.ru_utime + usage.ru_stime, peak=peak, output=output)


if __name__ == "__main__":
    main()
