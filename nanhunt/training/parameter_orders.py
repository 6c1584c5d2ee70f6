"""Orders in which training programs hand a model's parameters to its optimizer, and whether a saved state can be of one.

torch keys optimizer state by a parameter's place among the groups, so a state says nothing of whose moments it holds. What
tells is the number of parameters in each group, the moments' shapes, and the programs' habits, which stand here: the model's
own order in one group; matrices in one and vectors in another, as nanoGPT groups what is decayed and what is not; decayed
weights, then biases and norms, as transformers.Trainer does. Of these an order whose groups have the state's sizes comes
first, and one is believed where every moment has its parameter's shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from nanhunt.training.on_demand import outline

__all__ = ["Order", "Shape", "fits", "moment_shapes", "names_in_groups", "usual_orders"]

Shape = tuple[int, ...]

#: State that has its parameter's shape; Adafactor and its kin keep factors that have not, NovoGrad one number.
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum", "prev")
#: names that transformers.Trainer gives no weight decay, since 4.50 (`get_decay_parameter_names`)
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Names of parameters, in the groups that a program would make of them; `told` is what the order is called."""

    told: str
    groups: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        """The names of all groups."""
        return list(chain.from_iterable(self.groups))

    @property
    def sizes(self) -> list[int]:
        """The number of parameters in each group that has any."""
        return [len(group) for group in self.groups if group]


def usual_orders(
    shapes: Mapping[str, Shape], sizes: Sequence[int], *, norms: Iterable[str] = (), by_trainer: bool = False
) -> list[Order]:
    """Return the orders that programs use, the likeliest first.

    `shapes` are the trained parameters' in the model's order, `sizes` those of the saved groups; `norms` are the names of
    modules that are a LayerNorm, where the model is there to ask; `by_trainer`: whether a Hugging Face Trainer saved the
    state.
    """
    spared = tuple(f"{name}." for name in norms if name)
    rest = [name for name in shapes if name.startswith(spared) or _UNDECAYED.search(name.lower())]
    decayed = [name for name in shapes if name not in set(rest)]
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    vectors = [name for name, shape in shapes.items() if len(shape) < 2]
    trainers = Order(
        told="the order of a Trainer's groups: decayed weights, then biases and norms",
        groups=(tuple(decayed), tuple(rest)),
    )
    orders = [
        Order(told="the model's order", groups=(tuple(shapes),)),
        Order(told="the order of matrices first, vectors after", groups=(tuple(matrices), tuple(vectors))),
        trainers,
    ]
    held = [size for size in sizes if size]
    return sorted(orders, key=lambda order: (not (by_trainer and order is trainers), order.sizes != held))


def names_in_groups(groups: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return the names that the groups themselves tell, one a parameter, in the groups' order; None where they do not.

    torch writes `param_names` of an optimizer that was made of `named_parameters()`.
    """
    if not all(len(group.get("param_names") or ()) == len(group.get("params") or ()) for group in groups):
        return None
    return [str(name) for group in groups for name in group.get("param_names") or ()] or None


def fits(order: Sequence[Shape], groups: Sequence[Mapping[str, Any]], entries: Mapping[Any, Any]) -> bool:
    """Whether as many parameters as the groups list, and every moment of the shape of the parameter that has its place."""
    params = [param for group in groups for param in group.get("params") or ()]
    if len(params) != len(order):
        return False
    return all(
        found == shape or (found == () and shape == (1,))
        for param, shape in zip(params, order, strict=True)
        for found in moment_shapes(entries.get(param))
    )


def moment_shapes(entry: Any) -> set[Shape]:
    """Return the shapes that one parameter's moments have: one of a sound state, none of an entry without any.

    A single number beside moments of a shape is no moment of its own: a NovoGrad's v, one a layer.
    """
    state: Any = outline(entry) if isinstance(entry, Mapping) else {}
    shapes = {tuple(t.shape) for t in (state.get(key) for key in _SHAPED) if isinstance(t, Tensor)}
    return shapes - {()} or shapes
