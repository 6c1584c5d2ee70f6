"""A recorded script's step over several networks, run again: calls, backward passes, clips and updates in their order.

A batch is `{"inputs": constants by name, "tape": JSON}`, as `recorder.script.step_tape` leaves it. Its loss is the sum of
what its backward passes began with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import ConfigError
from nanhunt.training.generators import state_of_text
from nanhunt.training.recorded_error import recorded_error
from nanhunt.training.recorded_rates import put_settings
from nanhunt.training.taped_line import at_line
from nanhunt.training.taped_loss import TapeReplay

__all__ = ["SCALERS", "taped_step"]

#: The script's gradient scaler, made with its optimizers. A replay finds it as it finds what a loop keeps in its module.
SCALERS: list[torch.amp.GradScaler] = []


def taped_step(model: nn.Module, batch: Mapping[str, Any], optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
    """Run the step, updates and all, and return its loss.

    Raises ConfigError where the batch is no tape, and what the script's own calls raise.
    """
    try:
        tape = json.loads(batch["tape"])
        calls, results = tape["calls"], tape["results"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"train_step: the batch is no tape of a recorded script: {error}") from error
    replay = _StepReplay(model, batch["inputs"], calls, optimizers, SCALERS[0] if SCALERS else None)
    for index, call in enumerate(calls):
        if call is not None:
            replay.call(index, call)
    if not results:  # the script raised in the last call
        last_call = max(index for index, call in enumerate(calls) if call and "do" not in call)
        return replay.broken_off(last_call, recorded_error(tape))
    last = next(call for call in reversed(calls) if call and call.get("do") == "backward")
    total: Tensor = at_line(last, _sum, replay.losses)
    return total


def _sum(losses: Sequence[Tensor]) -> Tensor:
    """Return the losses' sum as the recorder takes it: in fp64, one after the other."""
    total = losses[0].double()
    for loss in losses[1:]:
        total = total + loss.double()
    return total.float()


class _StepReplay(TapeReplay):
    """The values of a tape while it runs, and the optimizers that it steps."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        calls: Sequence[dict[str, Any] | None],
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        super().__init__(model, inputs, calls)
        self._optimizers = optimizers
        self._scaler = scaler
        self.losses: list[Tensor] = []

    def call(self, index: int, call: dict[str, Any]) -> None:
        """Make a call of the tape, or do what the loop did."""
        for name, state in _by_device(call.get("rng", {})).items():
            self._set_generator(name, state_of_text(state))
        if "do" not in call:
            super().call(index, call)
            return
        action = self._actions().get(call["do"])
        if action is None:
            raise ConfigError(f"train_step: the tape says {call['do']!s:.60}, which is nothing that a loop does")
        action(call)

    def _set_generator(self, name: str, state: Tensor) -> None:
        """Put a generator where a call found it: a device's, where this machine has the device, or a module's own."""
        if name == "cpu":
            torch.set_rng_state(state)
        elif name.startswith("cuda:"):
            if torch.cuda.is_available() and int(name[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, int(name[5:]))
        else:
            path, _, last = name.rpartition(".")
            held = vars(self._model.get_submodule(path)).get(last)
            if isinstance(held, torch.Generator):
                held.set_state(state)

    def function_of(self, call: dict[str, Any]) -> Callable[..., Any]:
        """Return what a call calls: a function of torch, or a network as it stood then."""
        if call.get("fn") == "torch.Tensor.grad.__get__":
            return _gradient
        if "on" not in call:
            return super().function_of(call)
        part = self._model.get_submodule(call["on"])
        evaluating, frozen = set(call.get("evaluating", ())), set(call.get("frozen", ()))
        for name, module in part.named_modules():
            module.training = name not in evaluating
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return part

    def _actions(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {
            "backward": self._backward,
            "zero_grad": self._zero_grad,
            "clear": self._clear,
            "clip": self._clip,
            "unscale": self._unscale,
            "update": self._update,
            "scaler_update": self._scaler_update,
            "uncache": lambda call: torch.clear_autocast_cache(),
        }

    def _backward(self, call: dict[str, Any]) -> None:
        roots: list[Tensor] = [self.value(ref) for ref in call["roots"]]
        self.losses += [root.detach() for root in roots]
        given = {key: self.value(ref) for key, ref in call.get("given", {}).items()}
        if "scaled" in call and self._scaler is not None:
            roots = [self._scaler.scale(root) for root in roots]
        at_line(call, torch.autograd.backward, roots, **given)

    def _zero_grad(self, call: dict[str, Any]) -> None:
        owner: Any = self._model.get_submodule(call["on"]) if "on" in call else self._optimizers[call["of"]]
        owner.zero_grad(set_to_none=call["none"])

    def _clear(self, call: dict[str, Any]) -> None:
        self.parameter(call["of"]).grad = None

    def _clip(self, call: dict[str, Any]) -> None:
        parameters = [self.parameter(name) for name in call["of"]]
        if "total" in call:
            total: Tensor = self.value(call["total"])
            nn.utils.clip_grad._clip_grads_with_norm_(parameters, call["norm"], total, call.get("foreach"))
        elif "norm" in call:
            nn.utils.clip_grad_norm_(parameters, call["norm"], call.get("norm_type", 2.0), foreach=call.get("foreach"))
        else:
            nn.utils.clip_grad_value_(parameters, call["value"])

    def _unscale(self, call: dict[str, Any]) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizers[call["of"]])

    def _update(self, call: dict[str, Any]) -> None:
        optimizer = self._optimizers[call["of"]]
        for group, rate in zip(optimizer.param_groups, call["lr"], strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        put_settings(optimizer, call.get("settings", ()))
        if "scaled" in call and self._scaler is not None:
            self._scaler.step(optimizer)
        else:
            optimizer.step()
        torch.clear_autocast_cache()

    def _scaler_update(self, call: dict[str, Any]) -> None:
        if self._scaler is not None:
            self._scaler.update()


def _gradient(parameter: Tensor) -> Tensor:
    """Return a weight's gradient; zeros where it is left from before the first step, whose state holds none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _by_device(states: dict[str, str] | list[str]) -> dict[str, str]:
    """Return generators' states by name; a bundle of before names had them in a row, the CPU's and each device's."""
    if isinstance(states, dict):
        return states
    return {"cpu" if i == 0 else f"cuda:{i - 1}": state for i, state in enumerate(states)}
