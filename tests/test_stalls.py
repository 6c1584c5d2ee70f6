"""Training that stands still without a NaN, look-alikes that stand still for a good reason, and what a fault spoils."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nanhunt.commands.replay import ReplayOptions, replay
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.damage import pattern
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.hunt import HuntSettings, hunt
from nanhunt.hunt.stalls import is_scaled_clip
from nanhunt.stall import Motion, UpdateLoss, frozen_share, is_flat
from nanhunt.stats.summarize import summarize
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Observation, Onset, Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult
from tests.conftest import tiny_run

Loss = Callable[[nn.Module, Any], Tensor]
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a hunt says: the onset, the reason of a stall, and the diagnosis of the trace."""

    onset: Onset | None
    reason: str
    diagnosis: Diagnosis
    trace: Trace

    @property
    def place(self) -> tuple[str, int, str]:
        """The reason of a stall, its step and its phase."""
        assert self.onset is not None, self.diagnosis.summary
        assert self.onset.kind == "stall", self.onset
        return self.reason, self.onset.step, self.onset.phase


def hunted(run: TrainingRun, folder: Path, *, steps: int = STEPS, trials: bool = False) -> Told:
    run.root = Path(__file__).parent
    with TraceWriter(folder / "trace.parquet", Manifest()) as writer:
        onset = hunt(run, writer, HuntSettings(steps=steps, trials=trials))
    trace = Trace.open(folder / "trace.parquet")
    note = trace.note_of(NoteKind.STALL)
    reason = str(note["reason"]) if note else ""
    return Told(onset=onset, reason=reason, diagnosis=diagnose(trace), trace=trace)


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 4))


def batches(width: int = 8) -> Iterator[dict[str, Any]]:
    step = 0
    while True:
        g = torch.Generator().manual_seed(step)
        yield {
            "x": torch.randn(8, width, generator=g),
            "y": torch.randint(4, (8,), generator=g),
            "step": torch.tensor(step),
        }
        step += 1


def entropy(model: nn.Module, batch: Any) -> Tensor:
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(batch["x"].to(dtype)).float(), batch["y"])


