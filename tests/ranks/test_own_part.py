"""What a rank takes of a checkpoint that holds something of each, and of a mesh that the config names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.bundle import bundle_at
from nanhunt.training.checkpoint import load_checkpoint
from nanhunt.training.mesh import mesh_of
from nanhunt.training.saved_rng import rng_states


def states(number: int) -> dict[str, torch.Tensor]:
    return {"cpu": torch.full((5056,), number, dtype=torch.uint8)}


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)


def trainer_folder(folder: Path, ranks: int) -> Path:
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7, "log_history": []}))
    for rank in range(ranks):
        torch.save(states(rank), folder / f"rng_state_{rank}.pth")
    return folder


@pytest.mark.usefixtures("second_of_three")
def test_a_rank_takes_its_own_random_state_of_a_trainers_folder(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trainer_folder(tmp_path, 3), keys=None, trust_pickle=False)
    assert checkpoint.rng is not None
    assert checkpoint.rng["torch"][0] == 1
    assert not any("random state" in note for note in checkpoint.notes)


@pytest.mark.usefixtures("second_of_three")
def test_a_rank_without_a_state_of_its_own_takes_the_first_and_says_so(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trainer_folder(tmp_path, 1), keys=None, trust_pickle=False)
    assert checkpoint.rng is not None
    assert checkpoint.rng["torch"][0] == 0
    assert "random state: of rank 0, one of 1 in the folder, to rank 1 of 3" in checkpoint.notes


def test_one_process_takes_the_first_of_many_and_says_so(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trainer_folder(tmp_path, 2), keys=None, trust_pickle=False)
    assert "random state: of rank 0, one of 2 in the folder" in checkpoint.notes


@pytest.mark.usefixtures("second_of_three")
def test_of_a_list_of_states_each_rank_takes_its_own() -> None:
    found = rng_states([states(0), states(1), states(2)])
    assert found is not None
    assert found["torch"][0] == 1


@pytest.mark.usefixtures("second_of_three")
def test_a_rank_takes_the_bundle_that_it_left_and_no_other(tmp_path: Path) -> None:
    body = {"format": "nanhunt.bundle", "paths": [], "remarks": [], "sources": {}, "scripts": {}}
    for name in ("step-9", "step-9-rank1", "step-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(body))
    own = bundle_at(tmp_path / "step-9")
    assert own is not None
    assert own.folder.name == "step-9-rank1"
    with pytest.raises(CheckpointError, match="rank 1 left no bundle of step 12"):
        bundle_at(tmp_path / "step-12")


@pytest.mark.usefixtures("second_of_three")
def test_a_mesh_that_the_ranks_do_not_fill_is_told_with_its_mend() -> None:
    with pytest.raises(ConfigError, match="dp 2 × tp 2 is a mesh of 4 ranks, and 3 were started") as told:
        mesh_of({"dp": 2, "tp": 2})
    assert "--nproc-per-node 4" in (told.value.hint or "")
