"""Loops that let ranks part at step 13, each in a way of its own, and what each is without its mistake.

They build on `net`. The batch says which step it is: a step that runs again does the same again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from tests.ranks.programs import net

AT, ON = 13, 1


def batches(start_step: int, rank: int, world_size: int, shared: bool = False) -> Iterator[dict[str, Any]]:
    for step, batch in enumerate(net.batches(start_step, rank, world_size, shared=shared), start_step):
        yield batch | {"step": step}


def is_here(batch: dict[str, Any]) -> bool:
    return batch["step"] == AT and dist.get_rank() == ON


def compute_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(model(batch["x"], batch["gain"]), batch["labels"])


def plain(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    optimizer.step()
    return loss


def no_sync(model: Any, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """One rank takes the step for one that only accumulates. The others wait for none: DDP has its own reduction there."""
    optimizer.zero_grad()
    with model.no_sync():  # each reduces by hand
        loss = compute_loss(model, batch)
        loss.backward()
    for parameter in model.parameters():
        mean = parameter.grad.clone()
        dist.all_reduce(mean)
        if not is_here(batch):
            parameter.grad = mean / dist.get_world_size()
    optimizer.step()
    return loss


def own_skip(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """A rank leaves out the update where its own loss is beyond a bound."""
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    if not is_here(batch):
        optimizer.step()
    return loss


def own_noise(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """Noise on the weights, of which from one step on each rank draws its own."""
    loss = plain(model, batch, optimizer)
    draw = torch.Generator().manual_seed(batch["step"] + 100 * is_here(batch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-4 * torch.randn(parameter.shape, generator=draw).to(parameter.device)
    return loss


def own_state(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """A rank forgets its second moments."""
    if is_here(batch):
        for state in optimizer.state.values():
            state["exp_avg_sq"].zero_()
    return plain(model, batch, optimizer)


class Centred(net.Net):
    """Keeps an average of its inputs, each rank of its own ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(net.WIDTH))

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        self.centre.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x - self.centre, gain)


class Counting(net.Net):
    """Counts the inputs that it has seen, each rank its own ones."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        self.seen += torch.stack([(x[:, 0] > 0).sum(), (x[:, 0] <= 0).sum()])
        return super().forward(x, gain)


def with_counter(mesh: DeviceMesh) -> nn.Module:
    return nn.parallel.DistributedDataParallel(Counting().to(mesh.device_type), broadcast_buffers=False)


def with_buffer(mesh: DeviceMesh, broadcast: bool) -> nn.Module:
    model = Centred().to(mesh.device_type)
    return nn.parallel.DistributedDataParallel(model, broadcast_buffers=broadcast)


class Dropping(net.Net):
    """Drops activations that every rank of a tensor-parallel run holds."""

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2), gain)


def with_dropout(mesh: DeviceMesh) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = Dropping().to(mesh.device_type)
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def own_dropout(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    if is_here(batch):
        torch.rand(1)  # this rank's generator leaves the others'
    return plain(model, batch, optimizer)


def shard_clip(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """Clips by the norm of what this rank holds."""
    return clipped(model, batch, optimizer, own=True)


def whole_clip(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    return clipped(model, batch, optimizer, own=False)


def clipped(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, *, own: bool) -> Tensor:
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    squares = torch.stack([squared(p.grad, own=own) for p in model.parameters()])
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.1, squares.sum().sqrt(), foreach=False)
    optimizer.step()
    return loss


def squared(grad: Any, *, own: bool) -> Tensor:
    """Return a gradient's sum of squares, that of its whole or of what this rank holds of it."""
    if hasattr(grad, "placements"):
        grad = grad.to_local() if own else grad.full_tensor()
    return grad.square().sum()


def usual_clip(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = compute_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return loss


@torch.library.custom_op("nanhunt_tests::passed_on", mutates_args=())
def passed_on(x: Tensor, is_worn: bool) -> Tensor:
    """Return x, as a device does that is wrong in one place."""
    y = x.clone()
    if is_worn:
        y.view(-1)[3] = float("nan")
    return y


passed_on.register_autograd(lambda ctx, grad: (grad, None))


def worn(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """From one step on a rank computes wrongly, whatever it is given."""
    optimizer.zero_grad()
    is_worn = batch["step"] >= AT and dist.get_rank() == ON
    loss = F.cross_entropy(passed_on(model(batch["x"], batch["gain"]), is_worn), batch["labels"])
    loss.backward()
    optimizer.step()
    return loss
