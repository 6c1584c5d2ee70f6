"""Recipe: a choice of number formats for a run, as plain data.

How it works. A recipe sets some of a run's formats and leaves the others as the config has them: what autocast computes
in, what weights, moments and the operands of products are stored in, how values are rounded. Recipes join where they set
different things: "fp8-block+states-bf16".

A product is a matrix product of an activation with a weight, and the two of its backward pass: out = x Wᵀ, dx = dy W,
dW = dyᵀ x. Its three operands are the input x, the weight W and the gradient dy; each is quantized along the dimension
that the product sums over, from the values in their own precision, every time anew.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

__all__ = ["Granularity", "Operand", "Products", "Recipe", "ScaleRule", "joined"]

#: Who shares a scale: the tensor, or a block of so many rows and columns.
Granularity: TypeAlias = tuple[int, int] | Literal["tensor"]
#: How a scale follows from an amax. "fp32": largest / amax. "floor": the OCP rule, a power of two that may cut the amax
#: off. "up": the power of two that never does. "nvfp4": an E4M3 number for each block under an fp32 one for the tensor.
ScaleRule = Literal["fp32", "floor", "up", "nvfp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """How one operand of a product is quantized; a block's second number lies along the summed dimension."""

    #: name of the elements' number format
    format: str
    block: Granularity = "tensor"
    scale: ScaleRule = "fp32"
    stochastic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """How the operands of products with weights are quantized."""

    input: Operand
    weight: Operand
    gradient: Operand
    #: scales from the amax of earlier steps, as TransformerEngine's delayed scaling
    delayed: bool = False
    #: steps whose amax a delayed scale looks back on, and binades that it leaves free above the largest of them
    amax_history: int = 1024
    margin: int = 0
    #: the operands of dW are mixed by a random Hadamard transform of 16 along the summed dimension
    hadamard: bool = False
    #: names or patterns of modules whose weights stay as they are
    skip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A choice of formats; None and False leave what the config says."""

    name: str
    #: one line for the help
    title: str
    #: "none", "fp16" or "bf16"
    autocast: str | None = None
    #: a GradScaler, with torch's own arguments where the config has none
    scaler: bool = False
    #: what the weights are stored in
    params: str | None = None
    #: with narrow weights: the update is computed in fp32 with moments in fp32, and only its result is rounded
    wide_update: bool = False
    products: Products | None = None
    tf32: bool = False
    #: what moments are stored in: "bf16" or "int8"
    states: str | None = None
    #: weights and moments that an update writes are rounded up or down by lot
    stochastic: bool = False

    @property
    def is_emulated(self) -> bool:
        """Whether it asks for more than torch's own autocast, casts and scaler."""
        return bool(self.products or self.tf32 or self.states or self.stochastic or self.wide_update)


def joined(first: Recipe, second: Recipe) -> Recipe:
    """Return both recipes as one. Raises ValueError with the name of what both of them set."""
    chosen = {f.name: getattr(second, f.name) for f in fields(Recipe) if f.name not in ("name", "title")}
    chosen = {key: value for key, value in chosen.items() if value not in (None, False)}
    for key, value in chosen.items():
        if getattr(first, key) not in (None, False, value):
            raise ValueError(f"{first.name} and {second.name} both set {key}")
    return replace(first, name=f"{first.name}+{second.name}", title=f"{first.title}; {second.title}", **chosen)
