"""Pairs: the observations that two traces share, side by side in the order of the first, and those that one has alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.observed import Observed, Site, Sites
from nanhunt.trace.schema import Phase, Role

__all__ = ["Pairs", "paired"]

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Row numbers `at_a` and `at_b` of each pair, in execution order; `alone_a` and `alone_b` have no partner."""

    a: Observed
    b: Observed
    sites: tuple[Site, ...]
    at_a: _Ints
    at_b: _Ints
    alone_a: _Ints
    alone_b: _Ints

    def __len__(self) -> int:
        return len(self.at_a)

    def of_a(self, name: str) -> _Floats:
        """Return a column of the first trace, a number a pair."""
        return self.a.column[name][self.at_a]

    def of_b(self, name: str) -> _Floats:
        """Return a column of the second trace, a number a pair."""
        return self.b.column[name][self.at_b]

    @cached_property
    def step(self) -> _Ints:
        """The step of each pair."""
        return self.a.step[self.at_a]

    @cached_property
    def site(self) -> _Ints:
        """The site's number of each pair."""
        return self.a.site[self.at_a]

    @cached_property
    def turn(self) -> _Ints:
        """Which step of which rank a pair is in, counted from 0 rank by rank: what came before a turn is the one below."""
        pair = self.a.rank[self.at_a] * (2 * int(np.abs(self.step).max(initial=0)) + 2) + self.step
        turns: _Ints = np.unique(pair, return_inverse=True)[1].astype(np.int64)
        return turns

    @cached_property
    def pass_(self) -> _Ints:
        """Which micro-batch of which turn a pair is in: forward and backward passes know nothing of those before them."""
        micro = self.a.micro[self.at_a]
        pair = self.turn * (int(micro.max(initial=0)) + 2) + micro + 1
        passes: _Ints = np.unique(pair, return_inverse=True)[1].astype(np.int64)
        return passes

    @cached_property
    def moment(self) -> _Ints:
        """When a pair was: its step, and in it its phase, whatever its rank; of one rank alone the pairs ascend as they are."""
        if not self.a.rank.any():
            return np.zeros(len(self), np.int64)
        phases = list(Phase)
        of_sites = np.array([phases.index(Phase(site[0])) for site in self.sites], np.int64)
        return self.step * len(phases) + of_sites[self.site]

    @cached_property
    def is_seen(self) -> _Bools:
        """Which turns have outputs: under `--every` the others have scalars alone."""
        found: _Bools = np.bincount(self.turn, self.is_of(Role.OUTPUT), int(self.turn.max(initial=-1)) + 1) > 0
        return found

    @cached_property
    def line(self) -> _Ints:
        """A number of each pair's site in its rank: one tensor's history over the steps."""
        return self.site + len(self.sites) * self.a.rank[self.at_a]

    @cached_property
    def is_reshaped(self) -> _Bools:
        """Which pairs have another shape in either trace."""
        found: _Bools = self.a.shape[self.at_a] != self.b.shape[self.at_b]
        return found

    def is_of(self, *roles: str) -> _Bools:
        """Return which pairs are of one of these roles."""
        return self._marked([site[1] in roles for site in self.sites])

    def is_in(self, *phases: str) -> _Bools:
        """Return which pairs are of one of these phases."""
        return self._marked([site[0] in phases for site in self.sites])

    def is_named(self, *names: str) -> _Bools:
        """Return which pairs are scalars of one of these names."""
        return self._marked([site[1] == Role.SCALAR and site[3] in names for site in self.sites])

    @cached_property
    def module(self) -> _Ints:
        """A number of each pair's module."""
        return self._numbered([site[2] for site in self.sites])

    @cached_property
    def tensor(self) -> _Ints:
        """A number of each pair's parameter: rows of its gradient, update and weight have the same one."""
        return self._numbered([f"{site[2]}.{site[3]}" for site in self.sites])

    def _marked(self, holds: list[bool]) -> _Bools:
        found: _Bools = np.array(holds, bool)[self.site]
        return found

    def _numbered(self, names: list[str]) -> _Ints:
        found: dict[str, int] = {}
        of_sites = np.array([found.setdefault(name, len(found)) for name in names], np.int64)
        return of_sites[self.site]

    def without(self, dropped: _Bools) -> Pairs:
        """Return the pairs that are not dropped; rows that are alone stay."""
        return replace(self, at_a=self.at_a[~dropped], at_b=self.at_b[~dropped])


def paired(a: Observed, b: Observed, sites: Sites) -> Pairs:
    """Pair the rows of two traces that were read into the same sites."""
    _, at_a, at_b = np.intersect1d(a.key, b.key, assume_unique=True, return_indices=True)
    in_order = np.argsort(a.order[at_a])
    return Pairs(
        a=a, b=b, sites=tuple(sites.numbers), at_a=at_a[in_order], at_b=at_b[in_order],
        alone_a=_others(at_a, a), alone_b=_others(at_b, b),
    )  # fmt: skip


def _others(taken: _Ints, of: Observed) -> _Ints:
    """Return the rows that are not among `taken`, in the order in which they ran."""
    left = np.ones(len(of), bool)
    left[taken] = False
    rows = np.flatnonzero(left)
    return rows[np.argsort(of.order[rows])]
