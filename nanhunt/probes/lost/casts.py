"""Casts, clamps and scalings that lose values: pinned at a format's end, or flushed to zero.

- Pinned. A saturating cast, or a clamp at a format's end, leaves its largest number in the place of larger ones. What
  counts is the energy that is cut off: the amax itself stands exactly at the end under ordinary scaling.
- Flushed. A cast whose scale another element set makes zeros of whole rows. Behind the loss a cast to fp16, a division
  there by a number or a product makes zeros of small gradients; what counts is their share of the sum of squares.

What it costs: two passes over the operands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import in_fp64
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.stats.torch_kernel import plain_values
from nanhunt.trace.schema import Phase
from nanhunt.training.tree import tensors_of

__all__ = ["SCALED_IN_PLACE", "Lossy", "lost_by", "vanished"]

#: Largest numbers of the formats that a clamp may stand for; smaller ends (6, 28) are activations of their own.
_ENDS = {
    448.0: "float8_e4m3fn",
    240.0: "float8_e4m3fnuz",
    57344.0: "float8_e5m2",
    65504.0: "float16",
    float(torch.finfo(torch.bfloat16).max): "bfloat16",
}
#: A clamp that keeps this far below the end means the end: transformers' T5 clamps at 65504 - 1000.
_NEAR = 0.98
_CASTS = ("aten._to_copy", "aten.copy_", "aten.to")
_CLAMPS = ("aten.clamp", "aten.hardtanh", "aten.clip")
#: An fp16 gradient times or over a number: by the loss scale, the count of micro-batches or of workers.
_SCALINGS = ("aten.div.", "aten.div_.", "aten.mul.", "aten.mul_.")
SCALED_IN_PLACE = ("aten.div_.", "aten.mul_.")
_PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.mul.Tensor", "aten.sum", "aten.convolution_backward")
#: What fp16 rounds to zero: half of its smallest number.
_FLUSHED_FP16 = 0.5 * torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Lossy:
    """A cast or clamp that lost values. Shares are of the operand's elements, `energy` of its sum of squares."""

    event: OpEvent
    dtype: str
    end: float
    amax: float
    numel: int
    pinned: int
    energy: float
    flushed: int
    #: share of the sum of squares that lies in what was flushed
    flushed_energy: float
    #: rows (along the last dimension) with a non-zero element, and those of which nothing is left
    rows: int
    rows_lost: int


def lost_by(event: OpEvent, before: Call, outputs: list[tuple[str, Tensor]]) -> Lossy | None:
    """Measure a cast to a narrower format, a clamp at a format's end, or a scaling of fp16 gradients; None of other ops."""
    is_scaling = event.op.startswith(_SCALINGS) and event.phase is not Phase.FORWARD and _by_a_number(before)
    if not outputs or not (is_scaling or event.op.startswith((*_CASTS, *_CLAMPS))):
        return None
    given = [t for _, t in tensors_of([*before[0], *before[1].values()]) if t.is_floating_point() and t.numel()]
    made = outputs[0][1]
    if not given or not made.is_floating_point() or made.layout is not torch.strided:
        return None
    operand = given[-1] if event.op.startswith("aten.copy_") else given[0]
    if operand.shape != made.shape or (is_scaling and made.dtype is not torch.float16):
        return None
    if is_scaling:
        return _measured(event, operand, made, float(torch.finfo(made.dtype).max), str(made.dtype))
    if event.op.startswith(_CLAMPS):
        bound = _end_of_clamp(before)
        return None if bound is None else _measured(event, operand, made, bound, _meant(bound))
    if made.dtype == operand.dtype or made.element_size() >= operand.element_size():
        return None
    return _measured(event, operand, made, float(torch.finfo(made.dtype).max), str(made.dtype))


def _measured(event: OpEvent, operand: Tensor, made: Tensor, end: float, dtype: str) -> Lossy:
    x = plain_values(operand.detach()).double()
    x = torch.where(torch.isfinite(x), x, 0.0)
    y = plain_values(made.detach()).float()
    # a cast that gives inf or NaN beyond the end hides nothing
    over = torch.where(torch.isfinite(y), (x.abs() - end).clamp(min=0.0), 0.0)
    gone = (x != 0) & (y == 0)
    energy = float(x.square().sum())
    share = 1.0 / energy if energy > 0.0 and math.isfinite(energy) else 0.0
    alive = (x != 0).reshape(-1, x.shape[-1] if x.dim() else 1).any(dim=1)
    left = (y != 0).reshape(-1, y.shape[-1] if y.dim() else 1).any(dim=1)
    return Lossy(
        event=event,
        dtype=dtype.removeprefix("torch."),
        end=end,
        amax=float(x.abs().max()),
        numel=x.numel(),
        pinned=int((over > 0).sum()),
        energy=float(over.square().sum()) * share,
        flushed=int(gone.sum()),
        flushed_energy=float(x[gone].square().sum()) * share,
        rows=int(alive.sum()),
        rows_lost=int((alive & ~left).sum()),
    )


def vanished(event: OpEvent, func: Any, before: Call, outputs: list[tuple[str, Tensor]]) -> Lossy | None:
    """Return a product in backward of which nothing is left in fp16, where fp64 has small numbers; None of other ops."""
    made = outputs[0][1] if outputs else None
    if made is None or event.phase is not Phase.BACKWARD or made.dtype is not torch.float16 or not made.numel():
        return None
    if not event.op.startswith(_PRODUCTS) or bool(made.any()):
        return None
    wide = in_fp64(Capture(func, before[0], before[1], outputs)).outputs.get("output")
    if wide is None or wide.shape != made.shape or not bool(torch.isfinite(wide).all()) or not bool(wide.any()):
        return None
    amax = float(wide.abs().max())
    if amax > _FLUSHED_FP16:
        return None
    return Lossy(
        event=event, dtype="float16", end=float(torch.finfo(torch.float16).max), amax=amax, numel=made.numel(),
        pinned=0, energy=0.0, flushed=int((wide != 0).sum()), flushed_energy=1.0, rows=0, rows_lost=0,
    )  # fmt: skip


def _by_a_number(before: Call) -> bool:
    """Whether a product or quotient is one of a tensor and a single number."""
    args = before[0]
    other = args[1] if len(args) > 1 else None
    return isinstance(other, (int, float)) or (isinstance(other, Tensor) and other.dim() == 0)


def _meant(bound: float) -> str:
    """Return the format at whose end a clamp stands."""
    return next(name for end, name in _ENDS.items() if _NEAR * end <= bound <= end)


def _end_of_clamp(before: Call) -> float | None:
    """Return the bound of a clamp that is symmetric and stands at a format's end."""
    numbers = [
        float(v)
        for v in (*before[0][1:], *before[1].values())
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    ]
    if len(numbers) != 2 or numbers[0] != -numbers[1]:
        return None
    bound = abs(numbers[1])
    return bound if any(_NEAR * end <= bound <= end for end in _ENDS) else None
