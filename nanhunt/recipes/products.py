"""Products with weights, their operands quantized: forward, and the two products of backward.

How it works. A `TorchDispatchMode` stands below autograd, so that it sees the forward product x Wᵀ and the products
dx = dy W and dW = dyᵀ x that autograd makes of it, whatever the user called: `nn.Linear`, `@`, `einsum`. It knows a weight by
its memory, an input by having been multiplied with one, and a product of backward by the autograd node that the forward
product made; what else comes in backward is a gradient. Operands stay in their own precision for autograd, and are
quantized anew for each product along the dimension that it sums over. The product is computed in fp32 of the rounded
operands, or by FP8 matrix units where the GPU has them, and cast to the dtype it had.

Not covered: products of which no operand is a parameter or a cast of one (attention's, those of a weight that is computed
from others), convolutions, products of a matrix with a vector, fused ones (`_addmm_activation`, `_grouped_mm`) and those with
`out=` or another `out_dtype`; a parameter that is used as an activation counts as a weight; saved tensors that hooks have moved elsewhere, whose dW is
then in its own precision; second derivatives, whose gradients are rounded as inputs are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.probes.autograd import backward_node, forward_sequence
from nanhunt.probes.op_facts import facts_of
from nanhunt.probes.probe import in_backward
from nanhunt.recipes.full_fp32 import full_fp32
from nanhunt.recipes.hadamard import mixed
from nanhunt.recipes.product_ops import Operands
from nanhunt.recipes.recipe import Operand, Products
from nanhunt.recipes.scaled_mm import can_scaled_mm, scaled_mm
from nanhunt.recipes.scaling import Quantized, quantize

__all__ = ["QuantizedProducts"]

#: Where the two factors of a product stand among its arguments.
_FACTORS = {"aten.mm": (0, 1), "aten.bmm": (0, 1), "aten.addmm": (1, 2), "aten.baddbmm": (1, 2)}
#: What only copies a weight, into another format at most: autocast's casts.
_COPIES = frozenset({"aten._to_copy", "aten.clone", "aten.contiguous"})

#: (role of the operand, weight's name, the operand as it was, what became of it)
Told = Callable[[str, str, Tensor, Quantized], None]
#: the amax that an operand's scale is made for, by its key; None for its own
AmaxOf = Callable[[str, Tensor], Tensor]


class QuantizedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Quantizes while it is active, except where `is_off` says so of a weight's name."""

    supports_higher_order_operators = True

    def __init__(
        self,
        products: Products,
        operands: Operands,
        *,
        generator: torch.Generator,
        is_off: Callable[[str], bool],
        amax_of: AmaxOf | None = None,
        told: Told | None = None,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._products = products
        self._operands = operands
        self._generator = generator
        self._is_off = is_off
        self._amax_of = amax_of
        self._told = told
        #: called for each product of two matrices in forward of which neither is a weight
        self._left = left
        self._paused = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let a compiled region run: what is inside of it is not seen."""
        return True

    def pause(self, by: int) -> None:
        """Leave products alone while the sum is above zero, but those of a closure: an optimizer may have its own."""
        self._paused += by

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or the product of quantized operands in its place."""
        kwargs, name = kwargs or {}, facts_of(func).name
        if self._paused and not _trains(args):
            return func(*args, **kwargs)
        if name in _FACTORS:
            a, b = (args[i] for i in _FACTORS[name])
            roles = self._roles(a, b)
            if roles is not None:
                return self._product(name, args, kwargs, a, b, *roles)
            if name in ("aten.mm", "aten.addmm") and not _is_backward() and (a.requires_grad or b.requires_grad):
                self._note_left(a, b)
        result = func(*args, **kwargs)
        if name in _COPIES and isinstance(args[0], Tensor) and (weight := self._operands.weight(args[0])):
            self._operands.copied(result, weight)
        return result

    def _note_left(self, a: Tensor, b: Tensor) -> None:
        if self._operands.weight(a) is None and self._operands.weight(b) is None:
            self._left()

    def _roles(self, a: Tensor, b: Tensor) -> tuple[str, str, str] | None:
        """Return the roles of both factors and the weight's name; None of a product that stays as it is."""
        if a.dtype not in (torch.float32, torch.bfloat16, torch.float16) or a.layout is not torch.strided:
            return None
        of_a, of_b = self._operands.weight(a), self._operands.weight(b)
        weight = of_b or of_a
        if _is_backward():
            if weight is None:
                node = backward_node()
                sequence = None if node is None else node[1]
                weight = self._operands.input_of(a, sequence)
                roles = ("input", "gradient") if weight else ("gradient", "input")
                weight = weight or self._operands.input_of(b, sequence)
            else:
                roles = ("weight", "gradient") if of_a and not of_b else ("gradient", "weight")
        else:
            roles = ("weight" if of_a else "input", "weight" if of_b else "input")
            if weight is not None:
                for tensor, role in ((a, roles[0]), (b, roles[1])):
                    if role == "input":
                        self._operands.given(tensor, weight, forward_sequence())
        return None if weight is None or self._is_off(weight) else (*roles, weight)

    def _product(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], a: Tensor, b: Tensor, of_a: str, of_b: str, weight: str
    ) -> Tensor:  # fmt: skip
        mix = self._products.hadamard and "weight" not in (of_a, of_b)  # dW alone
        # the transform of `mix` is a product too
        with torch.autocast(a.device.type, enabled=False), full_fp32(a.device):
            left = self._quantized(a, of_a, weight, mix=mix)
            right = self._quantized(b.transpose(-2, -1), of_b, weight, mix=mix)
            formats = (self._operand(of_a).format, self._operand(of_b).format)
            if can_scaled_mm(left, right, formats):
                made = scaled_mm(left, right, formats)
            else:
                made = left.values @ right.values.transpose(-2, -1)
        if name in ("aten.addmm", "aten.baddbmm"):
            made, beta = made * kwargs.get("alpha", 1), kwargs.get("beta", 1)
            made = made + args[0].float() * beta if beta else made  # torch reads no addend with beta = 0
        return made.to(a.dtype)

    def _operand(self, role: str) -> Operand:
        operand: Operand = getattr(self._products, role)
        return operand

    def _quantized(self, tensor: Tensor, role: str, weight: str, *, mix: bool) -> Quantized:
        """Quantize a factor (…, rows, summed dimension)."""
        operand = self._operand(role)
        given = mixed(tensor) if mix else tensor
        amax = self._amax_of(f"{weight}.{role}", given) if self._amax_of and operand.block == "tensor" else None
        made = quantize(given, operand, amax=amax, generator=self._generator)
        # of an input and a weight what forward loses is told: dx and dW add up over the rows that this one stands in
        if self._told is not None and not mix and (role == "gradient" or not _is_backward()):
            self._told(role, weight, tensor, made)
        return made


def _is_backward() -> bool:
    """Whether a product of backward runs; a checkpoint runs its forward inside of it, with gradients on."""
    return in_backward() and not torch.is_grad_enabled()


def _trains(args: tuple[Any, ...]) -> bool:
    """Whether an op belongs to a forward or backward pass, as inside of the closure that an optimizer's step calls."""
    if in_backward():
        return True
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
