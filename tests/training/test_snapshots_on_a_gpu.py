"""On a GPU a snapshot is queued without a wait, and has the bits of the moment at which it was taken."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanhunt.rewind import kept, rewind
from nanhunt.training import slots
from nanhunt.training.batches import BatchSource
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.rng import seed_everything
from nanhunt.training.run import TrainingRun
from nanhunt.training.slots import Place, padded
from nanhunt.training.state import Snapshot, state_bytes
from tests.training.small_net import OPTIMIZERS, Net, advance, bits, everything
from tests.training.test_slots import TENSORS

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")


def run_of(optimizer: str = "adamw", width: int = 4, **settings: Any) -> TrainingRun:
    seed_everything(0)
    model = (Net() if width == 4 else nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))).to(CUDA)
    data = [torch.randn(6, width) for _ in range(40)]
    return TrainingRun(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model) if width == 4 else torch.optim.AdamW(model.parameters(), fused=True),
        loss=lambda m, x: F.mse_loss(m(x), x),
        batches=BatchSource(data, first_step=0, accumulate=1, device=CUDA),
        device=CUDA,
        **settings,
    )


@contextmanager
def no_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("taken_at", [0, 3])
@pytest.mark.parametrize("place", [None, "memory", "disk"])
def test_restoring_brings_back_every_bit_and_the_same_future(
    optimizer: str, taken_at: int, place: Place | None
) -> None:
    run = run_of(optimizer)
    advance(run, 0, taken_at)
    snapshot, before = Snapshot.take(run, taken_at, place=place), everything(run)
    future = advance(run, taken_at, 8)
    for _ in range(2):
        snapshot.restore(run)
        assert everything(run) == before
        assert advance(run, taken_at, 8) == future


def test_taking_and_restoring_do_not_wait_for_the_device() -> None:
    run = run_of(width=512)
    advance(run, 0, 2)
    first = Snapshot.take(run, 2)  # makes its slot
    first.release(run)
    torch.cuda.synchronize()
    with no_wait():
        snapshot = Snapshot.take(run, 2)
        assert snapshot.slot is first.slot
        snapshot.restore(run)
    assert snapshot.slot is not None
    assert snapshot.slot.is_pinned
    assert all(t.is_pinned() for t in snapshot.tensors.values())


def test_what_is_written_right_after_taking_is_not_in_the_snapshot() -> None:
    run = run_of(width=4096)
    advance(run, 0, 1)
    before = everything(run)
    Snapshot.take(run, 1).release(run)
    for _ in range(3):
        a = torch.randn(4096, 4096, device=CUDA)
        for _ in range(20):  # the device is busy while the host goes on
            a = a @ a / 64
        snapshot = Snapshot.take(run, 1)
        with torch.no_grad():
            for tensor in (*run.parameters().values(), *run.buffers().values(), *run.state_tensors().values()):
                tensor.fill_(7)
        snapshot.restore(run)
        snapshot.release(run)
        assert everything(run) == before


def test_every_kind_of_tensor_arrives_as_it_was() -> None:
    tensors = {name: tensor.to(CUDA) for name, tensor in TENSORS.items()} | {"on the host": torch.randn(7)}
    slot = slots.SlotPool().lend(sum(padded(t.numel() * t.element_size()) for t in tensors.values()), pinned=True)
    for _ in range(2):
        slot.begin([torch.device("cuda", 0)])
        copies = {name: slot.keep(tensor) for name, tensor in tensors.items()}
        slot.end([torch.device("cuda", 0)])
        slot.wait()
        for name, copy in copies.items():
            tensor = tensors[name].cpu()
            assert copy.device.type == "cpu"
            if tensor.layout is torch.strided:
                assert bits(copy) == bits(tensor.resolve_conj()), name
            else:
                assert torch.equal(copy.to_dense(), tensor.to_dense())


def test_a_slot_is_written_over_only_when_it_has_been_read() -> None:
    run = run_of(width=4096)
    advance(run, 0, 1)
    with kept(run, 1):
        advance(run, 1, 3)
    before = everything(run)
    for _ in range(5):
        with kept(run, 1):
            advance(run, 1, 2)
        with kept(run, 1):
            pass
    assert everything(run) == before


def test_slots_are_pinned_once_and_let_go_with_their_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(width=512)
    pinned: list[int] = []
    pin = slots._pin
    monkeypatch.setattr(
        slots, "_pin", lambda memory, buffer: (pinned.append(buffer.data_ptr()), pin(memory, buffer))[1]
    )
    monkeypatch.setattr("nanhunt.training.ring.RING_BUDGET", 4 * state_bytes(run))
    ring = SnapshotRing(run)
    for step in range(40):
        ring.offer(run, step)
        advance(run, step, step + 1)
    rewind(run, ring, 30)
    assert len(pinned) == ring.capacity
    assert ring.told(run)[0].startswith("a snapshot takes 0.0 GB: 4 are kept in host memory")
    del ring
    run.slots = slots.SlotPool()
    gc.collect()
    cudart = torch.cuda.cudart()
    assert all(int(cudart.cudaHostUnregister(p)) != 0 for p in pinned)  # nothing is pinned there any more
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device=CUDA).add_(1)  # takes the errors that were asked for


def test_memory_that_cannot_be_pinned_serves_unpinned_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(width=512)
    runtime = torch.cuda.cudart()

    class Refuses:
        def cudaHostRegister(self, pointer: int, size: int, flags: int) -> Any:  # noqa: N802
            return runtime.cudaHostRegister(0, 0, flags)  # an error of CUDA's own, that it keeps for the next call

    monkeypatch.setattr(torch.cuda, "cudart", Refuses)
    advance(run, 0, 1)
    snapshot, before = Snapshot.take(run, 1), everything(run)
    monkeypatch.undo()
    assert snapshot.slot is not None
    assert not snapshot.slot.is_pinned
    assert run.slots.is_unpinned
    advance(run, 1, 3)
    snapshot.restore(run)
    assert everything(run) == before


def test_a_forked_process_does_not_touch_what_is_pinned() -> None:
    run = run_of(width=512)
    snapshot, before = Snapshot.take(run, 0), everything(run)
    child = os.fork()
    if child == 0:
        del snapshot
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    snapshot.restore(run)
    assert everything(run) == before
