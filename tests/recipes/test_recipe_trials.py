"""Trials of a recipe act, say what they did, and put the run back to the bit; without a recipe they are not applicable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import Bench, Window
from nanhunt.changes import change_made
from nanhunt.changes.precision import precision_of
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Change, Intervention, ModulePrecision, OtherRecipe, Precision, Trial
from nanhunt.library import Given, library
from nanhunt.rewind import kept, rewind
from nanhunt.trace.schema import Onset
from nanhunt.training.batches import BatchSource
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import Known
from tests.recipes.emulated import run_under
from tests.test_trials import Model, assert_same, batches, everything_of, loss

STEPS, AT = 5, 3
NAMES = (
    "fp8-hybrid", "fp8-delayed", "fp8-block", "mxfp8", "mxfp4", "nvfp4", "fp8-delayed+bf16", "tf32", "states-8bit",
    "bf16-no-master", "nvfp4+bf16-no-master+stochastic",
)  # fmt: skip
CHANGES: dict[str, Change] = {
    "recipe-off": OtherRecipe("none"), "present-scales": OtherRecipe("present"), "block-scales": OtherRecipe("blocks"),
    "module-fp32": ModulePrecision("a"), "fp32": Precision("fp32"), "fp64": Precision("fp64"), "bf16": Precision("bf16"),
}  # fmt: skip


def trained(name: str, steps: int = STEPS) -> tuple[TrainingRun, SnapshotRing]:
    torch.manual_seed(0)
    run = run_under(name, Model(), mean_loss, batches_in(name))
    ring = SnapshotRing(run)
    for step in range(steps):
        ring.offer(run, step)
        train_step(run, step, StepWatch())
    return run, ring


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return loss(model, x).float()


def batches_in(name: str) -> list[Tensor]:
    narrow = "no-master" in name
    data = [batch for batch, _ in zip(batches(), range(STEPS + 3), strict=False)]
    return [b.bfloat16() if narrow else b for b in data]


def bench_of(run: TrainingRun, ring: SnapshotRing) -> Bench:
    return Bench(
        run=run, ring=ring, onset=Onset(kind="loss-spike", step=AT, phase="forward"), known=Known.of(run),
        window=Window(first=AT, last=STEPS - 1, limit=1e9, alarm=AT),
    )  # fmt: skip


def tried(run: TrainingRun, ring: SnapshotRing, name: str) -> Trial:
    given = Given(module="a", other_module="b", recipe=run.emulator is not None, format=run.autocast or "")
    intervention = next(i for i in library(given) if i.name == name)
    return run_trial(bench_of(run, ring), intervention)


@pytest.mark.parametrize("name", NAMES)
def test_behind_all_trials_the_run_is_as_before_and_goes_on_the_same(name: str) -> None:
    run, ring = trained(name)
    assert run.emulator is not None
    recipe = run.emulator.recipe
    before, carried = everything_of(run), run.emulator.state()
    told = {trial: tried(run, ring, trial) for trial in CHANGES}
    assert_same(before, everything_of(run))
    assert_same(carried, run.emulator.state())
    assert run.emulator.recipe is recipe
    assert run.emulator.exempt == set()
    # every loss is below the window's limit: what counts is that it ran
    assert told["fp32"].outcome == "cured"
    after = train_step(run, STEPS, StepWatch()).loss
    again, _ = trained(name)
    assert train_step(again, STEPS, StepWatch()).loss == after
    for parameter, p in again.parameters().items():
        assert torch.equal(p, run.parameters()[parameter]), parameter


def losses_under(run: TrainingRun, ring: SnapshotRing, change: Change | None) -> tuple[list[float], str]:
    """Losses of the window from its own weights, and what was read back."""
    said, bench = "", bench_of(run, ring)
    with kept(run, STEPS):
        rewind(run, ring, AT)
        if change is None:
            return [train_step(run, step, StepWatch()).loss for step in range(AT, STEPS)], ""
        with change_made(bench, change) as made:
            found = [train_step(run, step, StepWatch()).loss for step in range(AT, STEPS)]
        said = "; ".join(made.readback)
    return found, said


def losses_of(name: str, run: TrainingRun, ring: SnapshotRing) -> list[float]:
    """Losses of the window under another recipe, from the weights that `run` had there; "" is none at all."""
    other = run_under(name, Model(), mean_loss, batches_in(name))
    with kept(run, STEPS):
        rewind(run, ring, AT)
        other.model.load_state_dict(run.model.state_dict())
        other.optimizer.load_state_dict(run.optimizer.state_dict())
        random = torch.get_rng_state()
        for step in range(AT):
            other.batches.get(step, 0)
        torch.set_rng_state(random)
        return [train_step(other, step, StepWatch()).loss for step in range(AT, STEPS)]


@pytest.mark.parametrize(("trial", "as_under"), [
    ("recipe-off", ""), ("present-scales", "fp8-hybrid"), ("block-scales", "fp8-block"), ("fp32", ""),
])  # fmt: skip
def test_a_trial_runs_what_the_other_recipe_would(trial: str, as_under: str) -> None:
    run, ring = trained("fp8-delayed")
    got, said = losses_under(run, ring, CHANGES[trial])
    assert got == losses_of(as_under, run, ring)
    assert got != losses_under(run, ring, None)[0]
    assert {
        "recipe-off": "fp8-delayed off: products in their own precision",
        "present-scales": "scales from the present amax",
        "block-scales": "128×128",
        "fp32": "precision fp8-delayed → fp32",
    }[trial] in said


def test_a_trial_by_name_is_read_back() -> None:
    run, ring = trained("fp8-delayed+bf16")
    assert "bf16" not in tried(run, ring, "present-scales").detail
    for trial in ("recipe-off", "present-scales", "block-scales", "module-fp32", "fp32"):
        told = tried(run, ring, trial)
        assert told.outcome == "cured", (trial, told)
        assert told.readback, trial


def test_a_module_in_fp32_is_exempt_and_the_others_are_not() -> None:
    run, ring = trained("fp8-hybrid")
    assert run.emulator is not None
    whole = losses_under(run, ring, None)[0]
    got, said = losses_under(run, ring, CHANGES["module-fp32"])
    assert "a: products in their own precision" in said
    recipe = run.emulator.recipe
    assert recipe.products is not None
    with run.emulator.instead(replace(recipe, products=replace(recipe.products, skip=("a",)))):
        expected = losses_under(run, ring, None)[0]
    assert got == expected != whole


def test_what_a_recipe_does_not_do_is_not_applicable() -> None:
    for name, trials in {
        "": ("recipe-off", "present-scales", "block-scales"),
        "tf32": ("recipe-off", "present-scales", "block-scales"),
        "states-8bit": ("recipe-off", "module-fp32"),
        "fp8-hybrid": ("present-scales",),
        "mxfp8": ("present-scales", "block-scales"),
    }.items():
        run, ring = trained(name)
        for trial in trials:
            told = tried(run, ring, trial)
            assert told.outcome == "failed", (name, trial)
            assert told.detail


def test_batches_of_other_steps_come_in_the_dtype_that_the_recipe_casts_the_model_to() -> None:
    run = run_under("pure-bf16", Model(), mean_loss, [])
    data = [batch for batch, _ in zip(batches(), range(STEPS + 3), strict=False)]
    run.batches = BatchSource(data, first_step=0, accumulate=1, device=run.device, floats=torch.bfloat16)
    ring = SnapshotRing(run)
    for step in range(STEPS):
        ring.offer(run, step)
        train_step(run, step, StepWatch())
    given = Given(other_step=1, samples=(2,), placebo=(4,))
    for intervention in library(given):
        if intervention.name in ("swap-batch", "drop-samples"):
            told = run_trial(bench_of(run, ring), intervention)
            assert told.outcome == "cured", told
    again = run.batches.again(2, 0)
    assert again.dtype is torch.bfloat16
    assert run.batches.peek(2, 0).dtype is torch.float32  # as the user's data gave it
    again.zero_()
    assert run.batches.again(2, 0).any()


def test_the_precision_of_a_step_is_its_recipe_where_no_narrower_format_says_it() -> None:
    for name, said in {
        "fp8-block": "fp8-block",
        "tf32": "tf32",
        "states-8bit": "states-8bit",
        "bf16-no-master": "bf16",
    }.items():
        run, _ = trained(name, steps=1)
        assert precision_of(run) == said


def test_the_library_tells_why_a_trial_of_recipes_is_missing() -> None:
    missing = {
        i.name: i.missing for i in library(Given()) if i.name in ("recipe-off", "present-scales", "block-scales")
    }
    assert len(missing) == 3
    assert all(missing.values())
    assert isinstance(next(i for i in library(Given(recipe=True)) if i.name == "recipe-off"), Intervention)
