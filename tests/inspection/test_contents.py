"""Whatever holds tensors can be inspected: parts of a checkpoint, folders, layouts that no replay could start from."""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nanhunt.errors import CheckpointError
from nanhunt.inspection.contents import read_contents
from nanhunt.inspection.facts import Role
from nanhunt.inspection.judge import judge
from nanhunt.inspection.survey import survey
from tests.inspection.trained import inspected, saved, trained_gpt


def looked_at(path):
    return judge(survey(read_contents(path, trust_pickle=False)))


def test_an_optimizers_state_alone_is_inspected(tmp_path):
    _, optimizer = trained_gpt(3)
    inspection = inspected(optimizer.state_dict(), tmp_path)
    assert inspection.findings == ()
    assert inspection.facts.of_role(Role.WEIGHT) == []
    assert len(inspection.facts.of_role(Role.MOMENT)) == 56


def test_safetensors_are_mapped_and_inspected(tmp_path):
    torch.manual_seed(0)
    weights = {"a": torch.randn(64, 64), "b": torch.full((8,), float("nan")), "c": torch.randn(7, 3).bfloat16()}
    save_file(weights, tmp_path / "w.safetensors")
    inspection = looked_at(tmp_path / "w.safetensors")
    assert {t.name: t.bad for t in inspection.facts.tensors} == {"a": 0, "b": 8, "c": 0}
    assert inspection.outcome == "fault"


def test_tensors_under_names_of_no_layout_are_called_by_their_path(tmp_path):
    inspection = inspected({"stuff": [{"deep": torch.randn(8, 8)}, torch.tensor([1.0, float("inf")])]}, tmp_path)
    assert {t.name: t.bad for t in inspection.facts.tensors} == {"stuff.0.deep": 0, "stuff.1": 1}


def test_tensors_beside_the_known_parts_are_inspected_too(tmp_path):
    model, optimizer = trained_gpt(3)
    shadow = [torch.randn(90, 90), torch.full((90,), float("nan"))]
    inspection = inspected(saved(model, optimizer, average=shadow), tmp_path)
    assert {t.name for t in inspection.facts.tensors if t.is_poisoned} == {"average.1"}


def test_random_states_are_no_tensors_to_judge(tmp_path):
    model, optimizer = trained_gpt(3)
    inspection = inspected(saved(model, optimizer, rng={"torch": torch.get_rng_state()}), tmp_path)
    assert not any("rng" in t.name for t in inspection.facts.tensors)


def test_a_file_of_before_torch_1_6_is_read(tmp_path):
    torch.save({"w": torch.randn(8, 8)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert looked_at(tmp_path / "old.pt").outcome == "healthy"


def test_a_trainers_folder_tells_its_hidden_nan(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    log = [{"step": 1, "loss": 2.0, "grad_norm": 0.5}, {"step": 2, "loss": 0.0, "grad_norm": float("nan")}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": log}))
    inspection = looked_at(tmp_path)
    (finding,) = inspection.findings
    assert (finding.kind, finding.severity) == ("hidden-nan", "notice")  # the weights survived
    assert inspection.facts.log.last[-1][0] == 2
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert [f.severity for f in looked_at(tmp_path).findings] == ["fault", "fault"]


def test_sparse_nested_and_quantised_tensors_do_not_stop_it(tmp_path):
    content = {
        "sparse": torch.eye(8).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.randn(8, 8), 0.1, 0, torch.qint8),
        "complex": torch.randn(4, 4, dtype=torch.complex64),
        "turned": torch.randn(8, 6).T,
        "expanded": torch.randn(1, 6).expand(5, 6),
        "half": torch.randn(8, 8).half(),
    }
    assert {t.name for t in inspected(content, tmp_path).facts.tensors} == set(content)


def test_coordinates_of_a_turned_tensor_are_its_own(tmp_path):
    turned = torch.randn(6, 8).T
    turned[7, 2] = float("nan")
    (tensor,) = inspected({"w": turned}, tmp_path).facts.tensors
    assert tensor.bad_at == ((7, 2),)


@pytest.mark.parametrize("content", [{"step": 3}, {}, [], "text", {"lr": 1e-3, "names": ["a"]}])
def test_a_file_without_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_contents(tmp_path / "none.pt", trust_pickle=False)


def test_foreign_and_broken_files_are_refused_as_by_a_replay(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save({"w": torch.randn(99, 99)}, whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:9000])
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"w": 1}))
    (tmp_path / "text.pt").write_text("hello")
    for name in ("cut.pt", "plain.pt", "text.pt", "missing.pt"):
        with pytest.raises(CheckpointError):
            read_contents(tmp_path / name, trust_pickle=False)


class Dual(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def nested(model, optimizer):
    net = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state = {"net": net, "opt": optimizer.state_dict()}
    return {"state": state, "meta": {"global_step": 3, "best_loss": torch.tensor(math.inf)}}


@pytest.mark.parametrize("part", ["weight", "exp_avg"])
def test_a_parameter_of_one_number_is_read_in_a_layout_that_nobody_knows(part, tmp_path):
    model = Dual()
    optimizer = torch.optim.AdamW(model.parameters())
    (model.encoder(torch.randn(4, 8)).square().mean() * model.logit_scale.exp()).backward()
    optimizer.step()
    assert not inspected(nested(model, optimizer), tmp_path).faults
    held = model.logit_scale if part == "weight" else optimizer.state[model.logit_scale]["exp_avg"]
    held.data.fill_(math.nan)
    (finding, *_) = inspected(nested(model, optimizer), tmp_path).faults
    assert "logit_scale" in finding.tensor or part in finding.tensor
