"""Rows of tensors that ranks hold in parts, read as those of the whole tensors.

How it works. Each rank says once which part of each tensor it holds (`ranks.shard_note`), and writes statistics of that
part. They add up: counts, extremes and exponents exactly, sums to rounding. So where the ranks' files are read as one, the
rows of the rank that looked into the fault show the whole tensor, and the other ranks' rows of it are left out. Of parts
that several ranks hold alike one counts.

Rows are met step by step: of every rank so many are in memory as one read of a file gives, whatever the length of the run.
A row stays that of its rank's part where a rank's is missing, as in the last step of one that died; and where a gradient
lies in the ranks as addends, whose sum no statistics tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.trace.columns import codes, floats, integers, mask
from nanhunt.trace.rank_file import Condition, RankFile
from nanhunt.trace.schema import NoteKind, Phase, Role
from nanhunt.trace.shard_sums import MEASURED, ShardSums, with_sums

__all__ = ["ROLES", "PartCount", "Spread", "as_written", "is_whole", "part_counts", "read_as_whole"]

#: Roles of rows that are cut as their parameter is.
ROLES = (Role.WEIGHT, Role.GRAD, Role.EXP_AVG, Role.EXP_AVG_SQ, Role.UPDATE)
_SITE = ("phase", "role", "module", "name")
_KEYS = ("step", "micro", "pass", *_SITE)

_Ints = npt.NDArray[np.int64]
_Site = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """One rank's part of a tensor in one step: elements that are not finite, of how many, and where the part begins."""

    rank: int
    bad: int
    numel: int
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """What the ranks hold in parts, by qualified name."""

    files: tuple[RankFile, ...]
    #: shape of the whole tensor
    shapes: dict[str, list[int]]
    #: of each file the tensors whose part counts
    counted: tuple[frozenset[str], ...]
    #: tensors whose gradients are addends
    partial: frozenset[str]
    #: of each file the (first, last) step of each group of rows, where they were asked for
    _reach: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Sequence[RankFile]) -> Spread:
        """Read the notes; a tensor of which parts are missing counts as one that every rank has for itself."""
        told = [_told(file) for file in files]
        shapes = {name: body["shape"] for tensors in told for name, body in tensors.items()}
        counted: list[set[str]] = [set() for _ in files]
        held, seen = dict.fromkeys(shapes, 0), set()
        for names, tensors in zip(counted, told, strict=True):
            for name, body in tensors.items():
                # replicas, of HSDP or of a mesh's other dimensions, hold the same box
                box, size = (name, *body["offset"], *body["held"]), math.prod(body["held"])
                if size and box not in seen:
                    seen.add(box)
                    names.add(name)
                    held[name] += size
        whole = {name: shape for name, shape in shapes.items() if held[name] == math.prod(shape)}
        return cls(
            files=tuple(files),
            shapes=whole,
            counted=tuple(frozenset(names & whole.keys()) for names in counted),
            partial=frozenset(name for tensors in told for name, body in tensors.items() if body["partial"]),
        )

    def name_of(self, site: _Site) -> str:
        """Return the tensor that a row of this phase, role, module and name is of; '' where it is not spread."""
        _, role, module, name = site
        qualified = f"{module}.{name}" if module else name
        is_addend = role == Role.GRAD and qualified in self.partial
        return qualified if role in ROLES and qualified in self.shapes and not is_addend else ""

    def part_counts(self, step: int) -> dict[_Site, tuple[PartCount, ...]]:
        """Return the parts of each spread tensor in a step by phase, role, module and name, in their order."""
        found: dict[_Site, dict[int, PartCount]] = {}
        columns = [*_SITE, "numel", "nan", "posinf", "neginf"]
        for at, file in enumerate(self.files):
            offsets = {name: tuple(body["offset"]) for name, body in _told(file).items()}
            for table in self.window(at, columns, step, step):
                for *site, numel, nan, posinf, neginf in zip(*(c.to_pylist() for c in table.columns), strict=True):
                    name = self.name_of(tuple(site))
                    if name in self.counted[at] and site[0] != Phase.LOAD and numel is not None:
                        count = PartCount(
                            rank=file.manifest.rank, bad=nan + posinf + neginf, numel=numel, offset=offsets[name]
                        )
                        found.setdefault(tuple(site), {})[at] = count
        return {site: tuple(parts.values()) for site, parts in found.items()}

    def window(self, at: int, columns: list[str], first: int, last: int) -> Iterator[Any]:
        """Yield a file's own rows of `ROLES` in some steps; groups of rows that have none are not read."""
        file = self.files[at]
        if at not in self._reach:
            self._reach[at] = [_reach(read(["step"])) for read in file.groups()]
        near = [low <= last and first <= high for low, high in self._reach[at]]
        conditions: list[Condition] = [
            ("role", "in", ROLES), ("pass", "in", ["replay"]), ("step", ">=", first), ("step", "<=", last),
        ]  # fmt: skip
        yield from file.parts(columns, conditions, near)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Others(RankFile):
    """A rank's file without its rows of what is read as whole elsewhere."""

    spread: Spread

    def parts(
        self, columns: list[str], conditions: Sequence[Condition] = (), near: Sequence[bool] | None = None
    ) -> Iterator[Any]:
        for table in RankFile.parts(self, _with(columns, _KEYS), conditions, near):
            keys = _Keys.of(table, self.spread, {})
            yield (table if not len(keys.rows) else table.filter(mask(~keys.is_spread))).select(columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole(RankFile):
    """A rank's file whose rows of what is spread are those of the whole tensors."""

    spread: Spread
    at: int

    def parts(
        self, columns: list[str], conditions: Sequence[Condition] = (), near: Sequence[bool] | None = None
    ) -> Iterator[Any]:
        if not {"shape", *MEASURED}.intersection(columns):
            yield from RankFile.parts(self, columns, conditions, near)
            return
        for table in RankFile.parts(self, _with(columns, (*_KEYS, *MEASURED)), conditions, near):
            yield _merged(table, self.spread, self.at, columns).select(columns)


def read_as_whole(files: Sequence[RankFile]) -> tuple[RankFile, ...]:
    """Return the files of all ranks so that what they hold in parts is read whole, from the rank that has the onset."""
    spread = Spread.of(files)
    if not spread.shapes:
        return tuple(files)
    lead = next((i for i, f in enumerate(files) if any(n.kind == NoteKind.ONSET for n in f.notes)), 0)
    fields = [{n: getattr(f, n) for n in RankFile.__dataclass_fields__} for f in files]
    return tuple(
        _Whole(**own, spread=spread, at=at) if at == lead else _Others(**own, spread=spread)
        for at, own in enumerate(fields)
    )


def is_whole(file: RankFile) -> bool:
    """Whether the file's rows show whole tensors, where others of its trace show none."""
    return isinstance(file, _Whole)


def as_written(files: Sequence[RankFile]) -> Sequence[RankFile]:
    """Return the files that `read_as_whole` was given."""
    whole = next((file for file in files if isinstance(file, _Whole)), None)
    return files if whole is None else whole.spread.files


def part_counts(files: Sequence[RankFile], step: int) -> dict[_Site, tuple[PartCount, ...]]:
    """Return `Spread.part_counts` of what is spread in these files; {} where nothing is."""
    whole = next((file for file in files if isinstance(file, _Whole)), None)
    return {} if whole is None else whole.spread.part_counts(step)


def _told(file: RankFile) -> dict[str, Any]:
    body = next((note.body for note in file.notes if note.kind == NoteKind.SHARDS), None)
    return dict(body["tensors"]) if body is not None else {}


def _with(columns: Sequence[str], more: Sequence[str]) -> list[str]:
    return [*columns, *(name for name in more if name not in columns)]


def _reach(table: Any) -> tuple[int, int]:
    steps = integers(table.column("step"))
    return (int(steps.min()), int(steps.max())) if len(steps) else (0, -1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Keys:
    """Which rows of a table are of spread tensors, and the key of each: site, step, micro-batch, how often it was met."""

    rows: _Ints
    is_spread: npt.NDArray[np.bool_]
    keys: _Ints
    #: number of the site, of those met so far
    sites: _Ints

    @classmethod
    def of(cls, table: Any, spread: Spread, numbers: dict[_Site, int], base: int = 0) -> _Keys:
        """Find them; sites that are new get the next number. `base` is a step before all others."""
        number = _numbers_of(table, spread, numbers)
        is_spread = (number >= 0) & (floats(table.column("numel")) >= 0.0 if "numel" in table.column_names else True)
        rows = np.flatnonzero(is_spread)
        step, micro = (integers(table.column(name))[rows] for name in ("step", "micro"))
        keys = (number[rows] << 40) + ((step - base) << 12) + micro
        return cls(rows=rows, is_spread=is_spread, keys=keys, sites=number[rows])

    def alone(self) -> npt.NDArray[np.bool_]:
        """Return which keys are there once: a loop that updates twice a step has more, and no part tells which is which."""
        _, inverse, counts = np.unique(self.keys, return_inverse=True, return_counts=True)
        alone: npt.NDArray[np.bool_] = counts[inverse] == 1
        return alone


def _numbers_of(table: Any, spread: Spread, numbers: dict[_Site, int]) -> _Ints:
    """Return the number of each row's site, -1 of what is not the replay's or not spread; sites that are new get the next."""
    coded = [codes(table.column(name)) for name in (*_SITE, "pass")]
    packed = np.zeros(table.num_rows, np.int64)
    for words, places in coded:
        packed = packed * len(words) + places
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    found = np.full(len(first), -1, np.int64)
    for index, row in enumerate(first.tolist()):
        *site, pass_ = (words[places[row]] for words, places in coded)
        if pass_ == "replay" and spread.name_of(tuple(site)):
            found[index] = numbers.setdefault(tuple(site), len(numbers))
    return found[inverse] if len(found) else packed


def _merged(table: Any, spread: Spread, lead: int, columns: Sequence[str]) -> Any:
    """Return the table with the rows of spread tensors put together from all ranks."""
    steps = integers(table.column("step"))
    numbers: dict[_Site, int] = {}
    base = int(steps.min(initial=0))
    own = _Keys.of(table, spread, numbers, base)
    if not len(own.rows):
        return table
    names = [spread.name_of(site) for site in numbers]
    needed = np.array([sum(name in counted for counted in spread.counted) for name in names])
    rows, alone = own.rows, own.alone()
    sums = ShardSums.of(table, rows)
    counts = np.array([name in spread.counted[lead] for name in names])[own.sites]
    sums, met = sums.without(~counts), (counts & alone).astype(np.int64)
    order = np.argsort(own.keys, kind="stable")
    spread_steps = steps[rows]
    for at in range(len(spread.files)):
        if at == lead or not spread.counted[at]:
            continue
        theirs_count = np.array([name in spread.counted[at] for name in names])
        for part in spread.window(at, [*_KEYS, *MEASURED], int(spread_steps.min()), int(spread_steps.max())):
            theirs = _Keys.of(part, spread, dict(numbers), base)
            fits = theirs.alone() & (theirs.sites < len(names))
            fits[fits] &= theirs_count[theirs.sites[fits]]
            place = np.minimum(np.searchsorted(own.keys, theirs.keys, sorter=order), len(order) - 1)
            fits &= own.keys[order[place]] == theirs.keys
            to = order[place[fits]]
            sums.add(ShardSums.of(part, theirs.rows[fits]), to)
            met[to] += alone[to]
    done = met == needed[own.sites]
    return with_sums(table, rows[done], np.flatnonzero(done), sums, [spread.shapes[names[s]] for s in own.sites[done]])
