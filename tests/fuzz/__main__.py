"""`make fuzz`: damaged and odd inputs, many, through the functions by which the command line reads them.

python -m tests.fuzz [--inputs N] [--seconds N] [--seed N] [--save FOLDER] [TARGET ...]
python -m tests.fuzz --repeat TARGET:INDEX [--seed N] [--save FOLDER]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS, find_target
from tests.fuzz.worker import Limits, Outcome, run_blocks, run_one

__all__ = ["main"]

#: Inputs that a process runs before it makes room for the next: what leaks does not add up.
BLOCK = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the inputs, print a table, keep what failed; return 1 where anything did."""
    options = _options(arguments)
    limits = Limits(seconds=options.limit_seconds, mebibytes=options.limit_mebibytes)
    if options.repeat:
        return _repeat(options.repeat, options.seed, limits, options.save)
    targets = [find_target(name) for name in options.targets] or list(TARGETS)
    began = time.monotonic()
    found: dict[str, list[Outcome]] = defaultdict(list)
    blocks = _blocks(targets, options.inputs)
    end = began + options.seconds
    for target, outcomes in run_blocks(blocks, seed=options.seed, limits=limits, workers=options.workers, end=end):
        found[target.name] += outcomes
        if sys.stderr.isatty():
            done = sum(map(len, found.values()))
            print(f"\r{done:,} inputs, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print("\n".join(_table(targets, found)))
    if options.verbose:
        print("\n".join(_kinds(found)))
    total = sum(map(len, found.values()))
    print(f"\n{total:,} inputs in {time.monotonic() - began:.0f} s, seed {options.seed}")
    return _failures(found, options.seed, options.save)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    names = [target.name for target in TARGETS]
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[[], *names], help=f"of {', '.join(names)}")
    parser.add_argument("--inputs", type=int, default=20_000, help="over all targets [default: 20000]")
    parser.add_argument("--seconds", type=float, default=1800, help="begin no input later than this [default: 1800]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-seconds", type=float, default=10.0, help="that an input may take")
    parser.add_argument("--limit-mebibytes", type=int, default=512, help="that an input may take")
    parser.add_argument("-j", "--workers", type=int, default=2)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="folder for the inputs that failed")
    parser.add_argument("--repeat", metavar="TARGET:INDEX", help="make one input again, keep it, and run it here")
    parser.add_argument("-v", "--verbose", action="store_true", help="list what was said, and how often")
    return parser.parse_args(arguments)


def _blocks(targets: Sequence[Target], inputs: int) -> list[tuple[Target, range]]:
    """Cut the inputs into blocks, those of all targets in turn, so that a run that ends early has seen each."""
    whole = sum(target.share for target in targets)
    blocks: list[tuple[float, Target, range]] = []
    for target in targets:
        count = max(inputs * target.share // whole, 1)
        blocks += [(start / count, target, range(start, min(start + BLOCK, count))) for start in range(0, count, BLOCK)]
    return [(target, indices) for _, target, indices in sorted(blocks, key=lambda block: block[0])]


def _table(targets: Sequence[Target], found: dict[str, list[Outcome]]) -> Iterator[str]:
    """Yield the lines of the table, a target each."""
    kinds = ("ok", "refused", "raised", "hang", "memory", "killed")
    yield "  ".join(
        [f"{'target':<16}", f"{'inputs':>8}", *(f"{k:>8}" for k in kinds), f"{'slowest':>9}", f"{'peak':>9}"]
    )
    for target in targets:
        outcomes = found[target.name]
        counts = Counter(o.kind for o in outcomes)
        slowest, peak = max((o.seconds for o in outcomes), default=0.0), max((o.memory for o in outcomes), default=0.0)
        cells = [f"{target.name:<16}", f"{len(outcomes):>8,}", *(f"{counts[k]:>8,}" for k in kinds)]
        yield "  ".join([*cells, f"{slowest:>7.2f} s", f"{peak:>5.0f} MiB"])


def _kinds(found: dict[str, list[Outcome]]) -> Iterator[str]:
    """Yield what was said, the most frequent first."""
    for name, outcomes in found.items():
        yield f"\n{name}"
        counts = Counter(o.detail for o in outcomes if not o.is_failure)
        yield from (f"{count:>8,}  {detail or 'ok'}" for detail, count in counts.most_common(12))


def _failures(found: dict[str, list[Outcome]], seed: int, folder: Path) -> int:
    """Write the inputs that failed, one of each sort, and print how to repeat them; return the exit code."""
    sorts: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for name, outcomes in found.items():
        for outcome in outcomes:
            if outcome.is_failure:
                last = [line for line in outcome.traceback.splitlines() if line.startswith("  File")][-1:]
                sorts[name, f"{outcome.kind} {outcome.detail}", "".join(last).strip()].append(outcome)
    for (name, what, where), outcomes in sorted(sorts.items(), key=lambda item: -len(item[1])):
        index = outcomes[0].index
        place = folder / f"{name}-{index}"
        place.mkdir(parents=True, exist_ok=True)
        find_target(name).make(place, random.Random(f"{seed}:{name}:{index}"))
        (place / "outcome.txt").write_text(f"{what}\n{outcomes[0].traceback}", encoding="utf-8", errors="replace")
        print(f"\n{len(outcomes)} x {name}: {what}\n  {where}")
        print(f"  kept in {place}; again: python -m tests.fuzz --seed {seed} --repeat {name}:{index}")
    return 1 if sorts else 0


def _repeat(which: str, seed: int, limits: Limits, folder: Path) -> int:
    name, _, index = which.rpartition(":")
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run_one(find_target(name), seed, int(index), limits, Path(scratch))
    print(outcome.traceback or outcome.detail)
    print(f"{outcome.kind}, {outcome.seconds:.2f} s, {outcome.memory:.0f} MiB")
    return 1 if outcome.is_failure else 0


if __name__ == "__main__":
    sys.exit(main())
