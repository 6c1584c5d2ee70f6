"""Weights of another checkpoint: what is not finite, or all; and what does not fit is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import Bench
from nanhunt.changes import change_made
from nanhunt.errors import CheckpointError
from nanhunt.interventions import RestoredWeights
from nanhunt.rewind import rewind
from nanhunt.training.checkpoint import load_checkpoint
from nanhunt.training.owned_state import reference_tensors
from nanhunt.training.run import TrainingRun
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run

CHANGE = RestoredWeights("earlier.pt")


class Net(nn.Module):
    """A norm with running statistics, a mask of -inf, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0]))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * self.scratch + torch.exp(self.get_buffer("mask"))


def net_run(**settings: float) -> TrainingRun:
    torch.manual_seed(9)
    model = Net()
    batches = [torch.randn(6, 4) for _ in range(8)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return tiny_run(model, lambda m, x: m(x).square().mean(), batches, optimizer=optimizer)


def corrupted(bench: Bench, *, weight: str = "", moment: str = "") -> Bench:
    """The run before step 3 with an infinite weight, or second moment, that was there before the replay."""
    run = bench.run
    rewind(run, bench.ring, 3)
    bench.ring._kept.clear()
    with torch.no_grad():
        if weight:
            {**run.parameters(), **run.buffers()}[weight].view(-1)[0] = math.inf
        if moment:
            run.state_of(run.parameters()[moment])["exp_avg_sq"].fill_(math.nan)
    bench.ring.offer(run, 3)
    return bench


def with_reference(run: TrainingRun) -> Bench:
    bench = trained_bench(run)
    torch.manual_seed(10)
    bench.reference.update(Net().state_dict())
    return bench


@pytest.mark.parametrize("name", ["first.weight", "norm.running_var"])
def test_what_is_not_finite_is_replaced_and_nothing_else(name: str) -> None:
    run = net_run()
    bench = corrupted(with_reference(run), weight=name)
    rewind(run, bench.ring, 3)
    before = {n: t.detach().clone() for n, t in {**run.parameters(), **run.buffers()}.items()}
    with change_made(bench, CHANGE) as made:
        for other, tensor in {**run.parameters(), **run.buffers()}.items():
            assert torch.equal(tensor, bench.reference[name] if other == name else before[other]), other
    assert made.readback == [f"1 tensor replaced by those of earlier.pt: {name}"]


def test_a_weight_that_came_infinite_is_cured_and_the_run_left_as_it_was() -> None:
    run = net_run()
    bench = corrupted(with_reference(run), weight="first.weight")
    before = whole_state(run)
    assert tried(bench, None).outcome == "persists"
    assert (tried(bench, CHANGE).outcome, whole_state(run)) == ("cured", before)


def test_moments_that_are_not_finite_are_made_anew_with_their_parameters_others() -> None:
    run = net_run()
    bench = corrupted(with_reference(run), moment="first.bias")
    rewind(run, bench.ring, 3)
    weights = {n: p.detach().clone() for n, p in run.parameters().items()}
    with change_made(bench, CHANGE) as made:
        assert not run.state_of(run.parameters()["first.bias"])
        assert float(run.state_of(run.parameters()["first.weight"])["step"]) == 3.0
        assert all(torch.equal(weights[n], p) for n, p in run.parameters().items())
    assert made.readback == ["what the optimizer keeps of 1 parameters made anew: first.bias"]
    assert tried(bench, CHANGE).outcome == "cured"


def test_where_all_is_finite_the_other_checkpoint_comes_whole() -> None:
    run = net_run()
    bench = with_reference(run)
    before = whole_state(run)
    rewind(run, bench.ring, 3)
    with change_made(bench, CHANGE):
        state = run.model.state_dict()
        assert all(torch.equal(state[n], t) for n, t in bench.reference.items())
        assert run.state_of(run.parameters()["first.weight"])  # one factor: the moments stay
    rewind(run, bench.ring, 3)
    before = whole_state(run)
    trial = tried(bench, CHANGE)
    assert (trial.outcome, whole_state(run)) == ("cured", before)


def test_what_does_not_fit_is_told() -> None:
    run = net_run()
    bench = corrupted(trained_bench(run), weight="first.weight")
    assert "no other checkpoint was given" in tried(bench, CHANGE).detail
    bench.reference.update(first=torch.ones(3))
    assert "no tensor of this name and shape: first.weight" in tried(bench, CHANGE).detail
    bench.reference.update({"first.weight": torch.ones(3, 3)})
    assert "no tensor of this name and shape: first.weight" in tried(bench, CHANGE).detail
    bench.reference.update({"first.weight": torch.full((3, 4), math.nan)})
    assert "values that are not finite too: first.weight" in tried(bench, CHANGE).detail


def test_the_very_same_weights_are_no_trial() -> None:
    run = net_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    bench.reference.update({n: t.clone() for n, t in run.model.state_dict().items()})
    assert "the very weights" in tried(bench, CHANGE).detail


def test_names_of_a_reference_are_matched_as_a_checkpoints_own(tmp_path: Path) -> None:
    run, other = net_run(), Net()
    torch.save({f"module.{n}": t for n, t in other.state_dict().items()}, tmp_path / "wrapped.pt")
    found = reference_tensors(run, load_checkpoint(tmp_path / "wrapped.pt", keys=None, trust_pickle=False))
    assert found.keys() == other.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in other.state_dict().items())
    torch.save({"encoder.weight": torch.ones(2, 2)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        reference_tensors(run, load_checkpoint(tmp_path / "foreign.pt", keys=None, trust_pickle=False))
