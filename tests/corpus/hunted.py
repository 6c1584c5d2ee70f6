"""How much the score hangs on the numbers that act while a replay runs: the corpus replayed with each moved up and down.

A threshold of a cause can be tried on the traces that are there; one of the hunt decides what a replay looks at, so each
value of it needs replays of its own. Only of programs whose replay hangs on it: in a first run of the whole corpus
numbers stand in for all thresholds that note which comparisons another value would turn. `python -m tests.corpus
--hunted` does both, and keeps the figures in `hunted.json` for the scoreboard's page.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.judge import judge
from tests.corpus.moving import Moving
from tests.corpus.runner import Job, Run, load_shared, replay_again, run_all
from tests.corpus.thresholds import Sensitivity, Threshold, scaled, without_their_family

__all__ = ["GRID", "HUNTED", "KEPT", "Moved", "is_right", "keep", "kept", "moved"]

#: Factors on the shipped value.
GRID = (0.5, 0.7, 1.4, 2.0)
KEPT = Path(__file__).with_name("hunted.json")
_HANGS_ON = "hangs_on.json"


def _of(module: str, *names: str) -> tuple[Threshold, ...]:
    return tuple(Threshold(f"nanhunt.{module}", name, ()) for name in names)


#: Every number of the hunt that was chosen by looking at runs; budgets of time and memory change no verdict and are none.
HUNTED = (
    *_of("counterfactual", "_FEWER"),
    *_of("gradcheck", "_APART"),
    *_of("hunt.drift", "_STEPS", "_FAR", "_GROWN"),
    *_of("hunt.hindsight", "_OFTEN", "_STILL_FAR", "_LEAP"),
    *_of("hunt.skips", "_SKIPS", "_BY_HAND", "_STUCK"),
    *_of("hunt.spikes", "_LIKE_HEALTHY", "CORRUPT", "_ROSE", "_NORMS", "_GAME"),
    *_of("hunt.given", "_STALE"),
    *_of("hunt.meant", "_MOST"),
    *_of("hunt.window", "_NOISE", "_RISE", "_HALF", "_EVEN_ODDS", "_FIRST"),
    *_of("probes.lost.casts", "_NEAR"),
    *_of("probes.lost.erased", "_MATTERS", "_NORMED"),
    *_of("probes.lost.moves", "_APART"),
    *_of("probes.lost.rounded", "_WRONG"),
    *_of("probes.softmax_by_hand", "_ROUNDED_ZERO"),
    *_of("repeat", "_QUIET", "_DEPARTED", "_AGAIN"),
    *_of("samples", "_Z", "_RATIO", "_SPREAD", "_BESIDE"),
    *_of("stall", "SUSPICIOUS_ZEROS", "FLUSHED", "ENERGY", "FROZEN", "_MOTIONLESS", "_NO_UPDATE", "_FLAT", "_SAME"),
    *_of("stall", "_ALONE", "_ENOUGH", "_ALONE_STEPS", "_STUCK", "_TOO_HIGH", "_STUCK_STEPS"),
    *_of("stochastic", "_DRAWN"),
    *_of("survey", "PINNED", "CROWDED", "UNMOVED", "MATERIAL", "AVERAGED", "ROUNDED", "FLUSHED", "ABSORBED"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A threshold, how many replays hang on one of its values, and what moving it does."""

    sensitivity: Sensitivity
    hanging: int


def moved(jobs: Sequence[Job], root: Path, workers: int, tell: Callable[[int, int], None]) -> list[Moved]:
    """Replay the corpus, and again under each value on which a replay hangs; `tell(done, of)` is called as they end."""
    runs = []
    for run in run_all(jobs, root, workers, _watched):
        runs.append(run)
        tell(len(runs), len(jobs))
    runs.sort(key=lambda run: run.job.name)
    own = {run.job.name: is_right(run) for run in runs}
    hanging = {run.job.name: _hangs_on(run) for run in runs}
    tried = [(threshold, factor, run) for run in runs for threshold, factor in hanging[run.job.name]]
    right = {(threshold, factor): dict(own) for threshold in HUNTED for factor in GRID}
    for done, (threshold, factor, run) in enumerate(_replayed(tried, root, workers), 1):
        right[threshold, factor][run.job.name] = is_right(run)
        tell(len(jobs) + done, len(jobs) + len(tried))
    families = [run.job.program.truth.family for run in runs]
    return [
        Moved(
            sensitivity=_sensitivity(
                threshold, {1.0: own} | {factor: right[threshold, factor] for factor in GRID}, [*own], families
            ),
            hanging=sum(any(t == threshold for t, _ in pairs) for pairs in hanging.values()),
        )
        for threshold in HUNTED
    ]


