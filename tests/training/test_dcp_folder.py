"""Folders of torch.distributed.checkpoint, written by that library: every layout ends in the same run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

from nanhunt.errors import CheckpointError
from nanhunt.training import dcp_folder
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint, load_into
from nanhunt.training.on_demand import outline
from nanhunt.training.optimizer_state import load_optimizers

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of each save without a process group


class Net(nn.Module):
    """Parameters of one shape, so that a stranger's moments would fit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()))


def decayed_last(model: nn.Module) -> torch.optim.Optimizer:
    """Vectors in the first group, matrices in the second, each backwards."""
    vectors = [p for p in model.parameters() if p.dim() < 2][::-1]
    matrices = [p for p in model.parameters() if p.dim() > 1][::-1]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.01)


def one_group(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.5)


def trained(make: Any = decayed_last) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model)
    for _ in range(2):
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, Any]:
    return {n: optimizer.state[p][key].tolist() for n, p in model.named_parameters()}


def settings(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, Any]:
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    return {n: group_of[p][key] for n, p in model.named_parameters()}


def load(path: Path) -> Checkpoint:
    return load_checkpoint(path, keys=None, trust_pickle=True)


FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
LAYOUTS: dict[str, Any] = {
    "numbered": lambda m, o: {"model": m.state_dict(), "optimizer": o.state_dict(), "step": 7},
    "by name": lambda m, o: {
        "model": get_model_state_dict(m),
        "optimizer": get_optimizer_state_dict(m, o),
        "step": torch.tensor(7),
    },
    "flat": lambda m, o: {
        "model": get_model_state_dict(m),
        "optim": get_optimizer_state_dict(m, o, options=FLAT),
        "global_step": 7,
    },
    "torchtitan": lambda m, o: {
        **get_model_state_dict(m),
        "optimizer": get_optimizer_state_dict(m, o, options=FLAT),
        "lr_scheduler": {"last_epoch": 7},
        "dataloader": {"dp_rank_0": b"pickled", "world_size": 1},
        "train_state": {"step": 7, "ntokens_seen": 700},
    },
}


@pytest.mark.parametrize("small", [0, 1 << 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [decayed_last, one_group])
def test_moments_and_rates_land_on_their_parameters_whatever_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, make: Any, small: int
) -> None:
    if layout == "numbered" and make is one_group:
        pytest.skip("numbers mean nothing to another grouping")
    monkeypatch.setattr(dcp_folder, "SMALL", small or 8)
    old, old_optimizer = trained()
    dcp.save(LAYOUTS[layout](old, old_optimizer), checkpoint_id=tmp_path / "step-7")
    found = load(tmp_path / "step-7")
    assert (found.container, found.step) == ("dcp", 7)
    model, assumptions = Net(), list[str]()
    assert load_into(model, found).sentence == "matched 9 of 9 tensors"
    optimizer = make(model)
    assert load_optimizers([optimizer], model, found, assumptions) == []
    for name, tensor in old.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert by_name(model, optimizer, key) == by_name(old, old_optimizer, key)
    for key in ("lr", "weight_decay", "betas"):
        assert settings(model, optimizer, key) == settings(old, old_optimizer, key)
    assert any("regrouped" in text for text in assumptions) == (make is one_group)
    if layout == "torchtitan":
        assert found.scheduler == {"last_epoch": 7}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_folder_is_read_without_trust(tmp_path: Path, layout: str) -> None:
    old, old_optimizer = trained()
    dcp.save(LAYOUTS[layout](old, old_optimizer), checkpoint_id=tmp_path / "step-7")
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(tmp_path / "step-7", keys=None, trust_pickle=False)
    assert "--trust-pickle" in str(refused.value.hint)
    command = str(refused.value.hint).split("`")[1].split()
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True, capture_output=True)
    found = load_checkpoint(tmp_path / "step-7.pt", keys=None, trust_pickle=False)
    assert found.step == 7
    model = Net()
    assert load_into(model, found).sentence == "matched 9 of 9 tensors"
    optimizer = decayed_last(model)
    load_optimizers([optimizer], model, found, [])
    assert by_name(model, optimizer, "exp_avg") == by_name(old, old_optimizer, "exp_avg")


def test_large_tensors_stay_in_their_shards_until_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcp_folder, "SMALL", 32)
    old, optimizer = trained()
    dcp.save(LAYOUTS["by name"](old, optimizer), checkpoint_id=tmp_path / "step-7")
    found = load(tmp_path / "step-7")
    assert found.optimizer is not None
    assert outline(found.model)["a.weight"].is_meta
    assert outline(found.optimizer["state"]["a.weight"])["exp_avg"].is_meta
    assert torch.equal(found.model["a.weight"], old.a.weight)
    assert torch.equal(dict(found.optimizer["state"]["a.weight"])["exp_avg"], optimizer.state[old.a.weight]["exp_avg"])


SHARDED = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, sys.argv[3])
from tests.training.test_dcp_folder import decayed_last, Net
os.environ.update(MASTER_ADDR="127.0.0.1", RANK=sys.argv[1], WORLD_SIZE="2")
store = dist.FileStore(sys.argv[2] + "/store", 2)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size=2)
torch.manual_seed(0)
model = Net()
mesh = init_device_mesh("cpu", (2,))
for part in (model.a, model.b, model):
    fully_shard(part, mesh=mesh)
