"""OnDemand: tensors that stay in their file until one is asked for, so that loading needs no second copy.

A folder of torch.distributed.checkpoint cannot be mapped: a tensor lies in it in pieces, one a rank. Read whole, it
would stand in memory beside the model that it is copied into. So only its outline (shapes and dtypes, on the meta
device) is kept, and each tensor is put together when it is copied, and let go. Of a tensor that the model spreads over ranks a rank reads its own part.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any, Protocol

from torch import Tensor

from nanhunt.training.shards import Part, part_like, sharded_like

__all__ = ["OnDemand", "Read", "outline", "part_of"]


class Read(Protocol):
    """Reads the tensor that a placeholder stands for, or a part of it, into memory of its own."""

    def __call__(self, placeholder: Tensor, part: Part | None = None, /) -> Tensor:
        """Return it."""


class OnDemand(dict[str, Any]):
    """A state by name; each look at a tensor reads it anew, into memory of its own.

    `outline` holds a meta tensor for each that is to be read, and everything else as it is. A dict, because torch's
    optimizers know no other mapping; not to be written to.
    """

    def __init__(self, outline: Mapping[str, Any], read: Read) -> None:
        super().__init__(outline)
        self.outline = dict(outline)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        value = self.outline[name]
        return self.read(value) if isinstance(value, Tensor) and value.is_meta else value

    def __iter__(self) -> Iterator[str]:
        # with an iterator of its own, dict() and {**} look at each item rather than copy what lies beneath
        return iter(self.outline)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value, a tensor read, or the default."""
        return self[name] if name in self.outline else default

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return names and values; a tensor is read when it is reached."""
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return the values; a tensor is read when it is reached."""
        return ValuesView(self)


def part_of(state: Mapping[str, Any], name: str, like: Tensor) -> Tensor:
    """Return what this rank needs of a tensor that is to be spread as `like`, of its shape, is; nothing is sent."""
    held = outline(state)[name]
    part = part_like(like)
    if part is None or not held.is_meta or not isinstance(state, OnDemand):
        return sharded_like(state[name], like)
    return state.read(held, part)


def outline(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state with meta tensors in place of those that were not read: for a look at shapes and dtypes."""
    return state.outline if isinstance(state, OnDemand) else state
