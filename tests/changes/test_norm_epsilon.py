"""A larger epsilon of norm layers, torch's and the user's own, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import NotApplicableError
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, NormEpsilon
from nanhunt.training.run import TrainingRun
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


class Standardise(nn.Module):
    """No norm by its name; it has an epsilon and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.epsilon, self.weight = 1e-5, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight / (x.std(-1, keepdim=True) + self.epsilon)


class Clamp(nn.Module):
    """Neither."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-3


def run_of(*modules: nn.Module) -> TrainingRun:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), *modules)
    return tiny_run(model, lambda m, b: m(b).square().mean(), [torch.randn(2, 4)] * 4)


def test_every_norm_layer_has_its_epsilon_times_the_factor_and_then_its_own_again() -> None:
    norms: list[tuple[nn.Module, str]] = [
        (nn.LayerNorm(4), "eps"),
        (nn.BatchNorm1d(4), "eps"),
        (nn.GroupNorm(2, 4), "eps"),
        (nn.InstanceNorm1d(4), "eps"),
        (nn.RMSNorm(4, eps=1e-6), "eps"),
        (OwnRMSNorm(), "variance_epsilon"),
        (Standardise(), "epsilon"),
    ]
    other = Clamp()
    run = run_of(*(m for m, _ in norms), other)
    own = [getattr(m, name) for m, name in norms]
    with change_made(bench_of(run), NormEpsilon(100.0)) as made:
        assert [getattr(m, name) for m, name in norms] == [e * 100.0 for e in own]
        assert other.eps == 1e-3
    assert [getattr(m, name) for m, name in norms] == own
    assert any("1e-06 → 0.0001" in said for said in made.readback)


def test_an_rms_norm_without_an_epsilon_uses_its_formats_and_gets_none_back() -> None:
    norm = nn.RMSNorm(4)
    with change_made(bench_of(run_of(norm)), NormEpsilon(100.0)):
        assert norm.eps == torch.finfo(torch.float32).eps * 100.0
    assert norm.eps is None


def test_a_gradient_that_a_tiny_variance_blows_up_is_cured() -> None:
    def run() -> TrainingRun:
        made = run_of(nn.LayerNorm(4, eps=1e-38))
        with torch.no_grad():
            made.parameters()["0.weight"].mul_(1e-30)
            made.parameters()["0.bias"].zero_()
        return made

    made = run()
    before = bits_of(made)
    assert run_trial(bench_of(made), Intervention(name="exact", question="")).outcome == "cured"
    change = NormEpsilon(1e30)
    trial = run_trial(bench_of(made), Intervention(name="x", question="", change=change))
    assert trial.loss is not None
    assert trial.loss < 1e-30  # the output is x / √1e-8, and no longer of size 1
    assert same_bits(before, bits_of(made))


def test_a_model_without_norms_and_epsilons_of_zero_are_not_applicable() -> None:
    with pytest.raises(NotApplicableError, match="no norm layer"), change_made(bench_of(run_of()), NormEpsilon(10.0)):
        pass
    zero = nn.LayerNorm(4, eps=0.0)
    with pytest.raises(NotApplicableError, match="is 0"), change_made(bench_of(run_of(zero)), NormEpsilon(10.0)):
        pass
    assert zero.eps == 0.0


def test_the_epsilon_comes_back_after_an_exception() -> None:
    norm = nn.LayerNorm(4)
    with pytest.raises(ValueError, match="mine"), change_made(bench_of(run_of(norm)), NormEpsilon(10.0)):
        raise ValueError("mine")
    assert norm.eps == 1e-5
