"""The accelerate example, by its own commands: the replay is the run, to the last bit, and a planted fault is found."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.forked import python

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "projects" / "accelerate"

#: the step of the planted fault; an epoch ends before it
BAD = 25


def shell(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(*command, cwd=cwd)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a user would copy it, trained by its own command."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    done = shell("train.py", "--out", "out", "--steps", "30", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_replay_gives_every_loss_of_the_loop(project: Path) -> None:
    done = shell("-m", "nanhunt", "replay", "out/step-20", "--exit-code", cwd=project)
    assert done.returncode == 0, done.stderr
    with (project / "out" / "losses.csv").open() as file:
        logged = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}
    rows = pd.read_parquet(project / "trace.parquet")
    rows = rows[(rows["pass"] == "replay") & (rows["role"] == "scalar") & (rows["name"] == "loss")]
    replayed = rows.groupby("step")["value"].mean()
    assert replayed.to_dict() == {step: logged[step] for step in range(20, 30)}


def test_an_empty_text_is_found_in_the_pooling_that_it_breaks(project: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((project / "nanhunt.yaml").read_text())
    config["data"] = {"call": config["data"], "kwargs": {"bad_step": BAD}}
    (project / "bad.yaml").write_text(yaml.safe_dump(config))
    command = ["-m", "nanhunt", "replay", "out/step-20", "-c", "bad.yaml", "-o", "bad.parquet", "--exit-code"]
    done = shell(*command, cwd=project)
    assert done.returncode == 1, done.stderr
    report = json.loads(shell("-m", "nanhunt", "report", "bad.parquet", "-f", "json", cwd=project).stdout)
    assert (report["onset"]["step"], report["onset"]["module"]) == (BAD, "pool")
    assert (report["suspects"][0]["cause"], report["suspects"][0]["grade"]) == ("fully-masked-softmax", "proved")
    assert report["onset"]["samples"] == [3]
