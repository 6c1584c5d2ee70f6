"""Trials look and put back: after all of them the run is as it was before the first, to the bit, and goes on the same."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.bench import Bench, Window
from nanhunt.changes.rate import at_rate
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, LossScale, Trial
from nanhunt.library import Given, library
from nanhunt.trace.schema import Onset
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import Known
from tests.conftest import tiny_run

STEPS, AT = 6, 4


class Double(torch.autograd.Function):
    """x ↦ 2x, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2.0


class Model(nn.Module):
    """A bit of everything that a trial may change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.batch = nn.LayerNorm(8), nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(Double.apply(self.a(x)))  # type: ignore[no-untyped-call]
        h = h + self.attention(h, h, h, need_weights=False)[0]
        out: Tensor = self.b(self.drop(self.batch(h.transpose(1, 2)).transpose(1, 2)))
        return out


def batches() -> Iterator[Tensor]:
    for step in itertools.count():
        yield torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(x), x.sin())


def trained(autocast: str | None) -> tuple[TrainingRun, SnapshotRing]:
    """A run that stands behind `STEPS` steps, with what it has kept of them."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if autocast == "fp16" else None
    run = tiny_run(model, loss, batches(), optimizer=optimizer, autocast=autocast, scaler=scaler)
    ring = SnapshotRing(run)
    for step in range(STEPS):
        ring.offer(run, step)
        train_step(run, step, StepWatch())
    return run, ring


def everything_of(run: TrainingRun) -> dict[str, Any]:
    """All that a step reads: tensors by value, settings, generators, switches of torch, names of patched functions."""
    tensors = {**run.parameters(), **run.buffers(), **run.state_tensors()}
    return {
        "tensors": {name: (t.dtype, t.detach().clone()) for name, t in tensors.items()},
        "memory": {n: t.data_ptr() for n, t in {**run.parameters(), **run.buffers()}.items()},
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in copy.deepcopy(run.optimizers[0].param_groups)],
        "scaler": copy.deepcopy(run.scaler.state_dict()) if run.scaler else None,
        "autocast": run.autocast,
        "settings": {n: m.eps for n, m in run.model.named_modules() if hasattr(m, "eps")},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in run.model.named_modules()},
        "instance": {n: sorted(vars(m)) for n, m in run.model.named_modules()},
        "patched": (F.scaled_dot_product_attention, F.softmax, torch.softmax, Tensor.softmax, Double.forward,
                    Double.backward, Double.apply.__func__, sorted(vars(run.optimizers[0]))),
        "switches": (torch.backends.cudnn.enabled, torch.backends.cuda.math_sdp_enabled(),
                     torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled(),
                     torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "transform": run.batches.transform,
        "random": (torch.get_rng_state(), np.random.get_state(), random.getstate()),
    }  # fmt: skip


def assert_same(before: Any, after: Any, path: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_same(before[key], after[key], f"{path}.{key}")
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), path
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{path}[{i}]")
    elif isinstance(before, Tensor):
        assert before.dtype == after.dtype, path
        assert torch.equal(before, after), path
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), path
    else:
        assert before == after, path


def every_trial(run: TrainingRun, ring: SnapshotRing) -> dict[str, Trial]:
    given = Given(
        samples=(2,), placebo=(4,), other_step=1, earlier_step=AT - 1, module="a", drawn="a", other_module="b",
        source="test_trials.py:55", parameters=("a.weight",), other_parameters=("b.weight",), grad_norm=1e-3,
        grad_amax=1e-4, format=run.autocast or "", reference="other.pt", function="Double",
    )  # fmt: skip
    bench = Bench(
        run=run, ring=ring, onset=Onset(kind="loss-spike", step=AT, phase="forward"), known=Known.of(run),
        window=Window(first=AT, last=STEPS - 1, limit=1e9, alarm=AT),
        reference={n: torch.zeros_like(t) for n, t in {**run.parameters(), **run.buffers()}.items()},
    )  # fmt: skip
    return {i.name: run_trial(bench, i) for i in library(given)}


@pytest.mark.parametrize("autocast", [None, "bf16", "fp16"])
def test_the_state_after_all_trials_is_the_state_before_them_and_so_is_the_next_step(autocast: str | None) -> None:
    run, ring = trained(autocast)
    before = everything_of(run)
    told = every_trial(run, ring)
    assert_same(before, everything_of(run))
    after = train_step(run, STEPS, StepWatch()).loss
    again, _ = trained(autocast)
    assert train_step(again, STEPS, StepWatch()).loss == after
    for name, parameter in again.parameters().items():
        assert torch.equal(parameter, run.parameters()[name]), name
    raised = {t.name: t.detail for t in told.values() if "raised" in t.detail}
    assert raised == {}


