"""Scan one tensor: statistics, non-finite places, rows of zeros, runs of one value, flipped bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nanhunt.inspection.contents import Held
from nanhunt.inspection.facts import Flip, Role, Run, TensorFacts
from nanhunt.inspection.flips import flips_of, payload_flips
from nanhunt.inspection.pages import Pages
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.torch_kernel import columns_of, is_measurable, measure, plain_values

__all__ = ["scan"]

#: Places of non-finite elements that are told, and of rows.
_TOLD = 8
_CHUNK = 1 << 20


def scan(held: Held, pages: Pages, *, parameter: str = "", key: str = "") -> TensorFacts:
    """Return the facts of one tensor; of a weight, its pages are taken into `pages`."""
    tensor = held.tensor.detach()
    facts = TensorFacts(
        name=held.name,
        role=held.role,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        numel=tensor.numel(),
        bytes=tensor.numel() * tensor.element_size(),
        average_of=held.average_of,
        parameter=parameter,
        key=key,
    )
    if not is_measurable(tensor) or tensor.numel() == 0:
        return facts
    plain = plain_values(tensor)
    flat, shape = plain.contiguous().view(-1), tuple(plain.shape)
    stats = columns_of(measure(flat, histogram=True, exact=True).numpy()[None])[0]
    assert stats is not None
    return _with_oddities(facts, flat, shape, stats, pages if plain.is_contiguous() else None)


def _with_oddities(
    facts: TensorFacts, flat: Tensor, shape: tuple[int, ...], stats: TensorStats, pages: Pages | None
) -> TensorFacts:
    bad_at, bad_rows = _bad(flat, shape, stats)
    runs: tuple[Run, ...] = ()
    copy = ""
    flips: tuple[Flip, ...] = ()
    constant = _constant(flat, stats)
    # tensors that are NaN throughout, or all ones, have the same bytes and are no copies of one another
    is_varied = constant is None and stats.finite > 0
    if flat.is_floating_point():
        flips = flips_of(flat, shape, stats, squares=facts.is_square)
        if 0 < stats.numel - stats.finite <= _TOLD:
            flips += payload_flips(flat, shape, _where_bad(flat), stats.amax)
        if facts.role is Role.WEIGHT and pages is not None and is_varied and flat.element_size() > 1:
            runs, copy = pages.add(facts.name, flat, shape)
    zeros = _zero_rows(flat, shape, stats) if facts.role is Role.WEIGHT else ()
    return replace(
        facts,
        stats=stats,
        constant=constant,
        bad_at=bad_at,
        bad_rows=bad_rows,
        negative=sum(int((piece < 0).sum()) for _, piece in _pieces(flat)) if facts.is_square else 0,
        zero_rows=len(zeros),
        zero_rows_at=zeros[:_TOLD],
        runs=runs,
        copy_of=copy,
        flips=flips,
    )


def _bad(flat: Tensor, shape: tuple[int, ...], stats: TensorStats) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Return the first non-finite places, and how many rows have nothing else."""
    if stats.is_finite or not flat.is_floating_point():
        return (), 0
    places = torch.unravel_index(_where_bad(flat), shape) if shape else ()
    told = tuple(zip(*(axis.tolist() for axis in places), strict=True))
    if len(shape) < 2:
        return told, 0
    rows = sum(int((~torch.isfinite(piece)).all(dim=1).sum()) for _, piece in _rows(flat, shape))
    return told, rows


def _where_bad(flat: Tensor) -> Tensor:
    """Return the indices of the first non-finite elements, at most as many as are told."""
    found: list[Tensor] = []
    for begin, piece in _pieces(flat):
        found.append((~torch.isfinite(piece)).nonzero()[:, 0][:_TOLD] + begin)
        if sum(map(len, found)) >= _TOLD:
            break
    return torch.cat(found)[:_TOLD]


def _zero_rows(flat: Tensor, shape: tuple[int, ...], stats: TensorStats) -> tuple[int, ...]:
    """Return the rows of the first dimension that are wholly zero, unless all are."""
    if len(shape) < 2 or stats.zero < flat.numel() // shape[0] or stats.zero == stats.numel:
        return ()
    return tuple(
        row for begin, piece in _rows(flat, shape) for row in ((piece == 0).all(dim=1).nonzero()[:, 0] + begin).tolist()
    )


def _constant(flat: Tensor, stats: TensorStats) -> float | None:
    """Return the one value that at least two elements share."""
    if stats.numel < 2 or not stats.is_finite or not (stats.amax == stats.amin or stats.amax == 0.0):
        return None
    first = flat[0]
    return float(first) if all(bool((piece == first).all()) for _, piece in _pieces(flat)) else None


def _pieces(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, flat.numel(), _CHUNK):
        yield begin, flat[begin : begin + _CHUNK]


def _rows(flat: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Yield rows of the first dimension, flattened, with the first one's number."""
    rows = flat.view(shape[0], -1)
    step = max(_CHUNK // max(rows.shape[1], 1), 1)
    for begin in range(0, shape[0], step):
        yield begin, rows[begin : begin + step]
