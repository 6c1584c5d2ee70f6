"""Measured: how far the statistics of each pair lie apart, and what of their size the bounds are taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanhunt.comparison.pairs import Pairs
from nanhunt.comparison.roundoff import Arithmetic
from nanhunt.trace.schema import Role

__all__ = ["Measured", "measured"]

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Numbers a pair. Of a scalar `rms` and `scale` are its magnitude; gradients of outputs are without their loss scale."""

    numel: _Floats
    #: root mean square of the larger of both sides: what relative differences are relative to
    scale: _Floats
    #: differences of rms or value, of the mean and of the largest magnitude
    rms_apart: _Floats
    mean_apart: _Floats
    amax_apart: _Floats
    #: largest magnitude of either side
    amax: _Floats
    #: elements that are zero in one side beyond the other, and that are NaN, Inf or -Inf, whichever are most
    zero_apart: _Floats
    bad_apart: _Floats
    bad_a: _Floats
    bad_b: _Floats
    #: rms of either side
    rms_a: _Floats
    rms_b: _Floats
    #: square root of how many independent errors the energy is spread over: sqrt(n) rms / amax, and no more of an output than
    #: its module's matrix has elements, whose roundings all positions share; 1 of one number over and over
    spread: _Floats
    #: factor that the loss scale is taken out by, of each side
    unscaled_a: _Floats
    unscaled_b: _Floats

    @property
    def bulk(self) -> _Floats:
        """The larger of the differences of rms and mean, relative to `scale`."""
        return relative(np.maximum(self.rms_apart, self.mean_apart), self.scale)


def measured(pairs: Pairs, scales_a: Mapping[int, float], scales_b: Mapping[int, float]) -> Measured:
    """Measure the pairs; `scales` are the loss scales by step."""
    is_scalar, is_scaled = pairs.is_of(Role.SCALAR), pairs.is_of(Role.GRAD_OUTPUT)
    by_a, by_b = (_unscaled(pairs, is_scaled, scales) for scales in (scales_a, scales_b))
    a, b = (
        {n: pairs_of(n) for n in ("numel", "l2", "mean", "amax", "zero", "value")}
        for pairs_of in (pairs.of_a, pairs.of_b)
    )
    bad_a, bad_b = (of("nan") + of("posinf") + of("neginf") for of in (pairs.of_a, pairs.of_b))
    value_a, value_b = (np.where(np.isfinite(side["value"]), side["value"], 0.0) for side in (a, b))
    rms_a = np.where(is_scalar, np.abs(value_a), _rms(a["l2"], a["numel"] - bad_a) * by_a)
    rms_b = np.where(is_scalar, np.abs(value_b), _rms(b["l2"], b["numel"] - bad_b) * by_b)
    numel = np.nan_to_num(np.fmax(a["numel"], b["numel"]))
    amax = np.fmax(a["amax"] * by_a, b["amax"] * by_b)
    scale = np.fmax(rms_a, rms_b)
    kinds = [np.abs(pairs.of_a(n) - pairs.of_b(n)) for n in ("nan", "posinf", "neginf")]
    bad = np.where(is_scalar, _bad_scalars(a["value"], b["value"]), np.maximum.reduce(kinds))
    return Measured(
        numel=numel, scale=scale, unscaled_a=by_a, unscaled_b=by_b,
        rms_apart=np.where(is_scalar, np.abs(value_a - value_b), _apart(rms_a, rms_b)),
        mean_apart=_apart(a["mean"] * by_a, b["mean"] * by_b), amax_apart=_apart(a["amax"] * by_a, b["amax"] * by_b),
        amax=np.nan_to_num(amax), zero_apart=_apart(a["zero"], b["zero"]), bad_apart=np.nan_to_num(bad),
        bad_a=np.nan_to_num(bad_a), bad_b=np.nan_to_num(bad_b), rms_a=rms_a, rms_b=rms_b,
        spread=np.where(
            _is_even(pairs, scale, by_a), 1.0,
            np.clip(relative(np.sqrt(numel) * scale, amax), 1.0, np.sqrt(_of_matrix(pairs, numel))),
        ),
    )  # fmt: skip


def relative(numbers: _Floats, to: _Floats) -> _Floats:
    """Return a quotient; 0 where there is nothing to be relative to."""
    safe = np.where((to > 0.0) & np.isfinite(to), to, 1.0)
    return np.where((to > 0.0) & np.isfinite(numbers), numbers / safe, 0.0)


def _is_even(pairs: Pairs, scale: _Floats, unscaled: _Floats) -> _Bools:
    """Return which pairs hold one number over and over, within two roundings of either format: all of them round alike."""
    plain = Arithmetic()
    u_a, u_b = (plain.of_rows(side.dtypes)[0][at] for side, at in ((pairs.a, pairs.at_a), (pairs.b, pairs.at_b)))
    found: _Bools = pairs.of_a("std") * unscaled <= 2.0 * np.maximum(u_a, u_b) * scale
    return found


def _of_matrix(pairs: Pairs, numel: _Floats) -> _Floats:
    """Return how many elements the matrix of each output's module has; infinity without one."""
    is_matrix = pairs.is_of(Role.WEIGHT) & (pairs.a.rest[pairs.at_a] > 1.0)
    most = np.zeros(int(pairs.module.max(initial=0)) + 1)
    np.maximum.at(most, pairs.module[is_matrix], numel[is_matrix])
    limited = pairs.is_of(Role.OUTPUT, Role.GRAD_OUTPUT) & (most[pairs.module] > 0.0)
    return np.where(limited, most[pairs.module], np.inf)


def _bad_scalars(a: _Floats, b: _Floats) -> _Bools:
    """Return which values are not both finite, both NaN or the same Inf."""
    is_same: _Bools = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.isfinite(a) & np.isfinite(b))
    return ~is_same


def _rms(l2: _Floats, finite: _Floats) -> _Floats:
    return np.nan_to_num(l2 / np.sqrt(np.maximum(finite, 1.0)))


def _apart(a: _Floats, b: _Floats) -> _Floats:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(a - b))


def _unscaled(pairs: Pairs, is_scaled: _Bools, scales: Mapping[int, float]) -> _Floats:
    """Return 1 / loss scale of the step for gradients of outputs, 1 for all else."""
    steps, inverse = np.unique(pairs.step, return_inverse=True)
    factors = np.array([1.0 / (scales.get(int(step)) or 1.0) for step in steps])
    return np.where(is_scaled, factors[inverse] if len(steps) else 1.0, 1.0)