optimizer = decayed_last(model)
for _ in range(2):
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
flat = StateDictOptions(flatten_optimizer_state_dict=True)
state = {**get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=flat),
         "train_state": {"step": 2}}
dcp.save(state, checkpoint_id=sys.argv[2] + "/step-2")
if dist.get_rank() == 0:
    pass
whole = StateDictOptions(full_state_dict=True)
full = {"model": get_model_state_dict(model, options=whole),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=whole)}
if dist.get_rank() == 0:
    torch.save(full, sys.argv[2] + "/full.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_shards_of_two_ranks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(rank), str(tmp_path), str(root)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=300)
        assert rank.returncode == 0, said
    assert len(list((tmp_path / "step-2").glob("*.distcp"))) == 2
    monkeypatch.setattr(dcp_folder, "SMALL", 8)
    expected = torch.load(tmp_path / "full.pt", weights_only=True)
    found = load(tmp_path / "step-2")
    model = Net()
    assert load_into(model, found).sentence == "matched 9 of 9 tensors"
    for name, tensor in expected["model"].items():
        assert torch.equal(model.state_dict()[name], tensor), name
    optimizer = one_group(model)
    load_optimizers([optimizer], model, found, [])
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameter][key], expected["optimizer"]["state"][name][key]), (name, key)
    (tmp_path / "step-2" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"names __1_0\.distcp, not in the folder"):
        load(tmp_path / "step-2")


def test_one_flat_state_serves_several_optimizers(tmp_path: Path) -> None:
    """torchtitan merges the states of all its optimizers into one dict."""
    torch.manual_seed(0)
    old = Net()
    pair = [
        torch.optim.SGD(old.a.parameters(), 0.1, momentum=0.9),
        torch.optim.AdamW([*old.b.parameters(), *old.c.parameters()]),
    ]
    old(torch.randn(8, 4)).square().sum().backward()
    merged: dict[str, Any] = {}
    for optimizer in pair:
        optimizer.step()
        part = nn.ModuleDict({"a": old.a} if optimizer is pair[0] else {"b": old.b, "c": old.c})
        merged |= get_optimizer_state_dict(part, optimizer, options=FLAT)
    dcp.save({**get_model_state_dict(old), "optimizer": merged}, checkpoint_id=tmp_path / "step-1")
    found, model = load(tmp_path / "step-1"), Net()
    load_into(model, found)
    mine = [
        torch.optim.SGD(model.a.parameters(), 0.5, momentum=0.9),
        torch.optim.AdamW([*model.b.parameters(), *model.c.parameters()]),
    ]
    assert load_optimizers(mine, model, found, []) == []
    assert torch.equal(mine[0].state[model.a.weight]["momentum_buffer"], pair[0].state[old.a.weight]["momentum_buffer"])
    assert torch.equal(mine[1].state[model.b.bias]["exp_avg_sq"], pair[1].state[old.b.bias]["exp_avg_sq"])
    assert mine[0].param_groups[0]["lr"] == 0.1


def test_a_folder_of_lightnings_has_its_step_beside_the_shards(tmp_path: Path) -> None:
    """FSDPStrategy with sharded state dicts: DCP's shards under `model` and `optimizer_0`, the rest in meta.pt."""
    old, old_optimizer = trained()
    folder = tmp_path / "last.ckpt"
    state = {"model": get_model_state_dict(old), "optimizer_0": get_optimizer_state_dict(old, old_optimizer)}
    dcp.save(state, checkpoint_id=folder)
    torch.save({"global_step": 7, "epoch": 0, "pytorch-lightning_version": "2.6.6"}, folder / "meta.pt")
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(folder, keys=None, trust_pickle=False)
    assert f"python -m lightning.pytorch.utilities.consolidate_checkpoint {folder}`" in str(refused.value.hint)
    found = load(folder)
    assert found.step == 7
    model = Net()
    load_into(model, found)
    optimizer = one_group(model)
    assert load_optimizers([optimizer], model, found, []) == []
    assert by_name(model, optimizer, "exp_avg") == by_name(old, old_optimizer, "exp_avg")


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_inside_leads_to_the_folder(tmp_path: Path, name: str) -> None:
    dcp.save({"model": Net().state_dict()}, checkpoint_id=tmp_path / "step-7")
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path / "step-7" / name)
    assert refused.value.hint == f"name the folder: {tmp_path / 'step-7'}"


@pytest.mark.parametrize("named", ["outputs", "outputs/checkpoint"])
def test_the_folder_above_the_steps_leads_to_the_newest(tmp_path: Path, named: str) -> None:
    for step in (100, 90, 5):  # the largest number is the newest, whatever the files' times
        dcp.save({"model": Net().state_dict()}, checkpoint_id=tmp_path / "outputs" / "checkpoint" / f"step-{step}")
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path / named)
    assert refused.value.hint == f"did you mean {tmp_path / 'outputs' / 'checkpoint' / 'step-100'}?"
