"""Statistics of a tensor by numpy in float64, from the elements' exact values."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["exact_values", "exponent_counts", "smallest_normal", "stats_of"]

#: Formats that numpy does not know, read from their bits by ml_dtypes.
_FOREIGN = {
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}


def exact_values(tensor: Tensor) -> npt.NDArray[np.float64]:
    """Return the elements as float64; complex numbers as pairs, sparse tensors by their values."""
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype in _FOREIGN:
        size = tensor.element_size()
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        array = np.frombuffer(raw, dtype={1: np.uint8, 2: np.uint16}[size]).view(_FOREIGN[tensor.dtype])
        with np.errstate(invalid="ignore"):  # signalling NaNs are among the bits
            return array.astype(np.float64)
    return tensor.contiguous().flatten().resolve_neg().numpy().astype(np.float64)


def smallest_normal(dtype: torch.dtype) -> float:
    """Return the smallest normal number of a floating format, 0.0 of an integer one."""
    if dtype in _FOREIGN:
        return float(ml_dtypes.finfo(_FOREIGN[dtype]).smallest_normal)
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
    if not real.is_floating_point:
        return 0.0
    return float(np.finfo({torch.float16: "f2", torch.float32: "f4", torch.float64: "f8"}[real]).smallest_normal)


def stats_of(values: npt.NDArray[np.float64], tiny: float) -> dict[str, float]:
    """Return every field of `TensorStats` by its definition."""
    finite = values[np.isfinite(values)]
    magnitude = np.abs(finite)
    nonzero = magnitude[magnitude > 0]
    with np.errstate(over="ignore"):
        squares = float(np.sum(np.square(finite)))
    return {
        "numel": values.size,
        "nan": int(np.isnan(values).sum()),
        "posinf": int(np.isposinf(values).sum()),
        "neginf": int(np.isneginf(values).sum()),
        "zero": int((finite == 0).sum()),
        "subnormal": int((nonzero < tiny).sum()),
        "amax": float(magnitude.max(initial=0.0)),
        "amin": float(nonzero.min(initial=np.inf)) if nonzero.size else 0.0,
        "sum": math.fsum(finite),
        "sum_of_squares": squares,
    }


def exponent_counts(values: npt.NDArray[np.float64]) -> dict[int, int]:
    """Return {floor(log2 |x|): count} over finite non-zero elements; frexp is exact for subnormals too."""
    finite = values[np.isfinite(values) & (values != 0)]
    _, exponents = np.frexp(finite)
    found, counts = np.unique(exponents - 1, return_counts=True)
    return {int(e): int(c) for e, c in zip(found, counts, strict=True)}
