"""A large call cut down to what fails: elements, rows and columns, or the leading dimensions.

Which cut an op takes is not known for each of torch's two thousand. So a few are tried, the ones that fit first, and a
cut is good when what is left of the call still fails. An element-wise op keeps the elements that fail, a matrix product
their rows and columns, any other op those parts of its leading dimensions; a dimension that the op names is left whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.certificate import tensor_arguments
from nanhunt.probes.closer import bytes_of
from nanhunt.probes.event import Capture
from nanhunt.training.tree import map_tensors

__all__ = ["cut_down"]

#: Elements kept of an element-wise op, and rows and columns of a product.
_ELEMENTS, _ROWS = 4096, 16
#: Matrix products, with the arguments whose row and column meet in an element, and that of what is added.
_PRODUCTS = {"aten.mm": (0, 1, None), "aten.bmm": (0, 1, None), "aten.addmm": (1, 2, 0), "aten.baddbmm": (1, 2, 0)}

Cut = tuple[Capture, str]


def cut_down(capture: Capture, mask: Tensor, shows: Callable[[Capture], bool], most: int) -> Cut | None:
    """Return a call of at most `most` bytes that still fails, and what was kept of it; None where there is none.

    `mask` has the shape of the output that fails, `shows` runs a call and looks.
    """
    for way in (_elements, _products, _leading):
        for found, said in way(capture, mask):
            if bytes_of([found.args, found.kwargs]) > most:
                continue
            try:
                if shows(found):
                    return found, said
            except (RuntimeError, ValueError, IndexError):
                continue  # shapes that no longer go together
    return None


def _elements(capture: Capture, mask: Tensor) -> Iterator[Cut]:
    """Keep the first elements that fail of every operand that stands behind each of them; a lone number stays one."""
    if torch.Tag.pointwise not in capture.func.tags and not capture.lane:
        return

    def picked(tensor: Tensor) -> Tensor:
        return tensor.expand(mask.shape)[mask][:_ELEMENTS].clone() if tensor.dim() else tensor

    try:
        args, kwargs = map_tensors(picked, (capture.args, capture.kwargs))
    except (RuntimeError, IndexError):
        return
    yield (
        Capture(capture.func, args, kwargs, [], capture.lane),
        f"the first {min(_ELEMENTS, int(mask.sum()))} elements that fail, of {mask.numel()}",
    )


def _products(capture: Capture, mask: Tensor) -> Iterator[Cut]:
    """Keep some rows and columns that meet in an element that fails."""
    name = str(capture.func).rpartition(".")[0]
    if name not in _PRODUCTS or mask.dim() not in (2, 3):
        return
    left, right, added = _PRODUCTS[name]
    batch = mask.nonzero()[:1, 0] if mask.dim() == 3 else None
    face = mask[int(batch)] if batch is not None else mask
    rows = face.any(dim=1).nonzero().reshape(-1)[:_ROWS]
    columns = face[rows].any(dim=0).nonzero().reshape(-1)[:_ROWS]
    args = list(capture.args)
    for index, along, where in ((left, -2, rows), (right, -1, columns)):
        kept = args[index] if batch is None else args[index].index_select(0, batch)
        args[index] = kept.index_select(along, where)
    if added is not None:
        bias = args[added].expand(mask.shape)
        bias = bias if batch is None else bias.index_select(0, batch)
        args[added] = bias.index_select(-2, rows).index_select(-1, columns)
    said = f"{len(rows)} rows and {len(columns)} columns that meet in elements that fail, of {_shape(mask)}"
    yield Capture(capture.func, tuple(args), capture.kwargs, [], capture.lane), said


def _leading(capture: Capture, mask: Tensor) -> Iterator[Cut]:
    """Keep, one leading dimension after the other, a part that fails: of every operand of that size, or the first's only."""
    tensors = [t for _, t in tensor_arguments(capture)]
    if not tensors:
        return
    rank = max(t.dim() for t in tensors)
    named, cuts = _named_dimensions(capture, rank), [(capture, mask)]
    deepest = 2 if "attention" in str(capture.func) else rank - 1
    for axis in (a for a in range(min(deepest, rank - 1)) if a not in named):
        before, face = cuts[-1]
        size = face.shape[axis] if axis < face.dim() else next(t for t in tensors if t.dim() == rank).shape[axis]
        if size < 2:
            continue
        where = torch.zeros(1, dtype=torch.long, device=mask.device)
        if axis < face.dim():
            others = [d for d in range(face.dim()) if d != axis]
            where = (face.any(dim=others) if others else face).nonzero()[:1, 0]
            face = face.index_select(axis, where)
        cuts.append((_along(before, axis, size, where), face))
        said = f"one of {size} along dimension {axis}"
        yield cuts[-1][0], said if len(cuts) == 2 else f"one index of each of the first {len(cuts) - 1} dimensions"


def _along(capture: Capture, axis: int, size: int, where: Tensor) -> Capture:
    def picked(tensor: Tensor) -> Tensor:
        fits = tensor.dim() > axis and tensor.shape[axis] == size and (axis == 0 or tensor.dim() > 2)
        return tensor.index_select(axis, where.to(tensor.device)) if fits else tensor

    args, kwargs = map_tensors(picked, (capture.args, capture.kwargs))
    return Capture(capture.func, args, kwargs, [], capture.lane)


def _named_dimensions(capture: Capture, rank: int) -> set[int]:
    """Return the dimensions that the call names: a softmax's own must stay whole."""
    names = [a.name for a in capture.func._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, capture.args, strict=False)), **capture.kwargs}
    values = [v for n, v in given.items() if n in ("dim", "dims", "axis") and v is not None]
    flat = [d for v in values for d in (v if isinstance(v, (list, tuple)) else [v])]
    return {d % rank for d in flat if isinstance(d, int)}


def _shape(mask: Tensor) -> str:
    return " × ".join(map(str, mask.shape))
