"""What looking costs: a plain step against the same step under each gear of nanhunt, and under two tools of others.

`make bench-hunt` runs it. The variants take turns, so that a machine whose speed drifts slows all of them alike; what is
printed is the median of the ratios to the plain step of the same round. A turn is three steps, as a replay runs one like the
other, and the faster of the last two counts. The step is a whole training step: forward, backward, clip, AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpt import Size, build
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.update_bound import UpdateBound
from nanhunt.replay import replay_step
from nanhunt.trace.schema import Manifest
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

SIZES = {
    "7M": Size(layers=6, width=256, heads=4),
    "134M": Size(layers=12, width=768, heads=12, vocabulary=32000, batch=8, context=2048),
    "1.35G": Size(layers=24, width=2048, heads=16, vocabulary=32000, batch=8, context=2048),
}


#: Rounds before the first that counts: kernels are compiled, and the optimizer makes its state.
_WARM = 3
#: Steps of a turn.
_TURN = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a step; `build` gives the function that runs one, and what it looks at is said in `looks_at`."""

    name: str
    looks_at: str
    step: Callable[[TrainingRun, int], None]
    #: rounds that it takes part in; 0 of one that is cheap enough for all
    at_most: int = 0


def plain(run: TrainingRun, step: int) -> None:
    """Train."""
    train_step(run, step, StepWatch())


class Replay:
    """What a hunt keeps from step to step: the buffer of rows, and the trace that they go into."""

    def __init__(self, folder: Path) -> None:
        self.rows = RowBuffer()
        self.writer = TraceWriter(folder / "trace.parquet", Manifest())
        self.count = 0
        self.bound, self.bound_step = UpdateBound(), -1

    def detection_by_reading(self, run: TrainingRun, step: int) -> None:
        """Train as `nanhunt replay` does where nothing is known of weights and moments: they are read."""
        replay_step(run, step, self.rows, recorded=False)
        self._write()

    def detection(self, run: TrainingRun, step: int) -> None:
        """Train as `nanhunt replay` does on a step that it does not record."""
        other = step != self.bound_step + 1  # another variant has trained since: begin as a replay begins
        replay_step(run, step, self.rows, recorded=other, bound=self.bound)
        self.bound_step = step
        self._write()

    def recorded(self, run: TrainingRun, step: int) -> None:
        """Train as `nanhunt replay` does on a step that it records."""
        replay_step(run, step, self.rows, recorded=True)
        self.count = self._write()

    def op_level(self, run: TrainingRun, step: int) -> None:
        """Train as the hunt does to find the op."""
        rows = RowBuffer()
        replay_step(run, step, rows, recorded=False, zoom=OpProbe(run, rows))
        rows.take()

    def _write(self) -> int:
        rows = self.rows.take()
        self.writer.write(rows)
        self.writer.flush()
        return len(rows)


def anomaly(run: TrainingRun, step: int) -> None:
    """Train under torch's anomaly mode."""
    with torch.autograd.set_detect_anomaly(True):
        train_step(run, step, StepWatch())


def variants_of(replay: Replay) -> list[Variant]:
    """Return the ways to run a step, the plain one first."""
    return [
        Variant("plain step", "nothing", plain),
        Variant(
            "nanhunt, detection", "loss, gradients' norms, buffers; weights and moments by a bound", replay.detection
        ),
        Variant(
            "nanhunt, detection by reading", "loss, gradients, weights, buffers, moments", replay.detection_by_reading
        ),
        Variant(
            "nanhunt, recording", "statistics and histograms of outputs, their gradients and the same", replay.recorded
        ),
        Variant("nanhunt, op level", "every op of forward, backward, clip and update", replay.op_level, 3),
        Variant("set_detect_anomaly(True)", "NaN in gradients of backward ops", anomaly, 5),
    ]


