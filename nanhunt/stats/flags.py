"""Is it finite? One pass over a tensor; the answers wait on their device and are fetched together.

A finite sum is a proof: neither an infinity nor a NaN leaves a sum again. On a CPU, where asking waits for nothing, that
is the first look, at the speed of memory; a sum that is not finite may be an overflow of its own, and `aminmax` decides.
On other devices it is `aminmax` at once: it carries NaN along and gives back infinities, 13 times cheaper than
`isfinite().all()` (4 Mi fp32 elements on one core: sum 0.6 ms, aminmax 1.1 ms, isfinite 13 ms). Of a tensor with a NaN it
does not tell whether there is an infinity as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanhunt.stats.torch_kernel import is_measurable, plain_values

__all__ = ["FINITE", "FlagQueue", "Flags"]

_DIRECT = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True, slots=True)
class Flags:
    """What a look at a tensor showed; the infinities of one that holds a NaN are not told."""

    nan: bool = False
    posinf: bool = False
    neginf: bool = False

    @property
    def bad(self) -> bool:
        """Whether it holds any non-finite element."""
        return self.nan or self.posinf or self.neginf


FINITE = Flags()


class FlagQueue:
    """Looks at tensors as they stand when they are handed over; nothing waits for a device until `fetch`."""

    def __init__(self) -> None:
        #: (lowest, highest) by ticket; None of what is known to be finite
        self._looks: list[tuple[Tensor, Tensor] | None] = [None, None]

    def look(self, tensor: Tensor) -> int:
        """Look at a tensor and return its ticket: its index in what `fetch` returns; 0 of what holds no such numbers."""
        values = tensor if _is_plain(tensor) else _values(tensor)
        if values is None:
            return 0
        if values.is_cpu and math.isfinite(values.sum().item()):  # of no elements it is 0
            return 1
        if values.numel() == 0:
            return 0
        self._looks.append(torch.aminmax(values))
        return len(self._looks) - 1

    def fetch(self) -> list[Flags]:
        """Return the flags of every ticket so far, with one wait for each device and dtype; tickets stay valid."""
        flags = [FINITE] * len(self._looks)
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for ticket, look in enumerate(self._looks):
            if look is not None:
                groups.setdefault((look[0].device, look[0].dtype), []).append(ticket)
        for tickets in groups.values():
            pairs = [look for t in tickets if (look := self._looks[t]) is not None]
            lows, highs = torch.stack([torch.stack(side) for side in zip(*pairs, strict=True)]).tolist()
            for ticket, low, high in zip(tickets, lows, highs, strict=True):
                nan = math.isnan(low) or math.isnan(high)
                if nan or high == math.inf or low == -math.inf or low == math.inf or high == -math.inf:
                    flags[ticket] = Flags(nan, not nan and high == math.inf, not nan and low == -math.inf)
        return flags


def _is_plain(tensor: Tensor) -> bool:
    """Whether torch's reductions take the tensor as it is."""
    return (
        tensor.dtype in _DIRECT
        and type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_meta)
    )


def _values(tensor: Tensor) -> Tensor | None:
    """Return the numbers of an unusual tensor as `aminmax` takes them; None where there are none to look at."""
    if tensor.is_nested:
        tensor = tensor.values()
    if not (tensor.is_floating_point() or tensor.is_complex()) or not is_measurable(tensor):
        return None
    values = plain_values(tensor.detach())
    return values.float() if values.element_size() == 1 else values  # aminmax has no 8-bit kernel
