"""Faults that leave no NaN: what a survey of a healthy step tells, and what it must not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.probes.event import OpEvent
from nanhunt.probes.lost.erased import norms_in
from nanhunt.probes.lost.watch import LostValues
from nanhunt.stats.summarize import summarize
from nanhunt.survey import ABSORBED, SilentFault, ZeroWatch, classes_of, survey
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, Observation, Onset, Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run

HERE = Path(__file__)
HALVES = [torch.float16, torch.bfloat16]
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A linear layer that changes nothing, then a function of what it puts out."""

    def __init__(self, function: Function, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.first.weight)
        self.block = Block(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.first(x))


class Block(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).float().mean()


def trained(run: TrainingRun, steps: int = 1) -> SnapshotRing:
    """Train some steps, with a snapshot before each."""
    run.root = HERE.parent
    ring = SnapshotRing(run)
    for step in range(steps):
        ring.offer(run, step)
        train_step(run, step, StepWatch())
    return ring


def surveyed(function: Function, batch: Tensor) -> list[SilentFault]:
    run = tiny_run(Net(function, batch.shape[-1]), mean_loss, [batch])
    return survey(run, trained(run), 0)


def only(faults: list[SilentFault]) -> SilentFault:
    assert len(faults) == 1, [f.place for f in faults]
    return faults[0]


def serious(faults: list[SilentFault]) -> list[SilentFault]:
    return [f for f in faults if f.serious]


def line_of(mark: str) -> str:
    lines = HERE.read_text().splitlines()
    found = [i for i, text in enumerate(lines, 1) if text.endswith(f"# {mark}")]
    assert len(found) == 1, mark
    return f"{HERE.name}:{found[0]}"


def batch_with(row: list[float], at: int = 2) -> Tensor:
    """Return four ordinary samples and, among them, one that is not."""
    batch = torch.linspace(0.1, 0.9, 4 * len(row)).reshape(4, len(row))
    batch[at] = torch.tensor(row)
    return batch


def noise(rows: int = 16, width: int = 32) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


# --- erased -----------------------------------------------------------------------------------------------------------

#: Its square is beyond fp16 (65504), and far within bf16 and fp32.
LOUD = [400.0, 300.0, -400.0, 200.0]


def rms_norm(x: Tensor) -> Tensor:
    square = x * x  # beyond fp16
    scale = torch.rsqrt(square.mean(-1, keepdim=True) + 1e-6)
    return x * scale  # erased here


