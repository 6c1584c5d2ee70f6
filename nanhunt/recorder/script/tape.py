"""What a script makes of its model's output before it calls backward, noted function by function.

    logits = model(x)                          call 0 of the model
    loss = F.cross_entropy(logits.view(-1, V), y)    torch.Tensor.view of 0, torch.nn.functional.cross_entropy of 1

How it works. Between the model's forward pass and the backward pass a mode of torch's functions sees every call. One on
something that descends from the model's output is noted: its name, its arguments as references to earlier results, to
parameters, or as constants that go into the bundle, and the script's line. `training.taped_loss` runs the notes again.

What it costs. Some microseconds a call, on the main thread, outside of the model. Tensors are held weakly; constants
are copied as a batch is.

What is not covered. What torch does not tell a mode of: functions of `torch.autograd.Function`, scripted and compiled
functions. What descends from those needs a gradient and from nothing known: the tape says so, and is none.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.probes.source import caller_line
from nanhunt.recorder.script.references import Ref, References, UntapedError, references_in
from nanhunt.recorder.script.torch_calls import attribute_of, labels, paths_in, tensors_in, writes_into
from nanhunt.training.loss import loss_in
from nanhunt.training.names import clean_name
from nanhunt.training.recorded_error import RecordedError
from nanhunt.training.tape_functions import is_known, name_of

__all__ = ["Tape", "parameter_names"]

#: Calls that a tape may have: a loop of the script's own over a sequence's positions, not one without end.
CALLS = 20_000
#: Calls of the model without a backward pass: a script that goes on does not train by them.
MODEL_CALLS = 512
#: Calls that give a tensor other than what they seem to: the gradient that a hook changes is none of the loss.
_HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook"})

_DIVISIONS = ("torch.Tensor.div", "torch.Tensor.__truediv__", "torch.div", "torch.true_divide")


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return each parameter's name by its id."""
    return {id(p): clean_name(name) for name, p in model.named_parameters()}


