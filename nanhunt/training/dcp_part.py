"""Read a box of one tensor from the shards of torch.distributed.checkpoint: this rank's part, or all of it.

torch's own `load` agrees with the other ranks on who reads what. Here each rank reads what it needs from the folder that
all see, and asks nobody: a rank that is missing, or that needs another tensor, keeps none waiting. What the saved pieces
were cut like is of no matter; of each that the box meets, one at a time is in memory.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nanhunt.training.shards import Part

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

__all__ = ["read_part"]


def read_part(reader: FileSystemReader, metadata: Metadata, name: str, into: Tensor, part: Part) -> None:
    """Read a box of the tensor that the folder has under a flat name into memory of the box's shape.

    Raises ValueError where the saved pieces leave a gap in it, and what the reader raises of a damaged shard.
    """
    box = ChunkStorageMetadata(offsets=torch.Size(part.offset), sizes=torch.Size(part.shape))
    entry: Any = metadata.state_dict_metadata[name]
    items = create_read_items_for_chunk_list(name, entry, [box]) if into.numel() else []
    there = sum(math.prod(item.lengths) for item in items)
    if there < into.numel():
        raise ValueError(f"{name}: the shards hold {there} of the {into.numel()} elements asked for")
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(LoadPlan(items), _Box(into)).wait()


class _Box(LoadPlanner):
    """Says where in the box a piece goes; the plan is made already."""

    def __init__(self, into: Tensor) -> None:
        self._into = into

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        """Do nothing."""

    def create_local_plan(self) -> LoadPlan:
        """Return an empty plan."""
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Return it as it is."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Return it as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Do nothing: a box is of a tensor."""

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Return the view that a piece is copied into."""
        view = self._into
        for dim, (at, size) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            view = view.narrow(dim, at, size)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Do nothing: it was copied into its place."""
