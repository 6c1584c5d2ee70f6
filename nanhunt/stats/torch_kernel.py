"""Statistics of one tensor in plain torch, on any device, without a host synchronisation off the CPU.

How it works. A tensor becomes one float64 vector on its own device: ten numbers (`FIELDS`) and, where asked for, the
counts of its binary exponents. Counts are exact in float64 up to 2^53. Vectors wait on the device and come to the host
together, once a step (`summarize.StatsQueue`).

Exponents come from the bits: shifting a float32's bits right by 23 gives floor(log2 |x|) + 127 of a normal number in
one pass, five times faster than a logarithm and never off by one near a power of two. Half and 8-bit formats are
widened to float32 first, which is exact. float32's own subnormals all share the field 0; `frexp` splits them.

What it costs. About eight reads of the tensor on a CPU, and a mask more where something is non-finite: `aminmax` tells,
13 times cheaper than `isfinite().all()`.

Not covered: quantized, nested, oneDNN and packed 4-bit tensors (`is_measurable` says no). Of a sparse tensor the
stored values are measured, those of one place added up first; of a DTensor, the part that this rank holds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from nanhunt.stats.columns import COUNTS, REALS, StatsColumns
from nanhunt.stats.cpu_kernel import measure_on_cpu

__all__ = ["FIELDS", "columns_of", "in_memory", "in_order", "is_measurable", "measure", "plain_values"]

#: The first entries of a vector; `amin` is +inf where there is no non-zero element.
FIELDS = ("numel", "nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin", "sum", "sum_of_squares")

#: Elements handled at once: bounds the temporaries to some 100 MB.
CHUNK = 1 << 23

#: Carrier dtype → (lowest exponent incl. subnormals, number of bins, mantissa bits, integer view).
_BINS = {
    torch.float32: (-149, 277, 23, torch.int32),
    torch.float64: (-1074, 2098, 52, torch.int64),
}


#: What the CPU's own kernel takes, with its smallest normal magnitude.
_BY_BITS = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.bfloat16, torch.float16)}

#: Layouts whose values can be had as a strided tensor.
_LAYOUTS = (
    torch.strided,
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
)
#: Two numbers to a byte: torch has no arithmetic on them. The dtype came with torch 2.8.
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)


def is_measurable(tensor: Tensor) -> bool:
    """Whether `measure` can read this tensor; one inside of `vmap` or `grad` has no values of its own."""
    if tensor.is_quantized or tensor.is_nested or tensor.is_meta or is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.layout in _LAYOUTS and tensor.dtype != _PACKED


def measure(tensor: Tensor, *, histogram: bool, exact: bool = False) -> Tensor:
    """Return the statistics of `tensor` as one float64 vector on its device.

    The vector has `len(FIELDS)` entries, then the exponent bins where `histogram` is asked for and the dtype is a
    floating one. Integers and booleans are read as float64 and get no bins. Complex numbers count twice, as pairs.
    """
    plain = plain_values(tensor.detach())
    if plain.is_cpu and plain.dtype in _BY_BITS:
        return measure_on_cpu(in_memory(plain).view(-1), _BY_BITS[plain.dtype], histogram=histogram, exact=exact)
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        values, tiny = _carrier(plain)
        bins = histogram and tiny > 0.0
        if values.numel() <= CHUNK:
            return _measure(values, tiny, bins)
        parts = [_measure(chunk, tiny, bins) for chunk in values.split(CHUNK)]  # type: ignore[no-untyped-call]
        return _combine(torch.stack(parts))


def in_memory(tensor: Tensor) -> Tensor:
    """Return a strided tensor's elements without gaps and in the order of memory: where they lie, if they lie so."""
    if tensor.is_contiguous():
        return tensor
    held = tensor.detach()
    return in_order(held) if torch.ops.aten.is_non_overlapping_and_dense(held) else held.contiguous()


def in_order(tensor: Tensor) -> Tensor:
    """Return a permuted tensor's elements as they lie in memory, whatever lies between them."""
    if tensor.is_contiguous():
        return tensor
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True))


