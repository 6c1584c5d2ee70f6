"""The loss of a recorded script: its model's calls and what it made of their outputs, run again call by call.

A batch is `{"inputs": constants by name, "tape": JSON}`, as `recorder.script.tape` leaves it. A call runs in a frame that
bears the script's file and line, so that a report names the line that the user wrote.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.errors import ConfigError
from nanhunt.training.generators import state_of_text
from nanhunt.training.names import clean_name
from nanhunt.training.recorded_error import RecordedError, raise_again, recorded_error
from nanhunt.training.tape_functions import function_named
from nanhunt.training.taped_line import at_line

__all__ = ["TapeReplay", "taped_loss"]


def taped_loss(model: nn.Module, batch: Mapping[str, Any], accumulate: int = 1) -> Tensor:
    """Return the loss of a micro-step, so that its `accumulate`-th part is what the script's backward began with.

    Raises ConfigError where the batch is no tape, and what the script's own calls raise.
    """
    try:
        tape = json.loads(batch["tape"])
        calls, results = tape["calls"], tape["results"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"loss: the batch is no tape of a recorded script: {error}") from error
    replay = TapeReplay(model, batch["inputs"], calls)
    for index, call in enumerate(calls):
        if call is not None:
            replay.call(index, call)
    if not results:  # the script raised in the last call; a trial that mends it goes on with what the call returns
        return replay.broken_off(len(calls) - 1, recorded_error(tape))
    is_share = accumulate > 1 and tape["divisor"] == accumulate
    losses: list[Tensor] = [replay.value(ref) for ref in ([tape["before"]] if is_share else results)]
    loss = losses[0] if len(losses) == 1 else torch.stack([x.reshape(()) for x in losses]).sum()
    return loss * accumulate if accumulate > 1 and not is_share else loss


class TapeReplay:
    """The values of a tape while it runs."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], calls: Sequence[dict[str, Any] | None]) -> None:
        self._model = model
        # a tape that writes into its constants must not spoil the batch for the next run of the step
        written = {name for call in calls if call and "writes" in call for name in _constants_in(call)}
        self._inputs = {n: v.clone() if n in written and isinstance(v, Tensor) else v for n, v in inputs.items()}
        self._leaves: set[str] = set()
        self._parameters: dict[str, Tensor] | None = None
        self._values: dict[int, Any] = {}

    def call(self, index: int, call: dict[str, Any]) -> None:
        """Make a call of the tape."""
        function = self.function_of(call)
        args = [self.value(ref) for ref in call["args"]]
        kwargs = {key: self.value(ref) for key, ref in call["kwargs"].items()}
        with contextlib.ExitStack() as stack:
            if "plain" in call and ("fn" in call or "on" in call):
                device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if "no_grad" in call:
                stack.enter_context(torch.no_grad())
            self._values[index] = at_line(call, function, *args, **kwargs)

    def function_of(self, call: dict[str, Any]) -> Callable[..., Any]:
        """Return what a call calls."""
        return function_named(call["fn"]) if "fn" in call else self._model

    def broken_off(self, last: int, raised: RecordedError | None) -> Tensor:
        """Return the last call's loss, if it is one; else raise what the script did, or RuntimeError where that is not known."""
        loss = self._values.get(last)
        if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
            return loss
        if raised is not None:
            raise_again(raised)
        raise RuntimeError("the recorded script raised here; what it would have done with this is not known")

    def value(self, ref: Any) -> Any:
        """Return what a reference stands for."""
        if isinstance(ref, list):
            return [self.value(item) for item in ref]
        if not isinstance(ref, dict):
            return ref
        if "$v" in ref:
            return _inside(self._values[ref["$v"][0]], ref["$v"][1:])
        if "$c" in ref:
            return self._constant(ref["$c"], "grad" in ref)
        if "$p" in ref:
            return self.parameter(ref["$p"])
        tag = next(iter(ref))
        return _VALUES[tag](self.value, ref[tag])

    def _constant(self, name: str, grad: bool) -> Any:
        if grad and name not in self._leaves:
            self._leaves.add(name)
            self._inputs[name] = self._inputs[name].detach().clone().requires_grad_()
        return self._inputs[name]

    def parameter(self, name: str) -> Tensor:
        """Return the model's parameter of a name."""
        if self._parameters is None:
            self._parameters = {clean_name(n): p for n, p in self._model.named_parameters()}
        return self._parameters[name]


def _constants_in(value: Any) -> Iterator[str]:
    """Yield the names of the constants that a call refers to."""
    if isinstance(value, list):
        for item in value:
            yield from _constants_in(item)
    elif isinstance(value, dict):
        if isinstance(value.get("$c"), str):
            yield value["$c"]
        for item in value.values():
            yield from _constants_in(item)


_VALUES: dict[str, Callable[[Callable[[Any], Any], Any], Any]] = {
    "$tuple": lambda value, items: tuple(value(item) for item in items),
    "$map": lambda value, items: {key: value(item) for key, item in items.items()},
    "$slice": lambda value, parts: slice(*(value(part) for part in parts)),
    "$ellipsis": lambda value, _: Ellipsis,
    "$torch": lambda value, name: _constant_of_torch(name),
    "$generator": lambda value, how: _generator(*how),
    "$device": lambda value, kind: torch.device(kind if kind != "cuda" or torch.cuda.is_available() else "cpu"),
}


def _generator(kind: str, state: str) -> torch.Generator:
    """Return a generator as the script's was when it gave it to a call."""
    generator = torch.Generator(kind if kind != "cuda" or torch.cuda.is_available() else "cpu")
    if generator.device.type == kind:
        generator.set_state(state_of_text(state))
    return generator


def _constant_of_torch(name: str) -> Any:
    """Return a dtype, layout or memory format; a tape names nothing else of torch but functions."""
    found = getattr(torch, name, None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise ConfigError(f"loss: the tape names torch.{name:.60}, which is no dtype, layout or memory format")
    return found


def _inside(value: Any, path: list[Any]) -> Any:
    """Return what stands at keys and fields of a result. Raises ConfigError for what is no data: a tape runs no code."""
    for key in path:
        is_container = isinstance(value, (Mapping, list, tuple))
        if not is_container and str(key).startswith("_"):
            raise ConfigError(f"loss: the tape asks for {key!s:.60}, which is no field of a result")
        value = value[key] if is_container else getattr(value, key)
    if callable(value) and path:
        raise ConfigError(f"loss: the tape asks for {path[-1]!s:.60}, which is no field of a result")
    return value
