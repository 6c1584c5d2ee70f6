"""Averages of the weights: told apart from what is trained, and how far they are from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nanhunt.inspection.contents import Held, place
from nanhunt.inspection.differences import flat_index, sums
from nanhunt.inspection.facts import Average, Flip, Role
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.training.averages import averages_among

__all__ = ["average_facts", "marked"]


def marked(tensors: Sequence[Held], *, trained: int) -> list[Held]:
    """Return the tensors, those that are an average with that role and their weight's name.

    `trained` is how many parameters the optimizers have: where that is all there are, none is an average.
    """
    kept = (h for h in tensors if h.role in (Role.WEIGHT, Role.OTHER) and is_measurable(h.tensor))
    candidates = [h for h in kept if h.tensor.layout is torch.strided and h.tensor.is_floating_point()]
    if trained >= len(candidates):
        return list(tensors)
    shapes = {h.name: tuple(h.tensor.shape) for h in candidates}
    weight_of = averages_among(shapes, {h.name: h.owner for h in candidates})
    return [replace(h, role=Role.AVERAGE, average_of=weight_of[h.name]) if h.name in weight_of else h for h in tensors]


def average_facts(tensors: Sequence[Held], flips: Mapping[str, Sequence[Flip]]) -> Iterator[Average]:
    """Yield each average of the weights: a state, or a list, of its own. What a bit flipped in says nothing of it."""
    by_name = {h.name: h.tensor for h in tensors}
    states: dict[str, list[Held]] = {}
    seen: set[tuple[object, ...]] = set()  # a tied tensor has two names
    for held in tensors:
        if held.role is Role.AVERAGE and place(held.tensor) not in seen:
            seen.add(place(held.tensor))
            states.setdefault(_key(held), []).append(held)
    for key, members in states.items():
        yield _facts(key, [(h, by_name[h.average_of], (*flips.get(h.name, ()), *flips.get(h.average_of, ()))) for h in members])  # fmt: skip


def _key(held: Held) -> str:
    """Return what an average's name has before its weight's, else the key that its list stands under."""
    keys, ending = held.name.split("."), held.average_of.split(".")
    own = len(keys)
    while ending and own and keys[own - 1] == ending[-1]:
        own, ending = own - 1, ending[:-1]
    if own == len(keys):
        return held.owner or keys[0]
    while own > 1 and keys[own - 1] in ("module", "model"):
        own -= 1
    return ".".join(keys[:own]) or keys[0]


def _facts(key: str, pairs: Sequence[tuple[Held, Tensor, Sequence[Flip]]]) -> Average:
    difference = size = 0.0
    furthest, same, spoiled = ("", 0.0), 0, 0
    for held, weight, flips in pairs:
        without = [flat_index(flip.index, weight.shape) for flip in flips]
        s = sums(held.tensor.detach().reshape(-1), weight.detach().reshape(-1), without)
        difference, size = math.hypot(difference, s.difference), math.hypot(size, s.size)
        numel = weight.numel()
        same, spoiled = same + (s.same == numel), spoiled + (s.bad > 0)
        if s.size and numel > 1 and s.difference / s.size > furthest[1]:
            furthest = (held.name, s.difference / s.size)
    return Average(
        name=key,
        tensors=len(pairs),
        elements=sum(weight.numel() for _, weight, _ in pairs),
        apart=difference / size if size else 0.0,
        furthest=furthest,
        same=same,
        spoiled=spoiled,
    )
