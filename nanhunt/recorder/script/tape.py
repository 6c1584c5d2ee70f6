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
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from nanhunt.probes.source import caller_line
from nanhunt.recorder.history import copied
from nanhunt.training.loss import loss_in
from nanhunt.training.names import clean_name
from nanhunt.training.tree import tensors_of

__all__ = ["Tape", "UntapedError", "parameter_names"]

#: Calls that a tape may have: a loop of the script's own over a sequence's positions, not one without end.
CALLS = 5_000
#: Calls of the model without a backward pass: a script that goes on does not train by them.
MODEL_CALLS = 512
#: Calls that give a tensor other than what they seem to: the gradient that a hook changes is none of the loss.
_HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook"})

_DIVISIONS = ("torch.Tensor.div", "torch.Tensor.__truediv__", "torch.div", "torch.true_divide")

Ref = dict[str, Any]


class UntapedError(Exception):
    """Something that a tape cannot hold; the text says what."""


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return each parameter's name by its id."""
    return {id(p): clean_name(name) for name, p in model.named_parameters()}


class Tape:
    """The calls of one micro-step. `inputs` and `text` are the batch that replays it."""

    def __init__(self, names: dict[int, str], trained: frozenset[int], device: torch.device) -> None:
        """Begin with the names of the model's parameters, and the ids of all that is trained."""
        self._names = names
        self._trained = trained
        self._device = device.type
        #: constants by the name of the argument that they were
        self.inputs: dict[str, Any] = {}
        self._calls: list[dict[str, Any]] = []
        self._of_model = 0
        self._known: dict[int, tuple[weakref.ref[Tensor], Ref]] = {}
        self._constants: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._results: list[Ref] = []
        #: the last quotient of a scalar by a number: its dividend, for a loss that is divided by the micro-batches
        self._quotient: tuple[int, Tensor] | None = None
        #: why it cannot be kept; '' while it can
        self.trouble = ""
        self._own_loss: Ref | None = None

    # --- the model's calls ---------------------------------------------------------------------------------------

    def model_begins(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call of the model. Raises UntapedError where a file cannot hold its arguments."""
        self._of_model += 1
        if self._of_model > MODEL_CALLS:
            raise UntapedError(f"of call {MODEL_CALLS} without a backward pass is not kept")
        names = _names_of(model, len(args))
        call = {
            "args": [self._ref(value, names[i], given=True) for i, value in enumerate(args)],
            "kwargs": {key: self._ref(value, key, given=True) for key, value in kwargs.items()},
        }
        self._append(call | self._surroundings())

    def model_ends(self, output: Any) -> None:
        """Note what the last call of the model returned."""
        self._learn(output)
        loss = loss_in(output)
        self._own_loss = self._of(loss) if loss is not None else None

    # --- the script's calls --------------------------------------------------------------------------------------

    def begins(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call that is about to be made; return whether it was noted."""
        if not any(self._descends(t) for t in _tensors_in((args, kwargs))):
            return False
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__") and getattr(getattr(function, "__self__", None), "__name__", "") == "grad":
            return False
        writes = _writes(name, kwargs)
        if name in _HOOKS and torch.is_grad_enabled():
            self.fail(f"{name} on what the model returned")
        call: dict[str, Any] = {"fn": resolve_name(function)}
        try:
            if call["fn"] is None:
                raise UntapedError(f"{name or function} is no function that torch names")
            labels = _labels(function, name, len(args))
            call["args"] = [self._ref(value, labels[i]) for i, value in enumerate(args)]
            call["kwargs"] = {key: self._ref(value, key) for key, value in kwargs.items()}
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

    def ends(self, result: Any) -> None:
        """Note what the last call returned; one that returned no tensor and wrote into none is forgotten."""
        call = self._calls[-1]
        if not self._learn(result) and "writes" not in call:
            self._calls.pop()

    def alias(self, result: Tensor, source: Tensor) -> None:
        """Let what a gradient scaler made of a loss stand for the loss."""
        ref = self._of(source)
        if ref is not None:
            self._know(result, ref)

    def backward_from(self, root: Any) -> None:
        """Note what a backward pass begins with."""
        ref = self._of(root) if isinstance(root, Tensor) else None
        if ref is None:
            self.fail("backward begins with a tensor that does not come from the model by functions of torch")
        else:
            self._results.append(ref)

    def fail(self, why: str) -> None:
        """Give up."""
        self.trouble = self.trouble or why

    # --- what becomes of it --------------------------------------------------------------------------------------

    @property
    def has_results(self) -> bool:
        """Whether backward began."""
        return bool(self._results)

    def is_plain(self, accumulate: int) -> bool:
        """Whether the loss is what the model's one call returned as its loss, divided by the micro-batches."""
        called = sum("fn" not in call and "unkept" not in call for call in self._calls)
        loss, divisor = self._before_division()
        if called != 1 or self._own_loss is None or any("writes" in call for call in self._calls):
            return False
        return loss == self._own_loss and divisor == accumulate

    def text(self) -> str:
        """Return the calls that the results need, as JSON. Raises UntapedError where that cannot be."""
        if self.trouble:
            raise UntapedError(self.trouble)
        needed = self._needed()
        for index in sorted(needed):
            if "unkept" in self._calls[index]:
                raise UntapedError(self._calls[index]["unkept"])
        calls = [call if index in needed else None for index, call in enumerate(self._calls)]
        before, divisor = self._before_division()
        body = {"calls": calls, "results": self._results, "before": before, "divisor": divisor}
        return json.dumps(body)

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
                used |= {ref["$c"] for ref in _refs(call) if "$c" in ref}
        for name in [n for n in self.inputs if n not in used]:
            del self.inputs[name]

    def first_arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the model's first call, as a batch holds them."""
        call = self._calls[0]
        return [self._value(r) for r in call["args"]], {key: self._value(r) for key, r in call["kwargs"].items()}

    def _needed(self) -> set[int]:
        """Return the calls that the results come from; the model's own, and any that writes, with what they take."""
        broken = not self._results  # an exception came before backward: the last call may have raised it
        always = [i for i, c in enumerate(self._calls) if ("fn" not in c and "unkept" not in c) or "writes" in c]
        queue = [*always, *(ref["$v"][0] for ref in self._results), *([len(self._calls) - 1] if broken else [])]
        needed: set[int] = set()
        while queue:
            index = queue.pop()
            if index not in needed:
                needed.add(index)
                queue += [ref["$v"][0] for ref in _refs(self._calls[index]) if "$v" in ref]
        return needed

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
        found = list(_paths(result))
        for path, tensor in found:
            self._know(tensor, {"$v": [len(self._calls) - 1, *path]})
        return bool(found)

    def _know(self, tensor: Tensor, ref: Ref) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), ref)

    def _of(self, tensor: Tensor) -> Ref | None:
        kept, ref = self._known.get(id(tensor), (None, None))
        return ref if kept is not None and kept() is tensor else None

    def _descends(self, tensor: Tensor) -> bool:
        # a parameter counts where a gradient can come of it: a penalty on the weights
        return self._of(tensor) is not None or (id(tensor) in self._names and torch.is_grad_enabled())

    def _ref(self, value: Any, name: str, *, given: bool = False) -> Any:
        """Return an argument as a reference. Raises UntapedError where there is none."""
        if isinstance(value, Tensor):
            known = self._of(value)
            return known if known is not None else self._constant_of(value, name, given=given)
        if isinstance(value, np.ndarray):
            return self._constant(value, name, value.copy())
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, tuple):
            return {"$tuple": [self._ref(v, f"{name}.{i}", given=given) for i, v in enumerate(value)]}
        if isinstance(value, list):
            return [self._ref(v, f"{name}.{i}", given=given) for i, v in enumerate(value)]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"$map": {key: self._ref(v, f"{name}.{key}", given=given) for key, v in value.items()}}
        if isinstance(value, slice):
            return {"$slice": [self._ref(v, name) for v in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"$ellipsis": 1}
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return {"$torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$device": value.type}
        raise UntapedError(f"{name} is a {type(value).__name__}, which no file holds")

    def _constant_of(self, tensor: Tensor, name: str, *, given: bool) -> Ref:
        if id(tensor) in self._names:
            return {"$p": self._names[id(tensor)]}
        if tensor.requires_grad and (id(tensor) in self._trained or not tensor.is_leaf):
            what = (
                "is trained and lies outside of the model" if tensor.is_leaf else "comes from trained weights elsewhere"
            )
            raise UntapedError(f"{name} {what}")
        return self._constant(tensor, name, tensor)

    def _constant(self, value: Any, name: str, kept: Any) -> Ref:
        """Keep a copy; one of the same tensor, unwritten since, is kept once."""
        version = value._version if isinstance(value, Tensor) and not value.is_inference() else 0
        ref, seen, known = self._constants.get(id(value), (None, 0, ""))
        if ref is None or ref() is not value or seen != version:
            known = name
            while known in self.inputs:
                known = f"{name}_{len(self.inputs)}"
            self.inputs[known] = copied(kept) if isinstance(kept, Tensor) else kept
            self._constants[id(value)] = (weakref.ref(value), version, known)
        return {"$c": known} | ({"grad": 1} if isinstance(value, Tensor) and value.requires_grad else {})

    def _value(self, ref: Any) -> Any:
        """Return a reference's value out of the inputs; only those of the model's arguments."""
        if isinstance(ref, list):
            return [self._value(item) for item in ref]
        if not isinstance(ref, dict):
            return ref
        if "$c" in ref:
            return self.inputs[ref["$c"]]
        if "$tuple" in ref:
            return tuple(self._value(item) for item in ref["$tuple"])
        if "$map" in ref:
            return {key: self._value(item) for key, item in ref["$map"].items()}
        raise UntapedError("an argument of the model is no plain value")


def _names_of(model: nn.Module, count: int) -> list[str]:
    """Return the names of the model's first positional arguments."""
    return _labels(model.forward, "input", count)


def _labels(function: Callable[..., Any], name: str, count: int) -> list[str]:
    """Return names for a call's positional arguments: the function's own, else numbers behind its name."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    own = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    own = own[1:] if hasattr(function, "__self__") and code is not None else own
    return [own[i] if i < len(own) else f"{name.strip('_')}.{i}" for i in range(count)]


def _writes(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into what it is given: `add_`, `__setitem__`, `__iadd__`, `out=`, `x.data = …`."""
    if name in ("__setitem__", "__set__") or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    if name.startswith("__i") and name.endswith("__"):
        return name not in ("__invert__", "__int__", "__index__", "__init__")
    return name.endswith("_") and not name.endswith("__")


def _tensors_in(value: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_of(value)]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield (keys that lead to it, tensor) for each tensor of a result."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, (*path, key)) if isinstance(key, (str, int)) else ()
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))
    elif (
        len(path) < 3
        and isinstance(getattr(value, "__dict__", None), dict)
        and not isinstance(value, (type, nn.Module))
    ):
        for name, item in vars(value).items():
            yield from _paths(item, (*path, name))


def _refs(value: Any) -> Any:
    """Yield the references in a call."""
    if isinstance(value, dict):
        if "$v" in value or "$c" in value:
            yield value
            return
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)
