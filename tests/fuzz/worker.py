"""Runs inputs in forked processes that are watched: for exceptions, for time, for memory, for signals.

Torch is imported once, before the fork, so that an input costs what reading it costs. A process writes a line for each
input that it is done with: where one hangs inside of C, or takes the process with it, the parent knows which one it was
and forks anew behind it.
"""

from __future__ import annotations

import contextlib
import gc
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nanhunt.errors import NanhuntError
from tests.fuzz.target import Target

__all__ = ["Limits", "Outcome", "run_inputs", "run_one"]


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


def run_inputs(target: Target, seed: int, indices: range, limits: Limits) -> Iterator[Outcome]:
    """Run the inputs of these indices in a child, anew behind each one that ends it; yield what became of them."""
    # when the input that is worked on was begun
    shared = mmap.mmap(-1, 8)
    while indices:
        with tempfile.TemporaryDirectory(prefix="nanhunt-fuzz-", dir=_scratch()) as root:
            log = Path(root) / "log"
            log.touch()
            shared[:8] = struct.pack("<d", time.monotonic())
            child = os.fork()
            if child == 0:
                _work(target, seed, indices, limits, log, shared)
            code = os.waitstatus_to_exitcode(_watched(child, shared, limits))
            # a line that the end of the process tore in two counts for its input, which is the one that ended it
            lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        yield from (Outcome(**json.loads(line)) for line in lines)
        indices = indices[len(lines) :]
        if indices and code != 0:
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            yield Outcome(index=indices[0], kind="hang" if code == -signal.SIGKILL else "killed", detail=name)
            indices = indices[1:]
    shared.close()


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
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
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


def _work(target: Target, seed: int, indices: range, limits: Limits, log: Path, shared: mmap.mmap) -> None:
    """Run inputs in the child until they are done; never returns."""
    code = 0
    try:
        # a belt for what grows faster than it can be looked at: what is above becomes a MemoryError
        size = int(_resident("VmSize") + limits.mebibytes + 4096) << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with log.open("a") as file:
            for index in indices:
                shared[:8] = struct.pack("<d", time.monotonic())
                folder = log.parent / "input"
                folder.mkdir()
                outcome = run_one(target, seed, index, limits, folder)
                shutil.rmtree(folder)
                file.write(json.dumps(asdict(outcome)) + "\n")
                file.flush()
                if index % 50 == 0:
                    gc.collect()
    except BaseException:
        code = 99
    os._exit(code)


def _scratch() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _watched(child: int, shared: mmap.mmap, limits: Limits) -> int:
    """Wait for the child; end it where one input takes far longer than the alarm allows."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        (began,) = struct.unpack("<d", shared[:8])
        if time.monotonic() - began > 2 * limits.seconds + 5:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _resident(name: str) -> float:
    """Return a line of this process's status, in MiB; 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{name}:\s+([0-9]+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
