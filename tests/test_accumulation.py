"""What bf16 loses of a sum of gradients is measured against fp64, and exact sums lose nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nanhunt.accumulation import accumulates_narrowly, accumulation_loss
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run


class Lone(nn.Module):
    """One weight, whose gradient is the batch."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    assert isinstance(model, Lone)
    return (model.weight * batch.to(model.weight.dtype)).sum()


def run_of(gradients: list[float], dtype: torch.dtype = torch.bfloat16) -> tuple[TrainingRun, SnapshotRing]:
    run = tiny_run(Lone(dtype), loss, [torch.tensor([g]) for g in gradients], accumulate=len(gradients))
    # what is added up is not divided: the numbers of a case are those that backward delivers
    run.loss = lambda model, batch: loss(model, batch) * len(gradients)
    ring = SnapshotRing(run)
    ring.offer(run, 0)
    return run, ring


def test_small_gradients_behind_a_large_one_are_lost_in_bf16_and_not_in_fp32() -> None:
    gradients = [256.0, *[0.75] * 64]  # half an ulp of 256 is 1 in bf16
    run, ring = run_of(gradients)
    body = accumulation_loss(run, ring, 0)
    assert body is not None
    assert body["passes"] == 65
    assert body["error"] == pytest.approx(48 / (256 + 48), rel=1e-3)
    assert not accumulates_narrowly(run_of(gradients, torch.float32)[0])


def test_gradients_that_add_up_exactly_lose_nothing() -> None:
    body = accumulation_loss(*run_of([1.0] * 8), 0)
    assert body is not None
    assert body["error"] == 0.0


def test_a_step_of_one_backward_pass_has_nothing_to_lose() -> None:
    assert accumulation_loss(*run_of([3.0]), 0) is None


def test_the_run_is_left_as_it_was() -> None:
    run, ring = run_of([1.0, 2.0])
    before = run.model.state_dict()["weight"].clone()
    accumulation_loss(run, ring, 0)
    assert torch.equal(run.model.state_dict()["weight"], before)
    assert not run.trainable()[0]._backward_hooks
