"""How large can the scores of a fused attention be? max|q| · max|k| · scale is never less than the largest (Cauchy-Schwarz).

The norms are taken per head. On a CUDA device one launch each leaves the largest of queries and of keys, and the host does
the rest when the step is over: in plain torch it took twelve launches for each attention, 190 µs of the host's time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from nanhunt.stats.summarize import FUSED, has_triton

__all__ = ["score_bound"]

#: The norms are rounded to fp32: so much more is a bound again.
_ROUNDING = 1.0 + 1e-5
_PLAIN = (Tensor, nn.Parameter)
#: Vectors of a program's, the widest that it takes, and the most of a head: a grid's second side ends at 65535.
_ROWS, _WIDEST = 64, 256
_LONGEST = 65535 * _ROWS


def score_bound(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Callable[[npt.NDArray[Any]], float]]:
    """Return what waits on the device, and what makes the bound of it on the host; (…, heads, tokens, d) each."""
    alike, factor = query.shape[:-2] == key.shape[:-2], abs(scale) * _ROUNDING
    if query.dim() == 4 and _fits(query) and _fits(key):
        squares, first = _launched(query, key), query.shape[0] * query.shape[1]

        def of_squares(bits: npt.NDArray[Any]) -> float:
            norms = np.sqrt(bits.astype(np.int32).view(np.float32).astype(np.float64))
            return _largest(norms[:first], norms[first:], alike) * factor

        return squares, of_squares
    norms = [_norms(x).amax(dim=-1).reshape(-1).double() for x in (query, key)]
    first = norms[0].numel()

    def of_norms(found: npt.NDArray[Any]) -> float:
        return _largest(found[:first], found[first:], alike) * factor

    return torch.cat(norms), of_norms


def _largest(q: npt.NDArray[np.float64], k: npt.NDArray[np.float64], alike: bool) -> float:
    """Return the largest product; grouped queries have fewer heads of keys: over all of them it is still a bound."""
    if not q.size or not k.size:
        return math.nan
    with np.errstate(invalid="ignore", over="ignore"):
        return float((q * k).max() if alike else q.max() * k.max())


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    return norms


def _fits(x: Tensor) -> bool:
    return (
        type(x) in _PLAIN and x.is_cuda and x.dtype in FUSED and x.stride(-1) == 1
        and 0 < x.shape[-1] <= _WIDEST and x.numel() > 0 and x.shape[-2] <= _LONGEST and has_triton()
        and not is_functorch_wrapped_tensor(x)
    )  # fmt: skip


def _launched(query: Tensor, key: Tensor) -> Tensor:
    from nanhunt.probes.score_code import largest_norms  # triton is there on CUDA alone
    from nanhunt.stats.triton_kernel import start

    heads = [x.shape[0] * x.shape[1] for x in (query, key)]
    out = torch.zeros(sum(heads), dtype=torch.int32, device=query.device)
    for x, first in ((query, 0), (key, heads[0])):
        (batch, count, tokens, width), (of_batch, of_head, of_token, _) = x.shape, x.stride()
        address = x.data_ptr()
        unit = 8 if not (of_batch % 8 or of_head % 8 or of_token % 8 or address % 16) else 1
        lanes = 1 << (width - 1).bit_length()
        kind = (x.dtype, unit, lanes, address % 16 == 0)
        strides = (of_batch // unit, of_head // unit, of_token // unit)
        start(
            largest_norms, kind, (batch * count, -(-tokens // _ROWS)), (x, out),
            (first, count, tokens, width, *strides), (unit, _ROWS, lanes),
        )  # fmt: skip
    return out
