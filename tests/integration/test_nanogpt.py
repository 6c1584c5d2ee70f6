"""A nanoGPT-style script on a real text: train, plant a fault in its data, find it from the checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.forked import python

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a user would copy it, trained by its own command line up to the checkpoint."""
    folder = tmp_path_factory.mktemp("nanogpt")
    shutil.copytree(CONFIGS / "nanogpt", folder / "nanogpt")
    shutil.copy(CONFIGS / "nanogpt.yaml", folder / "nanogpt.yaml")
    python("train.py", "--out", str(folder / "ckpt.pt"), "--steps", "20", cwd=folder / "nanogpt").check_returncode()
    return folder


def nanhunt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "nanhunt", *arguments, cwd=folder)


def report_of(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Replay with a `data` entry in place of the example's and return the JSON report."""
    config = yaml.safe_load((folder / "nanogpt.yaml").read_text())
    config["data"] = {**(config["data"] if isinstance(config["data"], dict) else {"call": config["data"]})}
    config["data"]["kwargs"] = {**config["data"].get("kwargs", {}), **data}
    config.setdefault("train", {})["steps"] = 12
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    done = nanhunt(folder, "replay", "ckpt.pt", "-c", "run.yaml", "--force", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "nanhunt report trace.parquet"
    told = nanhunt(folder, "report", "trace.parquet", "--format", "json")
    assert told.returncode == 0, told.stderr
    document: dict[str, Any] = json.loads(told.stdout)
    return document


def test_the_checkpoint_is_the_one_a_nanogpt_script_writes(project: Path) -> None:
    checkpoint = torch.load(project / "ckpt.pt", weights_only=True)
    assert {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"} <= checkpoint.keys()
    assert len(checkpoint["optimizer"]["param_groups"]) == 2


def test_a_planted_data_fault_is_found_from_the_checkpoint(project: Path) -> None:
    step = int(torch.load(project / "ckpt.pt", weights_only=True)["iter_num"]) + 5
    document = report_of(project, {"bad_step": step, "bad_kind": "ignored"})
    assert document["outcome"] == "fault"
    assert document["onset"]["step"] == step
    assert document["onset"]["op"] == "aten.nll_loss_forward"
    assert document["suspects"][0]["cause"] == "empty-reduction"
    assert document["suspects"][0]["grade"] == "proved"


def test_the_run_without_the_fault_is_healthy(project: Path) -> None:
    document = report_of(project, {})
    assert document["outcome"] == "healthy"
    assert document["onset"] is None
    assert document["suspects"] == []
