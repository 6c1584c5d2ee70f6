"""Facts: what was measured of a checkpoint, before anybody judges it. Plain data, so that rules need no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nanhunt.inspection.state_facts import LogFacts, OptimizerFacts, ScalerFacts, SchedulerFacts
from nanhunt.stats.tensor_stats import TensorStats

__all__ = [
    "FAULT_BINADES",
    "NOTICE_BINADES",
    "SQUARES",
    "VARIANCES",
    "Average",
    "Change",
    "Facts",
    "Flip",
    "Reference",
    "Role",
    "Run",
    "TensorFacts",
    "Twin",
]

#: Least binades between a flip and the rest, of a vector and of a matrix: to call it a fault, to notice it. Squares have
#: twice as many. `flips` says why.
FAULT_BINADES, NOTICE_BINADES = (14, 10), (10, 6)

#: Means and sums of squares, never below zero: by their key in an optimizer's state, and by a buffer's name.
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_avg_sq_row", "exp_avg_sq_col", "acc_delta")
VARIANCES = ("running_var",)


class Role(StrEnum):
    """What a tensor is to training, by where it stands and what it is called: code is not asked."""

    WEIGHT = "weight"
    #: of a weight, or a copy that follows it: nothing trains it
    AVERAGE = "average"
    BUFFER = "buffer"
    MOMENT = "moment"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An element that one exponent bit accounts for: `restored` is its value with that bit as it was."""

    index: tuple[int, ...]
    value: float
    #: counted from the lowest of the element's bits; 30 is the highest of fp32's exponent
    bit: int
    restored: float
    #: largest magnitude of all other elements
    rest: float
    #: log10 of the chance of such a gap in a tail of the same heaviness; None of a NaN known by its payload
    log10_chance: float | None = None
    #: as hexadecimal, of a NaN whose payload no arithmetic makes
    payload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring elements, in memory's order, that all hold one finite value; at least 4 KiB of them."""

    start: int
    stop: int
    value: float
    #: whether it begins and ends where a row of the last dimension does
    whole_rows: bool
    #: whether both ends lie on 4 KiB of the file, or of the tensor, or are the tensor's own
    on_pages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Two regions of at least 4 KiB that hold the same bytes, in tensors that are not one another's copies."""

    first: str
    second: str
    #: first element of each, in memory's order, and how many
    at: tuple[int, int]
    elements: int
    bytes: int
    whole_rows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor: counts, extremes, and what is odd about it. `stats` is None of one that has no plain numbers."""

    name: str
    role: Role
    #: as torch calls it, without its module
    dtype: str
    shape: tuple[int, ...]
    numel: int
    bytes: int
    stats: TensorStats | None = None
    #: of a moment: its parameter, '' where no name is known, and its key in the optimizer's state
    parameter: str = ""
    key: str = ""
    #: of an average: the weight that it is one of
    average_of: str = ""
    #: another name of the same memory
    tied_to: str = ""
    #: another tensor with the same bytes
    copy_of: str = ""
    #: the value that every element has, of at least two
    constant: float | None = None
    #: coordinates of the first non-finite elements, and rows of the first dimension that are wholly so
    bad_at: tuple[tuple[int, ...], ...] = ()
    bad_rows: int = 0
    #: elements below zero, counted only where none may be
    negative: int = 0
    #: rows of the first dimension that are wholly zero: how many, the first ones, and those whose moments are not
    zero_rows: int = 0
    zero_rows_at: tuple[int, ...] = ()
    moved_zero_rows: tuple[int, ...] = ()
    runs: tuple[Run, ...] = ()
    flips: tuple[Flip, ...] = ()

    @property
    def kind(self) -> str:
        """Its key in the optimizer's state, else the last part of its name."""
        return self.key or self.name.rpartition(".")[2]

    @property
    def is_square(self) -> bool:
        """Whether it holds means or sums of squares."""
        return self.key in SQUARES if self.key else self.kind in VARIANCES

    @property
    def bad(self) -> int:
        """Number of non-finite elements."""
        return 0 if self.stats is None else self.stats.numel - self.stats.finite

    @property
    def is_all_bad(self) -> bool:
        """Whether no element is finite."""
        return self.stats is not None and self.bad == self.stats.numel > 0

    @property
    def is_mask(self) -> bool:
        """Whether it holds -inf and one other value, as additive masks do: meant, not spoiled."""
        s = self.stats
        if s is None or not s.neginf or s.nan or s.posinf or self.role is Role.MOMENT:
            return False
        return s.amax == 0.0 or (s.amin == s.amax and not s.zero)

    @property
    def is_poisoned(self) -> bool:
        """Whether something in it is non-finite and not meant to be."""
        return self.bad > 0 and not self.is_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A copy of the weights that follows them, beside them. `apart` is the norm of the difference over the weights' own."""

    #: its key in the file
    name: str
    tensors: int
    elements: int
    #: of all tensors, and of the one that is furthest: (name, apart); over elements that are finite in both
    apart: float
    furthest: tuple[str, float]
    #: tensors that are their weights to the bit, and those that hold NaN or Inf
    same: int
    spoiled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A tensor beside its earlier self. `relative` is the norm of the difference over that of the earlier one.

    Elements that are not finite on both sides, or that a bit flipped in, are left out. `apart` is the same over the larger of the two norms: growth alone leaves it below 1, a tensor drawn anew is at 1.4.
    """

    name: str
    role: Role
    dims: int
    relative: float
    apart: float
    same: float
    #: robust distance from its like in units of their spread of log relative
    outlying: float = 0.0
    like: float = 0.0
    #: what one bit changed since, `restored` as it was
    flips: tuple[Flip, ...] = ()
    numel: int = 0
    #: elements that were finite and are no longer, and those that were not before
    spoiled: int = 0
    spoiled_before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An earlier checkpoint beside this one."""

    path: str
    step: int | None
    changes: tuple[Change, ...]
    #: (name, what it was, what it is): dtypes and shapes
    retyped: tuple[tuple[str, str, str], ...] = ()
    appeared: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    #: median over moments of m / earlier m, where the earlier one is not zero; None without such
    moment_ratio: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no weight that both have held NaN or Inf before."""
        return not any(c.spoiled_before for c in self.changes if c.role is Role.WEIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was measured of one checkpoint."""

    path: str
    container: str
    bytes: int
    step: int | None
    tensors: tuple[TensorFacts, ...]
    #: where no step is told
    epoch: int | None = None
    averages: tuple[Average, ...] = ()
    twins: tuple[Twin, ...] = ()
    optimizers: tuple[OptimizerFacts, ...] = ()
    scaler: ScalerFacts | None = None
    schedulers: tuple[SchedulerFacts, ...] = ()
    log: LogFacts = field(default_factory=LogFacts)
    reference: Reference | None = None
    notes: tuple[str, ...] = ()

    def of_role(self, *roles: Role) -> list[TensorFacts]:
        """Return the tensors of these roles, those that are another's memory left out."""
        return [t for t in self.tensors if t.role in roles and not t.tied_to]