def transformers_debug(run: TrainingRun) -> Variant | None:
    """Return transformers' detector on the same model, its hooks there only for its own steps. None where it is missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from transformers.debug_utils import DebugUnderflowOverflow
    except ImportError:
        return None
    DebugUnderflowOverflow(run.model)
    modules = list(run.model.modules())
    hooks = [dict(m._forward_hooks) for m in modules]

    def remove() -> None:
        for module in modules:
            module._forward_hooks.clear()

    def step(run: TrainingRun, step: int) -> None:
        for module, own in zip(modules, hooks, strict=True):
            module._forward_hooks.update(own)
        train_step(run, step, StepWatch())
        remove()

    remove()
    return Variant("transformers DebugUnderflowOverflow", "inputs, outputs and weights of modules, forward", step)


@dataclass(slots=True)
class Measured:
    """A variant's steps: seconds of each, and the most bytes on the device."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0


def measure(run: TrainingRun, device: str, rounds: int, variants: list[Variant]) -> dict[Variant, Measured]:
    """Run a turn of each variant a round, after three rounds of warming up."""
    found = {v: Measured() for v in variants}
    steps = itertools.count()
    for turn in range(rounds + _WARM):
        for variant in variants:
            if variant.at_most and turn >= _WARM + variant.at_most:
                continue
            seconds = [_timed(run, variant, next(steps), device) for _ in range(_TURN)]
            if turn >= _WARM:
                found[variant].seconds.append(min(seconds[1:]))
                found[variant].peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return found


def _timed(run: TrainingRun, variant: Variant, step: int, device: str) -> float:
    """Return the seconds of one step."""
    _wait(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    variant.step(run, step)
    _wait(device)
    return time.perf_counter() - began


def ops_of(run: TrainingRun, step: int) -> int:
    """Return how many ops the op level looks at."""
    rows = RowBuffer()
    probe = OpProbe(run, rows)
    replay_step(run, step, rows, recorded=False, zoom=probe)
    return len(probe.events)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(name: str, device: str, rounds: int) -> None:
    """Measure one size and print its table."""
    size = SIZES[name]
    run = build(size, device)
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder))
        other = transformers_debug(run)
        times = measure(run, device, rounds, [*variants_of(replay), *([other] if other is not None else [])])
    parameters = sum(p.numel() for p in run.model.parameters())
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    ops = ops_of(run, (rounds + _WARM) * len(times) * _TURN)
    print(f"\nGPT of {parameters / 1e6:.1f} M parameters, {size.layers} layers, batch {size.batch} x {size.context},")
    print(f"{ops} ops and {replay.count} rows a step; {where}; torch {torch.__version__}; {rounds} rounds\n")
    print(f"{'':38} {'ms':>9}  {'x plain':>8}  {'range':>13}  {'memory':>7}   looks at")
    base, *_ = times.values()
    middles = {variant.name: _print(variant, measured, base) for variant, measured in times.items()}
    ten = (9 * middles["nanhunt, detection"] + middles["nanhunt, recording"]) / 10
    print(
        f"{'nanhunt, --every 10':38} {'':9}  {ten:8.3f}  {'computed':>13}  {'':7}   one recorded step and nine others"
    )
    if other is None:
        print("transformers is not installed: its DebugUnderflowOverflow was not measured")


def _print(variant: Variant, measured: Measured, base: Measured) -> float:
    """Print a variant's line, and return the median of its ratios."""
    ratios = sorted(a / b for a, b in zip(measured.seconds, base.seconds, strict=False))
    spread, middle = f"{ratios[0]:.2f} to {ratios[-1]:.2f}", statistics.median(ratios)
    more = f"{100 * (measured.peak / base.peak - 1):+.1f} %" if base.peak else ""
    milliseconds = statistics.median(measured.seconds) * 1e3
    print(f"{variant.name:38} {milliseconds:9.1f}  {middle:8.3f}  {spread:>13}  {more:>7}   {variant.looks_at}")
    return middle


def main() -> None:
    """Run the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="7M", help="comma-separated: " + ", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.sizes.split(","):
        report(name, options.device, options.rounds)


if __name__ == "__main__":
    main()
