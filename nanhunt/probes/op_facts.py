"""What an op does with its arguments, by its own schema: looked up once an op, asked for at every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.training.tree import tensors_of

__all__ = ["WAIT", "OpFacts", "facts_of", "fresh_outputs", "lane_of", "taken_apart"]

#: Ops whose memory is whatever it was.
_FACTORIES = ("aten.empty", "aten.new_empty", "aten.resize_", "aten.set_")
#: In-place ops that do not read what they overwrite, which may be uninitialised memory.
_OVERWRITES = frozenset(
    f"{name}_"
    for name in (
        "copy fill zero normal uniform bernoulli random exponential log_normal cauchy geometric _foreach_copy _foreach_zero"
    ).split()
)
#: What kernels write into without their schema's saying so: running statistics.
_UNDECLARED = frozenset({"running_mean", "running_var"})
#: Ops whose output has the elements of their one operand.
_COPIES = frozenset({"aten.clone", "aten._to_copy"})
#: Ops of torch.distributed, and the one that waits for a functional one's result.
_COLLECTIVES, WAIT = ("c10d.", "_c10d_functional.", "c10d_functional.", "symm_mem."), "_c10d_functional.wait_tensor"
#: Ops whose list arguments run side by side.
_LISTS = ("aten._foreach_", "aten._fused_", "aten._amp_foreach_")


@dataclass(frozen=True, slots=True)
class OpFacts:
    """One op as its schema describes it."""

    #: `aten.add.Tensor`; the default overload without its name
    name: str
    #: it computes nothing that could go wrong: a view, or a call that is no overload
    is_transparent: bool
    #: it gives memory as it finds it
    is_factory: bool
    #: it copies one tensor, into another format at most
    is_copy: bool
    #: it sends to other ranks: never run by one rank alone, and what it gives is there once it was waited for
    is_collective: bool
    #: it does the same to each tensor of its lists, a lane each
    has_lanes: bool
    arguments: tuple[str, ...]
    #: arguments that it writes into, and those whose old content it does not read
    written: frozenset[str]
    unread: frozenset[str]
    #: of each return: whether it is an argument handed back
    returns_alias: tuple[bool, ...]


_FACTS: dict[Any, OpFacts] = {}


def facts_of(func: Any) -> OpFacts:
    """Return the facts of what a dispatch mode was called with."""
    facts = _FACTS.get(func)
    if facts is None:
        facts = _FACTS[func] = _read(func)
    return facts


def _read(func: Any) -> OpFacts:
    if not isinstance(func, torch._ops.OpOverload):
        nothing: frozenset[str] = frozenset()
        return OpFacts(str(func), True, False, False, False, False, (), nothing, nothing, ())
    name = str(func).removesuffix(".default")
    base = name.split(".")[1]
    arguments, returns = func._schema.arguments, func._schema.returns
    written = frozenset(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    if "batch_norm" in base and "backward" not in base:
        written |= _UNDECLARED & {a.name for a in arguments}
    out = {a.name for a in arguments if a.kwarg_only and a.name in written}
    return OpFacts(
        name=name,
        is_transparent=bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns),
        is_factory=name.startswith(_FACTORIES),
        is_copy=name in _COPIES,
        is_collective=name.startswith(_COLLECTIVES) and name != WAIT,
        has_lanes=name.startswith(_LISTS) and any("Tensor" in str(a.type) and "List" in str(a.type) for a in arguments),
        arguments=tuple(a.name for a in arguments),
        written=written,
        unread=frozenset({*out, "self"} if base in _OVERWRITES else out),
        returns_alias=tuple(r.alias_info is not None for r in returns),
    )


def taken_apart(
    facts: OpFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[tuple[str, Tensor]], tuple[float, ...]]:
    """Return the tensors among the arguments, by argument name, and the plain numbers.

    Tensors of a list are `name.0`, `name.1` …; a truth value is no number.
    """
    tensors: list[tuple[str, Tensor]] = []
    numbers: list[float] = []
    for name, value in [*zip(facts.arguments, args, strict=False), *kwargs.items()]:
        if isinstance(value, Tensor):
            tensors.append((name, value))
        elif isinstance(value, (list, tuple)):
            tensors += [(f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Tensor)]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers.append(float(value))
    return tensors, tuple(numbers)


def fresh_outputs(facts: OpFacts, result: Any) -> list[tuple[str, Tensor]]:
    """Return the outputs that are no arguments: an in-place op returns what it was given."""
    alias = facts.returns_alias
    if len(alias) == 1 and alias[0]:
        return []
    if len(alias) <= 1:
        return [("output", result)] if isinstance(result, Tensor) else list(tensors_of(result, "output"))
    named = [(f"output.{i}", value) for i, value in enumerate(result) if not alias[i]]
    return [pair for name, value in named for pair in tensors_of(value, name)]


def lane_of(op: str, argument: str) -> str:
    """Return the lane of an argument such as `self.3`: '3' of an op on lists, '' of any other."""
    if not op.startswith(_LISTS) or (argument.startswith("output.") and op.startswith("aten._fused_")):
        return ""  # a fused norm's several outputs are no lanes; fused optimizers put out nothing
    index = argument.rpartition(".")[2]
    return index if index.isdigit() else ""
