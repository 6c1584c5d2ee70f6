"""A softmax that is written by hand: an exp over a sum of itself, as attention over the edges of a graph is.

How it works. What exp gives is numbered; what sums, scatters or gathers make of it carries the number, and so does a sum
that was gathered, reshaped or guarded by a small addend. An exp that is divided by a sum of its own number is a softmax,
whatever its rows are. A Gaussian kernel over a count, or a variance over two, is none.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["HEARD_BY_HAND", "ByHand", "Kept", "weighs_vectors"]

T = TypeVar("T")

#: What adds exponentials up.
_SUMS = frozenset({"sum", "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "segment_reduce"})
#: What leaves such a sum one, and probabilities what they are.
_STILL = frozenset(
    {
        "__getitem__",
        "index_select",
        "gather",
        "unsqueeze",
        "expand",
        "expand_as",
        "view",
        "reshape",
        "repeat_interleave",
    }
    | {"clamp", "clamp_min", "clamp_", "add", "add_", "__add__", "__radd__"}
    | {"dropout", "dropout_", "to", "type_as", "float", "half", "bfloat16"}
)
_QUOTIENTS = frozenset({"div", "div_", "true_divide", "__truediv__"})
#: All that `ByHand.hear` asks for.
HEARD_BY_HAND = _SUMS | _STILL | _QUOTIENTS | {"exp"}
#: ln of an exponential that is 1 but for rounding: its maximum was taken from the scores.
_ROUNDED_ZERO = 1e-2


class Kept(Generic[T]):
    """What is known of tensors, for as long as they live."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, T]] = {}

    def __len__(self) -> int:
        """Return of how many tensors something is known."""
        return len(self._known)

    def of(self, tensor: Any) -> T | None:
        """Return what is known of a tensor; None of any other value."""
        held = self._known.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return None if held is None else held[1]

    def keep(self, tensor: Any, known: T | None) -> None:
        """Keep what is known, where anything is."""
        if known is None or not isinstance(tensor, Tensor):
            return
        key = id(tensor)
        self._known[key] = (weakref.ref(tensor, lambda _: self._known.pop(key, None)), known)


class ByHand:
    """Follows exponentials through the calls of a step."""

    def __init__(self) -> None:
        self._count = 0
        #: of what exp gave, and of sums of it: the exponentials' own number
        self._exponentials, self._sums = Kept[int](), Kept[int]()
        self._made = Kept[dict[str, Tensor]]()

    @property
    def is_following(self) -> bool:
        """Whether there is an exponential, a sum of some, or a softmax that lives."""
        return bool(self._exponentials or self._sums or self._made)

    def of(self, tensor: Any) -> dict[str, Tensor] | None:
        """Return scores, entropy and keys of the softmax that a tensor is the output of; None of any other."""
        return self._made.of(tensor)

    def hear(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """Take a call and what it gave."""
        if not args or not isinstance(output, Tensor):
            return
        if name == "exp" and output.is_floating_point() and output.numel():
            self._count += 1
            self._exponentials.keep(output, self._count)
        elif name in _SUMS:
            self._sums.keep(output, next((k for a in args if (k := self._exponentials.of(a)) is not None), None))
        elif name in _QUOTIENTS and len(args) > 1:
            number = self._exponentials.of(args[0])
            if number is not None and self._sums.of(args[1]) == number:
                self._made.keep(output, _scores(args[0], output))
        elif name in _STILL:
            self._sums.keep(output, self._sums.of(args[0]))
            self._made.keep(output, self._made.of(args[0]))


def weighs_vectors(args: tuple[Any, ...]) -> bool:
    """Whether (…, 1) is multiplied with (…, d)."""
    ends = [a.shape[-1] for a in args[:2] if isinstance(a, Tensor) and a.dim() >= 2]
    return len(ends) == 2 and min(ends) == 1 < max(ends)


def _scores(exponentials: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Return the largest score, mean entropy in nats, and mean length of the rows, each of which adds up to 1.

    Where the maximum was taken from the scores, the largest distance to it stands for the largest score.
    """
    e, p = exponentials.double(), probabilities.double()
    high, low = e.amax().log(), torch.where(e > 0, e, math.inf).amin().log()
    rows = p.sum()
    return {
        "score_max": torch.where(high.abs() < _ROUNDED_ZERO, -low, high),
        "entropy": torch.special.entr(p).sum() / rows,
        "keys": p.numel() / rows,
    }
