"""How the difference of two runs grows: through the modules of one step, and from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.comparison import DepthRow, StepRow, Verdict
from nanhunt.comparison.judged import Judged
from nanhunt.comparison.measured import Measured
from nanhunt.comparison.pairs import Pairs
from nanhunt.trace.schema import Role

__all__ = ["by_depth", "by_step"]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


def by_depth(pairs: Pairs, got: Measured, found: Judged, step: int) -> tuple[DepthRow, ...]:
    """Return what a step computes, and whatever is born in it, in the order in which it ran."""
    roles = pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT, Role.GRAD, Role.BATCH) | pairs.is_in("load")
    rows = np.flatnonzero((pairs.step == step) & (roles | (found.ratio > 1.0)))
    rows = rows[np.argsort(pairs.moment[rows], kind="stable")]
    bulk = got.bulk
    return tuple(
        DepthRow(
            phase=phase, role=role, module=module, name=name, rms_a=float(got.rms_a[row]), rms_b=float(got.rms_b[row]),
            apart=float(bulk[row]), bound=float(found.bulk[row]), ratio=float(found.ratio[row]), verdict=_verdict(found, row),
            rank=int(pairs.a.rank[pairs.at_a[row]]),
        )
        for row in rows.tolist()
        for phase, role, module, name in [pairs.sites[pairs.site[row]]]
    )  # fmt: skip


def _verdict(found: Judged, row: int) -> Verdict:
    if found.ratio[row] > 1.0:
        return "born"
    return "inherited" if found.alone[row] > 1.0 else "within"


def by_step(
    pairs: Pairs, got: Measured, found: Judged, losses_a: Mapping[int, float], losses_b: Mapping[int, float]
) -> tuple[StepRow, ...]:
    """Return the largest differences of each step that both traces have."""
    steps, at = np.unique(pairs.step, return_inverse=True)
    kinds = (pairs.is_of(Role.OUTPUT), pairs.is_of(Role.GRAD), pairs.is_of(Role.WEIGHT))
    outputs, gradients, weights = (
        _largest(got.bulk, which & np.isfinite(found.bulk), at, len(steps)) for which in kinds
    )
    born = np.bincount(at, found.ratio > 1.0, len(steps)).astype(int)
    inherited = np.bincount(at, (found.ratio <= 1.0) & (found.alone > 1.0), len(steps)).astype(int)
    return tuple(
        StepRow(
            step=int(step), outputs=outputs[i], gradients=gradients[i], weights=weights[i],
            loss_a=losses_a.get(int(step)), loss_b=losses_b.get(int(step)), inherited=int(inherited[i]), born=int(born[i]),
        )
        for i, step in enumerate(steps.tolist())
    )  # fmt: skip


def _largest(values: _Floats, which: _Bools, at: npt.NDArray[np.int64], count: int) -> list[float | None]:
    found = np.full(count, -1.0)
    np.maximum.at(found, at[which], values[which])
    return [None if value < 0.0 else float(value) for value in found]
