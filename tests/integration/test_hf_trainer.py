"""The Trainer example, by its own commands: the replay is the run, to the last bit, and a planted fault is found."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.forked import python

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "projects" / "hf-trainer"

#: the step of the planted fault, counted from 0; an epoch ends before it
BAD = 25


def shell(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(*command, cwd=cwd, env={"HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a user would copy it, trained with a fault that waits behind its last checkpoint, and without."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    for out, more in (("out", ["--steps", "30"]), ("bad", ["--steps", "20", "--bad-step", str(BAD)])):
        done = shell("train.py", "--out", out, *more, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_replay_gives_every_loss_norm_and_rate_that_the_trainer_logged(project: Path) -> None:
    done = shell("-m", "nanhunt", "replay", "out/checkpoint-20", "--exit-code", cwd=project)
    assert done.returncode == 0, done.stderr
    state = json.loads((project / "out" / "checkpoint-30" / "trainer_state.json").read_text())
    logged = {entry["step"] - 1: entry for entry in state["log_history"] if "loss" in entry}
    rows = pd.read_parquet(project / "trace.parquet")
    rows = rows[(rows["pass"] == "replay") & (rows["role"] == "scalar")]
    for name, key in (("loss", "loss"), ("grad_norm", "grad_norm"), ("lr", "learning_rate")):
        replayed = rows[rows["name"] == name].groupby("step")["value"].first()
        assert list(replayed.index) == list(range(20, 30))
        assert {step: logged[step][key] for step in replayed.index} == replayed.to_dict(), name


def test_a_token_that_nobody_trained_is_found_where_no_loss_shows_it(project: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((project / "nanhunt.yaml").read_text())
    config["data"] = {"call": config["data"], "kwargs": {"bad_step": BAD}}
    (project / "bad.yaml").write_text(yaml.safe_dump(config))
    command = ["-m", "nanhunt", "replay", "bad/checkpoint-20", "-c", "bad.yaml", "-o", "bad.parquet", "--exit-code"]
    done = shell(*command, cwd=project)
    assert done.returncode == 1, done.stderr
    report = json.loads(shell("-m", "nanhunt", "report", "bad.parquet", "-f", "json", cwd=project).stdout)
    assert (report["onset"]["step"], report["onset"]["module"]) == (BAD, "model.layers.0.input_layernorm")
    assert (report["suspects"][0]["cause"], report["suspects"][0]["grade"]) == ("activation-overflow", "proved")
    assert report["onset"]["samples"] == [2]
    told = "\n".join(report["assumptions"])
    assert "LlamaForCausalLM" in told
    assert "gives all 20 learning rates that the Trainer logged" in told
