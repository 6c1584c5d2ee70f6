"""Tensors that are spread over ranks (DTensor): the part that this rank holds, and a part like it of a whole one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Part", "Spread", "is_spread", "own_part", "own_parts", "part_like", "sharded_like", "total_norm"]


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Nothing is imported to find out."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def own_part(tensor: Tensor) -> Tensor:
    """Return the memory that this rank holds of a DTensor, any other tensor as it is; no gradient flows through."""
    if not is_spread(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def own_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `own_part` of each."""
    return {name: own_part(tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Spread:
    """How a DTensor is spread, to make one of a part again; None for a tensor that is not."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Spread | None:
        """Describe a tensor."""
        if not is_spread(tensor):
            return None
        spread: Any = tensor
        return cls(spread.device_mesh, tuple(spread.placements), tensor.shape, tensor.stride())

    def joined(self, part: Tensor) -> DTensor:
        """Return the DTensor of which `part` is this rank's; nothing is sent."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a tensor: where it begins and how far it reaches, by dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Return the view of a whole tensor."""
        return whole[tuple(slice(at, at + size) for at, size in zip(self.offset, self.shape, strict=True))]


def part_like(like: Tensor) -> Part | None:
    """Return the box that this rank holds of a DTensor; None of a tensor that is not spread.

    Raises CheckpointError where what it holds is no box: rows that a stride deals out to the ranks unevenly.
    """
    if not is_spread(like):
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spread: Any = like
    shape, offset = compute_local_shape_and_global_offset(like.shape, spread.device_mesh, spread.placements)
    held = tuple(own_part(like).shape)
    if tuple(shape) != held:
        raise CheckpointError(
            f"a tensor of shape {tuple(like.shape)} is cut by {spread.placements} into parts of {held} here, and torch "
            f"tells {tuple(shape)}",
            hint="cut it evenly, or load the checkpoint by one process",
        )
    return Part(offset=tuple(offset), shape=held)


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, as `like`, of its shape, is spread; a tensor that is not as it is.

    Every rank has the whole one, of its own file: nothing is sent.
    """
    part = None if is_spread(whole) else part_like(like)
    return whole if part is None else part.of(whole)


def total_norm(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Return the Euclidean norm over all ranks of tensors, each given with the norm of this rank's part.

    Of tensors that are spread alike the squares are added over the ranks at once: a collective that all ranks run.
    """
    plain = [norm.to(device) for tensor, norm in parts if not is_spread(tensor)]
    groups: dict[tuple[Any, tuple[bool, ...]], list[Tensor]] = {}
    for tensor, norm in parts:
        if is_spread(tensor):
            spread: Any = tensor
            key = (spread.device_mesh, tuple(p.is_replicate() for p in spread.placements))
            groups.setdefault(key, []).append(norm.to(device))
    for (mesh, replicated), norms in groups.items():
        from torch.distributed.tensor import DTensor, Partial, Replicate

        squares = torch.linalg.vector_norm(torch.stack(norms)).square()
        placements = [Replicate() if same else Partial() for same in replicated]
        plain.append(DTensor.from_local(squares, mesh, placements, run_check=False).full_tensor().sqrt())
    if not plain:
        return torch.zeros((), device=device)
    total: Tensor = torch.linalg.vector_norm(torch.stack(plain))
    return total
