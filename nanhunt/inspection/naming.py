"""Names for an optimizer's numbers: torch keys a state by a parameter's place among its groups, and keeps no names.

Three orders cover what people write: the model's own; matrices before vectors, as nanoGPT and transformers group what is
decayed and what is not; and names themselves, where the state has them (torch.distributed.checkpoint, named parameters).
An order is believed where the counts agree and every moment has its parameter's shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["foreign_shapes", "names_of"]

#: State that has its parameter's shape; Adafactor and its kin keep factors that have not.
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum")


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
    told = [name for group in groups for name in group.get("param_names", ()) or ()]
    if len(told) == len(params) and told:
        return dict(zip(params, map(str, told), strict=True)), "by the names in its groups"
    for weights in (m for m in models if m and len(m) == len(params)):
        own = list(weights)
        matrices_first = sorted(own, key=lambda name: weights[name].dim() < 2)
        for order, words in ((own, "in the model's order"), (matrices_first, "matrices first, then vectors")):
            shapes = (_shape(entries.get(param)) for param in params)
            if all(s in (None, tuple(weights[n].shape)) for s, n in zip(shapes, order, strict=True)):
                return dict(zip(params, order, strict=True)), words
    return {}, ""


def foreign_shapes(entries: Mapping[Any, Mapping[str, Any]], weights: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of moments that the model's tensors lack, each as often as it lacks; () without a model.

    Flat moments of a sharded optimizer are left out: one is as long as many parameters together.
    """
    if not weights:
        return ()
    ours = Counter(shape for entry in entries.values() if (shape := _shape(entry)) is not None)
    theirs = Counter(tuple(t.shape) for t in weights)
    return tuple(shape for shape in (ours - theirs).elements() if len(shape) > 1)


def _shape(entry: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    """Return the shape of an entry's moments; None of one without any."""
    found = (t for key, t in (entry or {}).items() if key in _SHAPED and isinstance(t, Tensor))
    first = next(found, None)
    return None if first is None else tuple(first.shape)
