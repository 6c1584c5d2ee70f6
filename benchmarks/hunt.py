"""What looking costs: a plain step against the same step under each gear of nanhunt, and under two tools of others.

`make bench-hunt` runs it. The variants take turns, step by step, so that a machine whose speed drifts slows all of them
alike; what is printed is the median of the ratios to the plain step of the same round. The step is a whole training
step: forward, backward, clip, AdamW.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpt import Size, build
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

SIZES = {
    "7M": Size(layers=6, width=256, heads=4),
    "134M": Size(layers=12, width=768, heads=12, vocabulary=32000, batch=8, context=2048),
    "1.35G": Size(layers=24, width=2048, heads=16, vocabulary=32000, batch=8, context=2048),
}


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


def detection(run: TrainingRun, step: int) -> None:
    """Train as `nanhunt replay` does on a step that it does not record."""
    rows = RowBuffer()
    replay_step(run, step, rows, recorded=False)
    rows.take()


def op_level(run: TrainingRun, step: int) -> None:
    """Train as the hunt does to find the op."""
    rows = RowBuffer()
    replay_step(run, step, rows, recorded=False, zoom=OpProbe(run, rows))
    rows.take()


def recorded(run: TrainingRun, step: int) -> None:
    """Train as `nanhunt replay` does on a step that it records."""
    rows = RowBuffer()
    replay_step(run, step, rows, recorded=True)
    rows.take()


def anomaly(run: TrainingRun, step: int) -> None:
    """Train under torch's anomaly mode."""
    with torch.autograd.set_detect_anomaly(True):
        train_step(run, step, StepWatch())


VARIANTS = [
    Variant("plain step", "nothing", plain),
    Variant("nanhunt, module level", "outputs of modules, gradients, weights, buffers, moments", detection),
    Variant("nanhunt, op level", "every op of forward, backward, clip and update", op_level),
    Variant("nanhunt, recording", "statistics and histograms of the same, a row each", recorded, 3),
    Variant("set_detect_anomaly(True)", "NaN in gradients of backward ops", anomaly),
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


def measure(run: TrainingRun, device: str, rounds: int) -> dict[Variant, list[float]]:
    """Return the seconds of each variant's steps, a step a round, after two rounds of warming up."""
    other = transformers_debug(run)
    variants = [*VARIANTS, other] if other is not None else VARIANTS
    times: dict[Variant, list[float]] = {v: [] for v in variants}
    for turn in range(rounds + 2):
        for place, variant in enumerate(variants):
            if variant.at_most and turn >= 2 + variant.at_most:
                continue
            _wait(device)
            began = time.perf_counter()
            variant.step(run, turn * len(variants) + place)
            _wait(device)
            if turn >= 2:
                times[variant].append(time.perf_counter() - began)
    return times


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
    times = measure(run, device, rounds)
    base = times[VARIANTS[0]]
    parameters = sum(p.numel() for p in run.model.parameters())
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    ops = ops_of(run, (rounds + 2) * len(times))
    print(f"\nGPT of {parameters / 1e6:.1f} M parameters, {size.layers} layers, batch {size.batch} x {size.context},")
    print(f"{ops} ops a step; {where}; torch {torch.__version__}; {rounds} rounds\n")
    print(f"{'':38} {'ms':>9}  {'x plain':>8}  {'range':>13}   looks at")
    for variant, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, base, strict=False))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        middle = statistics.median(ratios)
        print(
            f"{variant.name:38} {statistics.median(seconds) * 1e3:9.1f}  {middle:8.2f}  {spread:>13}   {variant.looks_at}"
        )
    if len(times) == len(VARIANTS):
        print("transformers is not installed: its DebugUnderflowOverflow was not measured")


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
