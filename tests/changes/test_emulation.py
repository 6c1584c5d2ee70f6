"""A format's range alone, and its rounding alone: against torch's and ml_dtypes' casts, and in a step that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.changes.cuts import range_of, rounding_of
from nanhunt.counterfactual import run_trial
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.interventions import Emulation, Intervention, Trial
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def format_of(name: str) -> NumberFormat:
    form = lookup(name)
    assert isinstance(form, NumberFormat)
    return form


def every_exponent() -> Tensor:
    """Mantissas of all kinds, ties included, at every exponent of fp32, subnormals and both signs."""
    codes = torch.arange(0, 0x7F800000, 0x7F, dtype=torch.int64)[:: 1 << 6]
    ties = torch.tensor([0x1000, 0x3000, 0x8000, 0x18000, 0x1001, 0x0FFF], dtype=torch.int64)
    bits = torch.cat([codes, ((codes & 0x7F800000)[:, None] + ties).flatten()]).to(torch.int32)
    values = bits.view(torch.float32)
    return torch.cat([values, -values, torch.tensor([torch.inf, -torch.inf, torch.nan])])


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_range_and_rounding_together_are_torchs_cast_on_normal_numbers(name: str) -> None:
    form, x = format_of(name), every_exponent()
    cast = x.to(DTYPES[name]).float()
    info = torch.finfo(DTYPES[name])
    normal = ~((cast.abs() < info.tiny) | (x.abs() < info.tiny))
    both = range_of(form)(rounding_of(form)(x))
    assert torch.equal(both[normal].nan_to_num(1.5), cast[normal].nan_to_num(1.5))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_range_alone_is_infinite_and_zero_where_torchs_cast_is_and_else_nothing(name: str) -> None:
    x = every_exponent()
    cast, cut = x.to(DTYPES[name]).float(), range_of(format_of(name))(x)
    assert torch.equal(cut.isinf(), cast.isinf())
    assert torch.equal(cut == 0, cast == 0)
    assert torch.equal(cut.signbit(), x.signbit())
    kept = cut.isfinite() & (cut != 0)
    assert torch.equal(cut[kept], x[kept])


def test_the_rounding_alone_has_no_end_to_its_exponent() -> None:
    x = every_exponent()
    x = x[x.isfinite() & (x.abs() >= torch.finfo(torch.float32).tiny) & (x.abs() < 2.0**127)]
    mantissa, exponent = np.frexp(x.numpy().astype(np.float64))
    expected = np.ldexp((mantissa * 2).astype(np.float16).astype(np.float64), exponent - 1)
    assert torch.equal(rounding_of(format_of("fp16"))(x).double(), torch.from_numpy(expected))


@given(st.floats(width=32, allow_nan=False, allow_subnormal=False))
def test_bf16s_rounding_is_ml_dtypes_cast(value: float) -> None:
    mine = float(rounding_of(format_of("bf16"))(torch.tensor([value])))
    assert mine == float(np.float32(value).astype(ml_dtypes.bfloat16)) or abs(value) < 2.0**-126


# --- in a step -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def run_of(function: Callable[[Any, Tensor], Tensor], *, scale: float | None = None, **settings: Any) -> TrainingRun:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.mse_loss(model(batch).squeeze(-1), torch.zeros(2))

    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    settings = {"autocast": "fp16", "cuda_lists": True, "scaler": scaler} | settings
    return tiny_run(Net(function), loss, [torch.ones(2, 4)] * 4, **settings)


def tried(run: TrainingRun, part: Any, format_: str = "fp16") -> Trial:
    before = bits_of(run)
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=Emulation(format_, part)))
    assert same_bits(before, bits_of(run))
    return trial


def plain(run: TrainingRun) -> Trial:
    return run_trial(bench_of(run), Intervention(name="exact", question=""))


def overflows(model: Any, x: Tensor) -> Tensor:
    h = model.first(x * 1000.0)
    return model.last(h * h * 1e-6)  # type: ignore[no-any-return]


def test_an_overflow_is_the_ranges_and_not_the_roundings() -> None:
    assert plain(run_of(overflows)).outcome == "persists"
    assert tried(run_of(overflows), "range").outcome == "persists"
    assert tried(run_of(overflows), "rounding").outcome == "cured"
    assert tried(run_of(overflows, autocast="bf16"), "range", "bf16").outcome == "cured"


def cancels(model: Any, x: Tensor) -> Tensor:
    h = model.first(x) * 0 + 1.0
    return model.last(((h + 2.0**-12) - 1.0).log())  # type: ignore[no-any-return]


def test_a_cancellation_is_the_roundings_and_not_the_ranges() -> None:
    assert plain(run_of(cancels)).outcome == "persists"
    assert tried(run_of(cancels), "rounding").outcome == "persists"
    assert tried(run_of(cancels), "range").outcome == "cured"


@pytest.mark.parametrize("part", ["range", "rounding"])
def test_a_healthy_step_with_a_large_loss_scale_stays_healthy(part: str) -> None:
    run = run_of(lambda m, x: m.last(m.first(x)), scale=65536.0)
    run.batches.transform = None
    assert plain(run).outcome == "cured"
    assert tried(run, part).outcome == "cured"


def test_a_loss_in_half_precision_times_its_scale_overflows_in_backward_as_it_does_in_training() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * 2.0).mean()

    settings: dict[str, Any] = {"autocast": "fp16", "cuda_lists": True}

    def run() -> TrainingRun:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)
        return tiny_run(Net(lambda m, x: m.last(m.first(x))), loss, [torch.ones(2, 4)] * 4, scaler=scaler, **settings)

    assert plain(run()).outcome == "persists"
    assert tried(run(), "range").outcome == "persists"
    assert tried(run(), "rounding").outcome == "cured"


def test_what_the_code_casts_to_fp32_is_not_cut() -> None:
    def upcast(model: Any, x: Tensor) -> Tensor:
        h = model.first(x * 1000.0).float()
        return model.last(h * h * 1e-6)  # type: ignore[no-any-return]

    assert plain(run_of(upcast)).outcome == "cured"
    assert tried(run_of(upcast), "range").outcome == "cured"


def test_tanh_is_narrow_under_autocast_and_exp_is_not() -> None:
    for function, expected in ((torch.tanh, "persists"), (torch.exp, "cured")):

        def far_down(model: Any, x: Tensor, function: Any = function) -> Tensor:
            h = function(model.first(x) * 0 + (1e-4 if function is torch.tanh else -9.0))
            return model.last((h * 1e-5 * 1e9).log())  # type: ignore[no-any-return]  # through 1e-9, half of fp16's smallest is 3e-8

        assert tried(run_of(far_down), "range").outcome == expected


def test_small_gradients_are_flushed_by_the_range_alone() -> None:
    grads: dict[str, Tensor] = {}

    class Look(StepWatch):
        def __init__(self, run: TrainingRun, name: str) -> None:
            self._run, self._name = run, name

        def clipped(self, parameters: Any = None) -> None:
            grads[self._name] = self._run.gradients()["first.weight"].clone()

    def small(model: Any, x: Tensor) -> Tensor:
        return model.last(model.first(x)) * 1e-5  # type: ignore[no-any-return]

    for name in ("plain", "range", "rounding"):
        run = run_of(small)
        bench = bench_of(run)
        with change_made(bench, None if name == "plain" else Emulation("fp16", name)):  # type: ignore[arg-type]
            train_step(run, 0, Look(run, name))
    assert not grads["plain"].any()
    assert not grads["range"].any()
    assert grads["rounding"].all()


def test_a_run_with_half_precision_weights_is_cut_everywhere() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch).square() * 1e-9).mean()

    def run() -> TrainingRun:
        net = Net(lambda m, x: m.last(m.first(x) * 100.0)).half()
        with torch.no_grad():
            net.last.weight.fill_(3.0)
            net.first.bias.fill_(3.0)
        return tiny_run(net, loss, [torch.ones(2, 4).half()] * 4)

    assert plain(run()).outcome == "persists"
    assert tried(run(), "range").outcome == "persists"
    assert tried(run(), "rounding").outcome == "cured"


def test_the_optimizer_is_not_cut() -> None:
    run = run_of(lambda m, x: m.last(m.first(x)) * 0.01)
    run.optimizer = torch.optim.Adam(run.model.parameters(), lr=1e-3, eps=1e-30)
    with change_made(bench_of(run), Emulation("fp16", "range")):
        train_step(run, 0, StepWatch())
    squares = torch.cat([s["exp_avg_sq"].flatten() for s in run.optimizer.state.values()])
    assert ((squares > 0) & (squares < 2.0**-25)).any()


def test_what_reads_the_whole_of_attention_is_cut_too() -> None:
    def attends(model: Any, x: Tensor) -> Tensor:
        q = model.first(x)[None, None]
        out = F.scaled_dot_product_attention(q, q, q * 3e5)
        return model.last(out[0, 0] * 1e-5)  # type: ignore[no-any-return]

    run = run_of(attends)
    torch.nn.init.constant_(run.model.first.weight, 1.0)  # type: ignore[union-attr, arg-type]
    assert tried(run, "range").outcome == "persists"
    assert tried(run, "rounding").outcome == "cured"


def test_a_step_in_fp32_has_nothing_to_cut() -> None:
    trial = tried(run_of(overflows, autocast=None), "range")
    assert trial.outcome == "failed"
    assert "runs in fp32" in trial.detail


def test_the_readback_counts_what_was_cut() -> None:
    trial = tried(run_of(lambda m, x: m.last(m.first(x))), "rounding")
    assert "cut to fp16's rounding" in trial.readback
    assert "0 calls" not in trial.readback
