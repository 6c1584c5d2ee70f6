"""What looking costs each of several ranks: 1, 2 and 4 processes side by side, the one exchange of a step, bytes written.

`make bench-ranks` runs it. Each number of ranks is a launch of its own: the same model, wrapped in DDP or FSDP2, and a batch
for each rank. In a launch the variants take turns, and all ranks wait for each other before each step, so that what one
variant left to do is not charged to the next. Of each rank the median of its ratios to the plain step of the same round is
taken; what is printed is the rank with the lowest, and with the highest. The work of a rank is the same whatever the number
of ranks: where the ratios stay, looking scales. On a machine with fewer processors than ranks plain steps take turns as well.

Then `report` over folders of 1, 2, 4 and 8 ranks' files, each a process of its own: seconds and peak memory by rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpt import build
from benchmarks.hunt import SIZES
from benchmarks.rank_traces import report_times
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.update_bound import UpdateBound
from nanhunt.ranks.digest import GradientDigest, state_digests
from nanhunt.ranks.world import World, entered
from nanhunt.replay import replay_step
from nanhunt.trace.schema import Manifest
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.launch import local_rank
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

#: Rounds before the first that counts, steps of a turn, of which the faster of the last two counts.
_WARM, _TURN = 2, 3
#: Exchanges that are timed one by one.
_EXCHANGES = 200


class Rank:
    """One rank of a launch: its run, and what a replay keeps from step to step."""

    def __init__(self, run: TrainingRun, world: World | None, folder: Path) -> None:
        self.run, self.world = run, world
        self.rank = world.rank if world is not None else 0
        self.rows, self.bound, self.last = RowBuffer(rank=self.rank), UpdateBound(), -2
        self.writer = TraceWriter(folder / f"rank-{self.rank:04d}.parquet", Manifest(rank=self.rank))
        #: rows, and bytes of the stream, of the last step
        self.wrote = (0, 0)

    def plain(self, step: int) -> None:
        """Train."""
        train_step(self.run, step, StepWatch())

    def detection(self, step: int) -> None:
        """Train as a replay does on a step that it does not record, and exchange."""
        other = step != self.last + 1  # another variant has trained since
        replay_step(self.run, step, self.rows, recorded=other, bound=self.bound)
        self.last = step
        self._write()
        self._exchange()

    def recording(self, step: int) -> None:
        """Train as a replay does on a step that it records: with digests of what all ranks must agree on."""
        digests = [GradientDigest(self.run)] if self.world is not None else []
        replay_step(self.run, step, self.rows, recorded=True, also=digests)
        self._write()
        for digest in digests:
            digest.digests()
            state_digests(self.run)
        self._exchange()

    def together(self) -> None:
        """Wait for the device, and for the other ranks."""
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()
        self._exchange()

    def _write(self) -> None:
        rows, before = self.rows.take(), _bytes(self.writer.partial)
        self.writer.write(rows)
        self.writer.flush()
        self.wrote = len(rows), _bytes(self.writer.partial) - before

    def _exchange(self) -> None:
        if self.world is not None:
            self.world.summed([0.0] * 4)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def measured(rank: Rank, rounds: int) -> dict[str, Any]:
    """Return what this rank measured: seconds of a plain step, ratios of the others, exchanges, rows and bytes."""
    variants: dict[str, Callable[[int], None]] = {
        "plain": rank.plain, "detection": rank.detection, "recording": rank.recording,
    }  # fmt: skip
    steps, seconds = itertools.count(), {name: list[float]() for name in variants}
    for turn in range(rounds + _WARM):
        for name, run_step in variants.items():
            times = [_timed(rank, run_step, next(steps)) for _ in range(_TURN)]
            if turn >= _WARM:
                seconds[name].append(min(times[1:]))
    rows, size = rank.wrote
    found: dict[str, Any] = {"plain": statistics.median(seconds["plain"]), "rows": rows, "bytes": size}
    for name in ("detection", "recording"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        found[name] = statistics.median(ratios)
    return found | {"exchange": _exchange_seconds(rank.world) if rank.world is not None else 0.0}


def _exchange_seconds(world: World) -> float:
    """Return the median of exchanges that all ranks come to at once."""
    seconds = []
    for _ in range(_EXCHANGES):
        began = time.perf_counter()
        world.summed([0.0] * 4)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _timed(rank: Rank, run_step: Callable[[int], None], step: int) -> float:
    """Return the seconds of one step, which all ranks begin together."""
    rank.together()
    began = time.perf_counter()
    run_step(step)
    if rank.run.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def worker(folder: Path, size: str, device: str, wrap: str, rounds: int) -> None:
    """Measure as one rank of a launch, and leave the numbers in the folder."""
    own = torch.device("cuda", local_rank()) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(own)
    with entered(own) as world:
        run = build(SIZES[size], device)
        if world is not None:
            _wrapped(run, wrap, device)
        rank = Rank(run, world, folder)
        (folder / f"{rank.rank}.json").write_text(json.dumps(measured(rank, rounds)))
        rank.writer.close(reason="measured")
        if world is not None:
            dist.barrier(group=world.group)
            dist.destroy_process_group()


def _wrapped(run: TrainingRun, wrap: str, device: str) -> None:
    """Wrap the run's model in DDP, or shard it with FSDP2 and give the optimizer its shards."""
    if wrap == "ddp":
        run.model = torch.nn.parallel.DistributedDataParallel(run.model)
        return
    from torch.distributed.fsdp import fully_shard

    for block in run.model.blocks:
        fully_shard(block)
    fully_shard(run.model)
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-4, fused=device == "cuda")


