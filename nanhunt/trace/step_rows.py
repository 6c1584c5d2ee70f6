"""StepRows: the rows of a step by column, and what steps have in common said once.

A step has a thousand rows, and the next step has the same ones: what was observed where, in which format and shape. That is
a `Layout`, made once and met again; only the numbers are new. Who asks for one row gets an `Observation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from nanhunt.stats.columns import Ints, StatsColumns
from nanhunt.trace.schema import Observation, Role

__all__ = ["Layout", "Site", "StepRows"]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What is observed where; the same object in every step."""

    pass_: str
    phase: str
    role: str
    module: str
    name: str
    op: str | None
    source: str | None
    dtype: str | None
    shape: tuple[int, ...] | None


class Layout:
    """The sites of some rows, in their order, and where to find those of a kind."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)

    def __len__(self) -> int:
        return len(self.sites)

    @cached_property
    def by_role(self) -> dict[str, Ints]:
        """Row numbers by role."""
        return _grouped([site.role for site in self.sites])

    @cached_property
    def by_leaf(self) -> dict[str, Ints]:
        """Row numbers of scalars by the last part of their name: `frozen` of `weight.frozen`."""
        leaves = [site.name.rpartition(".")[2] if site.role == Role.SCALAR else "" for site in self.sites]
        return _grouped(leaves)

    @cached_property
    def is_narrow(self) -> bool:
        """Whether an 8-bit float is among them."""
        return any(site.dtype is not None and site.dtype.startswith("float8") for site in self.sites)

    @cached_property
    def replayed(self) -> Ints:
        """Row numbers of the replay itself, looks op by op and trials left out."""
        return np.array([row for row, site in enumerate(self.sites) if site.pass_ == "replay"], np.int64)


def _grouped(keys: Sequence[str]) -> dict[str, Ints]:
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return {key: np.array(rows, np.int64) for key, rows in found.items()}


_NOWHERE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRows(Sequence[Observation]):
    """Rows in the order of observation."""

    layout: Layout
    rank: Ints
    step: Ints
    micro: Ints
    seq: Ints
    #: the row's own row in `stats`, -1 where it has none
    ticket: Ints
    stats: StatsColumns
    value: npt.NDArray[np.float64]
    has_value: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.layout)

    @overload
    def __getitem__(self, index: int) -> Observation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Observation]: ...
    def __getitem__(self, index: int | slice) -> Observation | list[Observation]:
        """Return a row, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        site, ticket = self.layout.sites[index], int(self.ticket[index])
        return Observation(
            step=int(self.step[index]), micro=int(self.micro[index]), rank=int(self.rank[index]), seq=int(self.seq[index]),
            pass_=site.pass_, phase=site.phase, role=site.role, module=site.module, name=site.name, op=site.op,
            source=site.source, dtype=site.dtype, shape=site.shape,
            stats=self.stats[ticket] if ticket >= 0 else None,
            value=float(self.value[index]) if self.has_value[index] else None,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Observation]:
        return (self[index] for index in range(len(self)))

    @classmethod
    def of(cls, rows: Sequence[Observation]) -> Self:
        """Put observations into columns."""
        sites = [Site(r.pass_, r.phase, r.role, r.module, r.name, r.op, r.source, r.dtype, r.shape) for r in rows]
        measured = np.array([r.stats is not None for r in rows], bool)
        return cls(
            layout=Layout(sites),
            rank=np.array([r.rank for r in rows], np.int64),
            step=np.array([r.step for r in rows], np.int64),
            micro=np.array([r.micro for r in rows], np.int64),
            seq=np.array([r.seq for r in rows], np.int64),
            ticket=np.where(measured, np.cumsum(measured) - 1, -1),
            stats=StatsColumns.of([r.stats for r in rows if r.stats is not None]),
            value=np.array([0.0 if r.value is None else float(r.value) for r in rows]),
            has_value=np.array([r.value is not None for r in rows], bool),
        )

    def of_role(self, role: str) -> tuple[list[Site], StatsColumns]:
        """Return sites and statistics of the rows of a role that were measured."""
        rows = self.layout.by_role.get(role, _NOWHERE)
        rows = rows[self.ticket[rows] >= 0]
        return [self.layout.sites[row] for row in rows.tolist()], self.stats.take(self.ticket[rows])

    def scalars(self, leaf: str) -> list[tuple[Site, float]]:
        """Return the values of the scalars whose name ends in `leaf`, those that have one."""
        rows = self.layout.by_leaf.get(leaf, _NOWHERE)
        rows = rows[self.has_value[rows]]
        return [(self.layout.sites[row], v) for row, v in zip(rows.tolist(), self.value[rows].tolist(), strict=True)]
