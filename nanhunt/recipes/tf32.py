"""Products in TF32: by the matrix units on CUDA, by rounded operands elsewhere.

TF32 keeps fp32's range and rounds operands to 10 bits of mantissa; sums are in fp32. On a CPU operands are rounded to
nearest before each product, forward and backward; what a fused attention multiplies inside of itself is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.probes.op_facts import facts_of
from nanhunt.recipes.full_fp32 import full_fp32
from nanhunt.recipes.product_ops import is_product
from nanhunt.recipes.rounding import rounded_to_tf32
from nanhunt.training.tree import map_tensors

__all__ = ["products_in_tf32"]

#: Arguments of products that are added, not multiplied, or that tell of a forward pass.
_ADDED = frozenset({"bias", "attn_bias", "attn_mask", "logsumexp", "log_sumexp", "softmax_lse", "out"})
#: What autocast treats as products, and no matrix unit computes.
_ELEMENTWISE = ("aten.prelu", "aten._prelu")
_WITH_A_SUM = ("aten.add", "aten.baddbmm")


@contextmanager
def products_in_tf32(device: torch.device) -> Iterator[None]:
    """Run the body with the products of fp32 tensors in TF32."""
    if device.type != "cuda":
        with full_fp32(device), _Rounded():  # type: ignore[no-untyped-call]
            yield
        return
    backends: tuple[tuple[Any, str, Any], ...] = (
        (torch.backends.cuda.matmul, "allow_tf32", True),
        (torch.backends.cudnn, "allow_tf32", True),
    )
    try:
        was = [getattr(backend, name) for backend, name, _ in backends]
    except RuntimeError:  # the script has used the names that torch 2.9 brought, and the old ones answer no more
        matmul, convolution = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")  # noqa: B009
        backends = ((matmul, "fp32_precision", "tf32"), (convolution, "fp32_precision", "tf32"))
        was = [getattr(backend, name) for backend, name, _ in backends]
    try:
        for backend, name, value in backends:
            setattr(backend, name, value)
        yield
    finally:
        for (backend, name, _), value in zip(backends, was, strict=True):
            setattr(backend, name, value)


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds what products are given."""

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let a compiled region run: what is inside of it is not seen."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` on rounded operands where it is a product."""
        facts = facts_of(func)
        if is_product(facts.name) and not facts.name.startswith(_ELEMENTWISE):
            left = _ADDED | ({"self"} if facts.name.startswith(_WITH_A_SUM) else set())
            named = zip(facts.arguments, args, strict=False)
            args = tuple(a if name in left else map_tensors(_operand, a) for name, a in named)
        return func(*args, **(kwargs or {}))


def _operand(tensor: Tensor) -> Tensor:
    return rounded_to_tf32(tensor) if tensor.dtype is torch.float32 and tensor.layout is torch.strided else tensor
