"""The mesh of the ranks, as the config names its dimensions: for a model that is sharded by it, and for its data."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nanhunt.errors import ConfigError
from nanhunt.training.launch import rank_and_size

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["mesh_of"]


def mesh_of(sizes: Mapping[str, int] | None) -> DeviceMesh | None:
    """Return the mesh of all ranks, of these dimensions or all in a row; None in one process. The same object each time.

    Raises ConfigError where the ranks do not fill it.
    """
    size = rank_and_size()[1]
    if size == 1:
        return None
    if sizes and math.prod(sizes.values()) != size:
        told = " × ".join(f"{name} {number}" for name, number in sizes.items())
        needed = math.prod(sizes.values())
        raise ConfigError(
            f"model.mesh: {told} is a mesh of {needed} ranks, and {size} were started",
            hint=f"start it with `torchrun --nproc-per-node {needed}`, or change the mesh's sizes",
        )
    return _made(tuple(sizes.items()) if sizes else ())


@functools.cache
def _made(sizes: tuple[tuple[str, int], ...]) -> DeviceMesh:
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    kind = "cuda" if torch.cuda.is_available() and torch.distributed.get_backend() != "gloo" else "cpu"
    if not sizes:
        return init_device_mesh(kind, (rank_and_size()[1],))
    return init_device_mesh(kind, tuple(n for _, n in sizes), mesh_dim_names=tuple(name for name, _ in sizes))
