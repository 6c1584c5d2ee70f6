"""Observed: the rows of a replay as arrays, in the order in which the step runs, under site numbers that two traces share.

A site is a phase, role, module and name. The writer's own order is the order of the step but for scalars: they are
written when the step is over, and stand here where they act. A rate decides its update, a loss scale its backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nanhunt.trace.columns import codes, floats, integers, lengths_of, mask
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Phase, Role

__all__ = ["EXACT", "LOSSES", "LOSS_SCALE", "NORMS", "Observed", "Site", "Sites", "read_observed"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
#: phase, role, module, name
Site = tuple[str, str, str, str]

#: Is taken out of the gradients that are compared, and no cause of what they differ by.
LOSS_SCALE = "loss_scale"
#: Scalars that are set, never computed from tensors, that are the loss, and that are norms of gradients.
EXACT = ("lr", "beta1", "beta2", "eps", "momentum", "weight_decay", LOSS_SCALE)
LOSSES = ("micro_loss", "loss")
NORMS = ("grad_norm",)
#: Other scalars are functions of tensors that have rows of their own, and are left out.
_SCALARS = frozenset((*EXACT, *LOSSES, *NORMS))
#: Micro-batches run batch, forward and backward one after the other; the rest comes once, behind the last of them.
_ONCE = (Phase.UNSCALE, Phase.CLIP, Phase.UPDATE)
_PHASES = {phase.value: i for i, phase in enumerate(Phase)}
_COLUMNS = (
    "step", "micro", "rank", "seq", "phase", "role", "module", "name", "dtype", "shape", "numel", "nan", "posinf", "neginf",
    "zero", "amax", "mean", "std", "l2", "exp_lo", "exp_hist", "value",
)  # fmt: skip
_NUMBERS = ("numel", "nan", "posinf", "neginf", "zero", "amax", "mean", "std", "l2", "value")
#: Every role that a module or a parameter has; inputs are outputs of others, and ops are a zoom's.
_ROLES = (
    Role.OUTPUT, Role.GRAD_OUTPUT, Role.WEIGHT, Role.BUFFER, Role.GRAD, Role.EXP_AVG, Role.EXP_AVG_SQ, Role.UPDATE, Role.BATCH,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sites:
    """Numbers of the sites that were met, and what is known of each: both traces are read into one."""

    numbers: dict[Site, int] = field(default_factory=dict)

    def of(self, table: Any) -> _Ints:
        """Return each row's number; sites that are new get the next one."""
        coded = [codes(table.column(name)) for name in ("phase", "role", "module", "name")]
        packed = np.zeros(table.num_rows, np.int64)
        for words, places in coded:
            packed = packed * len(words) + places
        _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
        found = np.zeros(len(first), np.int64)
        for at in np.argsort(first):  # in the order of the rows
            phase, role, module, name = (words[places[first[at]]] for words, places in coded)
            found[at] = self.numbers.setdefault((phase, role, module, name), len(self.numbers))
        return found[inverse]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """Rows of one trace. `order` ascends as the step runs; `column` has the numbers by name, NaN for null.

    `lowest`, `starts` and `counts` are the histograms: row i has counts[starts[i] : starts[i + 1]] from binade lowest[i].
    """

    key: _Ints
    step: _Ints
    micro: _Ints
    rank: _Ints
    site: _Ints
    order: _Ints
    column: dict[str, _Floats]
    dtypes: tuple[list[str], _Ints]
    #: length of the first dimension, and of all but the first: of a weight its outputs, and what each of them adds up
    first: _Floats
    rest: _Floats
    #: a number of each row's shape, the same in both traces
    shape: _Ints
    lowest: _Ints
    starts: _Ints
    counts: _Ints

    def __len__(self) -> int:
        return len(self.step)

    def bins(self, rows: _Ints) -> tuple[_Ints, _Ints]:
        """Return all bins of some rows' histograms: each one's place in `rows`, and in `counts`."""
        lengths = (self.starts[1:] - self.starts[:-1])[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        return owner, np.arange(len(owner)) + np.repeat(
            self.starts[:-1][rows] - (np.cumsum(lengths) - lengths), lengths
        )


def read_observed(trace: Trace, sites: Sites, *, by_rank: bool) -> Observed:
    """Read the replay's rows. Rows of a site that is met several times in a step are told apart by how often it was."""
    tensors = trace.table(_COLUMNS, roles=_ROLES, passes=["replay"])
    scalars = trace.table(_COLUMNS, roles=[Role.SCALAR], passes=["replay"], modules=[""])
    words, places = codes(scalars.column("name"))
    kept = np.array([word in _SCALARS for word in words], bool)[places]
    table = pa.concat_tables([tensors, scalars.filter(mask(kept))]).unify_dictionaries()
    step, micro, rank, seq = (integers(table.column(name)) for name in ("step", "micro", "rank", "seq"))
    site = sites.of(table)
    order = _execution(step, micro, rank, seq, site, sites)
    first, rest, shape = _lengths(table.column("shape"))
    histograms = table.column("exp_hist").combine_chunks()
    lengths = lengths_of(histograms)
    # what comes once behind all micro-batches is the same whatever their number
    key = _keys(step, np.where(_once(sites)[site], 0, micro), rank if by_rank else np.zeros_like(rank), site, order)
    return Observed(
        key=key, step=step, micro=micro, rank=rank, site=site, order=order,
        column={name: floats(table.column(name)) for name in _NUMBERS},
        dtypes=codes(table.column("dtype")), first=first, rest=rest, shape=shape, lowest=integers(table.column("exp_lo")),
        starts=np.concatenate([[0], np.cumsum(lengths)]), counts=integers(histograms.flatten()),
    )  # fmt: skip


def _execution(step: _Ints, micro: _Ints, rank: _Ints, seq: _Ints, site: _Ints, sites: Sites) -> _Ints:
    """Return each row's place in the order in which the steps run, rank by rank."""
    number = {number: site for site, number in sites.numbers.items()}
    phase = np.array([_PHASES.get(number[i][0], 0) for i in range(len(number))], np.int64)
    once = _once(sites)
    # 0 acts on its phase from the start, 2 is known at its end
    when = np.array([_when(number[i]) for i in range(len(number))], np.int64)
    # the loss is the mean over all micro-batches, and a loss scale is there before the first of them
    turn = np.where(once[site], np.iinfo(np.int32).max, np.where(when[site] == 0, -1, micro))
    by = (seq, when[site], phase[site], turn, rank, step)
    place = np.empty(len(step), np.int64)
    place[np.lexsort(by)] = np.arange(len(step))
    return place


def _once(sites: Sites) -> npt.NDArray[np.bool_]:
    """Return of each site whether it is met once a step, and not in each micro-batch."""
    return np.array([phase in _ONCE or _is_mean_loss(role, name) for phase, role, _, name in sites.numbers], bool)


def _is_mean_loss(role: str, name: str) -> bool:
    return role == Role.SCALAR and name == "loss"


def _when(site: Site) -> int:
    _, role, _, name = site
    if role != Role.SCALAR:
        return 1
    return 0 if name in EXACT else 2


def _keys(step: _Ints, micro: _Ints, rank: _Ints, site: _Ints, order: _Ints) -> _Ints:
    """Return a number a row that is the same in both traces: of step, micro-batch, rank, site and how often it was met."""
    by_order = np.argsort(order)
    columns = np.stack([step, rank, micro, site])[:, by_order]
    grouped = np.lexsort(columns[::-1])
    same = np.all(columns[:, grouped[1:]] == columns[:, grouped[:-1]], axis=0) if len(step) else np.zeros(0, bool)
    fresh = np.flatnonzero(np.concatenate([[True], ~same])) if len(step) else np.zeros(0, np.int64)
    run = np.arange(len(step)) - np.repeat(fresh, np.diff(np.concatenate([fresh, [len(step)]])))
    met = np.empty(len(step), np.int64)
    met[by_order[grouped]] = run
    return _mixed(_mixed(_mixed(_mixed(step, rank), micro), site), met)


def _mixed(a: _Ints, b: _Ints) -> _Ints:
    """Return one number of two, by a multiplication modulo 2^64 whose collisions are one in 2^64."""
    with np.errstate(over="ignore"):
        return (a ^ (a >> 29)) * np.int64(-7046029254386353131) + (b + 1) * np.int64(-4417276706812531889)


def _lengths(shapes: Any) -> tuple[_Floats, _Floats, _Ints]:
    """Return of each shape its first length, the product of the others, and its number; 1, 1 and 0 where there is no shape."""
    shapes = shapes.combine_chunks()
    many = lengths_of(shapes)
    flat = np.maximum(integers(shapes.flatten()).astype(np.float64), 1.0)
    starts = np.concatenate([[0], np.cumsum(many)])
    logs = np.concatenate([[0.0], np.cumsum(np.log(flat))])
    has = many > 0
    first = np.ones(len(many))
    first[has] = flat[starts[:-1][has]]
    whole = np.exp(logs[starts[1:]] - logs[starts[:-1]])
    places = np.arange(len(flat)) - np.repeat(starts[:-1], many)
    # mixed twice: once is linear in the length, and a sum of these knows no order
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(_mixed(_mixed(flat.astype(np.int64), places), places))])
    return first, np.maximum(np.rint(whole / first), 1.0), sums[starts[1:]] - sums[starts[:-1]]
