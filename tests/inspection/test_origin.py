"""The origin of poison is inferred from patterns that real optimizers and real clips leave."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.inspection.trained import GPT, inspected, kinds, saved, train, trained_gpt


def put(value, where=(3, 5), name="h.0.fc.weight"):
    """Return a poison for `train`: one element of one gradient."""

    def poison(model):
        model.get_parameter(name).grad[where] = value

    return poison


def origin(content, folder, **arguments):
    inspection = inspected(content, folder, **arguments)
    assert inspection.outcome == "fault"
    assert inspection.origin is not None
    return inspection.origin


def test_a_nan_gradient_that_meets_the_clip_spoils_unused_rows_too(tmp_path):
    found = origin(saved(*trained_gpt(poison=put(math.nan))), tmp_path)
    assert found.claim.startswith("a NaN gradient met the clip: the norm was NaN")
    assert any("wte.weight" in reason for reason in found.reasons)


def test_a_nan_loss_without_a_clip_leaves_unused_rows_finite(tmp_path):
    torch.manual_seed(0)
    model = GPT()
    model.lm_head.weight = nn.Parameter(torch.randn(256, 64))  # a tied head gives every row a gradient
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 4, clip=None, loss_factor=math.nan)
    found = origin(saved(model, optimizer), tmp_path)
    assert found.claim == "a NaN loss reached every parameter, and no clip stood between"
    assert any("wte.weight" in reason for reason in found.reasons)


def test_an_inf_gradient_that_meets_the_clip_spoils_its_own_elements(tmp_path):
    found = origin(saved(*trained_gpt(poison=put(math.inf))), tmp_path)
    assert found.claim.startswith("an inf gradient met the clip")
    assert any("--reference" in reason for reason in found.reasons)


@pytest.mark.parametrize("by_clip", [True, False])
def test_the_checkpoint_before_decides_between_inf_at_the_clip_and_a_lone_nan(by_clip, tmp_path):
    model, optimizer = trained_gpt()
    before = copy.deepcopy(saved(model, optimizer))
    clip, value = (1.0, math.inf) if by_clip else (None, math.nan)
    train(model, optimizer, 1, clip=clip, poison=put(value))
    found = origin(saved(model, optimizer) | {"step": 13}, tmp_path, reference=before)
    assert any("to the power 1: gradients were 0" in reason for reason in found.reasons) == by_clip


def test_an_inf_gradient_without_a_clip_leaves_infinite_moments(tmp_path):
    found = origin(saved(*trained_gpt(poison=put(math.inf), clip=None)), tmp_path)
    assert found.claim == "an inf gradient reached the optimizer, and no clip stood before it"


def test_a_nan_in_one_tensors_gradient_without_a_clip_stays_there(tmp_path):
    found = origin(saved(*trained_gpt(poison=put(math.nan, where=slice(None)), clip=None)), tmp_path)
    assert found.claim.startswith("a NaN gradient reached these weights alone")


def test_spoiled_rows_of_an_embedding_are_counted(tmp_path):
    content = saved(*trained_gpt(poison=put(math.nan, where=[4, 9], name="wpe.weight"), clip=None))
    found = origin(content, tmp_path)
    assert "wpe.weight: 2 of 16 rows" in found.reasons


def test_moments_that_are_spoiled_beside_finite_weights_were_left_behind(tmp_path):
    model, optimizer = trained_gpt(3)
    kept = copy.deepcopy(model.state_dict())
    train(model, optimizer, 1, poison=put(math.nan))
    model.load_state_dict(kept)
    found = origin(saved(model, optimizer), tmp_path)
    assert found.claim.startswith("the weights were put back behind the update")


def test_squares_that_overflow_leave_an_infinite_v_alone(tmp_path):
    content = saved(*trained_gpt(poison=put(1e20), clip=None))
    assert content["optimizer"]["state"][6]["exp_avg"].isfinite().all()
    found = origin(content, tmp_path)
    assert found.claim == "the squares of large gradients overflowed"


def test_weights_that_are_spoiled_beside_finite_moments_were_not_updated_so(tmp_path):
    model, optimizer = trained_gpt(3)
    with torch.no_grad():
        model.h[0].fc.weight[3] = math.nan
    found = origin(saved(model, optimizer), tmp_path)
    assert found.claim.startswith("not the optimizer")


def test_a_rate_that_is_nan_is_named(tmp_path):
    model, optimizer = trained_gpt(3)
    optimizer.param_groups[0]["lr"] = math.nan
    train(model, optimizer, 1)
    inspection = inspected(saved(model, optimizer), tmp_path)
    assert "impossible-setting" in kinds(inspection)
    assert inspection.origin is not None
    assert inspection.origin.claim == "the learning rate was not finite"


def test_an_epsilon_that_fp16_lost_is_named(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8).half()
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
    layer(torch.zeros(2, 8, dtype=torch.float16)).float().sum().backward()  # the weight's gradient is 0
    optimizer.step()
    inspection = inspected(saved(layer, optimizer), tmp_path)
    assert inspection.origin is not None
    assert inspection.origin.cause == "epsilon-underflow"
    assert "lost-eps" in kinds(inspection)


def test_running_statistics_alone_are_a_skipped_step(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for poison in (1.0, math.inf):
        loss = F.cross_entropy(model(torch.randn(4, 8) * poison), torch.randint(0, 4, (4,)))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    found = origin(saved(model, optimizer, scaler=scaler.state_dict()), tmp_path)
    assert found.claim.startswith("a forward pass in training mode met NaN")
    assert any("scaler skipped" in reason for reason in found.reasons)


def test_weights_alone_cannot_tell_and_say_so(tmp_path):
    model, _ = trained_gpt(poison=put(math.inf))
    found = origin(model.state_dict(), tmp_path)
    assert any("no moments are in the file" in reason for reason in found.reasons)


def test_a_mask_of_minus_infinity_is_no_poison(tmp_path):
    inspection = inspected({"attn.causal": torch.full((64, 64), -math.inf).triu(1), "w": torch.randn(64, 64)}, tmp_path)
    assert inspection.findings == ()
