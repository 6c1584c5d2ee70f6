"""`--precision` and `precision.recipe`: every recipe runs on a small project, and its trace tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nanhunt.recipes.catalogue import RECIPES
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

NAMES = [
    *(r.name for r in RECIPES if r.name != "stochastic"), "bf16-no-master+stochastic", "pure-fp16+stochastic",
    "fp8-block+states-bf16+stochastic", "fp8-delayed+bf16", "nvfp4+amp-fp16+states-8bit",
]  # fmt: skip
STEPS = 3


@pytest.fixture
def replayed(project: Any, nanhunt: Any) -> Callable[..., Trace]:
    """A function that replays the project under a recipe and opens the trace."""

    def replay(*arguments: object, **config: Any) -> Trace:
        project.configure(**config)
        path = project.root / f"{len(list(project.root.glob('*.parquet')))}.parquet"
        outcome = nanhunt("replay", "ckpt.pt", "--steps", STEPS, "-q", "-o", path, *arguments)
        assert outcome.code == 0, outcome.err
        return Trace.open(path)

    return replay


def losses(trace: Trace) -> list[float]:
    frame = trace.frame(["step", "name", "value"], roles=["scalar"], passes=["replay"])
    return [float(v) for v in frame[frame["name"] == "loss"].sort_values("step")["value"]]


def names_of(trace: Trace) -> set[str]:
    return set(trace.frame(["name"], roles=["scalar"], passes=["replay"])["name"])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_replays_and_its_trace_names_it(name: str, replayed: Any, nanhunt: Any, project: Any) -> None:
    trace = replayed("--precision", name)
    assert ("loss_scale" in names_of(trace)) == ("amp-fp16" in name)
    told = nanhunt("report", project.root / "0.parquet", "-f", "json")
    assert told.code == 0
    report = json.loads(told.out)
    assert sum(f"precision recipe {name}: " in a for a in report["assumptions"]) == 1
    if name == "pure-fp16":  # its moments and eps are flushed, and the report says so
        assert report["outcome"] == "fault"
        assert report["suspects"][0]["cause"] in ("epsilon-underflow", "adam-v-collapse"), report["suspects"][0]
    else:
        assert len(losses(trace)) == STEPS
        assert report["outcome"] in ("healthy", "inconclusive"), report
    for form in ("terminal", "markdown"):
        assert nanhunt("report", project.root / "0.parquet", "-f", form).code == 0


def test_fp32_is_the_run_without_a_recipe_and_others_are_not(replayed: Any) -> None:
    plain = losses(replayed())
    assert losses(replayed("--precision", "fp32")) == plain
    for name in ("tf32", "fp8-hybrid", "bf16-no-master", "pure-bf16", "nvfp4"):
        assert losses(replayed("--precision", name)) != plain, name


def test_pure_bf16_is_torchs_own_training_in_bf16(replayed: Any, project: Any) -> None:
    got = losses(replayed("--precision", "pure-bf16"))
    names: dict[str, Any] = {}
    exec((project.root / "train.py").read_text(), names)
    saved = project.checkpoint()
    model = names["build_model"]().bfloat16()
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.load_state_dict(saved["optimizer"])
    expected = []
    for step in range(saved["step"], saved["step"] + STEPS):
        batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in names["make_batch"](step).items()}
        optimizer.zero_grad()
        loss: Tensor = names["compute_loss"](model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(float(loss))
    assert got == expected


def test_a_config_that_casts_to_bf16_gives_its_weights_to_a_recipe_with_moments_in_fp32(replayed: Any) -> None:
    from_fp32 = losses(replayed("--precision", "bf16-no-master"))
    assert losses(replayed("--precision", "bf16-no-master", precision={"params": "bf16"})) == from_fp32


def test_a_recipe_of_the_config_is_that_of_the_command_line(replayed: Any) -> None:
    asked = losses(replayed("--precision", "fp8-block"))
    assert losses(replayed(precision={"recipe": "fp8-block"})) == asked
    described = {"recipe": {"name": "fp8-block", "skip": ["head"]}}
    trace = replayed(precision=described)
    assert losses(trace) != asked
    notes = trace.notes_of(NoteKind.RECIPE)
    assert notes[0]["skipped"] == ["head.weight"]
    assert notes[0]["quantized"] == 1
    assert {int(n["step"]) for n in notes} == {10, 10 + STEPS - 1}


def test_a_step_stands_beside_fp32_in_the_report(replayed: Any, nanhunt: Any, project: Any) -> None:
    trace = replayed("--precision", "mxfp4")
    first = trace.notes_of(NoteKind.RECIPE)[0]
    assert first["recipe"] == "mxfp4"
    assert first["loss"] == losses(trace)[0]
    assert first["loss_fp32"] == pytest.approx(losses(replayed())[0], rel=1e-6)
    assert 0.5 < first["cosine"] < 1
    assert 0 < first["error"] < 1
    said = nanhunt("report", project.root / "0.parquet", "-f", "markdown").out
    assert "mxfp4" in said
    assert "no operand of a product loses more than rounding" in said or "loses" in said


def test_an_unknown_recipe_is_refused_with_the_nearest(project: Any, nanhunt: Any) -> None:
    for name, near in (("fp8-hybird", "fp8-hybrid"), ("nvfp4+mxfp", "mxfp8")):
        outcome = nanhunt("replay", "ckpt.pt", "--precision", name)
        assert outcome.is_clean_refusal
        assert f"did you mean {near}" in outcome.err
    assert nanhunt("replay", "ckpt.pt", "--precision", "fp8-block+mxfp8").is_clean_refusal
    project.configure(precision={"recipe": "fp8-hybird"})
    outcome = nanhunt("replay", "ckpt.pt")
    assert outcome.is_clean_refusal
    assert "precision.recipe.name" in outcome.err
    assert "fp8-hybrid" in outcome.err
    project.configure(precision={"recipe": {"name": "fp8-block", "skipp": ["head"]}})
    outcome = nanhunt("replay", "ckpt.pt")
    assert outcome.is_clean_refusal
    assert "did you mean 'skip'" in outcome.err


def test_a_custom_step_runs_under_a_recipe_too(replayed: Any, project: Any) -> None:
    project.add_code(
        """
        def step(model, batch, optimizer):
            optimizer.zero_grad()
            loss = compute_loss(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss
        """
    )
    for name in ("fp8-delayed", "nvfp4", "bf16-no-master+stochastic", "pure-bf16"):
        built_in = losses(replayed("--precision", name))
        assert losses(replayed("--precision", name, train_step="train:step", loss=None)) == built_in, name
