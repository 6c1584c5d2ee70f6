"""What a step would have had in a narrow format, had it not been run in fp32: which ops, and which memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["LOSSES", "WIDE_ON_CUDA", "Narrow"]

#: What autocast runs in fp32 (ATen/autocast_mode.h): on every device, and what CUDA's lists add.
LOSSES = frozenset(
    "_log_softmax nll_loss_forward nll_loss2d_forward mse_loss l1_loss smooth_l1_loss huber_loss kl_div soft_margin_loss "
    "binary_cross_entropy binary_cross_entropy_with_logits multi_margin_loss multilabel_margin_loss_forward _ctc_loss "
    "prod".split()
)
WIDE_ON_CUDA = LOSSES | frozenset(
    "_softmax native_layer_norm native_group_norm _fused_rms_norm exp expm1 log log2 log10 log1p pow reciprocal rsqrt sinh "
    "cosh tan acos asin erfinv softplus sum cumsum cumprod logsumexp norm linalg_vector_norm _cdist_forward _pdist_forward "
    "dist renorm".split()
)


class Narrow:
    """The memory that would have been in the narrow format, known by its storage: a view of it is narrow, too."""

    def __init__(self) -> None:
        #: a reference keeps the storage's handle from being given to another
        self._handles: dict[int, StorageWeakRef] = {}

    def add(self, tensor: Tensor) -> None:
        """Take a tensor's memory for narrow."""
        handle = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._handles[handle.cdata] = handle

    def drop(self, tensor: Tensor | None) -> None:
        """Take a tensor's memory for wide."""
        if tensor is not None and tensor.layout is torch.strided:
            self._handles.pop(tensor.untyped_storage()._cdata, None)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._handles
