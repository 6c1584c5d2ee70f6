"""Emulator: a recipe at work on a run, with all that it carries from step to step.

Its state (amax histories, the generator of its lots) is part of a snapshot, so that a step that is run again is the same.
The generator is its own: dropout draws what it drew without the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.checkpoint import set_checkpoint_early_stop

from nanhunt.recipes.amax_history import AmaxHistory
from nanhunt.recipes.product_ops import Operands
from nanhunt.recipes.products import QuantizedProducts
from nanhunt.recipes.recipe import Products, Recipe
from nanhunt.recipes.scaling import Quantized, element_format, losses
from nanhunt.recipes.storage import stored_as
from nanhunt.recipes.tf32 import products_in_tf32

__all__ = ["Emulator", "OperandLoss", "is_meant"]

_SEED = 20240


@dataclass(frozen=True, slots=True)
class OperandLoss:
    """What one operand of a weight's products lost in a step: `scaling.LOSSES`, on the device."""

    weight: str
    role: str
    shares: Tensor


class Emulator:
    """Runs a training step under a recipe."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        #: a trial may put another in its place
        self.recipe = recipe
        #: modules whose products a trial leaves alone; "" stands for all of them
        self.exempt: set[str] = set()
        #: names of the weights whose products were quantized, in the order in which they came
        self.quantized: dict[str, None] = {}
        #: products of two matrices in one step's forward of which neither is a parameter: weights that are computed
        self.others = self._left = 0
        #: weights that `skip` left alone
        self.skipped: dict[str, None] = {}
        self._device = device
        self._generator = torch.Generator(device).manual_seed(_SEED)
        self._history = _history(recipe.products)
        self._losses: dict[tuple[str, str], Tensor] = {}
        self._tied: Mapping[str, Sequence[str]] = {}
        self._is_active = False
        self._is_measuring = False

    @property
    def quantizes(self) -> bool:
        """Whether products are computed of rounded operands."""
        return (self.recipe.products is not None or self.recipe.tf32) and "" not in self.exempt

    @contextmanager
    def active(
        self,
        parameters: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        tied: Mapping[str, Sequence[str]] | None = None,
    ) -> Iterator[None]:
        """Run the body, one step, under the recipe; inside of it a second call changes nothing.

        `tied` are a parameter's further names, by the one under which it is among `parameters`.
        """
        if self._is_active:
            yield
            return
        self._is_active, self._tied = True, tied or {}
        self._left = 0
        try:
            with ExitStack() as stack:
                self._enter(stack, parameters, optimizers)
                yield
        finally:
            self._is_active = False
            self.others = max(self.others, self._left)
            self._history.step_ended()

    def _enter(
        self, stack: ExitStack, parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        recipe = self.recipe
        if recipe.tf32 and "" not in self.exempt:
            stack.enter_context(products_in_tf32(self._device))
        if recipe.states or recipe.wide_update or recipe.stochastic:
            stack.enter_context(stored_as(recipe, optimizers, self._generator))
        if recipe.products is not None and "" not in self.exempt:
            mode = QuantizedProducts(
                recipe.products,
                Operands(parameters),
                generator=self._generator,
                is_off=self._is_off,
                amax_of=self._history.amax if recipe.products.delayed else None,
                told=self._tell,
                left=self._note_left,
            )
            for register, by in ((register_optimizer_step_pre_hook, 1), (register_optimizer_step_post_hook, -1)):
                stack.callback(register(lambda *_, by=by: mode.pause(by)).remove)
            # a checkpoint stops its recomputation at the last tensor that backward needs, before the product that takes it
            stack.enter_context(set_checkpoint_early_stop(False))
            stack.enter_context(mode)

    def _note_left(self) -> None:
        self._left += 1

    def _is_off(self, weight: str) -> bool:
        modules = [name.rpartition(".")[0] for name in (weight, *self._tied.get(weight, ()))]
        products = self.recipe.products
        if products is not None and any(is_meant(m, pattern) for pattern in products.skip for m in modules):
            self.skipped[weight] = None
            return True
        self.quantized[weight] = None
        return any(m == name or m.startswith(f"{name}.") for name in self.exempt for m in modules)

    def _tell(self, role: str, weight: str, tensor: Tensor, made: Quantized) -> None:
        if not self._is_measuring:
            return
        assert self.recipe.products is not None
        found = losses(tensor, made, element_format(getattr(self.recipe.products, role)))
        before = self._losses.get((weight, role))
        self._losses[weight, role] = found if before is None else torch.maximum(found, before)

    @contextmanager
    def measured(self, wanted: bool) -> Iterator[None]:
        """Run the body, one step, and measure what operands lose in it: steps that a trial runs are no part of that."""
        self._losses.clear()
        self._is_measuring = wanted
        try:
            yield
        finally:
            self._is_measuring = False

    def take_losses(self) -> list[OperandLoss]:
        """Return what operands lost in the step that was measured last, and forget it."""
        found = [OperandLoss(weight, role, shares) for (weight, role), shares in self._losses.items()]
        self._losses.clear()
        return found

    @contextmanager
    def instead(self, recipe: Recipe | None = None, *, exempt: set[str] | None = None) -> Iterator[None]:
        """Run the body with another recipe, or with modules that are left alone; the state is the caller's to restore."""
        was, history, left = self.recipe, self._history, self.exempt
        self.recipe = recipe or was
        if self.recipe.products != was.products:
            self._history = _history(self.recipe.products)
        self.exempt = left | (exempt or set())
        try:
            yield
        finally:
            self.recipe, self._history, self.exempt = was, history, left

    def state(self) -> dict[str, Any]:
        """Return what a step changes, for a snapshot."""
        return {"history": self._history.state(), "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self._history.restore(state["history"])
        self._generator.set_state(state["generator"])


def _history(products: Products | None) -> AmaxHistory:
    if products is None:
        return AmaxHistory(length=1, margin=0)
    return AmaxHistory(length=products.amax_history, margin=products.margin)


def is_meant(module: str, pattern: str) -> bool:
    """Whether a pattern means a module: by its whole name, or by its last part."""
    return fnmatchcase(module, pattern) or fnmatchcase(module.rpartition(".")[2], pattern)
