"""A whole step of a script on one tape: the calls of several modules, backward passes, clips and updates, in their order.

    fake = generator(noise)                           a part's call
    loss = criterion(discriminator(fake), ones)       a part's call, and a function of torch
    loss.backward()                                   {do: backward, roots: […]}
    of_generator.step()                               {do: update, of: 1, lr: [0.0002]}

How it works. The mode of torch's functions stays on between the modules' calls, from the step's first to its last. Beside
what a tape notes anyway there is what else changes the parts: calls without gradients (their buffers), writes into
weights (a clamp behind the update), gradients that are dropped, zeroed or changed by hand. `training.taped_step` does it
all again.

What was chosen. Random numbers that the script draws itself are on no tape, only what it made of them. So a call that
draws some (dropout) keeps the states that generators had before it: the devices', and those that its modules hold.

What is not covered. Hooks on weights, an update inside a closure that runs twice.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.script.references import UntapedError
from nanhunt.recorder.script.tape import CALLS, Tape
from nanhunt.recorder.script.torch_calls import attribute_of, labels, script_line, tensors_in, writes_into
from nanhunt.training.generators import generators_in, spelled_state, states_of_devices

__all__ = ["Part", "StepTape"]

#: Names of functions that may draw.
_DRAWS = (
    "rand", "dropout", "bernoulli", "multinomial", "binomial", "normal", "uniform", "rrelu", "gumbel", "poisson", "attention",
    "exponential", "geometric", "cauchy", "fractional",
)  # fmt: skip


_GRADIENT = "torch.Tensor.grad.__get__"


@dataclass(frozen=True, slots=True)
class Part:
    """A module whose calls are noted, and what is inside of it by name: found once, for a step has many calls."""

    path: str
    module: nn.Module
    modules: tuple[tuple[str, nn.Module], ...]
    parameters: tuple[tuple[str, Tensor], ...]
    generators: tuple[tuple[str, torch.Generator], ...]

    @classmethod
    def of(cls, path: str, module: nn.Module) -> Part:
        """Look into a module."""
        generators = tuple((f"{path}.{name}", own) for name, own in generators_in(module).items())
        return cls(path, module, tuple(module.named_modules()), tuple(module.named_parameters()), generators)


class StepTape(Tape):
    """The calls of one step."""

    def __init__(self, names: dict[int, str], trained: frozenset[int], device: torch.device) -> None:
        super().__init__(names, trained, device)
        self._names = names
        self._before: dict[str, Tensor] | None = None
        self._held: tuple[tuple[str, torch.Generator], ...] = ()
        self._scaled: list[weakref.ref[Tensor]] = []
        #: of calls that drew random numbers, the generators' states before them
        self._kept: dict[int, dict[str, Tensor]] = {}

    # --- the parts' calls ----------------------------------------------------------------------------------------

    def part_begins(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of one of the modules. Raises UntapedError where a file cannot hold its arguments."""
        names = labels(part.module.forward, "input", len(args))
        evaluating = [name for name, module in part.modules if not module.training]
        frozen = [name for name, p in part.parameters if not p.requires_grad]
        call: dict[str, Any] = {
            "on": part.path,
            "args": [self._refer.ref(value, names[i]) for i, value in enumerate(args)],
            "kwargs": {key: self._refer.ref(value, key) for key, value in kwargs.items()},
        }
        line = script_line()
        call |= {"at": list(line)} if line else {}
        call |= ({"evaluating": evaluating} if evaluating else {}) | ({"frozen": frozen} if frozen else {})
        self._append(call | self._surroundings())
        self._held = part.generators
        self._before = self._states()

    def part_ends(self, output: Any) -> None:
        """Note what the last call of a part returned."""
        self._note_draws()
        self._learn(output)

    # --- the script's calls --------------------------------------------------------------------------------------

    def begins(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call that is about to be made; return whether it was noted."""
        if self._takes_gradient(function, args):
            return True
        if not super().begins(function, args, kwargs):
            return False
        name = getattr(function, "__name__", "")
        self._held = ()
        self._before = self._states() if any(word in name for word in _DRAWS) else None
        return True

    def ends(self, result: Any) -> None:
        """Note what the last call returned."""
        call = self._calls[-1]
        if call.get("fn") == _GRADIENT and (result is None or self._refer.of(result) is not None):
            self._calls.pop()  # there is none, or it is known from a call before
            return
        self._note_draws()
        super().ends(result)

    def _takes_gradient(self, function: Any, args: tuple[Any, ...]) -> bool:
        """Note that the gradient of a weight is asked for: what is written into it, a zero as well, is then seen.

        Each clip and log asks for all of them, so it is noted without the script's line.
        """
        if getattr(function, "__name__", "") != "__get__" or attribute_of(function) != "grad":
            return False
        weight = self._names.get(id(args[0]))
        if weight is None:
            return False
        self._append({"fn": _GRADIENT, "args": [{"$p": weight}], "kwargs": {}})
        self._before = None
        return True

    def _note_draws(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            now = self._states()
            drawn = {name: state for name, state in before.items() if not torch.equal(state, now[name])}
            if drawn:
                self._kept[len(self._calls) - 1] = drawn

    def _states(self) -> dict[str, Tensor]:
        return states_of_devices() | {name: own.get_state() for name, own in self._held}

    def _belongs(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has a part in a loss, or changes a weight."""
        first = args[0] if args else None
        weight = self._names.get(id(first))
        attribute = attribute_of(function) if name in ("__get__", "__set__") else ""
        if attribute == "grad":
            if name == "__set__" and weight is not None and args[1] is None:
                self.did("clear", of=weight)
                return False
            return name == "__set__" and weight is not None
        if weight is not None and (name in ("detach", "requires_grad_") or attribute == "requires_grad"):
            return False  # a call of its part tells whether it asks for a gradient
        if attribute == "data" and name == "__get__" and weight is not None:
            return True
        if writes_into(name, kwargs):
            written = tensors_in(kwargs.get("out", first))
            if any(id(t) in self._names or self._refer.of(t) is not None for t in written):
                return True
            if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors_in((args, kwargs))):
                return False  # an average of weights, a sum of losses: a constant, if anything reads it
        return super()._belongs(function, name, args, kwargs)

    # --- the loop's own ------------------------------------------------------------------------------------------

    def name_of(self, parameter: Tensor) -> str | None:
        """Return the name of a weight of the networks; None of other tensors."""
        return self._names.get(id(parameter))

    def reference(self, value: Any) -> Any:
        """Return what stands for a value that the loop hands to torch; None where the tape has failed for it."""
        try:
            return self._refer.ref(value, "total_norm")
        except UntapedError as error:
            self.fail(str(error))
            return None

    def did(self, what: str, **how: Any) -> None:
        """Note what the loop does besides calls: zero_grad, clip, update, uncache."""
        if len(self._calls) >= CALLS:
            self.fail(f"more than {CALLS} calls in a step")
            return
        self._calls.append({"do": what, **how})

    def alias(self, result: Tensor, source: Tensor) -> None:
        """Let what a gradient scaler made of a loss stand for the loss."""
        super().alias(result, source)
        self._scaled.append(weakref.ref(result))

    def backward_with(self, roots: Any, options: Mapping[str, Any]) -> None:
        """Note a backward pass; `options` are its arguments beside what it starts from."""
        several = list(roots) if isinstance(roots, Sequence) else [roots]
        for root in several:
            self.backward_from(root)
        if self.trouble:
            return
        try:
            given: dict[str, Any] = {key: self._refer.ref(value, key) for key, value in options.items()}
        except UntapedError as error:
            self.fail(str(error))
            return
        line = script_line()
        how: dict[str, Any] = ({"given": given} if given else {}) | ({"at": list(line)} if line else {})
        if any(ref() is root for ref in self._scaled for root in several):
            how["scaled"] = 1
        self.did("backward", roots=self._results[-len(several) :], **how)

    # --- what becomes of it --------------------------------------------------------------------------------------

    def text(self) -> str:
        """Return the calls that the step needs, as JSON. Raises UntapedError where that cannot be."""
        calls = self._needed_calls()
        for index, states in self._kept.items():
            if (call := calls[index]) is not None:
                calls[index] = call | {"rng": {name: spelled_state(state) for name, state in states.items()}}
        return json.dumps({"calls": calls, "results": self._results} | self._ending())

    def _is_needed_always(self, call: dict[str, Any]) -> bool:
        return "on" in call or "do" in call or "writes" in call
