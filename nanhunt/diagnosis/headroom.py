"""What each number format would do to each tensor of the run, over all its steps, without a scale and under several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.tensors import MergedTensor
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.headroom import Headroom, headroom
from nanhunt.formats.number_format import AnyFormat, BlockFormat, NumberFormat
from nanhunt.formats.shared_scale import Lost

__all__ = ["FORMATS_SHOWN", "headroom_rows"]

#: Formats that people train in.
FORMATS_SHOWN = ("fp16", "bf16", "e4m3fn", "e5m2", "mxfp8_e4m3", "mxfp4", "nvfp4")
#: Widest format that is used under a scale of each tensor, bits.
_SCALED_BITS = 8


def headroom_rows(tensors: Iterable[MergedTensor], formats: Iterable[str] = FORMATS_SHOWN) -> tuple[HeadroomRow, ...]:
    """Return a row a tensor and format, tightest overflow margin first; none of a tensor of zeros.

    Exact from amax, amin and exponent histograms, and from what was counted in rows and blocks: nothing is cast.
    """
    wanted = [lookup(name) for name in formats]
    rows = [_row(tensor, fmt) for tensor in tensors if tensor.amax > 0.0 for fmt in wanted]
    return tuple(sorted(rows, key=lambda row: row.headroom.overflow_margin))


def _row(tensor: MergedTensor, fmt: AnyFormat) -> HeadroomRow:
    plain = headroom(fmt, amax=tensor.amax, amin=tensor.amin, exponents=tensor.exponents)
    measured = bool(tensor.shared)
    if isinstance(fmt, BlockFormat):
        own = tensor.shared.get((str(fmt.block_size), fmt.name))
        plain, measured = (plain, False) if own is None else (_as_measured(plain, own), True)
    return HeadroomRow(
        module=tensor.module,
        role=tensor.role,
        name=tensor.name,
        headroom=plain,
        scaled=tuple(_scaled(tensor, fmt)),
        measured=measured,
        sampled=measured and tensor.sampled,
        overflowed=tensor.first_infinite if fmt.name in tensor.formats else None,
        amax=tensor.amax,
        amin=tensor.amin,
    )


def _scaled(tensor: MergedTensor, fmt: AnyFormat) -> Iterator[tuple[str, Lost]]:
    """Yield what scales leave that each tensor, row or block has of its own; nothing for formats used without one."""
    if not isinstance(fmt, NumberFormat) or fmt.bits > _SCALED_BITS:
        return
    own = tensor.under_own_scale(fmt)
    if own is not None:
        yield "tensor", own
    for per in ("row", "block"):
        lost = tensor.shared.get((per, fmt.name))
        if lost is not None:
            yield per, lost


def _as_measured(plain: Headroom, own: Lost) -> Headroom:
    return replace(
        plain,
        subnormal_fraction=own.subnormal_share,
        flushed_fraction=own.flushed_share,
        flushed_energy=own.energy_share,
    )