# --- a clip whose norm overflowed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 3, 8])
def test_huge_gradients_whose_norm_overflows_fp32_are_told_at_that_step(tmp_path: Path, late: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return entropy(model, batch) * (1e25 if int(batch["step"]) == late else 1.0)

    told = hunted(tiny_run(network(), loss, batches(), clip_grad_norm=1.0), tmp_path)
    assert told.place == ("clip-overflow", late, "clip")
    assert told.diagnosis.suspects[0].cause == "training-loop-bug"


def test_finite_fp16_gradients_whose_norm_overflows_fp16_are_told_at_that_step(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        late = int(batch["step"]) == 4
        return (model(batch["x"].half()).float() * (1.5e5 if late else 1.0)).mean()

    model = nn.Linear(8, 4).half()
    told = hunted(tiny_run(model, loss, batches(), clip_grad_norm=1.0), tmp_path)
    assert told.place == ("clip-overflow", 4, "clip")
    evidence = Evidence(told.trace)
    assert 65504.0 < evidence.scalars("grad_norm")[4] < 1e6
    assert evidence.scalars("clip_coefficient")[4] == 0.0


@pytest.mark.parametrize(("clip", "factor"), [(1e-3, 1.0), (1.0, 1e15), (None, 1e25)])
def test_a_clip_that_leaves_something_or_none_at_all_is_told_by_no_overflow(
    tmp_path: Path, clip: float | None, factor: float
) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return entropy(model, batch) * (factor if int(batch["step"]) == 8 else 1.0)

    told = hunted(tiny_run(network(), loss, batches(), clip_grad_norm=clip), tmp_path)
    assert told.reason != "clip-overflow"
    assert (told.onset is None) == (clip is not None)


def test_a_scaler_that_still_looks_for_its_scale_under_a_clip_is_left_alone(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run = tiny_run(network(), lambda m, b: entropy(m, b) * 10.0, batches(), clip_grad_norm=1.0, scaler=scaler)
    told = hunted(run, tmp_path)
    assert told.reason == ""
    assert Evidence(told.trace).scalars("skipped")[0] == 1.0


def test_an_infinite_gradient_under_a_clip_is_a_fault_of_the_gradient(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        bad = int(batch["step"]) == 3
        return entropy(model, batch) + (model(batch["x"]) * 0.0).sum().sqrt() * (1.0 if bad else 0.0)

    told = hunted(tiny_run(network(), loss, batches(), clip_grad_norm=1.0), tmp_path)
    assert told.onset is not None
    assert told.onset.kind in ("nan", "inf")


# --- gradients that are not there, or zero ----------------------------------------------------------------------------


def test_gradients_that_are_all_zero_from_a_step_on_are_told_at_that_step(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch["x"])
        live = 1.0 if int(batch["step"]) < 4 else 0.0
        return F.cross_entropy(scores * live + scores.detach() * (1.0 - live), batch["y"])

    told = hunted(tiny_run(network(), loss, batches()), tmp_path)
    assert told.place == ("zero-gradient", 4, "backward")
    assert told.onset is not None
    assert "every gradient is exactly zero" in told.onset.detail


@pytest.mark.parametrize("is_ignored", [True, False])
def test_a_loss_of_exactly_zero_is_a_stall_where_every_label_is_ignored(tmp_path: Path, *, is_ignored: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch["x"])
        if int(batch["step"]) < 4:
            return F.cross_entropy(scores, batch["y"])
        return F.cross_entropy(scores, torch.full_like(batch["y"], -100), reduction="sum")

    shown = list(islice(batches(), 24))
    if is_ignored:
        shown[4:] = [batch | {"y": torch.full_like(batch["y"], -100)} for batch in shown[4:]]
    told = hunted(tiny_run(network(), loss, shown), tmp_path)
    if not is_ignored:  # a loss that is at its least has nothing to teach
        assert told.onset is None
        return
    assert told.place == ("unlabelled", 4, "forward")
    (first, *_) = diagnose(told.trace).suspects
    assert (first.cause, first.grade.value) == ("empty-reduction", "proved")


def test_two_steps_with_zero_gradients_are_no_stall_yet(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch["x"])
        live = 0.0 if int(batch["step"]) in (4, 5) else 1.0
        return F.cross_entropy(scores * live + scores.detach() * (1.0 - live), batch["y"])

    assert hunted(tiny_run(network(), loss, batches()), tmp_path).onset is None


def test_a_loss_that_reaches_no_weight_is_told_from_the_first_step(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.tensor(entropy(model, batch).item(), requires_grad=True)

    told = hunted(tiny_run(network(), loss, batches()), tmp_path)
    assert told.place == ("no-gradient", 0, "backward")
    assert told.diagnosis.suspects[0].cause == "training-loop-bug"


def test_a_saturated_hinge_that_is_exactly_zero_is_a_solved_task(tmp_path: Path) -> None:
    def hinge(model: nn.Module, batch: Any) -> Tensor:
        return F.relu(model(batch["x"]).abs() - 1e3).mean()

    assert hunted(tiny_run(network(), hinge, batches()), tmp_path).onset is None


def test_a_dead_layer_beside_a_living_one_is_no_stall(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.alive = nn.Linear(8, 4), nn.Linear(8, 4)
            nn.init.constant_(self.dead.bias, -100.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.alive(x) + F.relu(self.dead(x))

    assert hunted(tiny_run(Half(), entropy, batches()), tmp_path).onset is None


def test_unused_rows_of_an_embedding_are_no_stall(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(1000, 4), nn.Linear(4, 4))
    data = ({"x": torch.arange(4) + step % 3, "y": torch.arange(4)} for step in range(STEPS))
    run = tiny_run(model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"]), data)
    assert hunted(run, tmp_path).onset is None


# --- updates that change nothing --------------------------------------------------------------------------------------


def test_a_rate_below_the_weights_ulp_in_bf16_is_told_with_its_first_step(tmp_path: Path) -> None:
    model = network().bfloat16()
    run = tiny_run(model, entropy, batches(), optimizer=torch.optim.SGD(model.parameters(), lr=1e-7))
    told = hunted(run, tmp_path)
    assert told.place == ("lost-update", 0, "update")
    assert told.diagnosis.suspects[0].cause == "lost-update"


class Levelled(nn.Module):
    """A layer and a level to which a large constant was added."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant
        self.layer, self.level = nn.Linear(8, 4), nn.Parameter(torch.full((16, 4), constant))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x) + self.level - self.constant
        return made


@pytest.mark.parametrize(("constant", "lost"), [(101325.0, True), (10.0, False)])
def test_one_fp32_tensor_that_adam_cannot_move_is_told_while_the_others_train(
    constant: float, lost: bool, tmp_path: Path
) -> None:
    model = Levelled(constant)
    data = [{"x": torch.randn(16, 8), "y": torch.randint(4, (16,))} for _ in range(STEPS)]
    run = tiny_run(model, entropy, data, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))
    told = hunted(run, tmp_path)
    assert (told.onset is not None) == lost
    if lost:
        assert told.place == ("lost-update", 0, "update")
        assert told.diagnosis.suspects[0].location.parameter == "level"


class RoundedByLot(torch.optim.Optimizer):
    """SGD that rounds what it makes of a bf16 weight up or down by the odds of what is cut off."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                bits = (p.float() - group["lr"] * p.grad.float()).view(torch.int32)
                lot = torch.randint_like(bits, 1 << 16)
                p.copy_(((bits + lot) & -(1 << 16)).view(torch.float32).bfloat16())


def test_an_update_that_is_rounded_by_lot_is_not_lost(tmp_path: Path) -> None:
    model = network().bfloat16()
    run = tiny_run(model, entropy, batches(), optimizer=RoundedByLot(model.parameters(), lr=1e-3))
    assert hunted(run, tmp_path).onset is None


def test_the_same_rate_in_fp32_moves_the_weights(tmp_path: Path) -> None:
    model = network()
    run = tiny_run(model, entropy, batches(), optimizer=torch.optim.AdamW(model.parameters(), lr=1e-6))
    assert hunted(run, tmp_path).onset is None


def test_a_loop_that_never_steps_is_told_when_no_accumulation_can_explain_it(tmp_path: Path) -> None:
    def step(model: nn.Module, batch: Any, optimizer: Any) -> Tensor:
        optimizer.zero_grad()
        loss = entropy(model, batch)
        loss.backward()
        return loss

    told = hunted(tiny_run(network(), entropy, batches(), train_step=step), tmp_path, steps=30)
    assert told.place == ("no-update", 0, "update")
    assert told.diagnosis.suspects[0].cause == "training-loop-bug"


def test_a_loop_that_adds_up_gradients_over_calls_is_left_alone(tmp_path: Path) -> None:
    calls: list[int] = []

    def step(model: nn.Module, batch: Any, optimizer: Any) -> Tensor:
        loss = entropy(model, batch)
        (loss / 8).backward()
        if int(batch["step"]) % 8 == 7:
            optimizer.step()
            optimizer.zero_grad()
        calls.append(0)
        return loss

    told = hunted(tiny_run(network(), entropy, batches(), train_step=step), tmp_path, steps=30)
    assert told.onset is None
    assert len(calls) >= 30


@pytest.mark.parametrize("zero_steps", [4, STEPS])
def test_a_warm_up_from_a_rate_of_zero_is_left_alone(tmp_path: Path, zero_steps: int) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, step - zero_steps) / 10)
    run = tiny_run(model, entropy, batches(), optimizer=optimizer, scheduler=warm_up)
    assert hunted(run, tmp_path).onset is None


@pytest.mark.parametrize("frozen_by", ["requires_grad", "left out of the optimizer"])
def test_a_frozen_backbone_is_left_alone(tmp_path: Path, frozen_by: str) -> None:
    model = network(64)
    if frozen_by == "requires_grad":
        model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters(), lr=1e-3)
    assert hunted(tiny_run(model, entropy, batches(64), optimizer=optimizer), tmp_path).onset is None


def test_a_backbone_in_a_group_with_a_rate_of_zero_is_left_alone(tmp_path: Path) -> None:
    model = network(64)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 1e-3}]
    run = tiny_run(model, entropy, batches(64), optimizer=torch.optim.AdamW(groups))
    assert hunted(run, tmp_path).onset is None


# --- a clip that meets the loss scale ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unscaled_first", [False, True])
def test_a_clip_before_the_unscaling_is_told_and_one_behind_it_is_not(tmp_path: Path, unscaled_first: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def step(model: nn.Module, batch: Any, optimizer: Any) -> Tensor:
        optimizer.zero_grad()
        loss = entropy(model, batch)
        scaler.scale(loss).backward()
        if unscaled_first:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    told = hunted(tiny_run(network(), entropy, batches(), train_step=step), tmp_path)
    if unscaled_first:
        assert told.onset is None
    else:
        assert told.place == ("scaled-clip", 0, "clip")
        assert told.diagnosis.suspects[0].cause == "training-loop-bug"


def result_of(**fields: Any) -> StepResult:
    given = {"step": 0, "loss": 1.0, "grad_norm": 1.0, "lr": (0.1,), "clip_coefficient": None, "loss_scale": None}
    return StepResult(**{**given, "skipped": False, **fields})


@pytest.mark.parametrize(
    ("order", "scale", "factor", "told"),
    [
        (("backward", "clip", "unscale", "update"), 65536.0, 0.1, True),
        (("backward", "unscale", "clip", "update"), 65536.0, 0.1, False),
        (("backward", "clip", "unscale", "update"), 65536.0, 1.0, False),
        (("backward", "clip", "unscale", "update"), 1.0, 0.1, False),
        (("backward", "clip", "update"), 65536.0, 0.1, False),
    ],
)
def test_a_scaled_clip_is_one_that_acted_on_a_loss_scale(
    order: tuple[str, ...], scale: float, factor: float, told: bool
) -> None:
    assert is_scaled_clip(result_of(order=order, loss_scale=scale, clip_coefficient=factor)) is told


# --- a flat loss ------------------------------------------------------------------------------------------------------


def flat_run(constant: float, slope: float, cast: torch.dtype = torch.float32) -> TrainingRun:
    """Train weights that move by far more than an ulp, on a loss of which they are a part of `slope`."""
    model = nn.Linear(8, 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (constant + slope * model(torch.ones(4, 8)).tanh().mean()).to(cast)

    return tiny_run(model, loss, batches(), optimizer=torch.optim.SGD(model.parameters(), lr=0.01 / slope))


def test_a_loss_that_stays_the_same_while_weights_move_is_told_with_its_first_step(tmp_path: Path) -> None:
    told = hunted(flat_run(1000.0, 1e-5), tmp_path)
    assert told.place == ("flat", 0, "forward")
    assert told.onset is not None
    assert "stays at 1000" in told.onset.detail


def test_a_loss_that_falls_by_little_is_not_flat(tmp_path: Path) -> None:
    assert hunted(flat_run(1.0, 1e-2), tmp_path).onset is None


def test_a_half_precision_loss_that_cannot_show_its_fall_is_not_flat(tmp_path: Path) -> None:
    assert hunted(flat_run(1000.0, 1e-1, torch.bfloat16), tmp_path).onset is None


@pytest.mark.parametrize(
    ("losses", "rates", "length"),
    [
        ([2.0, 1.0] + [0.5] * 6, [0.1] * 8, 6),
        ([0.5] * 9, [0.1] * 9, 9),
        ([2.0, 1.0] + [0.5] * 5, [0.1] * 7, 0),
        ([0.0] * 9, [0.1] * 9, 0),
        ([0.5] * 9, [0.1] * 8 + [0.0], 0),
        ([0.5 + 1e-5 * i for i in range(9)], [0.1] * 9, 0),
        ([0.5 + 1e-9 * i for i in range(9)], [0.1] * 9, 9),
        ([-0.5] * 9, [0.1] * 9, 9),
    ],
)
def test_flat_is_six_losses_within_a_millionth_at_a_rate_that_is_not_zero(
    losses: list[float], rates: list[float], length: int
) -> None:
    assert is_flat(losses, rates) == length


# --- the counters -----------------------------------------------------------------------------------------------------


def row(role: Role, tensor: Tensor, name: str = "weight") -> Observation:
    return Observation(
        step=0, phase=Phase.UPDATE.value, role=role.value, module="a", name=name, stats=summarize(tensor)
    )


ONES, ZEROS = torch.ones(4), torch.zeros(4)


@pytest.mark.parametrize(
    ("rows", "fields", "reason"),
    [
        ([row(Role.GRAD, ONES), row(Role.UPDATE, ZEROS)], {}, "no-motion"),
        ([row(Role.GRAD, ONES), row(Role.UPDATE, ZEROS)], {"clip_coefficient": 0.0}, "clipped"),
        ([row(Role.GRAD, ZEROS), row(Role.UPDATE, ONES)], {}, "zero-gradient"),
        ([], {}, "no-gradient"),
        ([row(Role.GRAD, ONES), row(Role.UPDATE, ONES)], {}, ""),
        ([row(Role.GRAD, ONES), row(Role.UPDATE, ZEROS)], {"lr": (0.0,)}, ""),
        ([row(Role.GRAD, ZEROS), row(Role.UPDATE, ZEROS)], {"loss": 0.0}, ""),
        ([row(Role.GRAD, ONES), row(Role.UPDATE, ZEROS)], {"skipped": True}, ""),
    ],
)
def test_motion_ends_in_three_steps_and_says_why(rows: list[Observation], fields: dict[str, Any], reason: str) -> None:
    motion = Motion()
    told = [motion.observe(result_of(step=step, **fields), StepRows.of(rows)) for step in (5, 6, 7)]
    assert told == [False, False, bool(reason)]
    assert (motion.reason, motion.first) == (reason, 5 if reason else None)


def test_a_step_that_moves_begins_the_count_anew() -> None:
    motion, still = Motion(), [row(Role.GRAD, ONES), row(Role.UPDATE, ZEROS)]
    moving = [row(Role.GRAD, ONES), row(Role.UPDATE, ONES)]
    order = [still, still, moving, still, still, still]
    told = [motion.observe(result_of(step=step), StepRows.of(rows)) for step, rows in enumerate(order)]
    assert told == [False] * 5 + [True]
    assert motion.first == 3


def frozen(share: float, name: str) -> Observation:
    return Observation(
        step=0, phase=Phase.UPDATE.value, role=Role.SCALAR.value, module="a", name=f"{name}.frozen", value=share
    )


def test_frozen_weights_count_by_their_elements_with_a_gradient() -> None:
    half = torch.cat([torch.ones(6), torch.zeros(2)])
    rows = [
        row(Role.GRAD, half, "big"),
        row(Role.GRAD, torch.ones(2), "small"),
        frozen(1.0, "big"),
        frozen(0.5, "small"),
    ]
    assert frozen_share(StepRows.of(rows)) == (7 / 8, "a.big")
    assert frozen_share(StepRows.of([row(Role.GRAD, ONES)])) is None


def test_lost_updates_are_three_in_a_row() -> None:
    lost = UpdateLoss()
    shares = [(0.9, "a"), (0.9, "a"), (0.1, "a"), (0.8, "a"), None, (0.9, "b"), (0.8, "b"), (1.0, "b")]
    assert [lost.observe(step, share) for step, share in enumerate(shares)] == [False] * 7 + [True]
    assert (lost.first, lost.share, lost.parameter) == (5, 1.0, "b")


# --- what a fault spoils ----------------------------------------------------------------------------------------------


def at_three(loss: Loss) -> Loss:
    """Return a loss that is healthy but for step 3."""
    return lambda model, batch: (loss if int(batch["step"]) == 3 else entropy)(model, batch)


def singular(model: nn.Module, batch: Any) -> Tensor:
    return entropy(model, batch) + (model(batch["x"]) * 0.0).square().sum().sqrt()


def mean_over_nothing(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"])[batch["y"] > 99].mean()


def log_of_a_zero_target(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch["x"]) - torch.zeros(4).log()).mean()


def log_of_a_zero_prediction(model: nn.Module, batch: Any) -> Tensor:
    return -(model(batch["x"]) * 0.0).log().mean()


@pytest.mark.parametrize(
    ("loss", "name", "words"),
    [
        (singular, "finite-loss-bad-gradients", "the loss is finite, 4 of 4 gradients are not; "),
        (mean_over_nothing, "nan-loss-zero-gradients", "the loss is NaN, every gradient exactly zero; "),
        (log_of_a_zero_target, "inf-loss-finite-gradients", "the loss is infinite, every gradient finite; "),
        (log_of_a_zero_prediction, "both", "the loss is not finite, nor are 4 of 4 gradients; "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_patterns_of_damage_are_told_apart(tmp_path: Path, loss: Loss, name: str, words: str) -> None:
    told = hunted(tiny_run(network(), at_three(loss), batches()), tmp_path)
    assert told.onset is not None
    assert told.onset.step == 3
    assert pattern(Evidence(told.trace)) == name
    assert told.diagnosis.damage.startswith(words)


@pytest.mark.parametrize(
    ("loss", "left"),
    [
        (singular, "not finite after the step: 4 of 4 weights"),
        (mean_over_nothing, "weights, buffers and moments stay finite"),
        (log_of_a_zero_target, "weights, buffers and moments stay finite"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_says_what_is_left_for_the_next_step(tmp_path: Path, loss: Loss, left: str) -> None:
    told = hunted(tiny_run(network(), at_three(loss), batches()), tmp_path)
    assert told.diagnosis.damage.endswith(f"; {left}")


def test_damage_counts_spoiled_moments(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    told = hunted(tiny_run(model, at_three(singular), batches(), optimizer=optimizer), tmp_path)
    assert told.diagnosis.damage.endswith("not finite after the step: 4 of 4 weights, 8 moments")


def test_a_gradient_scaler_that_skips_the_step_saves_the_weights(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    told = hunted(tiny_run(network(), at_three(singular), batches(), scaler=scaler), tmp_path)
    assert told.diagnosis.damage == (
        "the loss is finite, 4 of 4 gradients are not; the gradient scaler skipped the step, the weights are untouched"
    )


def test_a_model_that_raises_spoils_nothing_that_is_told(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise ValueError("no")

    told = hunted(tiny_run(network(), at_three(loss), batches()), tmp_path)
    assert told.onset is not None
    assert (told.onset.kind, told.diagnosis.damage) == ("exception", "")


def test_a_stall_spoils_nothing(tmp_path: Path) -> None:
    run = tiny_run(network(), lambda m, b: entropy(m, b) * 1e25, batches(), clip_grad_norm=1.0)
    assert hunted(run, tmp_path).diagnosis.damage == ""


# --- through the command ----------------------------------------------------------------------------------------------

SCRIPT = """
import torch
import torch.nn as nn
import torch.nn.functional as F


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        yield {"x": torch.randn(8, 8, generator=g), "y": torch.randint(4, (8,), generator=g), "step": step}
        step += 1


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def compute_loss(model, batch):
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    return loss * 1e25 if batch["step"] == LATE else loss
"""


@pytest.mark.parametrize("late", [None, 14])
def test_the_command_writes_the_stall_its_trials_and_its_cause(tmp_path: Path, late: int | None) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.replace("LATE", str(late)))
    config = {
        "model": "train:build_model",
        "data": "train:batches",
        "loss": "train:compute_loss",
        "optimizer": "train:make_optimizer",
        "train": {"steps": 10, "clip_grad_norm": 1.0},
    }
    (tmp_path / "nanhunt.yaml").write_text(yaml.safe_dump(config))
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    torch.save({"model": model.state_dict(), "step": 10}, tmp_path / "ckpt.pt")
    out = tmp_path / "trace.parquet"
    options = ReplayOptions(
        checkpoint=tmp_path / "ckpt.pt", config=tmp_path / "nanhunt.yaml", out=out, device="cpu", quiet=True
    )
    try:
        onset = replay(options)
    finally:
        sys.modules.pop("train", None)
    trace = Trace.open(out)
    diagnosis = diagnose(trace)
    if late is None:
        assert (onset, diagnosis.outcome, trace.note_of(NoteKind.STALL)) == (None, "healthy", None)
        return
    assert onset is not None
    assert (onset.kind, onset.step, onset.phase) == ("stall", late, "clip")
    assert [t.outcome for t in diagnosis.trials if t.name == "exact"] == ["persists"]
    assert diagnosis.suspects[0].cause == "training-loop-bug"