@pytest.mark.parametrize("autocast", [None, "bf16", "fp16"])
def test_a_trial_says_what_was_read_back_or_why_it_could_not_be_applied(autocast: str | None) -> None:
    told = every_trial(*trained(autocast))
    for trial in told.values():
        assert trial.readback or (trial.outcome == "failed" and trial.detail.startswith("not applicable: ")), asdict(
            trial
        )
    applied = {name for name, trial in told.items() if trial.outcome != "failed"}
    assert applied >= {
        "exact", "fp64", "drop-samples", "drop-placebo", "swap-batch", "v-floor", "v-placebo", "moments-reset",
        "adam-eps", "beta2-0.95", "lr-0.3", "lr-0.1", "lr-0", "clip-norm", "clip-value", "own-backward", "norm-eps",
        "reference-kernels", "restore-weights", "fresh-init", "init-placebo",
    }  # fmt: skip
    if autocast:
        assert applied >= {"fp32", "module-fp32", "module-placebo", "range-only", "rounding-only"}


def test_every_intervention_has_a_name_of_its_own_and_a_placebo_names_its_trial() -> None:
    names = [i.name for i in library()]
    assert len(set(names)) == len(names)
    assert {i.placebo_of for i in library()} - {None} <= set(names)


def test_a_change_without_what_it_acts_on_fails_with_its_reason() -> None:
    missing = {i.name: i.missing for i in library() if i.missing}
    run, ring = trained(None)
    bench = Bench(
        run=run, ring=ring, onset=Onset(kind="nan", step=AT, phase="forward"), known=Known.of(run),
        window=Window(first=AT, last=AT),
    )  # fmt: skip
    for intervention in library():
        if intervention.missing:
            trial = run_trial(bench, intervention)
            assert (trial.outcome, trial.detail) == ("failed", f"not applicable: {missing[trial.name]}")


def bench_of(run: TrainingRun, ring: SnapshotRing, onset: Onset, **window: Any) -> Bench:
    return Bench(
        run=run, ring=ring, onset=onset, known=Known.of(run), window=Window(**{"first": AT, "last": AT} | window)
    )


def named(name: str) -> Intervention:
    return next(i for i in library() if i.name == name)


def test_a_change_behind_the_loss_cannot_be_tried_on_a_nan_of_the_forward_pass() -> None:
    run, ring = trained(None)
    onset = Onset(kind="nan", step=AT, phase="forward")
    for name in ("lr-0.1", "v-floor", "moments-reset", "clip-adaptive", "adam-eps", "scale-1"):
        trial = run_trial(bench_of(run, ring, onset), named(name))
        assert (trial.outcome, trial.detail) == (
            "failed",
            "not applicable: the fault comes before all that this changes",
        ), name
    led = run_trial(bench_of(run, ring, onset, first=AT - 1), named("lr-0.1"))
    assert led.outcome == "cured"


def test_a_step_that_the_scaler_skips_under_a_change_shows_nothing() -> None:
    run, ring = trained("fp16")
    spike = Onset(kind="loss-spike", step=AT, phase="update")
    huge = Intervention(name="huge", question="", change=LossScale(2.0**40))
    trial = run_trial(bench_of(run, ring, spike, limit=1e9, alarm=AT), huge)
    assert trial.outcome == "failed"
    assert "skipped" in trial.detail


def test_an_exception_that_is_not_the_faults_own_decides_nothing() -> None:
    run, ring = trained(None)

    def raising(model: nn.Module, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise NotImplementedError("no kernel for this")
        raise IndexError("index 9 is out of range")

    run.loss = raising
    onset = Onset(kind="exception", step=AT, phase="forward", detail="IndexError: index 9 is out of range")
    assert run_trial(bench_of(run, ring, onset), named("exact")).outcome == "persists"
    other = run_trial(bench_of(run, ring, onset), named("fp64"))
    assert (other.outcome, "NotImplementedError" in other.detail) == ("failed", True)


def test_a_run_that_cannot_be_put_back_ends_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    run, ring = trained(None)

    def broken(self: Snapshot, run: TrainingRun) -> None:
        raise MemoryError("no room")

    onset = Onset(kind="loss-spike", step=AT, phase="update")
    ring.offer(run, STEPS)
    bench = bench_of(run, ring, onset, limit=1e9, alarm=AT)
    monkeypatch.setattr(Snapshot, "restore", broken)
    with pytest.raises(MemoryError):
        run_trial(bench, named("exact"))


def test_an_optimizer_around_another_scales_the_rate_once() -> None:
    weight = nn.Parameter(torch.zeros(1))
    inner = torch.optim.SGD([weight], lr=1.0)

    class Around(torch.optim.Optimizer):
        """Steps by the optimizer that it shares its groups with."""

        def __init__(self) -> None:
            super().__init__([weight], {"lr": 1.0})
            self.param_groups = inner.param_groups

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            inner.step()

    run = cast("TrainingRun", SimpleNamespace(optimizers=[Around(), inner]))
    weight.grad = torch.ones(1)
    with at_rate(run, 0.1):
        run.optimizers[0].step()
    assert weight.item() == pytest.approx(-0.1)
    assert inner.param_groups[0]["lr"] == 1.0