def test_a_norm_by_hand_whose_square_overflows_fp16_erases_the_loud_sample() -> None:
    fault = only(surveyed(lambda x: rms_norm(x.half()), batch_with(LOUD)))
    body, row = fault.body, torch.tensor(LOUD, dtype=torch.float64)
    expected = float((row.abs() / row.square().mean().sqrt()).max())
    assert (fault.kind, fault.serious) == ("erased", True)
    assert (body["op"], body["module"], body["source"]) == ("aten.mul.Tensor", "block", line_of("beyond fp16"))
    assert body["at"] == {"op": "aten.mul.Tensor", "module": "block", "source": line_of("erased here")}
    assert (body["elements"], body["of"], body["samples"], body["dtype"]) == (4, 16, [2], "float16")
    assert body["amax"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_erased_sample_is_the_one_that_is_loud(at: int) -> None:
    assert only(surveyed(lambda x: rms_norm(x.half()), batch_with(LOUD, at))).body["samples"] == [at]


def test_where_every_sample_is_erased_it_is_no_sample_s_doing() -> None:
    fault = only(surveyed(lambda x: rms_norm(x.half()), torch.tensor([LOUD] * 4)))
    assert (fault.body["elements"], fault.body["samples"]) == (16, [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_norm_in_a_wider_format_erases_nothing(dtype: torch.dtype) -> None:
    assert surveyed(lambda x: rms_norm(x.to(dtype)), batch_with(LOUD)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_end_of_a_wide_format_erases_as_well(dtype: torch.dtype) -> None:
    fault = only(surveyed(lambda x: rms_norm(x.to(dtype)), batch_with([x * 1e20 for x in LOUD])))
    assert (fault.kind, fault.body["samples"]) == ("erased", [2])


def test_ordinary_samples_in_fp16_are_left_alone() -> None:
    assert surveyed(lambda x: rms_norm(x.half()), batch_with([0.4, 0.3, -0.4, 0.2])) == []


def test_a_row_of_zeros_that_is_zero_in_fp64_too_is_not_erased() -> None:
    assert surveyed(lambda x: rms_norm(x.half()), batch_with([0.0] * 4)) == []


def test_a_length_that_overflows_erases_what_is_divided_by_it() -> None:
    def unit(x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # a length

    fault = only(surveyed(lambda x: unit(x.half()), batch_with([6e4, 6e4, 6e4, 6e4])))
    assert (fault.kind, fault.body["op"], fault.body["samples"]) == ("erased", "aten.linalg_vector_norm", [2])
    assert fault.body["source"] == line_of("a length")
    assert fault.body["amax"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("far", [-12.0, -100.0, -1000.0])
def test_a_sigmoid_by_hand_is_as_good_as_zero_in_fp64_and_not_erased(dtype: torch.dtype, far: float) -> None:
    batch = batch_with([far, 1.0, 0.5, 2.0])
    assert surveyed(lambda x: 1 / (1 + torch.exp(-x.to(dtype))), batch) == []


def test_an_infinity_that_ends_in_an_exp_or_a_tanh_erases_nothing() -> None:
    def masked(x: Tensor) -> Tensor:
        return torch.log((x > 0.0).float()).exp() * x + torch.tanh(torch.exp(x * x))

    assert surveyed(masked, batch_with([20.0, -1.0, 0.5, 2.0])) == []


def test_a_masked_softmax_erases_nothing() -> None:
    def attend(x: Tensor) -> Tensor:
        keep = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool).tril()
        scores = (x[:, :, None] * x[:, None, :]).masked_fill(~keep, float("-inf"))
        return torch.softmax(scores, -1) @ x[:, :, None]

    assert surveyed(attend, batch_with([0.4, 0.3, -0.4, 0.2])) == []


def event_of(op: str) -> OpEvent:
    return OpEvent(
        index=0, op=op, phase=Phase.FORWARD, micro=0, module="", source=None, taken=[], made=[], seq=0, fresh=1
    )  # fmt: skip


def layer_norm_call(x: Tensor) -> tuple[Any, tuple[Any, ...]]:
    return torch.ops.aten.native_layer_norm.default, (x, [x.shape[-1]], None, None, 1e-5)


def rms_norm_call(x: Tensor) -> tuple[Any, tuple[Any, ...]]:
    return torch.ops.aten._fused_rms_norm.default, (x, [x.shape[-1]], None, 1e-6)


@pytest.mark.parametrize("call", [layer_norm_call, rms_norm_call])
def test_a_fused_norm_that_puts_out_a_row_of_zeros_where_fp64_has_numbers_erased_it(
    call: Callable[[Tensor], tuple[Any, tuple[Any, ...]]],
) -> None:
    func, args = call(batch_with(LOUD).half())
    right = func(*[a.double() if isinstance(a, Tensor) else a for a in args])[0]
    wrong = right.half()
    wrong[2] = 0.0
    watch = LostValues()
    watch.took(event_of(f"aten.{func.name().partition('::')[2]}"), func, (args, {}), [("output.0", wrong)])
    erased = norms_in(watch.norms)
    assert [(e.count, e.numel) for e in erased] == [(4, 16)]
    assert erased[0].mask.nonzero()[:, 0].unique().tolist() == [2]
    assert erased[0].amax == pytest.approx(float(right[2].abs().max()))


@pytest.mark.parametrize("call", [layer_norm_call, rms_norm_call])
def test_a_fused_norm_of_a_row_of_zeros_is_left_alone(
    call: Callable[[Tensor], tuple[Any, tuple[Any, ...]]],
) -> None:
    func, args = call(batch_with([0.0] * 4).half())
    out = func(*args)[0]
    assert bool((out[2] == 0).all())
    watch = LostValues()
    watch.took(event_of(f"aten.{func.name().partition('::')[2]}"), func, (args, {}), [("output.0", out)])
    assert norms_in(watch.norms) == []


def test_rows_that_are_constant_up_to_an_ulp_are_not_erased() -> None:
    x = torch.ones(4, 8)
    x[:, 3] += torch.finfo(torch.float32).eps
    func, args = layer_norm_call(x)
    watch = LostValues()
    watch.took(event_of("aten.native_layer_norm"), func, (args, {}), [("output.0", torch.zeros(4, 8))])
    assert len(watch.norms) == 1
    assert norms_in(watch.norms) == []


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_fused_norm_that_keeps_its_statistics_in_fp32_loses_nothing(
    norm: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    assert surveyed(lambda x: norm(x.to(dtype), (4,)), batch_with([x * 100 for x in LOUD])) == []


def test_fp32_s_own_end_in_a_fused_norm_is_erased() -> None:
    fault = only(surveyed(lambda x: F.rms_norm(x, (4,)), batch_with([x * 1e20 for x in LOUD])))
    assert (fault.kind, fault.body["dtype"], fault.body["samples"]) == ("erased", "float32", [2])


# --- pinned and flushed -----------------------------------------------------------------------------------------------


def quantized(
    scale_of: Callable[[Tensor], float], dtype: torch.dtype = torch.float8_e4m3fn, *, clamp: bool = True
) -> Function:
    """Return a cast to fp8 and back, through which gradients go straight."""
    end = torch.finfo(dtype).max

    def cast(x: Tensor) -> Tensor:
        scale = scale_of(x.detach())
        scaled = x.detach() * scale
        if clamp:
            scaled = scaled.clamp(-end, end)  # clamped
        narrow = scaled.to(dtype)  # narrowed
        return x + (narrow.float() / scale - x.detach())

    return cast


def current(x: Tensor) -> float:
    return 448.0 / float(x.abs().max())


def cut_off(x: Tensor, scale: float, end: float = 448.0) -> float:
    """Return the share of energy beyond the end, in fp64."""
    scaled = (x * scale).double().abs()
    return float((scaled - end).clamp(min=0).square().sum() / scaled.square().sum())


def test_a_scale_that_cuts_off_much_of_the_energy_pins_its_values() -> None:
    x = noise()
    fault = only(surveyed(quantized(lambda _: 1000.0), x))
    body = fault.body
    assert (fault.kind, fault.serious) == ("pinned", True)
    assert (body["op"], body["source"], body["end"]) == ("aten.clamp", line_of("clamped"), 448.0)
    assert (body["elements"], body["of"]) == (int((x.abs() * 1000 > 448).sum()), x.numel())
    assert body["energy"] == pytest.approx(cut_off(x, 1000.0), rel=1e-4)
    assert body["amax"] == pytest.approx(float(x.abs().max()) * 1000, rel=1e-4)


def test_a_cast_that_saturates_by_itself_pins_as_a_clamp_does() -> None:
    if not bool(torch.isfinite(torch.tensor(1e3).to(torch.float8_e4m3fn).float())):
        pytest.skip("this torch's cast gives NaN beyond the end")
    fault = only(surveyed(quantized(lambda _: 1000.0, clamp=False), noise()))
    assert (fault.kind, fault.serious, fault.body["dtype"]) == ("pinned", True, "float8_e4m3fn")
    assert fault.body["source"] == line_of("narrowed")


def test_a_cast_that_gives_inf_beyond_its_end_hides_nothing() -> None:
    if bool(torch.isfinite(torch.tensor(1e6).to(torch.float8_e5m2).float())):
        pytest.skip("this torch's cast saturates")
    x = torch.where(noise().abs() < 1.0, noise(), 8.0)
    assert surveyed(quantized(lambda _: 5e4, torch.float8_e5m2, clamp=False), x) == []


@pytest.mark.parametrize("off", [1.0, 1.001, 1.1])
def test_a_scale_from_the_amax_is_not_serious_nor_one_that_is_a_tenth_too_large(off: float) -> None:
    faults = surveyed(quantized(lambda x: off * current(x)), noise())
    assert serious(faults) == []
    assert [f.kind for f in faults] == ["pinned"] * (off > 1.0)


def test_the_line_between_worth_telling_and_serious_is_the_energy() -> None:
    x, scales = noise(), [1.2, 1.6, 2.0, 3.0, 5.0]
    told = {off: only(surveyed(quantized(lambda x, off=off: off * current(x)), x)) for off in scales}
    shares = {off: cut_off(x, off * current(x)) for off in scales}
    assert {off: fault.serious for off, fault in told.items()} == {off: share >= 0.01 for off, share in shares.items()}
    assert {f.serious for f in told.values()} == {True, False}


@pytest.mark.parametrize("bound", [1.0, 6.0, 28.0, 1000.0])
def test_a_clamp_that_stands_at_no_format_s_end_is_an_activation(bound: float) -> None:
    assert surveyed(lambda x: (1e4 * x).clamp(-bound, bound), noise()) == []


def test_a_clamp_from_zero_is_an_activation() -> None:
    assert surveyed(lambda x: (1e3 * x).clamp(0.0, 448.0), noise()) == []


def test_a_clamp_a_little_below_fp16_s_end_means_that_end() -> None:
    fault = only(surveyed(lambda x: (1e6 * x).clamp(-64504.0, 64504.0), noise()))
    assert (fault.kind, fault.serious, fault.body["end"]) == ("pinned", True, 64504.0)


def test_rows_that_another_row_s_scale_makes_zero_are_flushed() -> None:
    x = noise()
    x[3] *= 1e7
    fault = only(surveyed(quantized(current), x))
    assert (fault.kind, fault.serious) == ("flushed", True)
    assert (fault.body["rows_lost"], fault.body["rows"]) == (15, 16)
    assert (fault.body["dtype"], fault.body["source"]) == ("float8_e4m3fn", line_of("narrowed"))


def test_rows_that_were_zero_before_the_cast_are_not_flushed() -> None:
    x = noise()
    x[4:] = 0.0
    assert surveyed(quantized(current), x) == []


def test_fewer_rows_than_a_tenth_are_not_flushed() -> None:
    x = noise()
    x[3] *= 1e-7
    assert surveyed(quantized(current), x) == []


@pytest.mark.parametrize("dtype", HALVES)
def test_what_a_half_precision_cast_flushes_is_next_to_nothing(dtype: torch.dtype) -> None:
    x = noise()
    x[3:] *= 1e-12
    assert surveyed(lambda x: x.to(dtype), x) == []


# --- absorbed ---------------------------------------------------------------------------------------------------------


def counting(start: float, dtype: torch.dtype, by: float = 1.0, times: int = ABSORBED) -> Function:
    def count(x: Tensor) -> Tensor:
        seen = torch.full((), start, dtype=dtype)
        for _ in range(times):
            seen += by  # counted
        return x * (seen / seen)

    return count


@pytest.mark.parametrize(("dtype", "first_deaf"), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_a_counter_that_has_become_too_large_to_feel_one_more_is_absorbed(
    dtype: torch.dtype, first_deaf: float
) -> None:
    fault = only(surveyed(counting(first_deaf, dtype), noise()))
    body = fault.body
    assert (fault.kind, fault.serious) == ("absorbed", True)
    assert (body["amax"], body["elements"], body["source"]) == (first_deaf, ABSORBED, line_of("counted"))
    assert body["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("start", "dtype", "by"),
    [
        (128.0, torch.bfloat16, 1.0),
        (1024.0, torch.float16, 1.0),
        (4096.0, torch.float32, 1.0),
        (4096.0, torch.bfloat16, 32.0),
        (4096.0, torch.bfloat16, 0.0),
    ],
)
def test_a_counter_that_still_moves_or_is_not_asked_to_is_left_alone(
    start: float, dtype: torch.dtype, by: float
) -> None:
    assert surveyed(counting(start, dtype, by), noise()) == []


def test_a_few_additions_without_effect_are_no_fault_yet() -> None:
    assert surveyed(counting(256.0, torch.bfloat16, times=ABSORBED - 1), noise()) == []


def test_a_sum_with_one_element_that_still_moves_is_not_absorbed() -> None:
    def add(x: Tensor) -> Tensor:
        total = torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
        for _ in range(ABSORBED):
            total += 1.0
        return x * (total / total).mean()

    assert surveyed(add, noise()) == []


# --- the survey as a whole --------------------------------------------------------------------------------------------


def test_the_worst_comes_first_and_what_is_not_serious_last() -> None:
    def several(x: Tensor) -> Tensor:
        y = quantized(lambda x: 1.001 * current(x))(x)
        return counting(256.0, torch.bfloat16)(y) + rms_norm(x.half()).float()

    x = noise()
    x[1] = 400.0
    faults = surveyed(several, x)
    assert [(f.kind, f.serious) for f in faults] == [("absorbed", True), ("erased", True), ("pinned", False)]
    assert faults[0].body["weight"] > faults[1].body["weight"]


def test_a_healthy_network_loses_nothing() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 4))
    run = tiny_run(nn.Sequential(*layers), mean_loss, [noise(8, 8)], autocast="bf16")
    assert survey(run, trained(run), 0) == []


class Drawing(nn.Module):
    """Has all that a step changes: weights, running statistics, moments, and a dropout's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.last = nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(rms_norm(self.drop(self.norm(x) * 300).half()).float()) * (1.0 + 0.01 * random.random())


def drawing_run() -> TrainingRun:
    model = Drawing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    batches = [torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    torch.manual_seed(1)
    random.seed(1)
    return tiny_run(model, mean_loss, batches, optimizer=optimizer, scheduler=scheduler)


def state_of(run: TrainingRun) -> dict[str, Any]:
    moments = {f"{i}.{k}": v.tolist() for i, s in enumerate(run.optimizer.state.values()) for k, v in s.items()}
    return {
        "weights": {n: t.tolist() for n, t in run.model.state_dict().items()},
        "gradients": {n: t.tolist() for n, t in run.gradients().items()},
        "moments": moments,
        "rates": [g["lr"] for g in run.optimizer.param_groups],
        "schedule": run.scheduler.state_dict(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "training": {n: m.training for n, m in run.model.named_modules()},
    }


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_survey_puts_everything_back_that_it_moved(step: int) -> None:
    run = drawing_run()
    ring = trained(run, 4)
    before = state_of(run)
    assert survey(run, ring, step)
    assert state_of(run) == before


def test_a_run_goes_on_after_a_survey_as_if_there_had_been_none() -> None:
    plain = drawing_run()
    trained(plain, 4)
    after = [train_step(plain, step, StepWatch()).loss for step in range(4, 8)]
    end = state_of(plain)
    looked = drawing_run()
    ring = trained(looked, 4)
    survey(looked, ring, 1)
    assert [train_step(looked, step, StepWatch()).loss for step in range(4, 8)] == after
    assert state_of(looked) == end


def test_two_surveys_of_one_step_tell_the_same() -> None:
    run = drawing_run()
    ring = trained(run, 4)
    first, second = survey(run, ring, 2), survey(run, ring, 2)
    assert [f.body for f in first] == [f.body for f in second]
    assert first


# --- which steps are looked at ----------------------------------------------------------------------------------------


def hunted(run: TrainingRun, folder: Path, steps: int) -> Onset | None:
    run.root = HERE.parent
    with TraceWriter(folder / "trace.parquet", Manifest()) as writer:
        return hunt(run, writer, HuntSettings(steps=steps, trials=False))


def run_with_a_loud_row(at: int | None, steps: int) -> TrainingRun:
    batches = [noise(8, 8) for _ in range(steps)]
    if at is not None:
        batches[at][5] = 1000.0
    return tiny_run(Net(lambda x: rms_norm(x.half()).float(), 8), mean_loss, batches)


@pytest.mark.parametrize("at", [0, 7, 19])
def test_one_step_with_an_erased_row_is_found_by_the_zeros_of_its_module(tmp_path: Path, at: int) -> None:
    onset = hunted(run_with_a_loud_row(at, 20), tmp_path, 20)
    assert onset is not None
    assert (onset.kind, onset.step, onset.phase, onset.module) == ("stall", at, "forward", "block")
    assert (onset.source, onset.samples) == (line_of("beyond fp16"), [5])
    assert diagnose(Trace.open(tmp_path / "trace.parquet")).suspects[0].cause == "activation-overflow"


def test_its_twin_without_the_row_is_healthy(tmp_path: Path) -> None:
    assert hunted(run_with_a_loud_row(None, 20), tmp_path, 20) is None


def outputs_with(zeros: int) -> list[Observation]:
    x = torch.ones(1000)
    x[:zeros] = 0.0
    return [
        Observation(step=0, seq=0, phase=Phase.FORWARD.value, role=Role.OUTPUT.value, module="a", stats=summarize(x))
    ]


def test_zeros_are_surprising_only_where_there_were_far_fewer() -> None:
    watch = ZeroWatch()
    told = [watch.observe(StepRows.of(outputs_with(zeros))) for zeros in (500, 600, 490, 1000, 0)]
    assert told == [False, False, False, False, False]
    sparse = ZeroWatch()
    assert [sparse.observe(StepRows.of(outputs_with(zeros))) for zeros in (0, 3, 100, 100)] == [
        False,
        False,
        True,
        False,
    ]


# --- the classes of a loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (lambda m, x: F.cross_entropy(m(x), torch.arange(8) % 5), 5),
        (lambda m, x: F.nll_loss(F.log_softmax(m(x), -1), torch.arange(8) % 5), 5),
        (lambda m, x: F.cross_entropy(m(x), torch.arange(8) % 5, reduction="sum"), None),
        (lambda m, x: m(x).square().mean(), None),
    ],
    ids=["cross-entropy", "log-likelihood", "sum", "squares"],
)
def test_classes_are_those_of_a_mean_negative_log_likelihood(
    loss: Callable[[nn.Module, Any], Tensor], classes: int | None
) -> None:
    run = tiny_run(nn.Linear(6, 5), loss, [noise(8, 6)])
    assert classes_of(run, trained(run), 0) == classes


class Positions(nn.Module):
    """Adds the cosine of a position that was cast to a narrow format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(1000, 1000 + len(x)).to(self.dtype)  # collides
        return self.first(x) + at.float().cos()[:, None]


@pytest.mark.parametrize(("dtype", "kinds"), [(torch.bfloat16, ["collided"]), (torch.float16, []), (torch.float32, [])])
def test_positions_that_a_format_tells_no_more_apart_are_told(dtype: torch.dtype, kinds: list[str]) -> None:
    run = tiny_run(Positions(dtype), mean_loss, [noise(16, 4)])
    found = serious(survey(run, trained(run), 0))
    assert [f.kind for f in found] == kinds
    assert [f.body["source"] for f in found] == [line_of("collides")] * len(kinds)


@pytest.mark.parametrize(("terms", "kinds"), [(1000, ["rounded"]), (100, [])])
def test_a_count_that_is_gathered_beyond_what_bf16_counts_is_told(terms: int, kinds: list[str]) -> None:
    def counted(x: Tensor) -> Tensor:
        count = torch.zeros(2, dtype=torch.bfloat16)
        count.index_add_(0, torch.zeros(terms, dtype=torch.long), torch.ones(terms, dtype=torch.bfloat16))
        return x / count.float()[0]

    assert [f.kind for f in serious(surveyed(counted, noise()))] == kinds


@pytest.mark.parametrize(
    ("dtype", "rate", "kinds"),
    [(torch.bfloat16, 1e-3, ["unmoved"]), (torch.bfloat16, 0.5, []), (torch.float32, 1e-3, [])],
)
def test_a_moving_average_that_its_format_swallows_is_told(dtype: torch.dtype, rate: float, kinds: list[str]) -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(8, 8, bias=False)
            self.average = nn.Linear(8, 8, bias=False).to(dtype).requires_grad_(False)

    def step(model: Any, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = model.own(batch).square().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.average.weight.lerp_(model.own.weight.to(dtype), rate)
        return loss

    torch.manual_seed(0)
    run = tiny_run(Averaged(), mean_loss, [noise(4, 8)], train_step=step)
    assert [f.kind for f in serious(survey(run, trained(run), 0))] == kinds
