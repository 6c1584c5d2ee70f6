"""How two runs of one step differ, element by element and bit by bit: a flipped bit is no rounding.

Bits are compared, not values: NaN equals NaN here, and +0 differs from -0. Three readings tell a fault of the machine
from one of arithmetic (G1 and G3 of the field's causes): one differing bit, or a ratio of exactly a power of two, in a
few elements is a flip; a few units in the last place in many elements is an order of addition; anything else is another
computation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.stats.torch_kernel import plain_values

__all__ = ["Difference", "compare", "kept_copies"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Elements that a single event can change by itself.
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between two sets of tensors of the same names and shapes.

    `relative` is the Euclidean norm of the difference over that of the first, finite elements only. `ulps` is the
    median distance of the differing finite elements in units in the last place, None where there is none.
    """

    tensors: int = 0
    of_tensors: int = 0
    elements: int = 0
    of_elements: int = 0
    #: differing elements with a single differing bit, and with a ratio of exactly ±2^k, k other than 0
    one_bit: int = 0
    power_of_two: int = 0
    #: differing elements that are not finite in one of the two
    nonfinite: int = 0
    relative: float = 0.0
    ulps: float | None = None
    #: the tensor with the largest share of differing elements, and its first differing coordinate
    worst: str = ""
    coordinate: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether every bit is the same."""
        return self.elements == 0

    @property
    def is_flip(self) -> bool:
        """Whether a few elements differ, each by one bit or a power of two."""
        return 0 < self.elements <= _FEW and max(self.one_bit, self.power_of_two) == self.elements

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the verdict."""
        body = asdict(self)
        body["names"], body["coordinate"] = list(self.names[:16]), list(self.coordinate)
        return body | {"kind": "same" if self.is_same else ("flip" if self.is_flip else "many")}


def kept_copies(tensors: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Copy tensors to the host until `budget` bytes are used, the smallest first: any of them tells."""
    copies: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].numel()):
        values = plain_values(tensor.detach())
        budget -= values.numel() * values.element_size()
        if budget < 0:
            break
        copies[name] = values.to("cpu", copy=True)
    return copies


def compare(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Difference:
    """Compare tensors of the same names; one that stands on one side only, or with another shape, is left out."""
    parts = {
        name: _compared(a, second[name])
        for name, a in first.items()
        if name in second and a.shape == second[name].shape and a.dtype == second[name].dtype
    }
    differing = {name: part for name, part in parts.items() if part.elements}
    norms = [float(_finite(a).norm()) for name, a in first.items() if name in parts]
    worst = max(differing, key=lambda n: differing[n].elements / max(1, differing[n].of_elements), default="")
    ulps = sorted(part.ulps for part in differing.values() if part.ulps is not None)
    total = math.hypot(*norms)  # not a sum of squares: a flipped exponent of fp64 has one beyond a float
    return Difference(
        tensors=len(differing),
        of_tensors=len(parts),
        elements=sum(p.elements for p in parts.values()),
        of_elements=sum(p.of_elements for p in parts.values()),
        one_bit=sum(p.one_bit for p in parts.values()),
        power_of_two=sum(p.power_of_two for p in parts.values()),
        nonfinite=sum(p.nonfinite for p in parts.values()),
        relative=math.hypot(*(p.distance for p in parts.values())) / total if total > 0.0 else 0.0,
        ulps=ulps[len(ulps) // 2] if ulps else None,
        worst=worst,
        coordinate=differing[worst].coordinate if worst else (),
        names=tuple(sorted(differing)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    elements: int
    of_elements: int
    one_bit: int = 0
    power_of_two: int = 0
    nonfinite: int = 0
    #: Euclidean norm of the difference
    distance: float = 0.0
    ulps: float | None = None
    coordinate: tuple[int, ...] = ()


def _compared(a: Tensor, b: Tensor) -> _Compared:
    integer = _INTEGERS.get(a.element_size()) if a.is_floating_point() else None
    if integer is None:  # integers and booleans: what differs counts, how does not
        other = a != b
        return _Compared(elements=int(other.sum()), of_elements=a.numel())
    i, j = a.contiguous().view(integer), b.contiguous().view(integer)
    where = i != j
    count = int(where.sum())
    if not count:
        return _Compared(elements=0, of_elements=a.numel())
    x, y = a[where].double(), b[where].double()
    finite = torch.isfinite(x) & torch.isfinite(y)
    steps = (_ordered(i[where]) - _ordered(j[where])).abs()[finite]
    return _Compared(
        elements=count,
        of_elements=a.numel(),
        one_bit=int(_is_one_bit(i[where] ^ j[where]).sum()),
        power_of_two=int(_is_power_of_two(x, y).sum()),
        nonfinite=int((~finite).sum()),
        distance=float((x - y)[finite].norm()),
        ulps=float(steps.double().median()) if steps.numel() else None,
        coordinate=tuple(where.nonzero()[0].tolist()),
    )


def _ordered(bits: Tensor) -> Tensor:
    """Return the bits of floats as integers whose order, and whose distance, is that of the floats."""
    lowest = torch.iinfo(bits.dtype).min
    wide = bits.to(torch.int64)
    return torch.where(wide < 0, lowest - wide, wide)


def _is_one_bit(difference: Tensor) -> Tensor:
    """Whether exactly one bit is set: it is then gone after a subtraction of 1."""
    wide = difference.to(torch.int64) & (
        2 ** (8 * difference.element_size()) - 1 if difference.element_size() < 8 else -1
    )
    return (wide & (wide - 1)) == 0


def _is_power_of_two(x: Tensor, y: Tensor) -> Tensor:
    """Whether x/y is exactly ±2^k, k other than 0: the mantissas are the same, the exponents are not."""
    ok = torch.isfinite(x) & torch.isfinite(y) & (x != 0) & (y != 0)
    (mx, ex), (my, ey) = torch.frexp(x), torch.frexp(y)
    return ok & (mx.abs() == my.abs()) & (ex != ey)


def _finite(tensor: Tensor) -> Tensor:
    wide = tensor.double() if tensor.is_floating_point() else tensor.to(torch.float64)
    return torch.where(torch.isfinite(wide), wide, 0.0)
