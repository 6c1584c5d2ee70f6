"""A random Hadamard transform of 16 along a dimension: outliers are spread, and a product of two such operands stays.

H is orthogonal, so (H a)ᵀ (H b) = aᵀ b before anything is rounded. NVFP4's recipe mixes the operands of dW so
("Pretraining large language models with NVFP4", arXiv 2509.25149); the signs are drawn once for a whole training.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["mixed"]

_SIZE = 16
#: The signs' seed: the same in every step, on every device.
_SEED = 16


def mixed(tensor: Tensor) -> Tensor:
    """Return a tensor (…, rows, columns) in fp32, its columns transformed in groups of 16, padded with zeros to whole ones."""
    wide = tensor.detach().float()
    padded = F.pad(wide, (0, -wide.shape[-1] % _SIZE))
    groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // _SIZE, _SIZE)
    whole: Tensor = (groups @ _matrix(wide.device)).reshape(padded.shape)
    return whole


# the same few numbers in every call
@functools.cache
def _matrix(device: torch.device) -> Tensor:
    """Return the orthonormal matrix: Sylvester's, each row with a random sign."""
    matrix = torch.ones(1, 1)
    while len(matrix) < _SIZE:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (_SIZE, 1), generator=torch.Generator().manual_seed(_SEED)) * 2.0 - 1.0
    return torch.mul(signs, matrix / _SIZE**0.5).to(device)
