"""What snapshots cost: their bytes, the seconds to take and to restore one, and their share of a replay's time.

`make bench-snapshots` runs it. A replay, recorded as `nanhunt replay` records it, runs with the ring of snapshots and then
rewinds; steps are timed one by one, so that what the ring adds is held against the steps of the same minutes, and against
plain steps that take turns with them. Its restored state is held against the one that was seen, bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks import hunt
from benchmarks.gpt import Size, build
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.rewind import rewind
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.room import available_memory
from nanhunt.training.run import TrainingRun
from nanhunt.training.slots import Place, SlotPool
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step

SIZES = {**hunt.SIZES, "50M": Size(layers=12, width=512, heads=8, vocabulary=12000, batch=2, context=128)}
#: Times that a snapshot is taken and restored for the table.
_TIMES = 3


def timed(device: str, function: Callable[[], object]) -> float:
    """Return the seconds until the device has done what `function` asks of it."""
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def copies(run: TrainingRun, device: str, place: Place, folder: Path) -> str:
    """Take and restore snapshots at one place; say how long the first took, the later ones, and restoring."""
    run.slots = SlotPool()
    run.slots.folders = [folder]
    taken, restored, pinned = [], [], False
    for step in range(_TIMES + 1):
        kept: list[Snapshot] = []
        taken.append(timed(device, lambda: kept.append(Snapshot.take(run, step, grads=False, place=place))))  # noqa: B023
        restored.append(timed(device, lambda: kept[0].restore(run)))  # noqa: B023
        pinned = kept[0].slot is not None and kept[0].slot.is_pinned
        kept[0].release(run)
    run.slots = SlotPool()
    where = "pinned memory" if pinned else {"memory": "memory", "disk": "a file"}[place]
    later, back = statistics.median(taken[1:]), statistics.median(restored[1:])
    return f"{where:14} first {taken[0]:7.3f} s   later {later:7.3f} s   restored in {back:7.3f} s"


def replay(run: TrainingRun, device: str, steps: int) -> None:
    """Replay with a ring, every other step recorded beside a plain one; print what the ring did and cost."""
    ring, rows = SnapshotRing(run), RowBuffer()
    taken: list[int] = []
    offers, replayed, plain = [], [], []
    for step in range(steps):
        offers.append(timed(device, lambda: ring.offer(run, step)))  # noqa: B023
        if not taken or ring.nearest(step).step != taken[-1]:
            taken.append(ring.nearest(step).step)
        if step % 4 == 3:
            plain.append(timed(device, lambda: train_step(run, step, StepWatch())))  # noqa: B023
        else:
            replayed.append(timed(device, lambda: replay_step(run, step, rows, recorded=True)))  # noqa: B023
            rows.take()
    step_time, cost = statistics.median(replayed), sum(offers[1:])
    gaps = [b - a for a, b in pairwise(taken)]
    spaced = f"{min(gaps)} to {max(gaps)}, median {statistics.median(gaps):g}" if gaps else "one alone"
    share = cost / (cost + (steps - 1) * step_time)
    print(f"  plain step {statistics.median(plain):.3f} s, recorded step {step_time:.3f} s")
    print(f"  ring: {ring.capacity} at most, {ring.place or 'the first alone'}; steps apart: {spaced}")
    print(f"  first snapshot {offers[0]:.3f} s; the later ones {share:.1%} of the time of recorded steps")
    print(f"  x recorded step: {1 + cost / ((steps - 1) * step_time):.3f}")
    for text in ring.told(run):
        print(f"  told: {text}")
    check_rewind(run, ring, device, steps - 2)


def check_rewind(run: TrainingRun, ring: SnapshotRing, device: str, step: int) -> None:
    """Rewind twice, the second time from the moment that the first has held; print seconds and steps run again."""
    again = step - ring.nearest(step).step
    first = timed(device, lambda: rewind(run, ring, step, hold=True))
    held = {name: tensor.clone() for name, tensor in run.parameters().items()}
    second = timed(device, lambda: rewind(run, ring, step, hold=True))
    same = all(torch.equal(tensor, held[name]) for name, tensor in run.parameters().items())
    print(
        f"  rewind: {again} steps again, {first:.3f} s; once more {second:.3f} s, {'the same bits' if same else 'OTHER BITS'}"
    )


def report(name: str, device: str, steps: int, folder: Path) -> None:
    """Measure one size and print its part of the table."""
    run = build(SIZES[name], device)
    for step in range(3):
        train_step(run, step, StepWatch())
    parameters = sum(p.numel() for p in run.model.parameters())
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    ring = SnapshotRing(run)
    print(f"\nGPT of {parameters / 1e6:.1f} M parameters; {where}; torch {torch.__version__}")
    print(
        f"  a snapshot takes {ring.bytes / 1e9:.2f} GB; {available_memory() / 1e9:.0f} GB of host memory are available"
    )
    for place in ("memory", "disk"):
        print(f"  {copies(run, device, place, folder)}")
        gc.collect()
    run = build(SIZES[name], device)
    run.slots.folders = [folder]
    replay(run, device, steps)
    unit = 1 if sys.platform == "darwin" else 1024
    print(
        f"  host memory at its peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB",
        flush=True,
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="7M,50M", help="comma-separated: " + ", ".join(SIZES))
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files may be made")
    options = parser.parse_args()
    for name in options.sizes.split(","):
        report(name, options.device, options.steps, options.folder)


if __name__ == "__main__":
    main()