def launched(ranks: int, size: str, device: str, wrap: str, rounds: int) -> list[dict[str, Any]]:
    """Return what each of so many ranks measured."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        head = [sys.executable, "-m"]
        if ranks > 1:
            head += ["torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port), "-m"]
        line = [*head, "benchmarks.ranks", "--worker", folder, "--sizes", size, "--device", device, "--wrap", wrap]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(
            [*line, "--rounds", str(rounds)], env=environment, text=True, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"a launch of {ranks} ranks ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def report(size: str, device: str, wrap: str, ranks: list[int], rounds: int) -> None:
    """Print a line a number of ranks."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} processors, a thread a rank"
    print(f"\nGPT {size}, {wrap}, {name}; torch {torch.__version__}; {rounds} rounds\n")
    print(
        f"{'ranks':>5} {'plain ms':>9} {'x detection':>14} {'x recording':>14} {'exchange us':>12} {'rows':>6} {'bytes/step':>11}"
    )
    for number in ranks:
        found = launched(number, size, device, wrap, rounds)
        plain, exchange = (statistics.median(f[key] for f in found) for key in ("plain", "exchange"))
        cells = [_range([f[key] for f in found]) for key in ("detection", "recording")]
        most = max(found, key=lambda f: f["bytes"])
        print(
            f"{number:>5} {1e3 * plain:>9.1f} {cells[0]:>14} {cells[1]:>14} {1e6 * exchange:>12.0f} {most['rows']:>6} {most['bytes']:>11}"
        )


def _range(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    return f"{low:.3f}" if len(ratios) == 1 else f"{low:.3f}-{high:.3f}"


def main() -> None:
    """Measure the sizes that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="7M", help=f"of {', '.join(SIZES)}; several with commas")
    parser.add_argument("--wrap", default="ddp", help="ddp, fsdp, or both with a comma")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="of the traces that `report` reads; 0 leaves that out")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        worker(asked.worker, asked.sizes, asked.device, asked.wrap, asked.rounds)
        return
    for size, wrap in itertools.product(asked.sizes.split(","), asked.wrap.split(",")):
        report(size, asked.device, wrap, [int(n) for n in asked.ranks.split(",")], asked.rounds)
    if asked.steps:
        report_times(asked.steps)


if __name__ == "__main__":
    main()
