"""Does a select throw away the very elements that a gradient breaks at: where, masks, clamps, filters.

A select that stands behind an op says nothing yet. `sqrt(0)` may go into a clamp that lets it pass, and have its gradient
of zero from a factor further on. So the elements are followed, from the op that they are bad at to the select, and there
the select is asked.

How they are followed. From an op to the next by the address that an element has in memory, through every view; through an
op that works by place to the same place, through any other to where a NaN comes out that is put in. Branches that no
gradient comes back through (a comparison, a detached twin) are left aside.

How a select is asked. It runs once more by itself, from its recorded operands, with gradients of one: an element that
gets a gradient of zero then is thrown away, whatever the select's rule is. What cuts values off (a clamp, a relu) must
have changed the value as well, for at its edge it is the convention of its slope that is zero. A product is a select where
its other factor is a mask: nothing but 0 and 1, made by a comparison or handed in. A factor that happens to be zero (the
sign of 0) is none. An index by numbers picks what is wanted, as a gather does, and throws nothing away.

Not covered: what a slice leaves out, paths longer than six ops, selects inside of a custom function, complex parts seen as
real ones. Where an operand on the way was not kept, the answer is that it was not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nanhunt.probes.certificate import bad_mask, draws, tensor_arguments
from nanhunt.probes.closer import Closer
from nanhunt.probes.event import Capture, OpEvent, Place, Seen, Slope
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["Discard", "discard_of", "ways_to_selects"]

#: Ops that throw elements of a tensor away, by their bare names. No gather: who takes the target's likelihood wants it.
_SELECTS = frozenset(
    "where masked_fill masked_select masked_scatter index index_put index_fill nan_to_num nansum triu tril maximum minimum "
    "fmax fmin amax amin max min topk kthvalue".split()
)
#: Those that cut values off.
_CUTS = frozenset("clamp clamp_min clamp_max hardtanh relu threshold".split())
#: What a mask is made by, and what may be done to it on the way.
_CONDITIONS = frozenset(
    "lt le gt ge eq ne isfinite isnan isinf isin any all logical_and logical_or logical_not logical_xor bitwise_and "
    "bitwise_or bitwise_not bitwise_xor".split()
)
_ON_MASKS = frozenset(
    "_to_copy clone copy mul rsub sub add cat stack index index_put scatter masked_fill where fill zeros zeros_like ones "
    "ones_like full full_like new_zeros new_ones new_full eye arange triu tril repeat zero".split()
)
#: Ops of a way; how far behind an op its consumers are looked for; ops that are kept at most.
_REACH, _NEAR, _MOST = 6, 400, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """The select that throws bad elements away."""

    event: OpEvent
    #: all of the bad elements, or some
    share: Literal["all", "part"]
    #: whether the select was asked; else it only stands behind the op
    checked: bool


# --- which ops to look at closely -------------------------------------------------------------------------------------


def ways_to_selects(index: int, events: Sequence[OpEvent]) -> list[int]:
    """Return the ops on the ways from an op's output to selects, nearest first: what must be kept to ask them."""
    taken_by = _consumers(index, events)
    came_from: dict[int, list[int]] = defaultdict(list)
    layer, ends, seen = [index], [], {index}
    for _ in range(_REACH):
        following = []
        for at in layer:
            for later in taken_by.get(at, ()):
                came_from[later].append(at)
                if later not in seen:
                    seen.add(later)
                    following.append(later)
                    ends += [later] if _may_select(events[later]) else []
        layer = following
    kept: dict[int, None] = {}
    for end in ends:
        way, waiting = {end}, [end]
        while waiting:
            for before in came_from[waiting.pop()]:
                if before not in way and before != index:
                    way.add(before)
                    waiting.append(before)
        if len(kept.keys() | way) <= _MOST:
            kept |= dict.fromkeys(sorted(way))
    return sorted(kept)


