"""What an update writes, as its recipe stores it: weights without an fp32 copy, moments in bf16 or 8 bits.

How it works. Hooks of the optimizer's own step. With narrow weights and a wide update, weights and gradients are widened
to fp32 before it, so that it computes and keeps its moments in fp32, and what comes out is rounded into the weights' own
memory. Moments stay in tensors of their own dtype and are given values that their format has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import BF16, FP16
from nanhunt.recipes.dynamic_codes import in_eight_bits
from nanhunt.recipes.recipe import Recipe
from nanhunt.recipes.rounding import rounded, rounded_by_lot
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["stored_as"]

#: names of moments that are never negative: exp_avg_sq, square_avg, Adagrad's sum, Adamax's exp_inf, Adafactor's row_var
_UNSIGNED = re.compile(r"sq|_var$|\b(?:variance|sum|exp_inf)$")
_FORMATS = {torch.bfloat16: BF16, torch.float16: FP16}


@contextmanager
def stored_as(
    recipe: Recipe, optimizers: Sequence[torch.optim.Optimizer], generator: torch.Generator
) -> Iterator[None]:
    """Run the body with what these optimizers write stored as the recipe has it."""
    with ExitStack() as stack:
        for optimizer in optimizers:
            storage = _Storage(recipe, generator)
            stack.callback(optimizer.register_step_pre_hook(storage.before).remove)
            stack.callback(optimizer.register_step_post_hook(storage.after).remove)
            stack.callback(storage.put_back)
        yield


def _widen_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Make moments fp32 that are not: those that an optimizer made of narrow weights before the first step."""
    state = optimizer.state.get(parameter)
    if isinstance(state, dict) and any(t.dtype in _FORMATS for _, t in tensors_of(state)):
        optimizer.state[parameter] = map_tensors(lambda t: t.float() if t.dtype in _FORMATS else t, state)


class _Storage:
    """The hooks of one optimizer."""

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        self._recipe = recipe
        self._generator = generator
        #: parameter, its own memory and gradient
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Widen weights and gradients.

        Raises UsageError where the update evaluates the loss itself: it would do so with the wide weights.
        """
        if self._recipe.wide_update and any(callable(a) for a in (*args[1:], *kwargs.values())):
            raise UsageError(
                f"precision recipe {self._recipe.name}: {type(optimizer).__name__}.step is given a closure, which would run "
                "on fp32 weights",
                hint="another recipe: pure-bf16 keeps weights and moments in bf16",
            )
        for group in optimizer.param_groups if self._recipe.wide_update else ():
            for p in group["params"]:
                if p.dtype in _FORMATS and p.grad is not None:
                    self._own.append((p, p.data, p.grad))
                    _widen_moments(optimizer, p)
                    wide, p.grad, p.data = p.grad.float(), None, p.data.float()
                    p.grad = wide

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Round what was written into its memory."""
        with torch.no_grad():
            for p, memory, _ in self._own:
                memory.copy_(self._rounded(p.data, memory.dtype))
            self.put_back()
            for state in optimizer.state.values() if self._recipe.states else ():
                for key, tensor in tensors_of(state):
                    if key != "step" and tensor.is_floating_point() and tensor.dim():
                        tensor.copy_(self._moment(key, tensor))

    def put_back(self) -> None:
        """Give weights their own memory and gradients again, those of an update that raised as well."""
        for p, memory, grad in self._own:
            p.grad, p.data = None, memory
            p.grad = grad
        self._own.clear()

    def _rounded(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Round by lot where the recipe does; otherwise copying into the memory rounds to nearest."""
        return rounded_by_lot(values, _FORMATS[dtype], self._generator) if self._recipe.stochastic else values

    def _moment(self, key: str, moment: Tensor) -> Tensor:
        if self._recipe.states == "int8":
            return in_eight_bits(moment, signed=not _UNSIGNED.search(key))
        wide = moment.float()
        return rounded_by_lot(wide, BF16, self._generator) if self._recipe.stochastic else rounded(wide, BF16)
