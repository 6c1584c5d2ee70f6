"""How often `nanhunt diff` is right, and how long it takes: `python -m benchmarks.diff [--seeds 10,11] [--only right|long]`.

Right: pairs of traces of three small programs. A healthy pair computes the same in another format or order, and is called
parted wrongly; a planted pair has one change, and is to be named at its first observation. Long: two traces of 300 modules
and 200 steps.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from benchmarks.pair_programs import CANCELLING, PROGRAMS, Plant, Program, Way, record
from nanhunt.comparison.compare import compare
from nanhunt.comparison.comparison import Comparison
from nanhunt.trace.compact import ROW_GROUP_ROWS, parquet_writer
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import METADATA_KEY, ArrowSchema

#: What should be the same run: what a reader calls the pair, and its two ways.
HEALTHY = (
    ("fp32 against fp64", Way(), Way(dtype="fp64")),
    ("fp32 against bf16 autocast", Way(), Way(autocast="bf16")),
    ("fp64 against bf16 autocast", Way(dtype="fp64"), Way(autocast="bf16")),
    ("fp32, samples in reverse", Way(), Way(reversed=True)),
    ("bf16 autocast, samples in reverse", Way(autocast="bf16"), Way(autocast="bf16", reversed=True)),
    ("fp32, one thread against two", Way(), Way(threads=2)),
    ("fp32, with and without oneDNN", Way(), Way(plain_kernels=True)),
)
#: What the changed run is held against.
BASES = (
    ("fp32, same order", Way()),
    ("fp32, samples in reverse", Way(reversed=True)),
    ("fp64", Way(dtype="fp64")),
    ("bf16 autocast", Way(autocast="bf16")),
)
PLANTS = (
    ("an epsilon 10⁻⁵ → 10⁻³", Plant(kind="eps")),
    ("a weight changed by 1 %", Plant(kind="weight")),
    ("a scale dropped", Plant(kind="scale")),
    ("another dropout seed", Plant(kind="dropout")),
    ("an epsilon, from step 6", Plant(kind="eps", step=6)),
    ("a scale, from step 6", Plant(kind="scale", step=6)),
    ("a dropout seed, from step 6", Plant(kind="dropout", step=6)),
    ("another batch at step 6", Plant(kind="batch", step=6)),
    ("a rate 2 % higher from step 6", Plant(kind="lr", step=6)),
    ("gradient ascent from step 6", Plant(kind="ascent", step=6)),
    ("a matrix's gradient negated from step 6", Plant(kind="sign", step=6)),
)
_MODULES, _STEPS = 300, 200


@dataclass(frozen=True, slots=True)
class Traces:
    """Traces of programs by way and seed, each recorded once."""

    folder: Path

    def of(self, program: Program, way: Way, seed: int) -> Trace:
        """Return the trace, recorded where it is not there yet."""
        path = self.folder / f"{program.name}-{seed}-{abs(hash(way))}.parquet"
        return Trace.open(path if path.exists() else record(program, way, seed, path))


def right(seeds: list[int]) -> Iterator[str]:
    """Yield the lines of both tables."""
    with TemporaryDirectory() as folder:
        traces = Traces(Path(folder))
        runs = [(program, seed) for program in PROGRAMS for seed in seeds]
        cancelling = [(program, seed) for program in CANCELLING for seed in seeds]
        yield "| healthy pair | called parted | of programs that cancel |"
        yield "| --- | ---: | ---: |"
        for name, a, b in HEALTHY:
            counts = []
            for those in (runs, cancelling):
                found = [compare(traces.of(p, a, s), traces.of(p, b, s)) for p, s in those]
                counts.append(f"{sum(c.outcome == 'part' for c in found)} of {len(found)}")
            yield f"| {name} | {' | '.join(counts)} |"
        yield ""
        yield f"| planted, held against | {' | '.join(name for name, _ in BASES)} |"
        yield f"| --- |{' --- |' * len(BASES)}"
        for name, plant in PLANTS:
            cells = []
            for _, base in BASES:
                counted = Counter(
                    _named(p, plant, compare(traces.of(p, base, s), traces.of(p, replace(Way(), plant=plant), s)))
                    for p, s in runs
                )
                cells.append(
                    ", ".join(f"{n} {what}" for what, n in sorted(counted.items(), key=lambda c: _ORDER.index(c[0])))
                )
            yield f"| {name} | {' | '.join(cells)} |"


_ORDER = ("named", "right step", "wrong", "unseen")


def _named(program: Program, plant: Plant, comparison: Comparison) -> str:
    """Return whether the change was named at its first observation, later in its step, elsewhere, or not at all."""
    first = comparison.first
    if first is None:
        return "unseen"
    module, _, parameter = (
        program.planted.get(plant.kind, "").rpartition(".") if plant.kind == "weight" else ("", "", "")
    )
    truth = {
        "weight": ("load", module, parameter),
        "batch": ("batch", "", None),
        "lr": ("update", "", "lr"),
        "ascent": ("update", None, None),
        "sign": ("update", None, None),
    }.get(plant.kind, ("forward", program.planted.get(plant.kind, ""), ""))
    is_there = first.phase == truth[0] and truth[1] in (None, first.module) and truth[2] in (None, first.name)
    if first.step == plant.step and is_there:
        return "named"
    return "right step" if first.step == plant.step else "wrong"


def long() -> Iterator[str]:
    """Yield the line of what two long traces take."""
    with TemporaryDirectory() as folder:
        a, b = _long_traces(Path(folder))
        start = time.process_time()
        found = compare(Trace.open(a), Trace.open(b))
        seconds = time.process_time() - start
        rows = pq.ParquetFile(a).metadata.num_rows
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        yield f"{_MODULES} modules, {found.steps} steps: {rows} rows each, {found.observations} pairs, {found.judged} judged"
        yield f"{found.outcome}; {seconds:.1f} s of one core, at most {memory:.1f} GiB, {a.stat().st_size / 1e6:.0f} MB a trace"


def _long_traces(folder: Path) -> tuple[Path, Path]:
    """Write a trace of a deep perceptron's two steps, repeated, and one whose sums differ in their last bits."""
    deep = replace(PROGRAMS[0], model=_deep)
    path = record(deep, Way(), 0, folder / "short.parquet", steps=2)
    short = pq.read_table(path)
    step, phase = (short.column(name).to_numpy(zero_copy_only=False) for name in ("step", "phase"))
    loaded, healthy = (short.filter(pa.array(which)) for which in (phase == "load", step == 1))
    metadata = {METADATA_KEY: pq.ParquetFile(path).metadata.metadata[METADATA_KEY]}
    paths = (folder / "a.parquet", folder / "b.parquet")
    for noise, path in zip((0.0, 1e-8), paths, strict=True):
        rng = np.random.default_rng(0)
        with parquet_writer(path, ArrowSchema.with_metadata(metadata)) as writer:
            parts = [loaded, *(_moved(healthy, at, noise, rng) for at in range(_STEPS))]
            # in groups as large as a replay's
            writer.write_table(pa.concat_tables(parts).replace_schema_metadata(metadata), row_group_size=ROW_GROUP_ROWS)
    return paths


def _moved(table: pa.Table, at: int, noise: float, rng: np.random.Generator) -> pa.Table:
    size = table.num_rows
    changed = {"step": pa.array(np.full(size, at)), "seq": pa.array(np.arange(size) + at * size)}
    for name in ("l2", "mean", "amax"):
        values = table.column(name).to_numpy(zero_copy_only=False)
        # the same digits in both traces, and the second's own in the last of them
        drawn = values * (1 + 0.01 * rng.random(size))
        changed[name] = pa.array(drawn * (1 + noise * rng.standard_normal(size)), from_pandas=True)
    for name, values in changed.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table


def _deep() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(40, 32)]
    for _ in range((_MODULES - 3) // 3):
        layers += [nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", default="10,11,12,13")
    parser.add_argument("--only", choices=("right", "long"))
    options = parser.parse_args()
    if options.only != "long":
        print("\n".join(right([int(seed) for seed in options.seeds.split(",")])))
    if options.only != "right":
        print("\n".join(long()))


if __name__ == "__main__":
    main()
