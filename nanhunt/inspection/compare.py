"""Compare a checkpoint with an earlier one of the same run: what jumped, what stood still, which bits alone changed.

Each tensor's relative change ‖new - old‖ / ‖old‖ is set beside those of its like (weights with weights, matrices with
matrices): a training moves like tensors alike, on a logarithmic scale. How far one stands out is counted in robust standard
deviations of the logarithms, median and median deviation, which one outlier cannot move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, TypeGuard

import torch
from torch import Tensor

from nanhunt.inspection.contents import Contents, Held, place
from nanhunt.inspection.differences import flat_index, sums
from nanhunt.inspection.facts import Change, Flip, Reference, Role

__all__ = ["compared", "rank"]

_CHUNK = 1 << 20
#: Elements that a few flips can change, and how far beyond the tensor's rms a change by a power of two stands out.
_FEW, _FAR = 4, 100.0
#: Tensors that make a kind; and the least spread of log relative change that like tensors are given, a factor of 1.3.
_LIKE, _LEAST_SPREAD = 5, 0.25


def compared(
    contents: Contents,
    earlier: Contents,
    *,
    known: Mapping[str, Sequence[Flip]] | None = None,
    on_read: Callable[[str, int], None] | None = None,
) -> Reference:
    """Return what changed from `earlier` to `contents`, tensors matched by name; moments by their place in the state.

    `known` are flips that the tensors show by themselves: what they did to a tensor's norm is no change of the rest.
    """
    now, before = _by_name(contents.tensors), _by_name(earlier.tensors)
    changes, retyped = [], []
    for name, held in now.items():
        old = before.get(name)
        if old is None:
            continue
        if on_read is not None:
            on_read(name, held.tensor.numel() * held.tensor.element_size())
        if held.tensor.dtype != old.tensor.dtype or held.tensor.shape != old.tensor.shape:
            retyped.append((name, _kind(old.tensor), _kind(held.tensor)))
        is_plain = held.tensor.layout is old.tensor.layout is torch.strided and held.tensor.is_floating_point()
        if is_plain and held.tensor.shape == old.tensor.shape:
            changes.append(_change(held, old.tensor, (known or {}).get(held.name, ())))
    return Reference(
        path=str(earlier.path),
        step=earlier.step,
        changes=tuple(rank(changes)),
        retyped=tuple(retyped),
        appeared=tuple(n for n in now if n not in before),
        vanished=tuple(n for n in before if n not in now),
        moment_ratio=_moment_ratio(contents, earlier),
    )


def rank(changes: list[Change]) -> list[Change]:
    """Return the changes with their distance from their like, the furthest first; 0 where too few are alike."""
    kinds: dict[tuple[Role, bool], list[float]] = {}
    for c in changes:
        if 0.0 < c.relative < math.inf:
            kinds.setdefault((c.role, c.dims > 1), []).append(math.log(c.relative))
    placed = []
    for c in changes:
        logs = kinds.get((c.role, c.dims > 1), [])
        if len(logs) >= _LIKE and c.relative > 0.0:
            middle = median(logs)
            spread = max(1.4826 * median(abs(x - middle) for x in logs), _LEAST_SPREAD)
            far = (math.log(c.relative) - middle) / spread if c.relative < math.inf else math.inf
            c = replace(c, outlying=far, like=math.exp(middle))
        placed.append(c)
    return sorted(placed, key=lambda c: -c.outlying)


def _by_name(tensors: list[Held]) -> dict[str, Held]:
    """Return the tensors by name, those with two names once."""
    seen: set[tuple[object, ...]] = set()
    found = {}
    for held in tensors:
        if place(held.tensor) not in seen or not held.tensor.numel():
            found[held.name] = held
        seen.add(place(held.tensor))
    return found


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _change(held: Held, old: Tensor, known: Sequence[Flip]) -> Change:
    new = held.tensor
    a, b = new.detach().reshape(-1), old.detach().reshape(-1)
    total = sums(a, b, ())
    rms = total.size / math.sqrt(max(a.numel(), 1))
    flips = _flips(a, b, tuple(new.shape), rms) if total.difference > 0.0 else ()
    seen = {flip.index for flip in flips}
    before = [replace(f, restored=_at(b, f.index, new.shape)) for f in known if f.index not in seen]
    left_out = [flat_index(flip.index, new.shape) for flip in (*flips, *before)]
    if left_out:
        total = sums(a, b, left_out)
    # a bit that had flipped before did not flip since
    flips += tuple(f for f in before if f.restored != f.value and not math.isnan(f.restored))
    difference, size = total.difference, total.size
    return Change(
        name=held.name,
        role=held.role,
        dims=new.dim(),
        relative=difference / size if size else (math.inf if difference else 0.0),
        apart=difference / max(size, total.after) if difference else 0.0,
        same=total.same / max(a.numel(), 1),
        flips=flips,
        numel=a.numel(),
        spoiled=total.spoiled,
        spoiled_before=total.spoiled_before,
    )


def _at(flat: Tensor, index: tuple[int, ...], shape: torch.Size) -> float:
    return float(flat[flat_index(index, shape)])


def _flips(a: Tensor, b: Tensor, shape: tuple[int, ...], rms: float) -> tuple[Flip, ...]:
    """Return the few elements that went far, by exactly 2^(±2^k): nothing but one bit of their exponent changed."""
    found: list[Flip] = []
    for begin in range(0, a.numel(), _CHUNK):
        x, y = a[begin : begin + _CHUNK].double(), b[begin : begin + _CHUNK].double()
        (mx, ex), (my, ey) = torch.frexp(x), torch.frexp(y)
        power = (ex - ey).abs()
        one_bit = (power >= 4) & ((power & (power - 1)) == 0) & (mx == my) & (x != 0)
        far = one_bit & ((x - y).abs() > _FAR * rms) & torch.isfinite(x)
        for i in far.nonzero()[:, 0].tolist():
            place_of = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(begin + i), shape)) if shape else ()
            bit = _bit(a.dtype, int(power[i]))
            found.append(Flip(index=place_of, value=float(x[i]), bit=bit, restored=float(y[i]), rest=_FAR * rms))
        if len(found) > _FEW:
            return ()
    return tuple(found)


def _bit(dtype: torch.dtype, power: int) -> int:
    """Return which bit of a number changes its exponent by that power of two."""
    fraction = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}.get(dtype, 0)
    return fraction + power.bit_length() - 1


def _is_float(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor of ordinary numbers: not quantized, not an integer."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _moment_ratio(contents: Contents, earlier: Contents) -> float | None:
    """Return the median of m / earlier m over elements of all moments: β1^k where no gradient came in k steps.

    None where the middle half of the ratios is not one number: then gradients came.
    """
    ratios = []
    now, before = contents.optimizers.get("optimizer"), earlier.optimizers.get("optimizer")
    if not now or not before:
        return None
    earlier_state = before.get("state") or {}
    for number, entry in (now.get("state") or {}).items():
        both = (entry, earlier_state.get(number))
        m, old = (e.get("exp_avg") if isinstance(e, Mapping) else None for e in both)
        if _is_float(m) and _is_float(old) and m.shape == old.shape:
            x, y = (t.detach().reshape(-1)[:4096].double() for t in (m, old))
            ratios.append((x / y)[torch.isfinite(x) & torch.isfinite(y) & (y != 0)])
    every = torch.cat(ratios) if ratios else torch.empty(0)
    if len(every) < 16:
        return None
    low, middle, high = torch.quantile(every[: 1 << 20], torch.tensor([0.25, 0.5, 0.75], dtype=every.dtype)).tolist()
    return float(middle) if high - low <= 0.01 * abs(middle) else None
