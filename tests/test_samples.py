"""Which samples carry a fault: the culprits are found, a placebo is run, and innocence is not invented."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nanhunt.samples import add_up, attribute_samples, loss_outliers, sample_losses
from tests.conftest import tiny_run


class Trial:
    """A step that fails when `fails` says so of the samples it runs with; counts its runs."""

    def __init__(self, fails: Callable[[set[int]], bool | None]) -> None:
        self.fails = fails
        self.runs = 0

    def __call__(self, samples: list[int]) -> bool | None:
        self.runs += 1
        assert samples == sorted(samples)
        return self.fails(set(samples))


def any_of(*culprits: int) -> Trial:
    return Trial(lambda samples: bool(samples & set(culprits)))


def test_coordinates_that_hold_are_confirmed_by_one_run_and_a_placebo() -> None:
    trial = any_of(3)
    found = attribute_samples(8, [3], trial)
    assert (found["samples"], found["method"], found["size"]) == ([3], "coordinates", 8)
    assert (len(found["placebo"]), found["placebo_faulty"]) == (1, True)
    assert 3 not in found["placebo"]
    assert trial.runs <= 3


def test_coordinates_that_mislead_are_dropped_for_a_search() -> None:
    found = attribute_samples(8, [1, 2], any_of(5))
    assert found["samples"] == [5]
    assert found["method"] == "bisection"


@settings(deadline=None)
@given(
    st.integers(4, 64).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=2)))
)
def test_a_few_culprits_are_found_in_any_batch(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    trial = any_of(*culprits)
    found = attribute_samples(size, [], trial)
    assert found["samples"] == sorted(culprits)
    assert found["placebo_faulty"] is True
    assert trial.runs < 64


def test_a_fault_of_every_sample_is_no_samples_doing_and_costs_few_runs() -> None:
    trial = Trial(lambda samples: True)
    for candidates in ([], list(range(64))):
        found = attribute_samples(64, candidates, trial)
        assert (found["samples"], "every sample fails by itself" in found["reason"]) == ([], True)
    assert trial.runs < 12


def test_a_fault_that_needs_two_samples_together_is_pinned_on_neither() -> None:
    found = attribute_samples(8, [], Trial(lambda samples: {1, 6} <= samples))
    assert (found["samples"], "takes samples together" in found["reason"]) == ([], True)


def test_a_step_that_cannot_run_with_some_samples_blames_nobody() -> None:
    for candidates in ([], [2]):
        found = attribute_samples(8, candidates, Trial(lambda samples: None))
        assert (found["samples"], "cannot run" in found["reason"]) == ([], True)


def test_a_fault_that_vanishes_with_any_change_is_shown_by_its_placebo() -> None:
    found = attribute_samples(8, [2], Trial(lambda samples: len(samples) == 8))
    assert found["placebo_faulty"] is False


def test_half_of_the_batch_or_more_leaves_no_room_for_a_placebo() -> None:
    found = attribute_samples(4, [0, 1, 2], any_of(0, 1, 2))
    assert (found["placebo"], found["placebo_faulty"]) == (None, None)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_each_samples_loss_is_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    run = tiny_run(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(x, y)])
    losses = sample_losses(run, 0, 0)
    expected = (model(x) - y).square().squeeze(1).tolist()
    assert losses == pytest.approx(expected)


def needs_all(model: nn.Module, batch: Tensor) -> Tensor:
    if len(batch) < 4:
        raise ValueError("contrastive: the batch has no negatives")
    return model(batch).mean()


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (needs_all, torch.ones(4, 2)),
        (lambda m, b: m(b).mean(), torch.ones(1, 2)),
        (lambda m, b: m(b["x"][None]).mean(), {"x": torch.ones(2), "y": torch.ones(3)}),
    ],
)
def test_a_loss_that_one_sample_does_not_have_is_not_told(loss: Any, batch: Any) -> None:
    assert sample_losses(tiny_run(nn.Linear(2, 1), loss, [batch]), 0, 0) is None


def test_losses_of_single_samples_leave_no_gradient() -> None:
    model = nn.Linear(2, 1)
    sample_losses(tiny_run(model, lambda m, b: m(b).mean(), [torch.ones(4, 2)]), 0, 0)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("losses", "outliers"),
    [
        ([2.0, 2.1, 1.9, 2.05, 50.0], [4]),
        ([2.0, math.nan, 1.9, 2.05, 2.0], [1]),
        ([2.0, 2.1, math.inf, 2.05, 2.0], [2]),
        ([2.0, 2.1, 1.9, 2.05, 2.0], []),
        ([2.0, 2.0, 2.0, 2.0, 2.1], []),
        ([2.0, 2.1, 1.9, 2.05, 5.0], []),
        ([math.nan, math.nan, 1.0, 1.0, 1.0], [0, 1]),
        ([math.nan] * 5, []),
        ([1.0, 1.0], []),
        ([], []),
    ],
)
def test_an_outlier_is_non_finite_or_far_from_the_others(losses: list[float], outliers: list[int]) -> None:
    assert loss_outliers(losses) == outliers


def test_losses_alone_explain_a_batch_by_their_mean_or_their_sum() -> None:
    assert add_up([1.0, 1.0, 28.0], 10.0)
    assert add_up([1.0, 1.0, 28.0], 30.0)


def test_losses_that_draw_their_own_numbers_explain_nothing() -> None:
    assert not add_up([0.04, 0.05, 0.04], 18.0)
    assert not add_up([1.0, math.nan, 1.0], 3.0)