def plain_values(tensor: Tensor) -> Tensor:
    """Return the numbers of a measurable tensor as a strided real one: stored values, pairs of complex numbers."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is not None:
        tensor = to_local()
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    return torch.view_as_real(tensor.resolve_conj().resolve_neg()) if tensor.is_complex() else tensor.resolve_neg()


def columns_of(vectors: npt.NDArray[np.float64]) -> StatsColumns:
    """Turn vectors of one width that have reached the host into columns, (tensors, width)."""
    head = dict(zip(FIELDS, vectors.T, strict=False))
    columns = {name: head[name].astype(np.int64) for name in COUNTS} | {name: head[name].copy() for name in REALS}
    columns["amin"] = np.where(np.isfinite(columns["amin"]), columns["amin"], 0.0)
    bins = vectors[:, len(FIELDS) :]
    if not bins.shape[1]:
        return StatsColumns.of_bins(columns, None, 0)
    return StatsColumns.of_bins(columns, bins, next(lo for lo, n, _, _ in _BINS.values() if n == bins.shape[1]))


def _carrier(tensor: Tensor) -> tuple[Tensor, float]:
    """Return the elements as a flat float32 or float64 tensor, and the dtype's smallest normal (0.0 of integers)."""
    if not tensor.is_floating_point():
        return tensor.reshape(-1).to(torch.float64), 0.0
    tiny = torch.finfo(tensor.dtype).tiny
    wide = tensor if tensor.dtype in _BINS else tensor.to(torch.float32)
    return wide.reshape(-1), tiny


def _measure(x: Tensor, tiny: float, histogram: bool) -> Tensor:
    """Measure one flat chunk; `x` is float32 or float64."""
    if x.numel() == 0:
        return _empty(x, histogram)
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    nan = posinf = neginf = zero
    if _may_be_nonfinite(x):
        nan, posinf, neginf = torch.isnan(x).sum(), (x == math.inf).sum(), (x == -math.inf).sum()
        x = torch.where(torch.isfinite(x), x, torch.zeros((), dtype=x.dtype, device=x.device))
    magnitude = x.abs()
    # the non-finite ones were set to zero above; they are not zeros of the tensor
    zeros = (x == 0).sum() - nan - posinf - neginf
    nonzero = torch.where(magnitude == 0, math.inf, magnitude)
    head = [
        torch.full_like(zero, x.numel()),
        nan,
        posinf,
        neginf,
        zeros,
        (nonzero < tiny).sum(),
        magnitude.max(),
        nonzero.min(),
        x.sum(dtype=torch.float64),
        torch.linalg.vector_norm(x, dtype=torch.float64).square(),
    ]
    vector = torch.stack([entry.to(torch.float64) for entry in head])
    return torch.cat([vector, _exponents(x).to(torch.float64)]) if histogram else vector


def _may_be_nonfinite(x: Tensor) -> bool:
    """Whether the masks are needed; off the CPU always, because to ask would be to wait for the device."""
    if x.device.type != "cpu":
        return True
    low, high = torch.aminmax(x)
    return not (math.isfinite(low.item()) and math.isfinite(high.item()))


def _exponents(x: Tensor) -> Tensor:
    """Count the elements of a finite tensor by floor(log2 |x|), from the dtype's lowest subnormal up."""
    return _exponents_by_bits(x) if x.device.type == "cpu" else _exponents_by_frexp(x)


def _exponents_by_frexp(x: Tensor) -> Tensor:
    """Count without waiting for the device."""
    lowest, bins, _, _ = _BINS[x.dtype]
    _, exponent = torch.frexp(x)
    # a zero goes to a spare bin in front, which is then cut off
    index = torch.where(x == 0, 0, exponent.to(torch.int64) - lowest)
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[1:]


def _exponents_by_bits(x: Tensor) -> Tensor:
    """Count by the exponent field; `frexp` splits what shares the subnormals' field 0."""
    lowest, bins, mantissa, integer = _BINS[x.dtype]
    field = (x.view(integer) >> mantissa) & (0xFF if mantissa == 23 else 0x7FF)
    by_field = torch.bincount(field, minlength=bins - mantissa + 2)
    counts = torch.zeros(bins, dtype=torch.int64)
    counts[mantissa:] = by_field[1 : bins - mantissa + 1]
    small = x[(field == 0) & (x != 0)] if int(by_field[0]) else x[:0]
    if small.numel():
        _, exponent = torch.frexp(small.to(torch.float64) if x.dtype == torch.float32 else small)
        counts[:mantissa] = torch.bincount(exponent.to(torch.int64) - 1 - lowest, minlength=mantissa)[:mantissa]
    return counts


def _empty(x: Tensor, histogram: bool) -> Tensor:
    """Return the vector of a tensor without elements."""
    width = len(FIELDS) + (_BINS[x.dtype][1] if histogram else 0)
    vector = torch.zeros(width, dtype=torch.float64, device=x.device)
    vector[FIELDS.index("amin")] = math.inf
    return vector


def _combine(parts: Tensor) -> Tensor:
    """Add up vectors of chunks, (chunks, width) → (width,)."""
    total = parts.sum(dim=0)
    largest, smallest = FIELDS.index("amax"), FIELDS.index("amin")
    total[largest] = parts[:, largest].max()
    total[smallest] = parts[:, smallest].min()
    return total