def _consumers(index: int, events: Sequence[OpEvent]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for event in events[index + 1 : index + _NEAR]:
        if event.phase.value == "forward" and event.repeats is None:
            for writer in {s.writer for s in event.inputs if s.writer is not None and s.writer >= index}:
                found[writer].append(event.index)
    return found


def _base(event: OpEvent) -> str:
    return event.op.removeprefix("aten.").partition(".")[0].rstrip("_")


def _may_select(event: OpEvent) -> bool:
    return _base(event) in _SELECTS | _CUTS or event.op.startswith(("aten.mul.Tensor", "aten.mul_.Tensor"))


# --- what became of the elements --------------------------------------------------------------------------------------


def discard_of(index: int, bad: Tensor | None, events: Sequence[OpEvent], closer: Closer) -> Discard | None:
    """Return the select that throws an op's bad elements away, None where none does.

    `bad` is where the op's own output is bad, or None where it is finite and its gradient is not.
    """
    capture, slope = closer.captures.get(index), closer.slopes.get(index)
    ways = _Ways(events, closer, _consumers(index, events))
    marks = None if capture is None else _marks(capture, slope, bad)
    if capture is None or marks is None:
        return ways.unchecked(index)
    name, mask, used = marks
    if not bool(mask.any()):
        return None
    fate = ways.follow(index, [(capture.places.get(name), mask, dict(capture.outputs)[name])], _REACH)
    if fate.by is not None and (fate.all or fate.any):
        return Discard(event=events[fate.by], share="all" if fate.all and not used else "part", checked=True)
    return ways.unchecked(index) if fate.unknown else None


def _marks(capture: Capture, slope: Slope | None, bad: Tensor | None) -> tuple[str, Tensor, bool] | None:
    """Return an output of the op, its elements whose gradient breaks though it comes in as zero, and whether others do."""
    outputs = [(n, t) for n, t in capture.outputs if t.is_floating_point() and t.layout is torch.strided]
    if bad is not None:
        name = next((n for n, t in outputs if t.shape == bad.shape), None)
        return None if name is None else (name, bad, False)
    if slope is None or not outputs:
        return None
    (name, output), incoming = outputs[0], next((g for g in slope.incoming if g is not None), None)
    which = next((i for i, g in enumerate(slope.outgoing) if g is not None and bool(bad_mask(g).any())), None)
    if which is None or incoming is None or incoming.shape != output.shape:
        return None
    broken = slope.outgoing[which]
    assert broken is not None
    given = [(n, t) for n, t in tensor_arguments(capture) if t.is_floating_point()]
    alike = [n for n, t in given if t.shape == broken.shape]
    argument = given[which][0] if len(given) == len(slope.outgoing) else next(iter(alike), None)
    if argument is None or argument not in alike:
        return None
    mask = _reached(capture, argument, bad_mask(broken)).get(name)
    if mask is None:
        return None
    if broken.shape != output.shape and _works_by_place(capture):
        steep = _slope_of_ones(capture, argument, output.shape)
        mask = mask & bad_mask(steep) if steep is not None else mask
    return name, mask & (incoming == 0), bool((mask & (incoming != 0)).any())


@dataclass(slots=True)
class _Fate:
    """What became of marked elements: whether all, or any, met a select that throws them away, and which."""

    all: bool = False
    any: bool = False
    unknown: bool = False
    by: int | None = None
    #: no marked element comes there
    idle: bool = False


#: A tensor of a way: its place in memory, the marked elements, its values.
_Marked = tuple[Place | None, Tensor, Tensor]


@dataclass(slots=True)
class _Ways:
    """The ops behind an op, and what was kept of them."""

    events: Sequence[OpEvent]
    closer: Closer
    taken_by: dict[int, list[int]]

    def unchecked(self, index: int) -> Discard | None:
        """Return the next select behind an op, unasked."""
        layer = [index]
        for _ in range(_REACH):
            layer = sorted({later for at in layer for later in self.taken_by.get(at, ())})
            by = next((i for i in layer if _base(self.events[i]) in _SELECTS | _CUTS), None)
            if by is not None:
                return Discard(event=self.events[by], share="all", checked=False)
        return None

    def follow(self, index: int, made: list[_Marked], reach: int) -> _Fate:
        """Return what becomes of marked elements of an op's outputs: dropped only where no branch keeps them.

        The other half of a Huber loss is dropped at an angle of zero, and the half that is kept has its slope of zero there.
        """
        branches: list[_Fate] = []
        unknown = False
        for later in self.taken_by.get(index, ()) if reach else ():
            if later not in self.closer.captures:
                unknown |= later in self.closer.wanted  # it was too large to be kept
                continue
            if not self._is_sloped(later):
                continue
            branches.append(self._through(index, later, made, reach))
        told = [branch for branch in branches if not branch.idle and not (branch.unknown and not branch.any)]
        drops = sorted((branch for branch in told if branch.any), key=lambda branch: not branch.all)
        return _Fate(
            all=bool(told) and all(branch.all for branch in told),
            any=bool(told) and all(branch.any for branch in told),
            unknown=unknown or any(branch.unknown for branch in branches),
            by=drops[0].by if drops else None,
        )

    def _is_sloped(self, index: int) -> bool:
        """Whether a gradient came back through an op; of a graph that was made anew for backward nobody knows."""
        return index in self.closer.slopes or not self.closer.slopes

    def _through(self, index: int, later: int, made: list[_Marked], reach: int) -> _Fate:
        event, capture = self.events[later], self.closer.captures[later]
        if draws(capture):
            return _Fate(unknown=True)
        fate = _Fate()
        reached: dict[str, Tensor] = {}
        dropped, left = False, False
        for seen in event.inputs:
            given = dict(tensor_arguments(capture)).get(seen.name)
            if seen.writer != index or given is None or not given.is_floating_point():
                continue
            moved = [_moved(mask, place, capture.places.get(seen.name), values, given) for place, mask, values in made]
            known = [mask for mask in moved if mask is not None]
            if not known:
                return _Fate(unknown=True)
            mask = torch.stack(known).any(dim=0)
            lost = self._lost(event, capture, seen)
            if lost is not None:
                dropped |= bool((mask & lost).any())
                mask = mask & ~lost
            left |= bool(mask.any())
            for name, on in _reached(capture, seen.name, mask).items() if bool(mask.any()) else ():
                reached[name] = on | reached[name] if name in reached else on
        outputs = dict(capture.outputs)
        behind = [(capture.places.get(n), mask, outputs[n]) for n, mask in reached.items() if bool(mask.any())]
        rest = self.follow(later, behind, reach - 1) if behind else _Fate()
        fate.idle = not dropped and not behind
        fate.any = dropped or rest.any
        fate.all = (dropped and not left) or (left and rest.all)
        fate.unknown = rest.unknown
        fate.by = later if dropped else rest.by
        return fate

    def _lost(self, event: OpEvent, capture: Capture, seen: Seen) -> Tensor | None:
        """Return which elements of an argument an op throws away; None where it is no select."""
        name, arguments = _base(event), dict(tensor_arguments(capture))
        if name == "mul":
            other = next((s for s in event.inputs if s is not seen), None)
            factor = arguments.get(other.name) if other is not None else None
            if other is None or factor is None or not self._is_mask(other, factor):
                return None
        elif name not in _SELECTS | _CUTS or (name == "index" and _picks(capture)):
            return None
        given = arguments[seen.name]
        passed = _slope_of_ones(capture, seen.name)
        if passed is None:
            return None
        lost = passed == 0
        output = next((t for _, t in capture.outputs if t.shape == given.shape), None)
        return lost & (output != given) if name in _CUTS and output is not None else lost

    def _is_mask(self, seen: Seen, factor: Tensor) -> bool:
        """Whether a factor is a mask: 0 and 1 alone, and no number of the model's that happens to be one of them."""
        if factor.dtype is torch.bool:
            return True
        if not bool(((factor == 0) | (factor == 1)).all()):
            return False
        waiting, met = [seen], set[int]()
        while waiting:
            at = waiting.pop()
            if at.writer is None:
                if at.origin.startswith(("parameter", "state")):
                    return False
                continue
            if at.writer in met:
                continue
            met.add(at.writer)
            maker = self.events[at.writer]
            if _base(maker) in _CONDITIONS:
                continue
            if _base(maker) not in _ON_MASKS:
                return False
            waiting += [s for s in maker.inputs if s.writer is None or s.writer < at.writer]
        return True


def _picks(capture: Capture) -> bool:
    """Whether an index names what it wants by number; one by truth values filters."""
    indices = capture.args[1] if len(capture.args) > 1 else ()
    return not any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


# --- an op by itself --------------------------------------------------------------------------------------------------


def _works_by_place(capture: Capture) -> bool:
    name = capture.func._schema.name
    return torch.Tag.pointwise in capture.func.tags or name in ("aten::clone", "aten::_to_copy", "aten::copy_")


def _moved(mask: Tensor, place: Place | None, to: Place | None, values: Tensor, given: Tensor) -> Tensor | None:
    """Return where the marked elements of one tensor stand in another that shows the same memory; None if it does not."""
    if place is not None and to is not None and place.storage == to.storage and place.width == to.width:
        memory = torch.zeros(max(place.end, to.end), dtype=torch.bool, device=mask.device)
        memory.as_strided(place.shape, place.stride, place.offset)[mask] = True
        return memory.as_strided(to.shape, to.stride, to.offset).clone()
    # an operand of an op in place is a copy, made before it
    if values.shape == given.shape and bool(((values == given) | (values.isnan() & given.isnan())).all()):
        return mask
    return None


def _reached(capture: Capture, name: str, mask: Tensor) -> dict[str, Tensor]:
    """Return the elements of an op's outputs that the marked elements of an argument have a part in."""
    outputs = [(n, t) for n, t in capture.outputs if t.is_floating_point() and t.layout is torch.strided]
    if _works_by_place(capture):
        try:
            return {n: mask.expand(t.shape) for n, t in outputs}
        except RuntimeError:
            return {}
    clean, spoiled = (_called(capture, name, lambda t, x=x: t.masked_fill(mask, x)) for x in (1.0, torch.nan))
    return {n: spoiled[n].isnan() & ~clean[n].isnan() for n, _ in outputs if n in spoiled and n in clean}


def _called(capture: Capture, name: str, change: Any) -> dict[str, Tensor]:
    """Return what an op puts out, or writes into, where one argument is changed; {} where it does not run so."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            args, kwargs = _replaced(capture, name, change)
            result = capture.func(*args, **kwargs)
    except Exception:  # an op that does not take a NaN, or a kernel that is not there
        return {}
    names = [a.name for a in capture.func._schema.arguments]
    written = [p for n, v in [*zip(names, args, strict=False), *kwargs.items()] for p in tensors_of(v, n)]
    return dict([*written, *tensors_of(result, "output")])


def _slope_of_ones(capture: Capture, name: str, shape: torch.Size | None = None) -> Tensor | None:
    """Return the gradient that an argument gets, expanded to `shape`, where all that comes in is 1; None where none does."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        whole = tensor if shape is None else tensor.expand(shape)
        leaves.append(whole.detach().clone().requires_grad_())
        return leaves[0].clone()  # an op in place must not meet a leaf

    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            args, kwargs = _replaced(capture, name, leaf)
            made = [t for _, t in tensors_of(capture.func(*args, **kwargs)) if t.grad_fn is not None]
            (found,) = torch.autograd.grad(made, leaves, [torch.ones_like(t) for t in made], allow_unused=True)
    except Exception:  # an op without a slope
        return None
    return torch.zeros_like(leaves[0]) if found is None else found


def _replaced(capture: Capture, name: str, change: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return an op's arguments with one tensor changed, the others copied: it may write into any of them."""
    names = [a.name for a in capture.func._schema.arguments]

    def of(argument: str, value: Any) -> Any:
        paths = iter([path for path, _ in tensors_of(value, argument)])
        return map_tensors(lambda t: change(t.clone()) if next(paths) == name else t.clone(), value)

    args = [of(n, v) for n, v in zip(names, capture.args, strict=False)]
    return args, {n: of(n, v) for n, v in capture.kwargs.items()}
