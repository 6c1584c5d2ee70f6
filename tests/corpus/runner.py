"""Runs programs through the command line, as a user would: replay the checkpoint, then report the trace as JSON.

Each command runs in a process of its own, forked from one that has torch loaded already: what is saved is the
interpreter's start and torch's, 6 s a program. A child of its own also keeps one program's threads, seeds and modules from the next.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanhunt.stats.cpu_kernel import measure_on_cpu
from tests.corpus.program import Program

__all__ = ["Around", "Job", "Run", "load_shared", "replay_again", "run_all", "run_one"]

#: What surrounds a replay in its own process, given the folder it runs in.
Around = Callable[[Path], contextlib.AbstractContextManager[None]]

#: Seconds that one command may take.
_LIMIT = 600


@dataclass(frozen=True, slots=True)
class Job:
    """A program as it is, or its mended twin."""

    program: Program
    faulty: bool
    #: seed of the noise on the checkpoint's weights; None leaves them as they were trained
    shaken: int | None = None

    @property
    def name(self) -> str:
        """The program's, with a mark on a twin."""
        return self.program.name + ("" if self.faulty else " (twin)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a job: the report's JSON, or why there is none."""

    job: Job
    folder: Path
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


@contextlib.contextmanager
def _nothing(folder: Path) -> Iterator[None]:
    yield


def run_all(jobs: Sequence[Job], root: Path, workers: int, around: Around = _nothing) -> Iterator[Run]:
    """Run jobs, `workers` at a time, and yield each as it ends."""
    load_shared()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting = [pool.submit(run_one, job, root / f"{i:03d}", around) for i, job in enumerate(jobs)]
        for future in as_completed(waiting):
            yield future.result()


def load_shared() -> None:
    """Load what the children share, once.

    Dynamo is asked for by the first optimizer of a process, and takes 1.5 s; Numba's code by the first statistics, and
    takes as long.
    """
    own = ("nanhunt.commands.replay", "nanhunt.commands.report")
    for module in (*own, "pandas", "pyarrow.parquet", "pydantic.type_adapter", "torch._dynamo"):
        importlib.import_module(module)
    measure_on_cpu(torch.ones(1), 1.0, histogram=True)
    torch.set_num_threads(1)  # sums of several threads differ in their last bits, and a run near its edge tips over


def run_one(job: Job, folder: Path, around: Around = _nothing) -> Run:
    """Write the program into `folder`, make its checkpoint, replay and report it."""
    job.program.write(folder, faulty=job.faulty)
    return _diagnosed(job, folder, around, _in_child(_checkpoint, job.program, folder, job.shaken))


def replay_again(job: Job, from_: Path, folder: Path, around: Around) -> Run:
    """Replay and report a program anew in a copy of a folder that holds its checkpoint; the copy is removed."""
    shutil.copytree(from_, folder, ignore=shutil.ignore_patterns("trace.parquet*", "*.out", "*.err", "__pycache__"))
    try:
        return _diagnosed(job, folder, around, "")
    finally:
        shutil.rmtree(folder)


def _diagnosed(job: Job, folder: Path, around: Around, error: str) -> Run:
    began = time.perf_counter()
    body: dict[str, Any] = {}
    error = error or _in_child(_command, folder, around, "replay", "ckpt.pt", "--force", "-q")
    if not error:
        error = _in_child(_command, folder, _nothing, "report", "trace.parquet", "-f", "json")
        with contextlib.suppress(json.JSONDecodeError):
            body = json.loads((folder / "report.out").read_text())
    return Run(job=job, folder=folder, report=body, error=error, seconds=time.perf_counter() - began)


def _checkpoint(program: Program, folder: Path, shaken: int | None) -> int:
    from tests.corpus.checkpoint import save_checkpoint

    os.chdir(folder)
    save_checkpoint(program, folder, shaken)
    return 0


def _command(folder: Path, around: Around, *arguments: str) -> int:
    from nanhunt.cli import main

    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{arguments[0]}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))  # pytest has its own
    sys.argv = ["nanhunt", *arguments]
    with around(folder):
        main()
    return 0


def _in_child(work: Callable[..., int], *arguments: Any) -> str:
    """Run a function in a forked process; return what went wrong, or ''."""
    context = multiprocessing.get_context("fork")
    told: Any = context.SimpleQueue()
    child = context.Process(target=_body, args=(told, work, arguments))
    child.start()
    child.join(_LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        return f"{work.__name__.strip('_')} {arguments[1:]}: not done in {_LIMIT} s"
    if not told.empty():
        return str(told.get())
    return f"killed by signal {-child.exitcode}" if child.exitcode else ""


def _body(told: Any, work: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    os.environ["NO_COLOR"] = "1"
    try:
        work(*arguments)
    except SystemExit as stop:
        if stop.code:
            sys.stderr.flush()
            told.put(f"exit {stop.code}: {Path(f'{arguments[1]}.err').read_text()[-400:]}")
    except BaseException:
        told.put(traceback.format_exc()[-1500:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
