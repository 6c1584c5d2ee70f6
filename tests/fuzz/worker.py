"""Runs inputs in forked processes that are watched: for exceptions, for time, for memory, for signals.

Torch is imported once, before the fork, so that an input costs what reading it costs. A process writes a line for each
input that it is done with: where one hangs inside of C, or takes the process with it, the parent knows which one it was
and forks anew behind it.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanhunt.errors import NanhuntError
from tests.fuzz.target import Target

__all__ = ["Limits", "Outcome", "run_blocks", "run_one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one input may take."""

    seconds: float
    #: resident memory above that of a process that has read nothing
    mebibytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one input. `kind` is "ok", "refused", or of a failure "raised", "hang", "memory" or "killed"."""

    index: int
    kind: str
    #: the error's class and the beginning of what it says, numbers and names left out
    detail: str = ""
    traceback: str = ""
    seconds: float = 0.0
    #: MiB at its highest, above that of the process before
    memory: float = 0.0

    @property
    def is_failure(self) -> bool:
        """Whether the input did what no input may."""
        return self.kind not in ("ok", "refused")


class _HangError(BaseException):
    """The alarm went off; no `except Exception` may catch it."""


@dataclass(slots=True, kw_only=True)
class _Child:
    """A forked process that works through inputs of one target, writing a line for each."""

    target: Target
    indices: range
    #: holds `log`, and the input that is worked on
    root: Path
    #: when that input was begun, in memory that both see
    clock: mmap.mmap
    process: int = 0

    @property
    def log(self) -> Path:
        return self.root / "log"


def run_blocks(
    blocks: Iterable[tuple[Target, range]], *, seed: int, limits: Limits, workers: int, end: float
) -> Iterator[tuple[Target, list[Outcome]]]:
    """Run blocks of inputs, each in a process of its own, `workers` at a time; yield outcomes as they come.

    None is begun after `end` (`time.monotonic`). Everything is done in one thread: a lock that another one holds while this
    one forks is held for ever in the child.
    """
    torch.set_num_threads(1)
    waiting = deque(blocks)
    running: list[_Child] = []
    with tempfile.TemporaryDirectory(prefix="nanhunt-fuzz-", dir=_scratch()) as scratch:
        for target in {target.name: target for target, _ in waiting}.values():
            # what inputs are made from is made once, here
            target.make(Path(tempfile.mkdtemp(dir=scratch)), random.Random(0))
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < end:
                target, indices = waiting.popleft()
                root = Path(tempfile.mkdtemp(dir=scratch))
                running.append(_Child(target=target, indices=indices, root=root, clock=mmap.mmap(-1, 8)))
                _fork(running[-1], seed, limits)
            if time.monotonic() >= end:
                waiting.clear()
            for child in list(running):
                status = _status(child, limits)
                if status is not None:
                    running.remove(child)
                    outcomes, rest = _told(child, status)
                    if rest:
                        waiting.appendleft((child.target, rest))
                    yield child.target, outcomes
            time.sleep(0.01)


def _fork(child: _Child, seed: int, limits: Limits) -> None:
    child.log.touch()
    child.clock[:8] = struct.pack("<d", time.monotonic())
    child.process = os.fork()
    if child.process == 0:
        _work(child, seed, limits)


def _status(child: _Child, limits: Limits) -> int | None:
    """Return the exit code of a child that has ended; end one whose input takes far longer than its own alarm allows."""
    done, status = os.waitpid(child.process, os.WNOHANG)
    if done:
        return os.waitstatus_to_exitcode(status)
    (began,) = struct.unpack("<d", child.clock[:8])
    if time.monotonic() - began > 3 * limits.seconds + 10:
        os.kill(child.process, signal.SIGKILL)
    return None


def _told(child: _Child, code: int) -> tuple[list[Outcome], range]:
    """Return what became of the inputs of a child that has ended, and those that it did not come to."""
    # a line that the end of the process tore in two counts for its input, which is the one that ended it
    lines = [line for line in child.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    rest = child.indices[len(lines) :]
    if rest and code != 0:
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        kind = "hang" if code == -signal.SIGKILL else "killed"
        outcomes.append(Outcome(index=rest[0], kind=kind, detail=name))
        rest = rest[1:]
    shutil.rmtree(child.root)
    child.clock.close()
    return outcomes, rest


def run_one(target: Target, seed: int, index: int, limits: Limits, folder: Path) -> Outcome:
    """Make one input in `folder` and run it in this process."""
    path = target.make(folder, random.Random(f"{seed}:{target.name}:{index}"))
    before = _resident("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    began = time.perf_counter()
    kind, detail, told = _tried(target, path, limits)
    seconds = time.perf_counter() - began
    memory = max(_resident("VmHWM") - before, 0.0)
    if kind in ("ok", "refused") and memory > limits.mebibytes:
        kind, detail = "memory", f"{memory:.0f} MiB"
    return Outcome(index=index, kind=kind, detail=detail, traceback=told, seconds=seconds, memory=memory)


def _tried(target: Target, path: Path, limits: Limits) -> tuple[str, str, str]:
    """Return the kind of the outcome, what was said, and the traceback of a failure."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            target.run(path)
    except NanhuntError as error:
        if "allocate memory" in str(error) or "bad_alloc" in str(error) or isinstance(error.__cause__, MemoryError):
            return "memory", _said(error, path), traceback.format_exc()
        return "refused", _said(error, path), ""
    except _HangError:
        return "hang", f"{limits.seconds:g} s", traceback.format_exc()
    except MemoryError as error:
        return "memory", _said(error, path), traceback.format_exc()
    except BaseException as error:
        return "raised", _said(error, path), traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "ok", "", ""


def _said(error: BaseException, path: Path) -> str:
    text = str(error).replace(str(path), "INPUT").replace(str(path.parent), "FOLDER")
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", " ".join(text.split()))
    return f"{type(error).__name__}: {re.sub(r'[0-9]+', 'N', text)[:60]}"


def _alarm(number: int, frame: object) -> None:
    raise _HangError


def _work(child: _Child, seed: int, limits: Limits) -> None:
    """Run the child's inputs in it; never returns."""
    code = 0
    try:
        # a belt for what grows faster than it can be looked at: what is above becomes a MemoryError
        size = int(_resident("VmSize") + limits.mebibytes + 4096) << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        folder = child.root / "input"
        with child.log.open("a") as file:
            for index in child.indices:
                child.clock[:8] = struct.pack("<d", time.monotonic())
                folder.mkdir()
                outcome = run_one(child.target, seed, index, limits, folder)
                shutil.rmtree(folder)
                file.write(json.dumps(asdict(outcome)) + "\n")
                file.flush()
    except BaseException:
        code = 99
    os._exit(code)


def _scratch() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _resident(name: str) -> float:
    """Return a line of this process's status, in MiB; 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{name}:\s+([0-9]+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
