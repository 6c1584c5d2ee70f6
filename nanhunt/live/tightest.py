"""The tensors of one step that have the least room in the format that holds them."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat, binades
from nanhunt.trace.columns import codes, floats, mask

__all__ = ["KEPT", "Tight", "tightest"]

#: Tensors that are kept: more than a terminal has lines for.
KEPT = 32
_ROLES = ("output", "grad_output", "weight", "grad", "exp_avg", "exp_avg_sq", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tight:
    """One tensor in its own format: `margin` in binades that its amax may grow, -inf where elements are infinite."""

    module: str
    role: str
    name: str
    format: str
    amax: float
    margin: float
    #: share of the elements that are subnormal, or NaN where it was not counted
    subnormal: float


def tightest(table: Any, known: Iterable[Tight] = ()) -> tuple[Tight, ...]:
    """Return those with the least margin among a step's rows and `known` ones, tightest first, at most `KEPT`."""
    roles, role = codes(table.column("role"))
    wanted = np.array([word in _ROLES for word in roles])[role]
    amax = floats(table.column("amax"))
    wanted &= amax > 0.0
    table, amax = table.filter(mask(wanted)), amax[wanted]
    dtypes, dtype = codes(table.column("dtype"))
    formats = [_format_of(word) for word in dtypes]
    ends = np.array([math.nan if f is None else math.log2(f.max) for f in formats])
    # an output's -inf is a mask's, as a rule
    infinite = floats(table.column("posinf")) > 0.0
    infinite |= (floats(table.column("neginf")) > 0.0) & (np.array(roles) != "output")[role[wanted]]
    margin = np.where(infinite, -np.inf, ends[dtype] - np.log2(amax))
    share = floats(table.column("subnormal")) / np.maximum(floats(table.column("numel")), 1.0)
    (modules, module), (names, name) = codes(table.column("module")), codes(table.column("name"))
    found = [*known]
    for at in np.argsort(margin, kind="stable")[:KEPT]:
        fmt = formats[dtype[at]]
        if fmt is None:
            continue
        room = -math.inf if infinite[at] else binades(fmt.max, float(amax[at]))
        found.append(
            Tight(
                module=modules[module[at]],
                role=roles[role[wanted][at]],
                name=names[name[at]],
                format=fmt.name,
                amax=float(amax[at]),
                margin=room,
                subnormal=float(share[at]),
            )
        )
    return tuple(heapq.nsmallest(KEPT, found, key=lambda tight: tight.margin))


@functools.lru_cache(maxsize=256)
def _format_of(dtype: str) -> NumberFormat | None:
    """Return the format that a dtype is; None for integers and for what is not known."""
    try:
        fmt = lookup(dtype) if dtype else None
    except UsageError:
        return None
    return fmt if isinstance(fmt, NumberFormat) else None
