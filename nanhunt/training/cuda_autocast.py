"""CUDA's autocast lists on a CPU, for the replay of a run that was trained on CUDA.

Under `torch.autocast('cpu', float16)` softmax, norms, exp, pow and sums stay in fp16, where CUDA's lists promote them
to fp32 (ATen/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE). A CPU replay without this shows NaNs
that the run never had, and misses none that it had: the lists only ever widen.

How it works. A `TorchFunctionMode` sees the functions that the user calls, widens their half-precision arguments and
turns autocast off inside. Sums and softmaxes are widened unless the caller gave a dtype; in-place and `out=` variants
are not, as on CUDA.

Not covered: what a function of torch.nn.functional calls inside itself (the softmax of `nn.MultiheadAttention` with
`need_weights`, of `gumbel_softmax`), ops inside a C++ extension, and kernels whose own accumulation differs from CUDA's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from nanhunt.training.tree import map_tensors

__all__ = ["CudaAutocastLists"]

#: Run in fp32 whatever the arguments are (AT_FORALL_FP32), and the norms and reductions that take an optional dtype.
PROMOTED = frozenset(
    [
        "acos",
        "asin",
        "cosh",
        "erfinv",
        "exp",
        "expm1",
        "log",
        "log10",
        "log2",
        "log1p",
        "reciprocal",
        "rsqrt",
        "sinh",
        "tan",
        "pow",
        "softplus",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "norm",
        "nuclear_norm",
        "cosine_similarity",
        "poisson_nll_loss",
        "cosine_embedding_loss",
        "nll_loss",
        "nll_loss2d",
        "hinge_embedding_loss",
        "kl_div",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "mse_loss",
        "margin_ranking_loss",
        "multilabel_margin_loss",
        "soft_margin_loss",
        "triplet_margin_loss",
        "multi_margin_loss",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "dist",
        "pdist",
        "cdist",
        "renorm",
        "logsumexp",
        "interpolate",
        "prod",
        "softmax",
        "log_softmax",
        "softmin",
        "cumprod",
        "cumsum",
        "sum",
        "vector_norm",
        "matrix_norm",
        "gaussian_nll_loss",
        "ctc_loss",
        "__pow__",
        "__rpow__",
        "normalize",
    ]
)


class CudaAutocastLists(TorchFunctionMode):
    """While active, functions on CUDA's fp32 list run in fp32 on the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, widened where CUDA would widen it."""
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rsplit(".", 1)[-1]
        own = kwargs.get("out") is not None or any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values()))
        if name not in PROMOTED or own or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map_tensors(_widened, args), **map_tensors(_widened, kwargs))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
