"""What ranks are held to, and what may be each one's own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from nanhunt.ranks.digest import digests_of, own_by_design, state_digests
from tests.conftest import tiny_run


class Counting(nn.Module):
    """Counts what it has seen, as a router does of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        nn.init.zeros_(self.layer.bias)
        self.register_buffer("seen", torch.zeros(4))


DTYPES = (torch.bool, torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [1, 3, 8, 9, 33])
def test_a_digest_is_of_the_bits_wherever_they_lie_and_sees_each_of_them_turn(dtype: torch.dtype, numel: int) -> None:
    drawn = torch.Generator().manual_seed(numel)
    within = (3 * torch.randn(numel + 1, generator=drawn)).to(dtype)
    tensor = within[1:]  # at an address of no eight bytes
    held = tensor.clone()
    digest = digests_of({"x": tensor})["x"]
    assert digest == digests_of({"x": held})["x"]
    flat = held.view(torch.uint8).reshape(-1)
    as_bytes = flat.numpy().tobytes()
    wide = len(as_bytes) // 8 * 8
    expected = sum(np.frombuffer(as_bytes[:wide], "<i8").tolist()) + sum(as_bytes[wide:])
    assert (digest - expected) % 2**64 == 0
    for bit in random.Random(numel).sample(range(8 * len(as_bytes)), 8):
        flat[bit // 8] ^= 1 << bit % 8
        assert digests_of({"x": held})["x"] != digest
        flat[bit // 8] ^= 1 << bit % 8


def test_without_a_wrapper_counters_and_zeros_may_be_a_ranks_own_and_weights_may_not() -> None:
    run = tiny_run(Counting(), lambda model, batch: model.layer(batch).sum(), [torch.ones(2, 4)])
    own = own_by_design(run)
    assert own == {"seen", "layer.bias"}
    assert set(state_digests(run)) - own == {"layer.weight"}


def test_a_buffer_counts_as_long_as_it_holds_whole_numbers_and_is_compared_from_then_on() -> None:
    model = Counting()
    run = tiny_run(model, lambda model, batch: model.layer(batch).sum(), [torch.ones(2, 4)])
    at_first = state_digests(run)["seen"]
    model.seen += torch.tensor([3.0, 0.0, 1.0, 4.0])
    assert state_digests(run)["seen"] == at_first
    model.seen *= 0.9
    assert state_digests(run)["seen"] != at_first


def test_of_buffers_that_are_spread_over_ranks_the_whole_ones_are_compared(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = Counting()
        for name, placement in (("cut", Shard(0)), ("held", Replicate())):
            model.register_buffer(name, distribute_tensor(torch.full((4,), 0.5), mesh, [placement]))
        norm = nn.BatchNorm1d(4)
        norm.running_mean = distribute_tensor(torch.full((4,), 0.5), mesh, [Replicate()])
        model.norm = norm
        run = tiny_run(model, lambda model, batch: model.layer(batch).sum(), [torch.ones(2, 4)])
        assert set(state_digests(run)) & {"cut", "held", "norm.running_mean"} == {"held"}
    finally:
        dist.destroy_process_group()
