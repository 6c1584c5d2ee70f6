"""A step under a recipe is the same when it is run again or looked at, and leaves nothing of torch's changed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

from nanhunt.formats.catalogue import E4M3FN
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.recipes.catalogue import RECIPES
from nanhunt.recipes.scaling import LOSSES, losses, quantize
from nanhunt.replay import replay_step
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest
from nanhunt.trace.writer import TraceWriter
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step
from tests.recipes.emulated import PRODUCTS, run_under
from tests.test_undisturbed import Losses, assert_nothing_is_left_on, assert_same, batches, state_of

NAMES = [
    *(r.name for r in RECIPES if r.name != "stochastic"), "bf16-no-master+stochastic", "pure-fp16+stochastic",
    "fp8-block+states-bf16", "mxfp4+states-8bit", "fp8-delayed+bf16", "nvfp4+bf16-no-master+stochastic", "states-bf16+stochastic",
]  # fmt: skip
VOCABULARY, WIDTH = 11, 64


class Net(nn.Module):
    """Dropout, a block that is called twice and may be checkpointed, attention, a tied head; states of 8 bits have room."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.3)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.checkpointed = checkpointed
        self.masks: list[Tensor] = []

    def block(self, x: Tensor) -> Tensor:
        dropped = self.drop(torch.ones_like(x))
        self.masks.append(dropped.detach() != 0)
        return x + dropped * self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.head(x + torch.softmax(x @ x.t(), -1) @ x)  # type: ignore[no-any-return]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    ids, labels = batch
    return F.cross_entropy(model(ids).float(), labels)


def run_of(name: str, *, checkpointed: bool = False, count: int = 12) -> TrainingRun:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    model = Net(checkpointed=checkpointed)
    return run_under(name, model, loss_of, batches(count), optimizer=adamw, accumulate=2, clip_grad_norm=0.5)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)  # which fp16 can hold


def stepped(run: TrainingRun, step: int) -> dict[str, Any]:
    seen = Losses()
    train_step(run, step, seen)
    return {"losses": seen.bits, **state_of(run.model, run.optimizer, run.scaler)}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_restored_snapshot_runs_the_same_steps_to_the_bit(name: str, checkpointed: bool) -> None:
    run = run_of(name, checkpointed=checkpointed)
    for step in range(2):
        stepped(run, step)
    snapshot = Snapshot.take(run, 2)
    first = [stepped(run, step) for step in (2, 3)]
    snapshot.restore(run)
    assert_same([stepped(run, step) for step in (2, 3)], first)
    assert (
        first[0]["losses"] != first[1]["losses"] or name == "pure-fp16"
    )  # NaN by then, from moments that fp16 flushes


@pytest.mark.parametrize("name", [n for n in NAMES if "pure" not in n and "no-master" not in n])
def test_dropout_draws_what_it_draws_without_the_recipe_and_the_weights_are_others(name: str) -> None:
    told, masks = [], []
    for recipe in ("", name):
        run = run_of(recipe)
        told.append([stepped(run, step) for step in range(2)][-1])
        masks.append(run.model.masks)
    assert len(masks[0]) == len(masks[1]) == 2 * 2 * 2  # type: ignore[arg-type]
    for one, other in zip(*masks, strict=True):  # type: ignore[arg-type]
        assert torch.equal(one, other)
    assert told[0]["generators"] == told[1]["generators"]
    assert (told[0]["weights"] != told[1]["weights"]) == (name != "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_recording_and_zooming_leave_every_bit_of_training_alone(name: str) -> None:
    plain = run_of(name)
    expected = [stepped(plain, step) for step in range(3)]
    for zoomed in (False, True):
        run, rows, got = run_of(name), RowBuffer(), []
        for step in range(3):
            seen = Losses()
            zoom = OpProbe(run, rows) if zoomed else None
            replay_step(run, step, rows, recorded=zoomed or step != 1, zoom=zoom, also=[seen])
            rows.take()
            got.append({"losses": seen.bits, **state_of(run.model, run.optimizer, run.scaler)})
        assert_same(got, expected)
        assert_nothing_is_left_on(run.model)


def switches(run: TrainingRun) -> dict[str, Any]:
    return {
        "modes": _get_current_dispatch_mode_stack(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "precision": torch.get_float32_matmul_precision(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        "grad": torch.is_grad_enabled(),
        "global hooks": [len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)],
        "hooks": [len(run.optimizer._optimizer_step_pre_hooks), len(run.optimizer._optimizer_step_post_hooks)],
        "default": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "memory": [(p.dtype, p.data_ptr()) for p in run.model.parameters()],
    }  # fmt: skip


class Raising(StepWatch):
    def __init__(self, when: str) -> None:
        self.when = when

    def backward_begins(self, micro: int) -> None:
        if self.when == "backward":
            raise ZeroDivisionError

    def updated(self) -> None:
        if self.when == "update":
            raise ZeroDivisionError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["never", "backward", "update"])
def test_torchs_switches_and_hooks_are_as_before_also_behind_a_step_that_raises(name: str, when: str) -> None:
    run = run_of(name)
    before = switches(run)
    if when == "never":
        train_step(run, 0, StepWatch())
    else:
        with pytest.raises(ZeroDivisionError):
            train_step(run, 0, Raising(when))
    assert switches(run) == before
    train_step(run, 1, StepWatch())


# --- what operands lose -----------------------------------------------------------------------------------------------


def recorded(run: TrainingRun, step: int, tmp_path: Any) -> dict[str, float]:
    """Replay a step, and return the scalars that tell of operands, read back from a trace."""
    rows, path = RowBuffer(), tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
    replay_step(run, step, rows, recorded=True)
    writer = TraceWriter(path, Manifest())
    writer.write(rows.take())
    writer.close()
    frame = Trace.open(path).frame(["module", "name", "value"], roles=["scalar"])
    named = zip(frame["module"], frame["name"], frame["value"], strict=True)
    return {f"{module}.{name}": float(value) for module, name, value in named if str(name).count(".") == 2}


def test_what_operands_lose_is_recorded_for_each_weight_and_role(tmp_path: Any) -> None:
    run = run_of("fp8-hybrid")
    embed = run.model.embed.weight.detach().clone()  # type: ignore[union-attr, operator]
    told = recorded(run, 0, tmp_path)
    weights = ("up.weight", "down.weight", "embed.weight")
    assert set(told) == {f"{w}.{r}.{x}" for w in weights for r in ("input", "weight", "gradient") for x in LOSSES}
    operand = PRODUCTS["fp8-hybrid"].weight
    expected = losses(embed, quantize(embed, operand), E4M3FN)
    assert [told[f"embed.weight.weight.{x}"] for x in LOSSES] == pytest.approx(expected.tolist())


def test_steps_of_trials_in_between_are_no_part_of_what_a_step_loses(tmp_path: Any) -> None:
    plain = run_of("fp8-delayed")
    expected = [recorded(plain, step, tmp_path) for step in (0, 1)]
    run = run_of("fp8-delayed")
    got = [recorded(run, 0, tmp_path)]
    snapshot = Snapshot.take(run, 1)
    with torch.no_grad():
        for p in run.model.parameters():
            p.mul_(1e-6).view(-1)[0] = 1e6  # a trial in which much is lost
    train_step(run, 1, StepWatch())
    snapshot.restore(run)
    got.append(recorded(run, 1, tmp_path))
    assert got == expected
