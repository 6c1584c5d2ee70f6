"""`nanhunt run`: start a training script as Python would, with a recorder in it; afterwards replay what it left.

The script has a process of its own, whose argv, `__main__`, `sys.path`, terminal and signals are those that Python gives
it. This process waits, and ends as that one did. All that it says goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from nanhunt.commands.rank_bundles import first_at_fault
from nanhunt.errors import UsageError
from nanhunt.recorder.script.settings import Settings, Told, read_told

__all__ = ["RunOptions", "run"]

_STARTUP = Path(__file__).parents[1] / "recorder" / "script" / "startup"
#: After these nothing more is done: whoever sent them wants the machine back.
_ENDING = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command line of `nanhunt run`."""

    #: the script and its arguments; of a module the arguments alone
    command: tuple[str, ...]
    module: str | None = None
    out: Path = Path("nanhunt-bundle")
    every: int = 100
    keep: int = 2
    report: bool = True
    quiet: bool = False


def run(options: RunOptions) -> int:
    """Run the script, then replay and report what it left; return its exit code, -N where signal N ended it.

    Raises UsageError where there is no script.
    """
    command, began = _command(options), time.time()
    with tempfile.TemporaryDirectory(prefix="nanhunt-run-") as folder:
        told = Path(folder) / "told"
        settings = Settings(
            out=str(options.out.absolute()), told=str(told), every=options.every, keep=options.keep, parent=os.getpid()
        )
        code = _wait(subprocess.Popen(command, env=_environment(settings)))
        lines = read_told(told)
    with contextlib.suppress(KeyboardInterrupt):
        _afterwards(options, lines, code, began)
    return code


def _command(options: RunOptions) -> list[str]:
    if options.module is not None:
        return [sys.executable, "-m", options.module, *options.command]
    if not options.command:
        raise UsageError("run: no script is named", hint="nanhunt run train.py ARGS…, or nanhunt run -m module ARGS…")
    if not Path(options.command[0]).exists():
        raise UsageError(
            f"run: no file {options.command[0]}", hint="options of nanhunt stand before the script, the script's behind"
        )
    return [sys.executable, *options.command]


def _environment(settings: Settings) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    inner = {
        "NANHUNT_RUN": settings.text(),
        "PYTHONPATH": os.pathsep.join([str(_STARTUP), *([before] if before else [])]),
    }
    return {**os.environ, **inner, **({"NANHUNT_RUN_PYTHONPATH": before} if before is not None else {})}


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the script. Ctrl-C reaches it from the terminal; what is sent to this process alone is passed on."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_handling(signal.SIGINT, lambda number, frame: None))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            stack.enter_context(_handling(number, pass_on))
        return process.wait()


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: object) -> Iterator[None]:
    before = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(number, before)


def _afterwards(options: RunOptions, lines: Sequence[Told], code: int, began: float) -> None:
    """Report the first bundle, whose fault is the cause of later ones; say so where nothing could be recorded."""
    bundles = [line for line in lines if line.bundle]
    is_first_rank = os.environ.get("RANK", "0") == "0"
    if not bundles:
        if not options.quiet and is_first_rank and code == 0 and not any(line.steps for line in lines):
            _say("nanhunt: no training step was seen, nothing is recorded")
        return
    if options.report and is_first_rank and code not in _ENDING:
        own = Path(bundles[0].bundle)
        first = first_at_fault(own, began)
        if first is None:
            _report(own, bundles[0].lacks, options)
            return
        _say(f"nanhunt: rank {first.rank} of {first.world_size} was first: {first.detail}; its bundle by itself:")
        _report(first.folder, bundles[0].lacks, options)
        if first.is_of_all and not bundles[0].lacks:
            launch = f"torchrun --nproc-per-node {first.world_size} -m nanhunt replay {own}"
            _say(f"nanhunt: all ranks together, which alone repeat the run:\n  {launch}")


def _report(bundle: Path, lacks: str, options: RunOptions) -> None:
    """Replay a bundle and print its report; where it lacks something, report what was recorded."""
    trace, recorded = bundle / "replay.parquet", bundle / "trace.parquet"
    if lacks:
        _say(f"nanhunt: {lacks}: complete {bundle / 'nanhunt.yaml'}, then nanhunt replay {bundle}")
        _nanhunt("report", str(recorded))
        return
    quiet = ["--quiet"] if options.quiet else []
    done = _nanhunt("replay", str(bundle), "--out", str(trace), "--force", *quiet, shown=False)
    _nanhunt("report", str(trace if done == 0 and trace.exists() else recorded))


def _nanhunt(*arguments: str, shown: bool = True) -> int:
    """Run a command of nanhunt in a process of its own, for it runs the user's code; its output goes to stderr."""
    sys.stderr.flush()
    where = sys.stderr.fileno() if shown else subprocess.DEVNULL
    # a launcher's ranks have gone: what is replayed here is one process
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, "-P", "-m", "nanhunt", *arguments]
    return subprocess.run(command, stdout=where, env=alone, check=False).returncode


def _say(text: str) -> None:
    print(text, file=sys.stderr)
