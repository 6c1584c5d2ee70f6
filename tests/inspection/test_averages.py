"""An average beside the weights is no second set of them: told apart, compared, and left out of their number."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from nanhunt.inspection.document import document
from nanhunt.inspection.facts import Role
from nanhunt.inspection.terminal import InspectionTerminal
from tests.inspection.trained import GPT, inspected, saved, trained_gpt


@pytest.fixture(scope="module")
def trained():
    model, optimizer = trained_gpt(4)
    buffers = dict(model.named_buffers())
    average = {name: t if name in buffers else t + 0.01 * t.std() for name, t in model.state_dict().items()}
    average["lm_head.weight"] = average["wte.weight"]
    return model.state_dict(), average, optimizer.state_dict()


@pytest.fixture(params=["flat", "nested"])
def content(request, trained):
    model, average, optimizer = copy.deepcopy(trained)
    if request.param == "flat":
        return {"model": model, "ema": average, "optimizer": optimizer, "step": 4}
    return {"nets": {"net": model, "ema": average}, "opts": {"adamw": optimizer}, "meta": {"step": 4, "epoch": 1}}


def test_an_average_is_compared_with_the_weights_and_not_counted_among_them(content, tmp_path):
    inspection = inspected(content, tmp_path)
    facts = inspection.facts
    assert inspection.findings == ()
    assert (facts.step, len(facts.of_role(Role.WEIGHT)), len(facts.of_role(Role.AVERAGE))) == (4, 28, 28)
    assert facts.optimizers[0].naming == "in the model's order"
    (average,) = facts.averages
    assert average.name.endswith("ema")
    assert 0.0 < average.apart < 0.02
    page = InspectionTerminal(width=200, color=False, top=10, verbose=False).render(inspection)
    parameters = sum(p.numel() for p in GPT().parameters())
    assert f"28 weights of {parameters:,} elements, an average of them" in page
    assert "away from the weights" in page
    assert document(inspection)["averages"][0]["tensors"] == 28


def test_how_far_an_average_is_away_is_torchs_own_norm(trained, tmp_path):
    model, average, _ = trained
    (found,) = inspected({"model": model, "ema": average}, tmp_path).facts.averages
    names = [name for name in model if not name.startswith(("mask", "tril", "freqs", "cos", "lm_head"))]
    flat = {
        key: torch.cat([state[n].double().flatten() for n in names]) for key, state in (("w", model), ("a", average))
    }
    assert found.apart == pytest.approx(float((flat["a"] - flat["w"]).norm() / flat["w"].norm()), rel=1e-3)


def test_an_average_that_is_its_weights_is_told_so_and_no_copy_or_repetition(trained, tmp_path):
    model, _, optimizer = trained
    inspection = inspected({"model": model, "ema": copy.deepcopy(model), "optimizer": optimizer, "step": 4}, tmp_path)
    (average,) = inspection.facts.averages
    assert average.same == average.tensors
    assert not any(t.copy_of for t in inspection.facts.tensors)
    assert inspection.outcome == "healthy"


def test_a_finite_average_of_spoiled_weights_is_named_and_a_spoiled_one_is_a_fault_of_its_own(content, tmp_path):
    sound = copy.deepcopy(content)
    nets = content.get("nets", {"net": content.get("model"), "ema": content.get("ema")})
    nets["net"]["h.0.fc.weight"][3, 5] = math.nan
    (finding,) = inspected(content, tmp_path).faults
    assert any("average under" in line and "is finite" in line for line in finding.evidence)
    nets = sound.get("nets", {"net": sound.get("model"), "ema": sound.get("ema")})
    nets["ema"]["h.0.fc.weight"][3, 5] = math.nan
    inspection = inspected(sound, tmp_path)
    assert inspection.faults[0].claim.startswith("1 of 28 averages of weights")
    assert inspection.origin.claim.startswith("the average took in")


def test_a_layer_called_ema_that_the_optimizer_trains_is_a_weight(tmp_path):
    net = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8), "ema": torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)})})
    optimizer = torch.optim.AdamW(net.parameters())
    inspection = inspected(saved(net, optimizer), tmp_path)
    assert len(inspection.facts.of_role(Role.WEIGHT)) == 4


def test_the_epoch_stands_for_a_step_that_is_not_told_and_a_plan_for_neither(trained, tmp_path):
    model, _, _ = trained
    facts = inspected({"model": model, "run": {"epoch": 3, "args": {"steps": 900, "epochs": 10}}}, tmp_path).facts
    assert (facts.step, facts.epoch) == (None, 3)


def test_tensors_that_have_no_plain_numbers_are_no_averages(tmp_path):
    odd = {
        "sparse": torch.eye(8).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8),
    }
    inspection = inspected({"model": odd, "ema": copy.deepcopy(odd)}, tmp_path)
    assert inspection.facts.averages == ()
