"""Layers drawn anew: which, how, and that the step's own draws are as before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.interventions import Redrawn
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run


class Net(nn.Module):
    """An embedding tied to the head, an attention, a norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 11, bias=False)
        self.embed.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        logits: Tensor = self.head(self.drop(self.norm(h.transpose(1, 2)).transpose(1, 2)))
        return logits


def net_run() -> TrainingRun:
    torch.manual_seed(1)
    model = Net()
    batches = [torch.randint(0, 11, (4, 6)) for _ in range(6)]

    def loss(m: nn.Module, x: Any) -> Tensor:
        return F.cross_entropy(m(x).flatten(0, 1), x.flatten())

    return tiny_run(model, loss, batches, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))


@pytest.mark.parametrize("change", [Redrawn(), Redrawn("attention"), Redrawn("attention", outside=True)])
def test_after_the_trial_the_run_is_as_it_was(change: Redrawn) -> None:
    run = net_run()
    bench = trained_bench(run)
    before = whole_state(run)
    trial = tried(bench, change)
    assert (trial.outcome, whole_state(run)) == ("cured", before)
    assert "layers drawn anew" in trial.readback


def test_weights_that_overflow_are_cured_by_a_new_draw_of_their_module_alone() -> None:
    run = net_run()
    with torch.no_grad():
        run.parameters()["attention.in_proj_weight"].fill_(1e25)
    bench = trained_bench(run, 0, 0)
    assert tried(bench, None).outcome == "persists"
    assert tried(bench, Redrawn("attention")).outcome == "cured"
    assert tried(bench, Redrawn("attention", outside=True)).outcome == "persists"


def test_the_draw_is_torchs_own_and_every_time_the_same() -> None:
    run = net_run()
    bench = trained_bench(run)
    drawn = []
    for _ in range(2):
        rewind(run, bench.ring, 3)
        with change_made(bench, Redrawn()):
            drawn.append({n: p.detach().clone() for n, p in run.parameters().items()})
    assert all(torch.equal(drawn[0][n], drawn[1][n]) for n in drawn[0])
    attention = drawn[0]["attention.in_proj_weight"]
    assert float(attention.abs().max()) <= math.sqrt(6 / (8 + 24))  # Glorot's uniform, as MultiheadAttention draws it
    assert float(drawn[0]["attention.out_proj.bias"].abs().max()) == 0.0
    # of a tied weight the head's draw counts: an embedding's is as large as 1
    assert float(drawn[0]["embed.weight"].abs().max()) <= 1 / math.sqrt(8)
    assert torch.equal(drawn[0]["norm.weight"], torch.ones(8))


def test_moments_of_what_was_drawn_are_gone_and_others_stay() -> None:
    run = net_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    with change_made(bench, Redrawn("attention")):
        kept = {n for n, p in run.parameters().items() if run.state_of(p)}
        assert kept == {"embed.weight", "norm.weight", "norm.bias"}
        assert float(run.buffers()["norm.running_mean"].abs().max()) > 0.0


def test_dropout_draws_in_the_step_what_it_drew_before() -> None:
    run = net_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    mask = run.model.get_submodule("drop")(torch.ones(64))
    rewind(run, bench.ring, 3)
    with change_made(bench, Redrawn()):
        assert torch.equal(run.model.get_submodule("drop")(torch.ones(64)), mask)


def test_a_weight_that_a_layer_replaces_stays_the_optimizers() -> None:
    class Own(nn.Linear):
        def reset_parameters(self) -> None:
            self.weight = nn.Parameter(torch.full((1, 4), 0.25))

    model = Own(4, 1, bias=False)
    run = tiny_run(model, lambda m, x: m(x).square().mean(), [torch.ones(2, 4)] * 6)
    bench = trained_bench(run)
    before = whole_state(run)
    weight = model.weight
    rewind(run, bench.ring, 3)
    with torch.no_grad():
        weight.fill_(7.0)
    with change_made(bench, Redrawn()):
        assert model.weight is weight
        assert torch.equal(weight, torch.full((1, 4), 0.25))
    tried(bench, Redrawn())
    assert whole_state(run).keys() == before.keys()
    assert model.weight is run.optimizer.param_groups[0]["params"][0]


def test_what_cannot_be_drawn_is_told() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum()

    run = tiny_run(Bare(), lambda m, x: m(x), [torch.ones(4)] * 6)
    assert "knows how it is drawn" in tried(trained_bench(run), Redrawn()).detail
    run = net_run()
    assert "no layer in nowhere" in tried(trained_bench(run), Redrawn("nowhere")).detail
    run = tiny_run(nn.Linear(4, 1), lambda m, x: m(x).mean(), [torch.ones(2, 4)] * 6)
    assert "no layer outside of " in tried(trained_bench(run), Redrawn("", outside=True)).detail
