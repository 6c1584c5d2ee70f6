"""References on a tape: to an earlier result, to a parameter, or to a constant that goes into the bundle.

    {$v: [3, 0]}   of call 3 the first item      {$c: target}   a constant      {$p: head.weight}   a parameter
    {$generator: [cpu, state]}   a random generator of the script's, as it stood before the call
    {$tuple: […]}, {$map: {…}}, {$slice: […]}, {$torch: float32}, {$device: cuda}, {$ellipsis: 1}; numbers, texts, lists

Tensors are known by identity, and held weakly: nothing lives longer because of a tape, but the copies of constants.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanhunt.recorder.history import copied
from nanhunt.training.generators import spelled_state

__all__ = ["Ref", "References", "UntapedError", "references_in"]

Ref = dict[str, Any]


class UntapedError(Exception):
    """Something that a tape cannot hold; the text says what."""


class References:
    """What a tape's calls may refer to, and the constants that they do."""

    def __init__(self, names: dict[int, str], trained: frozenset[int]) -> None:
        """Begin with the names of the model's parameters by their ids, and the ids of all that is trained."""
        self._names = names
        self._trained = trained
        #: constants by the name of the argument that they were
        self.inputs: dict[str, Any] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], Ref]] = {}
        self._constants: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def know(self, tensor: Tensor, ref: Ref) -> None:
        """Let a reference stand for a tensor."""
        self._known[id(tensor)] = (weakref.ref(tensor), ref)

    def of(self, tensor: Tensor) -> Ref | None:
        """Return the reference of a tensor that is a result; None of others."""
        kept, ref = self._known.get(id(tensor), (None, None))
        return ref if kept is not None and kept() is tensor else None

    def descends(self, tensor: Tensor) -> bool:
        """Whether what is made of a tensor belongs on the tape."""
        # a parameter counts where a gradient can come of it: a penalty on the weights
        return self.of(tensor) is not None or (id(tensor) in self._names and torch.is_grad_enabled())

    def may_concern(self, values: Iterable[Any]) -> bool:
        """Whether arguments may hold a result or a parameter: False is certain, and quick, for most calls are others'."""
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._known or id(value) in self._names:
                    return True
            elif isinstance(value, (list, tuple)):
                if self.may_concern(value):
                    return True
            elif isinstance(value, Mapping) and self.may_concern(value.values()):
                return True
        return False

    def ref(self, value: Any, name: str, *, given: bool = False) -> Any:
        """Return an argument as a reference. Raises UntapedError where there is none."""
        if isinstance(value, Tensor):
            known = self.of(value)
            return known if known is not None else self._constant_of(value, name, given=given)
        if isinstance(value, np.ndarray):
            return self._constant(value, name, value.copy())
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, tuple):
            return {"$tuple": [self.ref(v, f"{name}.{i}", given=given) for i, v in enumerate(value)]}
        if isinstance(value, list):
            return [self.ref(v, f"{name}.{i}", given=given) for i, v in enumerate(value)]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"$map": {key: self.ref(v, f"{name}.{key}", given=given) for key, v in value.items()}}
        if isinstance(value, slice):
            return {"$slice": [self.ref(v, name) for v in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"$ellipsis": 1}
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return {"$torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$device": value.type}
        if isinstance(value, torch.Generator):
            return {"$generator": [value.device.type, spelled_state(value.get_state())]}
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

    def value(self, ref: Any) -> Any:
        """Return a reference's value out of the inputs; only those of the model's arguments."""
        if isinstance(ref, list):
            return [self.value(item) for item in ref]
        if not isinstance(ref, dict):
            return ref
        if "$c" in ref:
            return self.inputs[ref["$c"]]
        if "$tuple" in ref:
            return tuple(self.value(item) for item in ref["$tuple"])
        if "$map" in ref:
            return {key: self.value(item) for key, item in ref["$map"].items()}
        raise UntapedError("an argument of the model is no plain value")


def references_in(value: Any) -> Iterator[Ref]:
    """Yield the references to results and constants in a call."""
    if isinstance(value, dict):
        if "$v" in value or "$c" in value:
            yield value
            return
        for item in value.values():
            yield from references_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from references_in(item)
