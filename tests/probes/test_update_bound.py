"""Bounds of Adam's update: never below what the update makes, and silent where they do not hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanhunt.finiteness import Finiteness
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.update_bound import UpdateBound, rates_of
from nanhunt.replay import replay_step
from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run


def largest(tensors):
    return max((float(t.detach().abs().max()) for t in tensors), default=0.0)


def measured(run):
    states = list(run.optimizer.state.values())
    return (
        largest(run.trainable()),
        largest(s["exp_avg"] for s in states),
        largest(s["exp_avg_sq"] for s in states),
    )


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([torch.optim.Adam, torch.optim.AdamW]),
    lr=st.floats(1e-6, 1.0),
    betas=st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.9999)),
    eps=st.sampled_from([1e-15, 1e-8, 1e-3]),
    decay=st.floats(0.0, 0.5),
    scales=st.lists(st.floats(-20.0, 10.0), min_size=2, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_what_an_update_makes_is_never_above_its_bound(kind, lr, betas, eps, decay, scales, dtype, seed):
    torch.manual_seed(seed)
    model = nn.Linear(5, 4).to(dtype)
    run = tiny_run(model, lambda m, x: m(x).mean(), [])
    run.optimizer = kind(model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=decay)
    bound, rates = UpdateBound(), (lr,)
    assert not bound.proves(run, 1.0, rates)
    bound.learn(run, *measured(run))
    for scale in scales:
        for p in model.parameters():
            p.grad = (torch.randn_like(p) * 10.0**scale).to(dtype)
        proved = bound.proves(run, largest(p.grad for p in model.parameters()), rates)
        run.optimizer.step()
        if proved:
            found = measured(run)
            rounding = 1 + 2.0**-7  # bf16's
            assert all(
                a <= b * rounding for a, b in zip(found, (bound.weight, bound.exp_avg, bound.exp_avg_sq), strict=True)
            )
        else:
            bound.learn(run, *measured(run))


def test_an_eps_that_is_zero_in_its_format_proves_nothing():
    for dtype, proved in ((torch.float16, False), (torch.bfloat16, True)):
        model = nn.Linear(5, 4).to(dtype)
        run = tiny_run(model, lambda m, x: m(x).mean(), [])
        run.optimizer = torch.optim.AdamW(model.parameters(), eps=1e-8)
        bound = UpdateBound()
        bound.learn(run, 1.0, 0.0, 0.0)
        assert bound.proves(run, 1e-3, (1e-6,)) is proved


@pytest.mark.parametrize("gradient", [1e20, math.inf, math.nan])
def test_a_gradient_that_may_overflow_a_moment_proves_nothing_and_forgets(gradient):
    model = nn.Linear(5, 4)
    run = tiny_run(model, lambda m, x: m(x).mean(), [])
    run.optimizer = torch.optim.AdamW(model.parameters())
    bound = UpdateBound()
    bound.learn(run, 1.0, 0.0, 0.0)
    assert bound.proves(run, 1.0, (1e-3,))
    assert not bound.proves(run, gradient, (1e-3,))
    assert math.isfinite(gradient) is (bound.weight is None)


def test_a_quarter_million_ordinary_steps_are_proved_from_one_look():
    model = nn.Linear(5, 4)
    run = tiny_run(model, lambda m, x: m(x).mean(), [])
    run.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    bound = UpdateBound()
    bound.learn(run, 1.0, 1e-3, 1e-6)
    assert all(bound.proves(run, 0.5, (3e-4,)) for _ in range(250_000))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def run_on(name: str) -> TrainingRun:
    torch.manual_seed(0)
    device = torch.device(name)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 8)).to(device)
    data = [(torch.randn(16, 64), torch.randint(0, 8, (16,))) for _ in range(12)]
    return TrainingRun(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
        loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
        batches=BatchSource(data, first_step=0, accumulate=1, device=device),
        device=device,
    )


@pytest.mark.parametrize("device", DEVICES)
def test_an_ordinary_run_never_reads_weights_and_moments_after_a_recorded_step(device, monkeypatch):
    run, bound, looks = run_on(device), UpdateBound(), []
    looked = Finiteness._look_at_state
    monkeypatch.setattr(Finiteness, "_look_at_state", lambda self: (looks.append(1), looked(self)))
    for step in range(5):
        seen = replay_step(run, step, RowBuffer(), recorded=step == 0, bound=bound)
        assert [*seen.finite.weights, *seen.finite.state, *seen.finite.grads] == []
    assert looks == []


@pytest.mark.parametrize("device", DEVICES)
def test_a_moment_that_overflows_is_found_in_its_own_step_with_a_bound_and_without(device):
    for bound in (None, UpdateBound()):
        run, found, steps = run_on(device), [], iter(range(9))
        run.loss = lambda m, b, of=run.loss, steps=steps: of(m, b) * (1e30 if next(steps) == 3 else 1.0)
        for step in range(5):
            seen = replay_step(run, step, RowBuffer(), recorded=step == 1, bound=bound)
            found.append((sorted(seen.finite.weights), sorted(seen.finite.state), sorted(seen.finite.grads)))
        assert [bool(state) for _, state, _ in found] == [False, False, False, True, True]
        assert all(name.endswith("exp_avg_sq") for name in found[3][1])


class _Spoiled(torch.autograd.Function):
    """The identity, whose backward puts one element into the gradient."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[3] = ctx.value
        return grad, None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
@pytest.mark.parametrize("clip", [{}, {"clip_grad_norm": 1.0}, {"clip_grad_value": 1.0}])
def test_a_bad_gradient_is_named_by_its_norm_as_by_a_look(device, value, clip):
    found = []
    for bound in (None, UpdateBound()):
        run, steps = run_on(device), iter(range(9))
        for key, limit in clip.items():
            setattr(run, key, limit)

        def loss(m, b, steps=steps):
            at = next(steps)
            scale = _Spoiled.apply(m[3].weight, value) if at == 3 else m[3].weight
            return nn.functional.cross_entropy(nn.functional.linear(m[2](m[1](m[0](b[0]))), scale, m[3].bias), b[1])

        run.loss = loss
        seen = [replay_step(run, step, RowBuffer(), recorded=step == 1, bound=bound) for step in range(4)]
        found.append([(sorted(s.finite.grads), sorted(s.finite.weights), sorted(s.finite.state)) for s in seen])
    assert found[0] == found[1]
    assert (found[1][3][0] == ["3.weight"]) is not math.isfinite(value)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "change",
    [
        lambda run: setattr(run, "train_step", lambda *_: None),
        lambda run: run.optimizer.param_groups[0].update(eps=0.0),
        lambda run: run.optimizer.param_groups[0].update(lr=torch.tensor(1e-3)),
        lambda run: run.optimizer.param_groups[0].update(capturable=True),
        lambda run: run.optimizer.register_step_post_hook(lambda *_: None),
        lambda run: setattr(run, "optimizer", torch.optim.SGD(run.model.parameters(), lr=0.1)),
        lambda run: setattr(run, "optimizer", torch.optim.AdamW(run.model.parameters(), amsgrad=True)),
    ],
    ids=["custom-step", "eps-zero", "rate-tensor", "capturable", "hook", "sgd", "amsgrad"],
)
def test_an_update_that_is_not_known_has_no_bound(device, change):
    run = run_on(device)
    assert rates_of(run) == (1e-3,)
    change(run)
    if not run.train_step:
        replay_step(run, 0, RowBuffer(), recorded=False)
    assert rates_of(run) is None
