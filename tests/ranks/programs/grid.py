"""The small net on a mesh of two dimensions, and a checkpoint in shards that as many ranks save together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.ranks.programs import net


def build_model(mesh: DeviceMesh, save: str = "") -> nn.Module:
    """Return the net, cut for tensor parallelism along `tp`, its shards kept by FSDP2 along the mesh's other dimensions."""
    if save:
        save_sharded(Path(save), mesh)
    names = mesh.mesh_dim_names or ()
    model = net.Net()
    if "tp" in names:
        for block in model.blocks:
            parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    over = tuple(name for name in names if name != "tp")
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh[over if len(over) > 1 else over[0]] if over else mesh)
    return model


def build_in_ddp(mesh: DeviceMesh) -> nn.Module:
    """Return the net, cut for tensor parallelism and wrapped in DDP: torch's own trainers refuse that."""
    model = net.Net()
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return nn.parallel.DistributedDataParallel(model, device_mesh=mesh["dp"])


def save_sharded(folder: Path, mesh: DeviceMesh) -> None:
    """Train the net by all ranks as one row of shards, and save it as torchtitan does: names, and the optimizer's flat."""
    torch.manual_seed(1)
    model = net.Net()
    row = init_device_mesh(mesh.device_type, (mesh.size(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=row)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _, batch in zip(range(3), net.batches(0, rank=row.get_rank(), world_size=mesh.size()), strict=False):
        optimizer.zero_grad()
        net.compute_loss(model, batch).backward()
        optimizer.step()
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    moments = get_optimizer_state_dict(model, optimizer, options=flat)
    state = {**get_model_state_dict(model), "optimizer": moments, "train_state": {"step": torch.tensor(10)}}
    dcp.save(state, checkpoint_id=folder)


def batches(start_step: int, mesh: DeviceMesh, **fault: Any) -> Iterator[dict[str, Tensor]]:
    """Yield batches, the same to the ranks that share one model."""
    names = mesh.mesh_dim_names or ()
    over = mesh["tp"].size() if "tp" in names else 1
    yield from net.batches(start_step, rank=mesh.get_rank() // over, world_size=mesh.size() // over, **fault)
