"""Ops that lose values without a NaN: what a format's end erased, what a cast pinned or flushed.

Four ways, each with its own measure.

- Erased. A value beyond its format becomes inf, and a division makes an exact zero of it: `x * rsqrt(mean(x²))` puts
  out nothing for a row whose square overflows. The chain from the overflow to the zero is computed again in fp64; where
  that gives numbers of the size of their neighbours, the zeros are the format's doing. 1/(1 + exp(100)) is zero in fp64
  as good as well, and no fault.
- Pinned. A saturating cast, or a clamp at a format's end, leaves its largest number in the place of larger ones. What
  counts is the energy that is cut off: the amax itself stands exactly at the end under ordinary scaling.
- Flushed. A cast whose scale another element set makes zeros of whole rows. Behind the loss a cast to fp16, or a
  division there by a number, makes zeros of small gradients; what counts is their share of the sum of squares.
- Collided, rounded. Whole numbers (positions, ids) that become the same in half precision; sums that are gathered in it
  one by one, against fp64.
- Unmoved. An average or a decay in place, behind the backward pass, that leaves nine of ten half-precision elements as
  they were: a moving average of weights that stands still, a decay smaller than half an ulp.
- Absorbed. A sum in half precision, added to in place, that has become too large to feel what is added.

What it costs. Two passes over the operands of casts and clamps, and a second look at the step for erased values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import in_fp64
from nanhunt.probes.closer import Closer
from nanhunt.probes.event import Capture, OpEvent
from nanhunt.stats.torch_kernel import plain_values
from nanhunt.trace.schema import Phase
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["Absorbed", "CastWatch", "Erased", "Lossy", "Rounded", "Unmoved", "chains_of", "erased_in", "norms_in"]

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
#: Magnitude, over the largest of its tensor, from which an erased value mattered.
_MATTERS = 1e-3
#: Magnitude below which a normed value is the rounding of a row that is constant in itself.
_NORMED = 1e-3
#: What makes an exact zero of an infinite operand.
_DIVISIONS = ("aten.rsqrt", "aten.reciprocal", "aten.div", "aten.true_divide", "aten.pow")
_NORMS = ("aten.native_layer_norm", "aten._fused_rms_norm", "aten.native_group_norm", "aten.rms_norm")
_CASTS = ("aten._to_copy", "aten.copy_", "aten.to")
#: An fp16 gradient times or over a number: by the loss scale, the count of micro-batches or of workers.
_SCALINGS = ("aten.div", "aten.mul")
#: Sums that are gathered element by element, in the format of what they are added to.
_SCATTERS = ("aten.index_add", "aten.scatter_add", "aten.index_put", "aten.cumsum", "aten.scatter_reduce")
#: What moves a weight behind the backward pass: an average, a decay.
_MOVES = ("aten.lerp_.", "aten.mul_.")
#: Relative distance of an average from what it follows from which it ought to move: some ulps of bf16.
_APART = 0.02
_PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.mul.Tensor", "aten.sum", "aten.convolution_backward")
#: What fp16 rounds to zero: half of its smallest number.
_FLUSHED_FP16 = 2.0**-25
_CLAMPS = ("aten.clamp", "aten.hardtanh", "aten.clip")
#: Events of one chain, and chains of one step, that are computed again.
_LONG, _MANY = 12, 8


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


@dataclass(slots=True)
class Absorbed:
    """Additions of one line that a sum was too large to feel."""

    event: OpEvent
    dtype: str
    amax: float
    count: int
    #: it is a lone number that is kept from step to step: one addition that it does not feel stops it for good
    is_counter: bool = False


@dataclass(slots=True)
class Unmoved:
    """A decay or an average in place that changed almost nothing of a half-precision weight."""

    event: OpEvent
    dtype: str
    #: what it is called: "parameter target.0.weight"
    origin: str
    amax: float
    #: elements that ought to have moved, and those that did not
    asked: int
    kept: int
    #: the factor of a decay; None of an average
    factor: float | None


@dataclass(slots=True)
class Rounded:
    """Whole numbers that a narrow format tells no more apart, or sums that it holds wrongly: `share` of them, of `of`."""

    event: OpEvent
    dtype: str
    kind: str
    amax: float
    of: int
    share: float


@dataclass(slots=True)
class CastWatch:
    """Looks at every cast to a narrower format, and at every clamp at a format's end."""

    found: list[Lossy] = field(default_factory=list)
    #: additions in place that changed no bit of a half-precision sum, by op and line
    absorbed: dict[tuple[str, object], Absorbed] = field(default_factory=dict)
    rounded: list[Rounded] = field(default_factory=list)
    unmoved: list[Unmoved] = field(default_factory=list)
    #: outputs of norms with rows of nothing but zeros
    norms: list[tuple[OpEvent, Capture]] = field(default_factory=list)

    def settle(self) -> None:
        """Nothing waits here."""

    def wants(self, index: int, op: str) -> bool:
        """Whether the op adds or scales in place: what it wrote to must be known as it was."""
        return op.startswith(("aten.add_.", "aten.div_.", "aten.mul_.", "aten.lerp_.", *_SCATTERS))

    def took(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        """Measure what the op lost."""
        if event.op.startswith("aten.add_.") and event.phase.value == "forward":
            self._added(event, before, outputs)
        if event.phase is Phase.FORWARD and outputs and outputs[0][1].dtype in (torch.float16, torch.bfloat16):
            self._rounds(event, func, before, outputs)
        if event.op.startswith(_MOVES):
            self._moved(event, before, outputs)
        if event.phase is Phase.BACKWARD and outputs and outputs[0][1].dtype is torch.float16:
            self._vanished(event, func, before, outputs[0][1])
        is_norm = event.op.startswith(_NORMS) and not event.op.endswith("_backward")
        is_scaling = event.op.startswith(_SCALINGS) and event.phase is not Phase.FORWARD and _by_a_number(before)
        if not outputs or not (is_norm or is_scaling or event.op.startswith((*_CASTS, *_CLAMPS))):
            return
        given = [t for _, t in tensors_of([*before[0], *before[1].values()]) if t.is_floating_point() and t.numel()]
        made = outputs[0][1]
        if not given or not made.is_floating_point() or made.layout is not torch.strided:
            return
        if is_norm:
            if _has_zero_rows(made):
                args, kwargs = map_tensors(_kept, before)
                self.norms.append((event, Capture(func, args, kwargs, [(n, _kept(t)) for n, t in outputs])))
            return
        if is_scaling and made.dtype is not torch.float16:
            return
        operand = given[-1] if event.op.startswith("aten.copy_") else given[0]
        lossy = _measured(event, operand, made, before)
        if lossy is not None:
            self.found.append(lossy)

    def _rounds(self, event: OpEvent, func: Any, before: Any, outputs: list[tuple[str, Tensor]]) -> None:
        """Measure what a narrow format makes of whole numbers that are cast to it, and of sums that are gathered in it."""
        name, made = outputs[0]
        dtype = str(made.dtype).removeprefix("torch.")
        if event.op.startswith(_CASTS):
            given = next((t for _, t in tensors_of([*before[0], *before[1].values()])), None)
            if given is None or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
                return
            before_, after = int(torch.unique(given).numel()), int(torch.unique(made).numel())
            if before_ > after:
                amax = float(given.abs().max())
                self.rounded.append(Rounded(event, dtype, "collided", amax, before_, 1.0 - after / before_))
        elif event.op.startswith(_SCATTERS):
            wide = in_fp64(Capture(func, before[0], before[1], outputs)).outputs
            twin = wide.get(name, wide.get("output"))
            if twin is None or twin.shape != made.shape or not bool(torch.isfinite(twin).all()):
                return
            off = (made.double() - twin).abs() > 0.1 * twin.abs()
            if bool(off.any()):
                amax = float(twin.abs().max())
                self.rounded.append(Rounded(event, dtype, "rounded", amax, off.numel(), float(off.double().mean())))

    def _moved(self, event: OpEvent, before: Any, outputs: list[tuple[str, Tensor]]) -> None:
        """Measure what a decay or an average left as it was."""
        args = before[0]
        was, other = args[0], args[1] if len(args) > 1 else None
        origin = next((o for _, _, _, o in event.made if o), "")
        if not isinstance(was, Tensor) or was.dtype not in (torch.float16, torch.bfloat16) or was.numel() < 2:
            return
        if not origin.startswith(("parameter", "buffer")) and (origin or event.phase is not Phase.UPDATE):
            return  # a moment that cannot decay is told by what it does to the update
        factor = float(other) if isinstance(other, (int, float)) else None
        if factor is not None:
            asked = was != 0 if 0.0 < 1.0 - factor < 0.5 else None
        else:
            far = isinstance(other, Tensor) and other.shape == was.shape and other.is_floating_point()
            asked = (
                (other.double() - was.double()).abs() > _APART * was.double().abs()
                if far and isinstance(other, Tensor)
                else None
            )
        if asked is None or not bool(asked.any()):
            return
        kept = asked & (outputs[0][1] == was)
        dtype = str(was.dtype).removeprefix("torch.")
        amax = float(was.abs().max())
        self.unmoved.append(Unmoved(event, dtype, origin, amax, int(asked.sum()), int(kept.sum()), factor))

    def _vanished(self, event: OpEvent, func: Any, before: Any, made: Tensor) -> None:
        """Note a product in backward of which nothing is left in fp16, where fp64 has small numbers all over."""
        if not event.op.startswith(_PRODUCTS) or not made.numel() or bool(made.any()):
            return
        wide = in_fp64(Capture(func, before[0], before[1], [("output", made)])).outputs.get("output")
        if wide is None or wide.shape != made.shape or not bool(torch.isfinite(wide).all()) or not bool(wide.any()):
            return
        amax = float(wide.abs().max())
        if amax > _FLUSHED_FP16:
            return
        self.found.append(
            Lossy(
                event=event, dtype="float16", end=float(torch.finfo(torch.float16).max), amax=amax, numel=made.numel(),
                pinned=0, energy=0.0, flushed=int((wide != 0).sum()), flushed_energy=1.0, rows=0, rows_lost=0,
            )
        )  # fmt: skip

    def _added(
        self, event: OpEvent, before: tuple[tuple[Any, ...], dict[str, Any]], outputs: list[tuple[str, Tensor]]
    ) -> None:
        """Count an addition in place that left every element of a half-precision sum as it was."""
        total, term = before[0][0], before[0][1]
        if not isinstance(total, Tensor) or total.dtype not in (torch.float16, torch.bfloat16) or not total.numel():
            return
        is_zero = bool((term == 0).all()) if isinstance(term, Tensor) else term == 0
        if is_zero or not torch.equal(total, outputs[0][1]):
            return
        key = (event.op, event.source)
        count = self.absorbed[key].count + 1 if key in self.absorbed else 1
        dtype = str(total.dtype).removeprefix("torch.")
        is_counter = total.numel() == 1 and any(origin.startswith("buffer") for _, _, _, origin in event.made)
        self.absorbed[key] = Absorbed(event, dtype, float(total.abs().max()), count, is_counter)


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _measured(event: OpEvent, operand: Tensor, made: Tensor, before: Any) -> Lossy | None:
    """Return what a cast or clamp lost; None where it is no cast to a narrower format, or no clamp at an end."""
    if operand.shape != made.shape:
        return None
    is_cast = not event.op.startswith(_CLAMPS)
    end = _end_of_cast(operand, made) if is_cast else _end_of_clamp(before)
    if event.op.startswith(_SCALINGS):
        end = float(torch.finfo(made.dtype).max)
    if end is None:
        return None
    x = plain_values(operand.detach()).double()
    x = torch.where(torch.isfinite(x), x, 0.0)
    y = plain_values(made.detach()).float()
    # a cast that gives inf or NaN beyond the end hides nothing
    over = torch.where(torch.isfinite(y), (x.abs() - end).clamp(min=0.0), 0.0)
    gone = (x != 0) & (y == 0)
    energy = float(x.square().sum())
    alive = (x != 0).reshape(-1, x.shape[-1] if x.dim() else 1).any(dim=1)
    left = (y != 0).reshape(-1, y.shape[-1] if y.dim() else 1).any(dim=1)
    return Lossy(
        event=event,
        dtype=str(made.dtype).removeprefix("torch.") if is_cast else _meant(end),
        end=end,
        amax=float(x.abs().max()),
        numel=x.numel(),
        pinned=int((over > 0).sum()),
        energy=float(over.square().sum()) / energy if energy > 0.0 and math.isfinite(energy) else 0.0,
        flushed=int(gone.sum()),
        flushed_energy=float(x[gone].square().sum()) / energy if energy > 0.0 and math.isfinite(energy) else 0.0,
        rows=int(alive.sum()),
        rows_lost=int((alive & ~left).sum()),
    )


def _by_a_number(before: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether a product or quotient is one of a tensor and a single number."""
    args = before[0]
    other = args[1] if len(args) > 1 else None
    return isinstance(other, (int, float)) or (isinstance(other, Tensor) and other.dim() == 0)


def _meant(bound: float) -> str:
    """Return the format at whose end a clamp stands."""
    return next(name for end, name in _ENDS.items() if _NEAR * end <= bound <= end)


def _end_of_cast(operand: Tensor, made: Tensor) -> float | None:
    """Return the end of the format that a cast narrows to, None where it does not."""
    if made.dtype == operand.dtype or made.element_size() >= operand.element_size():
        return None
    return float(torch.finfo(made.dtype).max)


def _end_of_clamp(before: tuple[tuple[Any, ...], dict[str, Any]]) -> float | None:
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


def _has_zero_rows(made: Tensor) -> bool:
    return made.dim() > 0 and made.numel() > 0 and bool((made == 0).reshape(-1, made.shape[-1]).all(dim=1).any())


# --- erased -----------------------------------------------------------------------------------------------------------


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
        if event.phase.value != "forward" or len(bad) > _LONG:
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


def norms_in(watch: CastWatch) -> list[Erased]:
    """Return what fused norms erased: rows of zeros, where fp64 has numbers."""
    erased = []
    for event, capture in watch.norms:
        name, made = capture.outputs[0]
        found = _zeros_of(made, in_fp64(capture).outputs.get(name))
        if found is not None and found[1] >= _NORMED:
            mask, amax = found
            erased.append(
                Erased(birth=event, at=event, count=int(mask.sum()), numel=made.numel(), amax=amax, mask=mask)
            )
    return erased
