"""The offending elements: where they stand, in which sample and at which position, what went in, what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import tensor_arguments
from nanhunt.probes.event import Capture
from nanhunt.trace.schema import Element

__all__ = ["Layout", "layout_of", "offending", "positions_of", "samples_of"]

#: Elements shown.
_SHOWN = 8
_BY_PLACE = (
    "aten._to_copy.",
    "aten.copy_.",
    "aten._softmax",
    "aten._log_softmax",
    "aten._safe_softmax",
    "aten.logsumexp",
)
#: Matrix products, with the arguments whose row and column meet in an element.
_PRODUCTS = {"aten.mm": (0, 1), "aten.bmm": (0, 1), "aten.addmm": (1, 2), "aten.baddbmm": (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Samples of the batch, and the length of a sample's sequence where it has one."""

    size: int | None = None
    length: int | None = None

    def place(self, shape: tuple[int, ...], at: tuple[int, ...]) -> tuple[int | None, int | None]:
        """Return the sample and the position of an element of a tensor; None where its shape does not tell.

        Samples lead (B, …), or lead flattened (B·T, …) or (B·heads, …, …), or stand second behind the sequence (T, B, …),
        as inside `nn.MultiheadAttention`. A vector or a matrix that is B·n long and no B·T is one of features as well as not.
        """
        size, length = self.size, self.length
        if not size or not shape or not shape[0]:
            return None, None
        if shape[:2] == (length, size) and length != size:
            return at[1], at[0]
        if shape[0] == size or shape[0] % size == 0:
            per_sample = shape[0] // size
            # labels that are shifted against their inputs are one short
            if length is not None and per_sample in (length, length - 1) and per_sample > 1 and len(shape) <= 2:
                return at[0] // per_sample, at[0] % per_sample
            if per_sample > 1 and len(shape) <= 2:
                return None, None
            position = next((a for s, a in zip(shape[1:], at[1:], strict=True) if s == length), None)
            return at[0] // per_sample, position
        return None, None


def layout_of(size: int | None, shapes: list[tuple[int, ...]]) -> Layout:
    """Return the layout of a batch by the shapes of its tensors: the second dimension that the first such one has."""
    lengths = [s[1] for s in shapes if len(s) in (2, 3) and s[0] == size and s[1] > 1]
    return Layout(size=size, length=lengths[0] if lengths else None)


def samples_of(mask: Tensor, layout: Layout) -> list[int]:
    """Return the samples that the bad elements lie in.

    Empty where the shape does not tell, or where every sample is bad: then it is no sample's doing.
    """
    if mask.dim() == 0 or not layout.size:
        return []
    rows = mask.reshape(*mask.shape[:2], -1).any(dim=-1) if mask.dim() > 2 else mask
    found = {
        layout.place(tuple(mask.shape), (*at, *([0] * (mask.dim() - len(at)))))[0] for at in rows.nonzero().tolist()
    }
    samples = sorted(s for s in found if s is not None)
    return samples if None not in found and len(samples) < layout.size else []


def positions_of(mask: Tensor, layout: Layout) -> dict[str, list[int]]:
    """Return by sample the positions of its sequence that hold bad elements; [] where every position does."""
    if mask.dim() == 0 or not layout.size or not layout.length:
        return {}
    shape = tuple(mask.shape)
    # what a place is read off: the first dimension, that of the positions, and that of samples behind the sequence
    along = next((i for i, length in enumerate(shape) if i and length == layout.length), 0)
    read = sorted({0, along} | ({1} if shape[1:2] == (layout.size,) else set()))
    rest = tuple(i for i in range(len(shape)) if i not in read)
    found: dict[int, set[int]] = {}
    for coordinate in (mask.any(dim=rest) if rest else mask).nonzero().tolist():
        at = dict(zip(read, coordinate, strict=True))
        sample, position = layout.place(shape, tuple(at.get(i, 0) for i in range(len(shape))))
        if sample is not None and position is not None:
            found.setdefault(sample, set()).add(position)
    return {str(s): sorted(places) if len(places) < layout.length else [] for s, places in sorted(found.items())}


def offending(
    capture: Capture, output: Tensor, mask: Tensor, twin: Tensor | None, layout: Layout, extra: tuple[Tensor, ...] = ()
) -> list[Element]:
    """Return up to eight bad elements of `output`.

    `inputs` are the operands' values at the same place, where the op works by place; of a matrix product `reach` has
    the largest magnitudes of the row and the column that meet there. `extra` are further tensors to read by place.
    """
    if output.layout is not torch.strided:
        return []
    name = str(capture.func)
    by_place = torch.Tag.pointwise in capture.func.tags or capture.lane or name.startswith(_BY_PLACE)
    inputs = [t for _, t in tensor_arguments(capture) if by_place and _broadcasts(t, output)]
    inputs += [t for t in extra if _broadcasts(t, output)]
    has_twin = twin is not None and twin.shape == output.shape and not twin.is_complex()
    elements = []
    for coordinate in mask.nonzero()[:_SHOWN].tolist():
        at = tuple(coordinate)
        sample, position = layout.place(tuple(output.shape), at)
        elements.append(
            Element(
                coordinate=coordinate,
                inputs=[_number(t.expand(output.shape)[at]) for t in inputs],
                output=_number(output[at]),
                fp64=float(twin[at]) if has_twin and twin is not None else None,
                reach={} if extra else _reach(name, capture, at),
                sample=sample,
                position=position,
            )
        )
    return elements


def _number(value: Tensor) -> float:
    return float(value.real if value.is_complex() else value)


def _reach(name: str, capture: Capture, at: tuple[int, ...]) -> dict[str, float]:
    """Return the largest magnitudes of the row and the column of a matrix product that meet in an element."""
    indices = next((pair for op, pair in _PRODUCTS.items() if name.startswith(f"{op}.")), None)
    if indices is None or len(capture.args) <= max(indices):
        return {}
    left, right = (capture.args[i] for i in indices)
    rows: dict[str, Any] = {"row": left[at[:-1]], "column": right[(*at[:-2], slice(None), at[-1])]}
    return {what: float(values.abs().max()) for what, values in rows.items() if values.numel()}


def _broadcasts(tensor: Tensor, output: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    try:
        return bool(torch.broadcast_shapes(tensor.shape, output.shape) == output.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