def is_right(run: Run) -> bool:
    """Whether the first suspect of a faulty program is right, and a healthy one is called healthy."""
    if run.job.faulty and run.job.program.cause:
        return judge(run.job.program, run.report, run.error).top1
    return run.report.get("outcome") == "healthy"


def _sensitivity(
    threshold: Threshold, right: dict[float, dict[str, bool]], names: Sequence[str], families: Sequence[str]
) -> Sensitivity:
    by_factor = {factor: [found[name] for name in names] for factor, found in sorted(right.items())}
    return Sensitivity(
        threshold=threshold,
        shipped=threshold.shown,
        right={factor: sum(values) for factor, values in by_factor.items()},
        left_out=without_their_family(by_factor, families),
        of=len(names),
    )


_Tried = tuple[Threshold, float, Run]


def _replayed(tried: Sequence[_Tried], root: Path, workers: int) -> Iterator[_Tried]:
    """Replay each run with its threshold moved, and yield what came of it as it ends."""
    load_shared()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        waiting: dict[Future[Run], _Tried] = {}
        for index, (threshold, factor, run) in enumerate(tried):
            around = functools.partial(_times, threshold, factor)
            waiting[pool.submit(replay_again, run.job, run.folder, root / f"again{index}", around)] = tried[index]
        for future in as_completed(waiting):
            threshold, factor, _ = waiting.pop(future)
            yield threshold, factor, future.result()


def _times(threshold: Threshold, factor: float, folder: Path) -> contextlib.AbstractContextManager[None]:
    return threshold.times(factor)


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Put moving numbers in the place of all thresholds, and note in the folder which of their values matter here."""
    hangs_on: set[tuple[int, float]] = set()
    with contextlib.ExitStack() as stack:
        for index, threshold in enumerate(HUNTED):
            stack.enter_context(threshold.replaced(functools.partial(_moving, index, hangs_on)))
        try:
            yield
        finally:
            (folder / _HANGS_ON).write_text(json.dumps(sorted(hangs_on)))


def _moving(index: int, hangs_on: set[tuple[int, float]], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _moving(index, hangs_on, part) for key, part in value.items()}
    return Moving(value, {(index, factor): scaled(value, factor) for factor in GRID}, hangs_on)


def _hangs_on(run: Run) -> list[tuple[Threshold, float]]:
    """Return the values under which a replay may be another; all of them where the moving numbers broke it."""
    path = run.folder / _HANGS_ON
    if run.error or not path.exists():
        return [(threshold, factor) for threshold in HUNTED for factor in GRID]
    return [(HUNTED[index], factor) for index, factor in json.loads(path.read_text())]


def kept() -> tuple[Moved, ...]:
    """Return the figures that were kept, of thresholds that are still here."""
    if not KEPT.exists():
        return ()
    bodies = {(b["module"], b["name"]): b for b in json.loads(KEPT.read_text())}
    return tuple(
        Moved(
            sensitivity=Sensitivity(
                threshold=threshold,
                shipped=body["shipped"],
                right={float(factor): count for factor, count in body["right"].items()},
                left_out=body["left_out"],
                of=body["of"],
            ),
            hanging=body["hanging"],
        )
        for threshold in HUNTED
        if (body := bodies.get((threshold.module, threshold.name)))
    )


def keep(found: Sequence[Moved]) -> None:
    """Write the figures for the scoreboard's page."""
    bodies = [
        {
            "module": m.sensitivity.threshold.module,
            "name": m.sensitivity.threshold.name,
            "shipped": m.sensitivity.shipped,
            "hanging": m.hanging,
            "right": m.sensitivity.right,
            "left_out": m.sensitivity.left_out,
            "of": m.sensitivity.of,
        }
        for m in found
    ]
    KEPT.write_text(json.dumps(bodies, indent=1) + "\n")
