"""Folders that accelerate's `save_state` wrote, with one model or two, counted by batches or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader

from nanhunt.errors import CheckpointError
from nanhunt.training.assemble import assemble
from nanhunt.training.checkpoint import Checkpoint, load_checkpoint
from nanhunt.training.config import RunConfig

CODE = """
    import torch
    from torch import nn

    def build_model(): return nn.Linear(3, 2)
    def batches(start_step): return iter([])
    def compute_loss(model, batch): return model(batch).sum()
    def schedule(optimizer): return torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
"""


class Average:
    """A thing that a loop registers: it has a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"decay": 0.9, "shadow": torch.full((2,), 7.0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("accelerate asks for it when a thing is registered; nothing here is loaded by it")


class Opaque(Average):
    """A state that only pickle can bring back."""

    def state_dict(self) -> dict[str, Any]:
        return {"of": Path("x")}


def saved(
    folder: Path, *, models: int = 1, batches: int = 4, counts: bool = True, safe: bool = True, **more: Any
) -> Any:
    """Train `models` models on `batches` batches, two a step, and save; return what was prepared."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **more.get("accelerator", {}))
    nets = [nn.Linear(3, 2 + number) for number in range(models)]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1) for net in nets]
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in optimizers]
    loader = DataLoader([torch.randn(3) for _ in range(12)], 2, shuffle=True)
    nets, optimizers, schedules, (loader,) = (
        [accelerator.prepare(item) for item in items] for items in (nets, optimizers, schedules, [loader])
    )
    accelerator.register_for_checkpointing(*more.get("registered", []))
    for number, batch in zip(range(batches), loader, strict=False):
        with accelerator.accumulate(*nets) if counts else contextlib.nullcontext():
            for net, optimizer, schedule in zip(nets, optimizers, schedules, strict=True):
                accelerator.backward(net(batch).square().sum())
                if counts or number % 2:  # inside accumulate, every second call does something
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
    accelerator.save_state(str(folder), safe_serialization=safe)
    return nets, optimizers, schedules


def load(path: Path) -> Checkpoint:
    return load_checkpoint(path, keys=None, trust_pickle=False)


@pytest.mark.parametrize("safe", [True, False])
def test_a_state_is_loaded_whole(tmp_path: Path, safe: bool) -> None:
    (net,), (optimizer,), (schedule,) = saved(tmp_path / "state", safe=safe)
    (tmp_path / "code.py").write_text("\n".join(line.strip() for line in CODE.splitlines()))
    config = {"model": "code.py:build_model", "data": "code.py:batches", "loss": "code.py:compute_loss"}
    config |= {"optimizer": "torch.optim:AdamW", "scheduler": "code.py:schedule"}
    run = assemble(
        RunConfig.model_validate(config), load(tmp_path / "state"), root=tmp_path, device=torch.device("cpu")
    )
    assert run.start_step == 2
    assert torch.equal(run.model.weight, net.weight)
    assert torch.equal(run.optimizer.state[run.model.weight]["exp_avg"], optimizer.state[net.weight]["exp_avg"])
    assert run.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == 0.05
    assert run.scheduler.last_epoch == 2


def test_the_step_is_the_optimizers_count_and_accelerates_own_where_none_counts(tmp_path: Path) -> None:
    saved(tmp_path / "both")
    found = load(tmp_path / "both")
    assert (found.container, found.step) == ("accelerate", 2)
    assert any("accelerate counts 4 batches" in note for note in found.notes)
    saved(tmp_path / "alone", counts=False)
    assert (load(tmp_path / "alone").step, load(tmp_path / "alone").notes) == (2, ())
    (tmp_path / "both" / "optimizer.bin").unlink()
    assert load(tmp_path / "both").step == 4
    (tmp_path / "alone" / "optimizer.bin").unlink()
    assert load(tmp_path / "alone").step is None


def test_further_models_and_optimizers_are_kept_by_their_number(tmp_path: Path) -> None:
    nets, optimizers, _ = saved(tmp_path, models=3)
    found = load(tmp_path)
    assert torch.equal(found.model["weight"], nets[0].weight)
    assert sorted(found.more_models) == ["model_1", "model_2"]
    assert torch.equal(found.more_models["model_2"]["bias"], nets[2].bias)
    for state, optimizer in zip((found.optimizer, *found.more_optimizers), optimizers, strict=True):
        assert state is not None
        assert torch.equal(state["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert any("3 schedulers" in note for note in found.notes)


def test_what_a_loop_registered_is_read_unless_it_needs_pickle(tmp_path: Path) -> None:
    saved(tmp_path, registered=[Average(), Opaque()])
    found = load(tmp_path)
    assert found.extra["custom_checkpoint_0"]["shadow"].tolist() == [7.0, 7.0]
    assert "custom_checkpoint_1" not in found.extra
    (note,) = [n for n in found.notes if "custom_checkpoint_1" in n]
    assert "needs pickle" in note


def test_a_stateful_loaders_position_is_read(tmp_path: Path) -> None:
    config = DataLoaderConfiguration(use_stateful_dataloader=True)
    saved(tmp_path, accelerator={"dataloader_config": config})
    assert load(tmp_path).loader["_num_yielded"] in (3, 4)  # accelerate reads one batch ahead


def test_the_random_state_is_of_rank_0_and_the_number_of_ranks_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "random_states_11.pkl").write_bytes((tmp_path / "random_states_0.pkl").read_bytes())
    found = load(tmp_path)
    assert set(found.rng or {}) >= {"torch", "numpy", "python"}
    assert any("of rank 0, one of 2" in note for note in found.notes)


def test_shards_of_an_fsdp_run_are_answered_with_the_command(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    assert f"accelerate merge-weights {tmp_path / 'pytorch_model_fsdp_0'} {tmp_path}" in str(refused.value.hint)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_schedule_is_stepped_as_often_an_update_as_accelerate_has_processes(tmp_path: Path, processes: int) -> None:
    _, (optimizer,), (schedule,) = saved(tmp_path / "state")
    for _ in range(2 * (processes - 1)):  # what the other processes' steps add
        schedule.scheduler.step()
    torch.save(schedule.state_dict(), tmp_path / "state" / "scheduler.bin")
    torch.save(optimizer.state_dict(), tmp_path / "state" / "optimizer.bin")
    (tmp_path / "code.py").write_text("\n".join(line.strip() for line in CODE.splitlines()))
    config = {"model": "code.py:build_model", "data": "code.py:batches", "loss": "code.py:compute_loss"}
    config |= {"optimizer": "torch.optim:AdamW", "scheduler": "code.py:schedule"}
    run = assemble(
        RunConfig.model_validate(config), load(tmp_path / "state"), root=tmp_path, device=torch.device("cpu")
    )
    assert any("as accelerate does" in text for text in run.assumptions) == (processes > 1)
    run.scheduler.step()
    assert run.scheduler.state_dict()["last_epoch"] == 3 * processes
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 ** (3 * processes // 2))
