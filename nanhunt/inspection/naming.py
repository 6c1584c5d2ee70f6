"""Names for an optimizer's numbers: torch keys a state by a parameter's place among its groups, and keeps no names.

They are taken from the groups where those have them (torch.distributed.checkpoint, named parameters), else from the first
of the usual orders of the model's weights that fits the state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nanhunt.training.parameter_orders import Shape, fits, moment_shapes, names_in_groups, usual_orders

__all__ = ["foreign_shapes", "names_of"]


def names_of(
    groups: Sequence[Mapping[str, Any]],
    entries: Mapping[Any, Mapping[str, Any]],
    models: Sequence[Mapping[str, Tensor]],
) -> tuple[dict[Any, str], str]:
    """Return the name of each key of the state, and in words how it was found; ({}, '') where no order fits.

    `models` are the weights of each module that the checkpoint has, under the names that are told.
    """
    params = [p for group in groups for p in group.get("params", ())]
    if params and all(isinstance(p, str) and not p.isdecimal() for p in params):
        return {p: p for p in params}, "by name"
    told = names_in_groups(groups)
    if told is not None:
        return dict(zip(params, told, strict=True)), "by the names in its groups"
    sizes = [len(group.get("params", ())) for group in groups]
    for weights in (m for m in models if m and len(m) == len(params)):
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        for order in usual_orders(shapes, sizes):
            if fits([shapes[name] for name in order.names], groups, entries):
                return dict(zip(params, order.names, strict=True)), f"in {order.told}"
    return {}, ""


def foreign_shapes(entries: Mapping[Any, Mapping[str, Any]], weights: Sequence[Tensor]) -> tuple[Shape, ...]:
    """Return the shapes of moments that the model's tensors lack, each as often as it lacks; () without a model.

    Flat moments of a sharded optimizer are left out: one is as long as many parameters together.
    """
    if not weights:
        return ()
    ours = Counter(max(shapes) for entry in entries.values() if (shapes := moment_shapes(entry)))
    theirs = Counter(tuple(t.shape) for t in weights)
    return tuple(shape for shape in (ours - theirs).elements() if len(shape) > 1)
