"""Attention scores below a limit, and in fp32: fused, by nn.MultiheadAttention and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.bench import NotApplicableError
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, Scores
from nanhunt.training.run import TrainingRun
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run


class Attention(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.function(q, k, v)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    mask = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
    return torch.softmax(s.masked_fill(~mask, -1e4), dim=-1) @ v


class Net(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.inner:
            x = module(x)
        return self.last(x)  # type: ignore[no-any-return]


def run_of(*inner: nn.Module, **settings: Any) -> TrainingRun:
    torch.manual_seed(0)
    return tiny_run(Net(*inner), lambda m, b: m(b).float().square().mean(), [torch.randn(2, 3, 4)] * 4, **settings)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q.double() @ k.double().transpose(-2, -1) / math.sqrt(q.shape[-1])


def draw(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 4) for _ in range(3))
    return q * scale, k * scale, v


def called(run: TrainingRun, change: Scores, body: Callable[[], Any]) -> tuple[Any, str]:
    with change_made(bench_of(run), change) as made:
        result = body()
    return result, made.readback[0]


@pytest.mark.parametrize("function", [fused, causal, by_hand])
def test_the_attention_is_that_of_queries_shrunk_until_the_largest_score_is_the_limit(
    function: Callable[..., Tensor],
) -> None:
    q, k, v = draw(30.0)
    seen = scores_of(q, k).abs()
    largest = float((seen if function is fused else seen.tril()).max())
    expected = function(q.double() * (50.0 / largest), k.double(), v.double())
    got, said = called(run_of(), Scores("capped", 50.0), lambda: function(q, k, v))
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    assert "kept below 50" in said
    assert f"({largest:.4g} before)" in said


@pytest.mark.parametrize("function", [fused, causal, by_hand])
def test_scores_below_the_limit_are_left_alone_bit_for_bit(function: Callable[..., Tensor]) -> None:
    big, small = draw(30.0), draw(1.0)
    got, said = called(run_of(), Scores("capped", 50.0), lambda: (function(*big), function(*small)))
    assert torch.equal(got[1], function(*small))
    assert "1 of 2 calls" in said
    with pytest.raises(NotApplicableError, match="no score passes 50: the largest is"):
        called(run_of(), Scores("capped", 50.0), lambda: function(*small))


def test_what_a_mask_holds_back_does_not_count() -> None:
    q, k, v = draw(1.0)
    k[:, -1] *= 1e3
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, -1] = False
    for kind in (mask, torch.zeros(5, 5).masked_fill(~mask, -math.inf), torch.zeros(5, 5).masked_fill(~mask, -1e9)):
        with pytest.raises(NotApplicableError):
            called(
                run_of(), Scores("capped", 50.0), lambda m=kind: F.scaled_dot_product_attention(q, k, v, attn_mask=m)
            )


def test_grouped_queries_and_a_scale_of_their_own_are_capped() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 3, 8) * 10, torch.randn(1, 2, 3, 8) * 10
    v = torch.randn(1, 2, 3, 8)
    largest = float((q @ k.repeat_interleave(2, dim=1).transpose(-2, -1)).abs().max()) * 2.0
    got, _ = called(
        run_of(),
        Scores("capped", 50.0),
        lambda: F.scaled_dot_product_attention(q, k, v, scale=2.0, enable_gqa=True),
    )
    expected = F.scaled_dot_product_attention(q * (50 / largest), k, v, scale=2.0, enable_gqa=True)
    torch.testing.assert_close(got, expected)


def test_a_large_attention_is_capped_by_its_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanhunt.changes.scores._MOST", 1)
    q, k, v = draw(30.0)
    bound = float(q.norm(dim=-1).max() * k.norm(dim=-1).max()) / 2.0
    got, _ = called(run_of(), Scores("capped", 50.0), lambda: fused(q, k, v))
    torch.testing.assert_close(got, fused(q * (50 / bound), k, v))


@pytest.mark.parametrize("weights", [True, False])
def test_nn_multihead_attention_is_capped_either_way(weights: bool) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.mul_(100.0)
    x = torch.randn(2, 3, 4)
    got, said = called(run_of(), Scores("capped", 5.0), lambda: attention(x, x, x, need_weights=weights)[0].detach())
    assert "1 of 1 calls" in said
    assert not torch.allclose(got, attention(x, x, x, need_weights=weights)[0])


def test_a_gradient_flows_through_capped_scores() -> None:
    q, k, v = (t.requires_grad_() for t in draw(30.0))
    called(run_of(), Scores("capped", 1.0), lambda: fused(q, k, v).square().sum().backward())
    assert q.grad is not None
    assert q.grad.abs().max() > 1e-3


@pytest.mark.parametrize("function", [fused, by_hand])
def test_half_precision_attention_is_computed_in_fp32_and_cast_back(function: Callable[..., Tensor]) -> None:
    q, k, v = (t.half() for t in draw(3.0))
    got, said = called(run_of(), Scores("fp32"), lambda: function(q, k, v))
    assert got.dtype is torch.float16
    if function is fused:
        assert torch.equal(got, fused(q.float(), k.float(), v.float()).half())
    assert "computed in fp32 in 1 of 1 calls" in said


def test_a_trial_in_fp32_leaves_the_run_as_it_was() -> None:
    run = run_of(Attention(fused), autocast="fp16")
    before = bits_of(run)
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=Scores("fp32")))
    assert trial.outcome == "cured"
    assert "fp32 in 1 of 1" in trial.readback
    assert same_bits(before, bits_of(run))


def test_the_format_of_autocast_is_what_comes_out() -> None:
    q, k, v = draw(1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = fused(q, k, v)
        got, _ = called(run_of(), Scores("fp32"), lambda: fused(q, k, v))
    assert got.dtype is plain.dtype is torch.bfloat16


def test_only_the_named_module_is_changed() -> None:
    run = run_of(Attention(fused), Attention(fused))
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(30.0)
    change = Scores("capped", 1e-3, module="inner.1")
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=change))
    assert "1 of 1 calls of attention in inner.1" in trial.readback


def test_without_attention_or_in_fp32_it_is_not_applicable_and_the_names_are_put_back() -> None:
    own = F.scaled_dot_product_attention, F.softmax
    run = run_of(nn.Linear(4, 4))
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=Scores("capped", 50.0)))
    assert trial.outcome == "failed"
    assert "no attention ran" in trial.detail
    run = run_of(Attention(fused))
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=Scores("fp32")))
    assert "runs in fp32 already" in trial.detail
    assert (F.scaled_dot_product_attention, F.softmax) == own


def test_scores_that_are_not_finite_are_left_as_they_are() -> None:
    q, k, v = draw(30.0)
    q[0, 0, 0] = math.nan
    with pytest.raises(NotApplicableError):
        called(run_of(), Scores("capped", 50.0), lambda: fused(q, k, v))
