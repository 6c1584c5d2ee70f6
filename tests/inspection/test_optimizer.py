"""Sick optimizer state is found; sound state, and what is odd but meant, is not called a fault."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from nanhunt.inspection.terminal import InspectionTerminal
from tests.inspection.trained import GPT, inspected, kinds, saved, train, trained_gpt


@pytest.fixture(scope="module")
def sound():
    return saved(*trained_gpt())


@pytest.fixture
def content(sound):
    return copy.deepcopy(sound)


def state_of(content, number=6):
    return content["optimizer"]["state"][number]


def test_the_state_is_named_by_the_models_order(content, tmp_path):
    (optimizer,) = inspected(content, tmp_path).facts.optimizers
    assert optimizer.naming == "in the model's order"
    assert [h.parameter for h in optimizer.health][:3] == ["wte.weight", "wpe.weight", "h.0.ln_1.weight"]


@pytest.mark.parametrize("factor", [0.0, 1e-6])
def test_a_second_moment_that_collapsed_is_found(factor, content, tmp_path):
    state_of(content)["exp_avg_sq"][:3] *= factor
    (finding,) = inspected(content, tmp_path).faults
    assert (finding.kind, finding.cause) == ("collapsed-v", "adam-v-collapse")
    assert finding.value > finding.threshold


def test_moments_of_another_parameter_are_found(content, tmp_path):
    states = content["optimizer"]["state"]
    a, b = (n for n, s in states.items() if tuple(s["exp_avg"].shape) == (256, 64) and n > 0)
    states[a]["exp_avg_sq"] = states[b]["exp_avg_sq"] * 1e-4
    assert "collapsed-v" in kinds(inspected(content, tmp_path))


def test_a_negative_square_is_found(content, tmp_path):
    state_of(content)["exp_avg_sq"][1, 1] *= -1
    (finding,) = inspected(content, tmp_path).faults
    assert (finding.kind, finding.value) == ("negative-square", 1.0)


def test_a_negative_running_variance_is_found(tmp_path):
    norm = nn.BatchNorm1d(64)
    assert inspected(norm.state_dict(), tmp_path).findings == ()
    norm.running_var[3] = -0.5
    assert kinds(inspected(norm.state_dict(), tmp_path)) == {"negative-square"}


def test_a_bf16_second_moment_with_a_long_memory_is_noticed(tmp_path):
    torch.manual_seed(0)
    for beta2, expected in ((0.999, {"stuck-v"}), (0.95, set())):
        model = GPT().to(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, beta2))
        train(model, optimizer, 3)
        inspection = inspected(saved(model, optimizer), tmp_path)
        assert kinds(inspection) == expected
        assert inspection.outcome == "healthy"


@pytest.mark.parametrize(("fused", "eps", "expected"), [(None, 1e-8, True), (True, 1e-8, False), (None, 1e-6, False)])
def test_an_epsilon_that_its_format_loses_is_found(fused, eps, expected, content, tmp_path):
    for state in content["optimizer"]["state"].values():
        state["exp_avg_sq"] = (state["exp_avg_sq"] * 1e6).half()
        state["exp_avg"] = state["exp_avg"].half()
    content["optimizer"]["param_groups"][0] |= {"eps": eps, "fused": fused}
    assert ("lost-eps" in kinds(inspected(content, tmp_path))) == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", math.nan), ("lr", -1e-3), ("betas", (0.9, 1.0)), ("eps", math.inf), ("weight_decay", math.nan)],
)
def test_a_setting_that_cannot_be_is_a_fault(setting, value, content, tmp_path):
    content["optimizer"]["param_groups"][0][setting] = value
    assert "impossible-setting" in {f.kind for f in inspected(content, tmp_path).faults}


def test_counters_that_differ_are_noticed(content, tmp_path):
    state_of(content)["step"] = torch.tensor(3.0)
    inspection = inspected(content, tmp_path)
    assert kinds(inspection) == {"counters-differ"}
    assert inspection.outcome == "healthy"
    assert inspection.findings[0].value == 9


def test_a_counter_far_from_the_checkpoints_is_noticed(content, tmp_path):
    assert kinds(inspected(content | {"step": 5000}, tmp_path)) == {"counter-apart"}


def test_a_counter_that_its_format_stops_is_a_fault(content, tmp_path):
    for state in content["optimizer"]["state"].values():
        state["step"] = torch.tensor(256.0, dtype=torch.bfloat16)
    assert {f.kind for f in inspected(content | {"step": 256}, tmp_path).faults} == {"stopped-counter"}


def test_moments_that_belong_to_nothing_are_a_fault(content, tmp_path):
    content["optimizer"]["param_groups"][0]["params"].remove(6)
    assert "orphaned-moments" in {f.kind for f in inspected(content, tmp_path).faults}


def test_moments_of_another_model_are_a_fault(content, tmp_path):
    for key in ("exp_avg", "exp_avg_sq"):
        state_of(content)[key] = torch.rand(17, 19)
    assert "foreign-moments" in {f.kind for f in inspected(content, tmp_path).faults}


def test_missing_moments_are_a_fault_for_adam_and_not_for_sgd(content, tmp_path):
    content["optimizer"]["state"] = {}
    assert {f.kind for f in inspected(content, tmp_path).faults} == {"missing-moments"}
    plain = torch.optim.SGD([nn.Parameter(torch.randn(3, 3))], lr=0.1)
    assert (
        inspected({"model": {"w": torch.randn(3, 3)}, "optimizer": plain.state_dict(), "step": 5}, tmp_path).findings
        == ()
    )


@pytest.mark.parametrize(
    ("scale", "kind", "outcome"),
    [(65536.0, None, "healthy"), (2.0**24, None, "healthy"), (8.0, "loss-scale", "healthy"), (0.25, "loss-scale", "fault"),
     (2.0**-130, "loss-scale", "fault"), (math.nan, "loss-scale", "fault"), (2.0**40, "loss-scale", "healthy")],
)  # fmt: skip
def test_a_loss_scale_is_judged(scale, kind, outcome, content, tmp_path):
    content["scaler"] = {
        "scale": scale,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 0,
    }
    inspection = inspected(content, tmp_path)
    assert kinds(inspection) == ({kind} if kind else set())
    assert inspection.outcome == outcome


def test_a_growth_tracker_beyond_its_interval_is_noticed(content, tmp_path):
    content["scaler"] = {"scale": 1024.0, "growth_interval": 2000, "_growth_tracker": 2500, "growth_factor": 2.0}
    assert kinds(inspected(content, tmp_path)) == {"growth-tracker"}


def test_a_rate_that_its_schedule_did_not_set_is_noticed(content, tmp_path):
    content["scheduler"] = {"last_epoch": 12, "_step_count": 13, "base_lrs": [1e-3], "_last_lr": [1e-3]}
    assert inspected(content, tmp_path).findings == ()
    content["scheduler"]["_last_lr"] = [5e-4]
    assert kinds(inspected(content, tmp_path)) == {"rate-apart"}
    content["scheduler"] |= {"_last_lr": [1e-3], "last_epoch": 400}
    assert kinds(inspected(content, tmp_path)) == {"schedule-ahead"}


def test_a_state_of_odd_keys_and_entries_is_told_beside_an_odd_reference(content, tmp_path):
    state = content["optimizer"]["state"]
    state[0][7] = torch.ones(3, 3)
    content["optimizer"]["param_groups"][0] |= {"lr": 10**400, "betas": ("a", 0.9)}
    state[2]["step"] = 10**400
    before = copy.deepcopy(content)
    before["optimizer"]["state"][1] = 0.5
    page = InspectionTerminal(width=200, color=False, top=10, verbose=True)
    assert "7" in page.render(inspected(content, tmp_path, reference=before))