class Tape:
    """The calls of one micro-step. `inputs` and `text` are the batch that replays it."""

    def __init__(self, names: dict[int, str], trained: frozenset[int], device: torch.device) -> None:
        """Begin with the names of the model's parameters, and the ids of all that is trained."""
        self._refer = References(names, trained)
        self._device = device.type
        self._calls: list[dict[str, Any]] = []
        self._of_model = 0
        self._results: list[Ref] = []
        #: the last quotient of a scalar by a number: its dividend, for a loss that is divided by the micro-batches
        self._quotient: tuple[int, Tensor] | None = None
        #: why it cannot be kept; '' while it can
        self.trouble = ""
        self._own_loss: Ref | None = None
        #: what left the step
        self.left_by: RecordedError | None = None
        #: the last call that raised
        self._broken: int | None = None

    # --- the model's calls ---------------------------------------------------------------------------------------

    def model_begins(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of the model. Raises UntapedError where a file cannot hold its arguments."""
        self._of_model += 1
        if self._of_model > MODEL_CALLS:
            raise UntapedError(f"of call {MODEL_CALLS} without a backward pass is not kept")
        names = labels(model.forward, "input", len(args))
        call = {
            "args": [self._refer.ref(value, names[i], given=True) for i, value in enumerate(args)],
            "kwargs": {key: self._refer.ref(value, key, given=True) for key, value in kwargs.items()},
        }
        self._append(call | self._surroundings())

    def model_ends(self, output: Any) -> None:
        """Note what the last call of the model returned."""
        self._learn(output)
        loss = loss_in(output)
        self._own_loss = self._refer.of(loss) if loss is not None else None

    # --- the script's calls --------------------------------------------------------------------------------------

    def begins(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call that is about to be made; return whether it was noted."""
        if not self._refer.may_concern(args) and not (kwargs and self._refer.may_concern(kwargs.values())):
            return False
        name = getattr(function, "__name__", "")
        if not self._belongs(function, name, args, kwargs):
            return False
        writes = writes_into(name, kwargs)
        if name in _HOOKS and torch.is_grad_enabled():
            self.fail(f"{name} on what the model returned")
        call: dict[str, Any] = {"fn": name_of(function)}
        try:
            if call["fn"] is None or not is_known(call["fn"]):
                raise UntapedError(f"{name or function} is no function that torch lets be called by its name")
            words = labels(function, name, len(args))
            call["args"] = [self._refer.ref(value, words[i]) for i, value in enumerate(args)]
            call["kwargs"] = {key: self._refer.ref(value, key) for key, value in kwargs.items()}
        except UntapedError as error:
            if writes:
                self.fail(str(error))
            call = {"unkept": str(error)}
        if call.get("fn") in _DIVISIONS and isinstance(args[0], Tensor) and args[0].numel() == 1:
            self._quotient = (len(self._calls), args[0].detach().clone())
        line = caller_line()
        self._append(
            call | self._surroundings() | ({"at": list(line)} if line else {}) | ({"writes": 1} if writes else {})
        )
        return True

    def _belongs(self, function: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has a part in what becomes of the model's output."""
        if name in ("__get__", "__set__") and attribute_of(function) == "grad":
            return False
        return any(self._refer.descends(t) for t in tensors_in((args, kwargs)))

    def ends(self, result: Any) -> None:
        """Note what the last call returned; one that returned no tensor and wrote into none is forgotten."""
        call = self._calls[-1]
        if not self._learn(result) and "writes" not in call:
            self._calls.pop()

    def raised(self) -> None:
        """Note that the last call raised: where that ends the step, a replay has to come there."""
        self._broken = len(self._calls) - 1

    def alias(self, result: Tensor, source: Tensor) -> None:
        """Let what a gradient scaler made of a loss stand for the loss."""
        ref = self._refer.of(source)
        if ref is not None:
            self._refer.know(result, ref)

    def backward_from(self, root: Any) -> None:
        """Note what a backward pass begins with."""
        ref = self._refer.of(root) if isinstance(root, Tensor) else None
        if ref is None:
            self.fail("backward begins with a tensor that does not come from the model by functions of torch")
        else:
            self._results.append(ref)

    def fail(self, why: str) -> None:
        """Give up."""
        self.trouble = self.trouble or why

    @property
    def inputs(self) -> dict[str, Any]:
        """The constants by name, as they are kept so far."""
        return self._refer.inputs

    # --- what becomes of it --------------------------------------------------------------------------------------

    @property
    def has_results(self) -> bool:
        """Whether backward began."""
        return bool(self._results)

    def is_plain(self, accumulate: int) -> bool:
        """Whether the loss is what the model's one call returned as its loss, divided by the micro-batches."""
        called = sum("fn" not in call and "unkept" not in call for call in self._calls)
        loss, divisor = self._before_division()
        if (
            called != 1
            or self._own_loss is None
            or any("writes" in call for call in self._calls)
            or self._is_given_generator()
        ):
            return False
        return loss == self._own_loss and divisor == accumulate

    def _is_given_generator(self) -> bool:
        return "$generator" in str(self._calls[0])

    def text(self) -> str:
        """Return the calls that the results need, as JSON. Raises UntapedError where that cannot be."""
        before, divisor = self._before_division()
        body = {"calls": self._needed_calls(), "results": self._results, "before": before, "divisor": divisor}
        return json.dumps(body | self._ending())

    def _ending(self) -> dict[str, Any]:
        return {} if self.left_by is None else {"raised": self.left_by.body()}

    def _needed_calls(self) -> list[dict[str, Any] | None]:
        """Return the calls, None for those that nothing needs. Raises UntapedError where one of the others is not kept."""
        if self.trouble:
            raise UntapedError(self.trouble)
        needed = self._needed()
        for index in sorted(needed):
            if "unkept" in self._calls[index]:
                raise UntapedError(self._calls[index]["unkept"])
        return [call if index in needed else None for index, call in enumerate(self._calls)]

    def whole(self) -> tuple[Tensor, float] | None:
        """Return the loss that backward began with a share of, and of how many shares; None where it was no share."""
        before, divisor = self._before_division()
        if divisor == 1 or before is None or self._quotient is None:
            return None
        index, dividend = self._quotient
        return (dividend, divisor) if self._results[0]["$v"] == [index] else None

    def prune(self) -> None:
        """Let constants go that no needed call has."""
        used: set[str] = set()
        needed = self._needed()
        for index, call in enumerate(self._calls):
            if index in needed:
                used |= {ref["$c"] for ref in references_in(call) if "$c" in ref}
        for name in [n for n in self.inputs if n not in used]:
            del self.inputs[name]

    def first_arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the model's first call, as a batch holds them."""
        call = self._calls[0]
        return [self._refer.value(r) for r in call["args"]], {
            key: self._refer.value(r) for key, r in call["kwargs"].items()
        }

    def _needed(self) -> set[int]:
        """Return the calls that the results come from; the model's own, and any that writes, with what they take."""
        always = [index for index, call in enumerate(self._calls) if self._is_needed_always(call)]
        last = max((index for index, call in enumerate(self._calls) if "do" not in call), default=None)
        # one that raised and was followed by others did not end the step; before any backward the last may have, unseen
        ending = [last] if last is not None and (last == self._broken or not self._results) else []
        queue = [*always, *(ref["$v"][0] for ref in self._results), *ending]
        needed: set[int] = set()
        while queue:
            index = queue.pop()
            if index not in needed:
                needed.add(index)
                queue += [ref["$v"][0] for ref in references_in(self._calls[index]) if "$v" in ref]
        return needed

    def _is_needed_always(self, call: dict[str, Any]) -> bool:
        return ("fn" not in call and "unkept" not in call) or "writes" in call

    def _before_division(self) -> tuple[Ref | None, float]:
        """Return what the only result is a number's share of, and that number; the result itself and 1 without one."""
        if len(self._results) != 1:
            return None, 1
        ref = self._results[0]
        call = self._calls[ref["$v"][0]]
        if call.get("fn") in _DIVISIONS:
            args = call["args"]
            if len(args) == 2 and isinstance(args[1], (int, float)) and isinstance(args[0], dict) and "$v" in args[0]:
                return args[0], args[1]
        return ref, 1

    # --- references ----------------------------------------------------------------------------------------------

    def _append(self, call: dict[str, Any]) -> None:
        if len(self._calls) >= CALLS:
            raise UntapedError(f"more than {CALLS} calls between the model and backward")
        self._calls.append(call)

    def _surroundings(self) -> dict[str, Any]:
        plain = {} if torch.is_autocast_enabled(self._device) else {"plain": 1}
        return plain | ({} if torch.is_grad_enabled() else {"no_grad": 1})

    def _learn(self, result: Any) -> bool:
        """Know the tensors of a result as those of the last call; return whether there are any."""
        found = list(paths_in(result))
        for path, tensor in found:
            self._refer.know(tensor, {"$v": [len(self._calls) - 1, *path]})
        return bool(found)
