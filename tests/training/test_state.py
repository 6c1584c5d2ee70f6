"""A restored snapshot is the run at its moment, bit for bit, wherever it was kept."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.precision import in_precision
from nanhunt.rewind import Digest, kept
from nanhunt.training import state
from nanhunt.training.rng import RngState, seed_everything
from nanhunt.training.slots import Place
from nanhunt.training.state import Snapshot, state_bytes
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run
from tests.training.small_net import OPTIMIZERS, Net, adamw, advance, everything, loss_of, run_of


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("taken_at", [0, 3])
@pytest.mark.parametrize("place", [None, "memory", "disk"])
def test_restoring_brings_back_every_bit_and_the_same_future(
    optimizer: str, taken_at: int, place: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(optimizer)
    advance(run, 0, taken_at)
    if place is not None:  # as if the run were a large one
        monkeypatch.setattr(state, "SMALL", 0)
    snapshot, before = Snapshot.take(run, taken_at, place=place), everything(run)
    assert (snapshot.slot.place if snapshot.slot else None) == place
    future = advance(run, taken_at, 8)
    for _ in range(2):
        snapshot.restore(run)
        assert everything(run) == before
        assert advance(run, taken_at, 8) == future


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_scaler_and_scheduler_come_back_after_a_skipped_step() -> None:
    run = run_of(autocast="fp16", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=2))
    run.scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=0.1, total_steps=40)
    advance(run, 0, 3)
    snapshot, before = Snapshot.take(run, 3), everything(run)
    future = advance(run, 3, 9)
    assert run.scaler is not None
    assert run.scaler.state_dict() != before["scaler"]
    snapshot.restore(run)
    assert everything(run) == before
    assert advance(run, 3, 9) == future


def test_a_step_that_broke_off_after_unscaling_can_be_run_again() -> None:
    run = run_of(autocast="fp16", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    snapshot = Snapshot.take(run, 0)
    first = advance(run, 0, 1)
    snapshot.restore(run)

    class Breaks(StepWatch):
        def gradients_ready(self, parameters: Any = None) -> None:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        train_step(run, 0, Breaks())
    snapshot.restore(run)
    assert advance(run, 0, 1) == first


def test_moments_keep_a_dtype_that_is_not_the_weights() -> None:
    run = run_of(dtype=torch.bfloat16)
    advance(run, 0, 2)
    for moments in run.optimizer.state.values():
        moments["exp_avg"] = moments["exp_avg"].float() + 1e-8  # load_state_dict would round this to bf16
    snapshot, before = Snapshot.take(run, 2), everything(run)
    for moments in run.optimizer.state.values():
        moments["exp_avg"].zero_()
    snapshot.restore(run)
    assert everything(run) == before


def test_restoring_writes_into_the_tensors_that_the_users_code_holds() -> None:
    run = run_of()
    held, buffer = run.model.layer.weight, run.model.norm.running_mean
    snapshot = Snapshot.take(run, 0)
    original = held.detach().clone()
    advance(run, 0, 2)
    snapshot.restore(run)
    assert run.model.layer.weight is held
    assert run.model.norm.running_mean is buffer
    assert torch.equal(held, original)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trial_in_another_precision_leaves_no_trace(precision: str, dtype: torch.dtype) -> None:
    run = run_of(dtype=dtype, autocast=None)
    advance(run, 0, 2)
    before = everything(run)
    expected = {"fp64": torch.float64, "fp32": torch.float32}.get(precision, dtype)
    if dtype is torch.bfloat16 and precision == "fp16":
        expected = torch.float16
    with kept(run, 2), in_precision(run, precision):
        assert {p.dtype for p in run.model.parameters()} == {expected}
        train_step(run, 2, StepWatch())
    assert everything(run) == before
    assert run.autocast is None
    assert run.batches.transform is None


def test_a_body_that_raises_leaves_the_run_as_it_was() -> None:
    run = run_of()
    before = everything(run)

    def breaks_off() -> None:
        with kept(run, 0):
            advance(run, 0, 1)
            run.batches.transform = lambda step, micro, batch: batch
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert everything(run) == before
    assert run.batches.transform is None


def test_parameters_that_a_loop_unfreezes_and_adds_to_the_optimizer_are_taken_out_again() -> None:
    model = Net()
    run = tiny_run(model, loss_of, [torch.randn(3, 4) for _ in range(3)], optimizer=adamw(model))
    before = Snapshot.take(run, 0)
    model.frozen.requires_grad_(True)
    run.optimizer.add_param_group({"params": list(model.frozen.parameters()), "lr": 1.0})
    run.optimizer.param_groups[0]["lr"] = 0.5
    after = Snapshot.take(run, 1)
    before.restore(run)
    assert [len(g["params"]) for g in run.optimizer.param_groups] == [1, 3]
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    assert not any(p.requires_grad for p in model.frozen.parameters())
    after.restore(run)
    assert [g["lr"] for g in run.optimizer.param_groups] == [0.5, 0.01, 1.0]
    assert run.optimizer.param_groups[2]["params"] == list(model.frozen.parameters())
    assert all(p.requires_grad for p in model.frozen.parameters())


def test_sparse_gradients_are_kept() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    run = tiny_run(model, lambda m, ids: m(ids).square().sum(), [torch.tensor([1, 1, 3])])
    advance(run, 0, 1)
    snapshot = Snapshot.take(run, 1)
    assert model.weight.grad is not None
    grad = model.weight.grad.to_dense().clone()
    model.weight.grad = None
    snapshot.restore(run)
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad.to_dense(), grad)


def test_an_optimizer_that_keys_its_state_by_name_is_kept() -> None:
    run = run_of("sgd-momentum")
    run.optimizer.state["global"] = {"count": 3, "norm": torch.tensor(2.0)}
    snapshot = Snapshot.take(run, 0)
    run.optimizer.state["global"]["norm"].zero_()
    snapshot.restore(run)
    assert run.optimizer.state["global"]["norm"].item() == 2.0


def test_the_generators_state_is_captured_and_restored_without_drawing() -> None:
    seed_everything(7)
    captured = RngState.capture()
    drawn = [(random.random(), float(np.random.rand()), float(torch.rand(()))) for _ in range(2)]
    captured.restore()
    assert [(random.random(), float(np.random.rand()), float(torch.rand(()))) for _ in range(2)] == drawn


def test_the_ring_leaves_out_the_gradients_that_the_step_drops_and_keeps_the_others() -> None:
    model = Net()
    run = tiny_run(model, loss_of, [torch.randn(6, 4) for _ in range(3)], optimizer=adamw(model))
    model.frozen.weight.requires_grad_(True)  # no optimizer has it: its gradient is added up over the steps
    advance(run, 0, 1)
    assert list(Snapshot.take(run, 1, grads=False).grads) == ["frozen.weight"]
    run.train_step = lambda model, batch, optimizer: None  # a loop of the user's may do as it likes
    assert len(Snapshot.take(run, 1, grads=False).grads) > 1


def test_the_bytes_of_a_snapshot_are_weights_buffers_and_moments() -> None:
    run = run_of()
    weights = sum(t.numel() * t.element_size() for t in (*run.model.parameters(), *run.model.buffers()))
    assert state_bytes(run) == 3 * weights  # two moments are to come
    advance(run, 0, 1)
    moments = sum(t.numel() * t.element_size() for s in run.optimizer.state.values() for t in s.values())
    assert state_bytes(run) == weights + moments


def test_a_digest_tells_bits_and_not_values() -> None:
    model = nn.Linear(2, 1, bias=False)

    def digest(grad: Tensor) -> Digest:
        model.weight.grad = grad
        taken = Digest(tiny_run(model, loss_of, []))
        taken.gradients_ready()
        return taken

    nan, zero = torch.tensor([[float("nan"), 0.0]]), torch.tensor([[0.0, 0.0]])
    assert digest(nan).compare(digest(nan.clone()))["same_gradients"]
    told = digest(zero).compare(digest(-zero))
    assert (told["same_gradients"], told["differing"]) == (False, ["weight"])
