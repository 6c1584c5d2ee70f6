"""Products of fp32 tensors in fp32, whatever the user's script allows them to be rounded to.

`torch.set_float32_matmul_precision("high")` stands in many scripts. It would round operands that hold an element times its
scale, which has more bits than TF32 keeps; on a CPU with bf16 units "medium" does so too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_fp32"]


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Run the body with fp32 products on this device in fp32."""
    library = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul: Any = getattr(library, "matmul", None)
    if hasattr(matmul, "fp32_precision"):  # a setting for each library, since torch 2.9
        was = matmul.fp32_precision
        # "none" follows the setting of all libraries; to write back what it follows would pin it there
        inherited = was == getattr(torch.backends, "fp32_precision", None)
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = "none" if inherited else was
        return
    whole = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(whole)
