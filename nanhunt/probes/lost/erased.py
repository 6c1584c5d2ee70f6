"""Erased: a value beyond its format becomes inf, and a division makes an exact zero of it.

`x * rsqrt(mean(x²))` puts out nothing for a row whose square overflows. The chain from the overflow to the zero is
computed again in fp64; where that gives numbers of the size of their neighbours, the zeros are the format's doing.
1/(1 + exp(100)) is zero in fp64 as good as well, and no fault. It takes a second look at the step, and only where there
is a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanhunt.probes.certificate import in_fp64
from nanhunt.probes.closer import Closer
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.trace.schema import Phase

__all__ = ["Erased", "chains_of", "erased_in", "has_zero_rows", "is_norm", "norms_in"]

#: Magnitude, over the largest of its tensor, from which an erased value mattered.
_MATTERS = 1e-3
#: Magnitude below which a normed value is the rounding of a row that is constant in itself.
_NORMED = 1e-3
#: What makes an exact zero of an infinite operand.
_DIVISIONS = ("aten.rsqrt", "aten.reciprocal", "aten.div", "aten.true_divide", "aten.pow")
_NORMS = ("aten.native_layer_norm", "aten._fused_rms_norm", "aten.native_group_norm", "aten.rms_norm")
#: Events of one chain, and chains of one step, that are computed again.
_LONG, _MANY = 12, 8


@dataclass(slots=True, kw_only=True)
class Erased:
    """Exact zeros in the place of numbers: the overflow that made them, and where they came out."""

    #: the op that went beyond its format, and the op whose output lost values
    birth: OpEvent
    at: OpEvent
    count: int
    numel: int
    #: largest value that fp64 has where a zero stands
    amax: float
    mask: Tensor


def chains_of(events: list[OpEvent]) -> dict[int, list[int]]:
    """Return, by an overflow of the forward pass, the ops that its infinity went through up to the zero and one beyond.

    An infinity that comes to an end in anything but a division (a mask's exp, a tanh, a clamp) erases nothing.
    """
    chains: dict[int, list[int]] = {}
    for event in events:
        if event.birth != "inf-from-finite" or event.constant or event.phase is not Phase.FORWARD:
            continue
        if len(chains) >= _MANY:
            break
        chain = _followed(event.index, events)
        if chain:
            chains[event.index] = chain
    return chains


def _followed(start: int, events: list[OpEvent]) -> list[int]:
    bad, ends = {start}, set()
    for event in events[start + 1 :]:
        if event.phase is not Phase.FORWARD or len(bad) > _LONG:
            continue
        takes = any(s.bad and s.writer in bad for s in event.inputs)
        if takes and event.bad_outputs:
            bad.add(event.index)
        elif takes and event.op.startswith(_DIVISIONS):
            ends.add(event.index)
    if not ends:
        return []
    beyond = {
        e.index
        for e in events
        if e.op.startswith(("aten.mul.", "aten.div.")) and any(s.writer in ends for s in e.inputs)
    }
    return sorted(bad | ends | set(sorted(beyond)[:4]))


def erased_in(birth: OpEvent, chain: list[int], events: list[OpEvent], closer: Closer) -> Erased | None:
    """Compute a chain again in fp64 and return the zeros that it does not have; None where it has them too."""
    wide: dict[int, dict[str, Tensor]] = {}
    worst: Erased | None = None
    for index in chain:
        capture = closer.captures.get(index)
        if capture is None:
            return worst
        twin = in_fp64(_with_wide_operands(capture, events[index], wide))
        wide[index] = twin.outputs
        name, made = capture.outputs[0]
        found = _zeros_of(made, twin.outputs.get(name))
        if found is not None and (worst is None or int(found[0].sum()) > worst.count):
            mask, amax = found
            worst = Erased(
                birth=birth, at=events[index], count=int(mask.sum()), numel=made.numel(), amax=amax, mask=mask
            )
    return worst


def _with_wide_operands(capture: Capture, event: OpEvent, wide: dict[int, dict[str, Tensor]]) -> Capture:
    """Put what fp64 made of earlier ops of the chain in the place of the recorded operands that are not finite or zero.

    A view may lie between: the shape is taken on, where the number of elements is the same.
    """
    made = {s.name: wide[s.writer] for s in event.inputs if s.writer in wide}
    names = [a.name for a in capture.func._schema.arguments]

    def widened(name: str, tensor: Tensor) -> Tensor:
        outputs = [t for n, t in made.get(name, {}).items() if n.startswith(("output", "self"))]
        twin = next((t for t in outputs if t.numel() == tensor.numel()), None)
        return tensor if twin is None else twin.reshape(tensor.shape)

    args = tuple(widened(n, v) if isinstance(v, Tensor) else v for n, v in zip(names, capture.args, strict=False))
    kwargs = {n: widened(n, v) if isinstance(v, Tensor) else v for n, v in capture.kwargs.items()}
    return Capture(capture.func, args, kwargs, capture.outputs)


def _zeros_of(made: Tensor, twin: Tensor | None) -> tuple[Tensor, float] | None:
    """Return where a tensor is exactly zero and its fp64 twin is of the size of its largest, and the largest lost."""
    if twin is None or twin.shape != made.shape or made.layout is not torch.strided or not made.is_floating_point():
        return None
    values = twin.double().abs()
    finite = torch.isfinite(values)
    if not bool(finite.any()):
        return None
    largest = float(values[finite].max())
    mask = (made == 0) & finite & (values >= _MATTERS * largest) & (values > 0)
    return (mask, float(values[mask].max())) if bool(mask.any()) else None


def is_norm(event: OpEvent) -> bool:
    """Whether the op is a fused norm, whose square nobody sees."""
    return event.op.startswith(_NORMS) and not event.op.endswith("_backward")


def has_zero_rows(made: Tensor) -> bool:
    """Whether a row (along the last dimension) holds nothing but zeros (the host waits)."""
    return made.dim() > 0 and made.numel() > 0 and bool((made == 0).reshape(-1, made.shape[-1]).all(dim=1).any())


def norms_in(norms: Sequence[tuple[OpEvent, Capture]]) -> list[Erased]:
    """Return what fused norms erased: rows of zeros, where fp64 has numbers."""
    erased = []
    for event, capture in norms:
        name, made = capture.outputs[0]
        found = _zeros_of(made, in_fp64(capture).outputs.get(name))
        if found is not None and found[1] >= _NORMED:
            mask, amax = found
            erased.append(
                Erased(birth=event, at=event, count=int(mask.sum()), numel=made.numel(), amax=amax, mask=mask)
            )
    return erased
