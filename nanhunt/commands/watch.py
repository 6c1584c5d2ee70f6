"""`nanhunt watch`: a run that is being written, in a terminal that looks at it, or as a line a step in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.errors import TraceError
from nanhunt.live.frame import Frame, alarm_line, plain_line
from nanhunt.live.pace import Pace
from nanhunt.live.run import COLUMNS_READ, LiveRun
from nanhunt.trace.rank_file import MAKE_ONE, read_rank_file
from nanhunt.trace.tail import StreamTail
from nanhunt.trace.writer import partial_path

__all__ = ["WatchOptions", "watch"]

#: Seconds for which a stream that is marked as ended may take to become a Parquet file.
_COMPACTING = 120.0
#: Lines of a frame that are no tensors: state, curves, headings and a few alarms.
_OTHER_LINES = 15
_TENSORS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The command line of `nanhunt watch`."""

    trace: Path
    once: bool = False
    #: seconds between two looks at the file
    interval: float = 1.0
    #: seconds for which a trace that is not there yet is waited for
    wait: float = 60.0
    quiet: bool = False


def watch(options: WatchOptions) -> None:
    """Show a run until it ends, then name what to ask next.

    Raises TraceError for what is no trace, and where none appears.
    """
    if options.trace.is_dir():
        raise TraceError(f"{options.trace} is a folder", hint="name one rank's file in it")
    final = options.trace.with_suffix("") if options.trace.suffix == ".partial" else options.trace
    partial = partial_path(final)
    if not final.exists():
        _await(partial, final, options)
    try:
        # the name that was given first: both are there while a stream becomes a Parquet file
        tail = None if final.exists() and options.trace != partial else StreamTail(partial)
    except FileNotFoundError:
        tail = None
    if tail is None:
        _show_finished(final)
        return
    with tail:
        if options.once:
            _show_once(tail)
        elif _is_live():
            _follow_live(tail, options, final)
        else:
            _follow_plainly(tail, options, final)


def _await(partial: Path, final: Path, options: WatchOptions) -> None:
    """Wait until either file is there."""
    patience = time.monotonic() + (0.0 if options.once else options.wait)
    if not options.once and not options.quiet and not partial.exists():
        print(f"waiting for {partial} ({options.wait:g} s)", file=sys.stderr)
    while not (partial.exists() or final.exists()):
        if time.monotonic() >= patience:
            raise TraceError(f"there is no trace {final}, and none is being written", hint=MAKE_ONE)
        time.sleep(min(options.interval, 0.2))


def _show_finished(path: Path) -> None:
    """Show a trace that is whole, once."""
    file = read_rank_file(path)
    run = LiveRun(file.manifest)
    for table in file.parts(list(COLUMNS_READ)):
        run.add(table)
    run.note(file.notes)
    run.ended = file.ended
    _print(Frame(path=str(path), run=run, pace=Pace(), now=0.0, width=terminal_width(), tensors=_TENSORS))
    print(f"next: nanhunt report {path}")


def _show_once(tail: StreamTail) -> None:
    """Show what is there of a stream."""
    follower = Follower(tail)
    follower.look()
    if follower.run is None:
        raise TraceError(
            f"{tail.path} holds nothing yet", hint="the run has just begun: try again, or leave out --once"
        )
    _print(follower.frame(width=terminal_width(), tensors=_TENSORS))


def _print(frame: Frame) -> None:
    text = frame.page().text(color=color_wanted())
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


class Follower:
    """A stream, and the run as far as it was read."""

    def __init__(self, tail: StreamTail) -> None:
        self._tail = tail
        self.run: LiveRun | None = None
        self._pace = Pace()
        #: when the stream was marked as ended
        self._ended: float | None = None

    def look(self) -> None:
        """Read what was appended since the last look."""
        before = self._tail.taken
        for appended in self._tail.read():
            run = self._begun()
            assert run is not None
            run.add(appended.rows)
            run.note(appended.notes)
            run.ended = appended.ended or run.ended
        run = self._begun()
        now = time.monotonic()
        self._pace.look(now, run.last_step if run else None, grew=self._tail.taken > before)
        if run is not None and run.ended is not None and self._ended is None:
            self._ended = now

    def _begun(self) -> LiveRun | None:
        if self.run is None and self._tail.manifest is not None:
            self.run = LiveRun(self._tail.manifest)
        return self.run

    @property
    def is_over(self) -> bool:
        """Whether the stream is no more, or its writer has said that it ended and could not turn it into a Parquet file."""
        waited = self._ended is not None and time.monotonic() - self._ended > _COMPACTING
        return waited or not self._tail.path.exists() or self._tail.is_replaced

    def frame(self, *, width: int, tensors: int) -> Frame:
        """Return the frame of now."""
        assert self.run is not None
        return Frame(
            path=str(self._tail.path), run=self.run, pace=self._pace, now=time.monotonic(), width=width, tensors=tensors
        )


def _looks(follower: Follower, interval: float) -> Iterator[None]:
    """Yield after each look; the last is behind the end, so that nothing is left unread."""
    over = False
    while not over:
        over = follower.is_over
        follower.look()
        yield
        if not over:
            time.sleep(interval)


def _follow_live(tail: StreamTail, options: WatchOptions, final: Path) -> None:
    """Draw a frame after each look; the last one stays."""
    follower = Follower(tail)
    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for _ in _looks(follower, options.interval):
            if follower.run is None:
                live.update(Text(f"{tail.path} holds nothing yet", "dim"), refresh=True)
            else:
                tensors = max(min(console.height - _OTHER_LINES, 32), 1)
                page = follower.frame(width=console.width, tensors=tensors).page()
                live.update(Group(*page.lines), refresh=True)
    _tell_end(tail, follower, final)


def _follow_plainly(tail: StreamTail, options: WatchOptions, final: Path) -> None:
    """Print a line a look at which a step is new, and each alarm."""
    follower = Follower(tail)
    step, alarms, silent = None, 0, False
    for _ in _looks(follower, options.interval):
        run = follower.run
        if run is None:
            continue
        if run.last_step != step:
            step = run.last_step
            print(plain_line(run), flush=True)
        for alarm in run.alarms.since(alarms):
            print(f"! {alarm_line(alarm)}", flush=True)
        alarms = run.alarms.count
        said = follower.frame(width=0, tensors=0).silent
        if said and not silent:
            print(f"! {said}", flush=True)
        silent = bool(said)
    _tell_end(tail, follower, final)


def _tell_end(tail: StreamTail, follower: Follower, final: Path) -> None:
    """Say how the run ended and what to ask next. Raises TraceError where the trace is gone."""
    if tail.is_replaced:
        raise TraceError(f"{tail.path} was begun anew by another run", hint=f"nanhunt watch {tail.path}")
    left = final if final.exists() else tail.path
    if not left.exists():
        raise TraceError(f"{tail.path} was removed before the run had ended", hint=MAKE_ONE)
    ended = follower.run.ended if follower.run else None
    step = follower.run.last_step if follower.run else None
    reach = "no step was finished" if step is None else f"the last step is {step}"
    print(f"the run ended{'' if ended in ('end', None) else f' ({ended})'}: {reach}")
    print(f"next: nanhunt report {left}", flush=True)


def _is_live() -> bool:
    """Whether stdout is a terminal that can draw over itself."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal
