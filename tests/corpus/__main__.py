"""`make corpus`: runs the corpus and writes the scoreboard.

python -m tests.corpus [-j WORKERS] [-o PAGE] [--keep FOLDER] [--shaken SEED] [PATTERN ...]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.corpus import hunted
from tests.corpus.judge import judge
from tests.corpus.program import Program, programs
from tests.corpus.runner import Job, Run, run_all
from tests.corpus.scoreboard import Scoreboard
from tests.corpus.thresholds import sensitivities

__all__ = ["main", "scored"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the programs that the patterns name (all by default), print the scoreboard, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a program's name, or a glob")
    parser.add_argument("-j", "--workers", type=int, default=os.cpu_count() or 1, help="programs run at a time")
    parser.add_argument("-o", "--out", type=Path, help="write the scoreboard here, as markdown")
    parser.add_argument("--keep", type=Path, help="keep projects, traces and reports in this folder")
    parser.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="run what PATTERN names; of all others take what --keep left here"
    )
    parser.add_argument("--reach", action="store_true", help="exit with 1 where the scoreboard is short of its reach")
    parser.add_argument("--thresholds", action="store_true", help="try other thresholds on the traces as well")
    parser.add_argument("--hunted", action="store_true", help="replay with other thresholds of the hunt, and keep how")
    parser.add_argument(
        "--shaken",
        type=int,
        metavar="SEED",
        help="multiply weights by 1 + 1e-6 noise of this seed, before the checkpoint is trained and in it: "
        "what turns out wrong stands on an edge",
    )
    options = parser.parse_args(arguments)
    chosen = programs(*options.patterns)
    if not chosen:
        parser.error("no program has such a name")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.keep or Path(scratch)).resolve()
        if options.hunted:
            hunted.keep(_moved_with_bar(chosen, root, options.workers))
            return 0
        runs = _with_bar(jobs_of(chosen, options.shaken), root, options.workers)
        if options.kept is not None:
            runs += _earlier(options.kept, {run.job.name for run in runs})
        board = scored(runs)
        if options.thresholds:
            board = replace(board, sensitivities=tuple(sensitivities(runs)), hunted=hunted.kept())
        (root / "runs.json").write_text(json.dumps([_kept(run) for run in runs], indent=1))
    board.show(Console(), time.perf_counter() - began)
    if options.out is not None:
        options.out.write_text(board.markdown())
    short = board.short_of() if options.reach else ()
    for said in short:
        print(f"short of its reach: {said}", file=sys.stderr)
    return 1 if short else 0


def jobs_of(chosen: Sequence[Program], shaken: int | None = None) -> list[Job]:
    """Return a job for each program and for each twin."""
    return [Job(p, faulty, shaken) for p in chosen for faulty in ((True, False) if p.cause and p.has_twin else (True,))]


def scored(runs: Sequence[Run]) -> Scoreboard:
    """Judge every run: faulty programs by their truth, healthy ones and twins by the outcome."""
    faulty = [r for r in runs if r.job.faulty and r.job.program.cause]
    return Scoreboard(
        verdicts=tuple(judge(r.job.program, r.report, r.error) for r in sorted(faulty, key=lambda r: r.job.name)),
        healthy=tuple(
            (r.job.name, r.report.get("outcome", "no report"), r.error or _accused(r))
            for r in sorted(runs, key=lambda r: r.job.name)
            if r not in faulty
        ),
    )


def _earlier(folder: Path, again: set[str]) -> list[Run]:
    """Return the runs of an earlier call that are not made again, of programs that are still here."""
    jobs = {job.name: job for job in jobs_of(programs())}
    found = []
    for body in json.loads((folder / "runs.json").read_text()):
        if body["job"] in again or body["job"] not in jobs:
            continue
        report = Path(body["folder"]) / "report.out"
        told = json.loads(report.read_text()) if report.exists() and report.stat().st_size else {}
        run = Run(job=jobs[body["job"]], folder=Path(body["folder"]), report=told, error=body["error"])
        found.append(run)
    return found


def _accused(run: Run) -> str:
    return "" if run.report.get("outcome") == "healthy" else str(run.report.get("summary", ""))


def _kept(run: Run) -> dict[str, object]:
    return {"job": run.job.name, "folder": str(run.folder), "seconds": run.seconds, "error": run.error}


def _with_bar(jobs: Sequence[Job], root: Path, workers: int) -> list[Run]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    runs = []
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("corpus", total=len(jobs))
        for run in run_all(jobs, root, workers):
            runs.append(run)
            progress.update(bar, advance=1, description=run.job.program.cause or "healthy")
    return runs


def _moved_with_bar(chosen: Sequence[Program], root: Path, workers: int) -> list[hunted.Moved]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("thresholds of the hunt", total=None)
        return hunted.moved(
            jobs_of(chosen), root, workers, lambda done, of: progress.update(bar, completed=done, total=of)
        )


if __name__ == "__main__":
    sys.exit(main())
