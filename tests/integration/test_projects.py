"""Every worked example of configs/projects/ runs: the commands at its head, typed as they stand, and its planted fault."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas
import pytest

from tests.forked import python

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ROOT / "configs" / "projects"
NAMES = sorted(path.parent.name for path in PROJECTS.glob("*/nanhunt.yaml"))

#: what the fault that an example can plant is found as: (cause, kind, step, samples)
PLANTED: dict[str, tuple[str, str, int, list[int]]] = {
    "gan": ("bad-sample", "nan", 24, [5]),
    "vision": ("bad-sample", "nan", 26, [8]),
}
#: whose losses stand in their framework's own log; their own tests hold the replay against it
LOGGED_BY_THE_FRAMEWORK = {"hf-trainer", "lightning"}


def commands(name: str) -> list[list[str]]:
    """The commands of an example's head, cut into words."""
    lines = (PROJECTS / name / "nanhunt.yaml").read_text().splitlines()
    return [shlex.split(line.removeprefix("#")) for line in lines if line.startswith("#   ")]


def typed(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user does, from a folder that has `configs/` in it."""
    program, *rest = words
    return python(*(("-m", "nanhunt") if program == "nanhunt" else ()), *rest, cwd=folder)


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An example, and a folder in which it has been trained by the first command of its head."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    shutil.copytree(PROJECTS / name, folder / "configs" / "projects" / name)
    done = typed(commands(name)[0], folder)
    assert done.returncode == 0, done.stderr
    return name, folder


def replayed(name: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return typed([*commands(name)[1], "--quiet", "--force", *more], folder)


def report(folder: Path) -> dict[str, Any]:
    done = typed(["nanhunt", "report", "trace.parquet", "--format", "json"], folder)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def losses(folder: Path) -> dict[int, float]:
    """The losses of the replay by step."""
    rows = pandas.read_parquet(folder / "trace.parquet", columns=["step", "pass", "name", "value"])
    rows = rows[(rows["pass"] == "replay") & (rows["name"] == "loss")]
    return dict(zip(rows["step"].astype(int), rows["value"].astype(float), strict=True))


@pytest.mark.parametrize("trained", NAMES, indirect=True)
def test_an_example_replays_healthy_and_with_the_losses_of_its_run(trained: tuple[str, Path]) -> None:
    name, folder = trained
    done = replayed(name, folder, "--exit-code")
    assert done.returncode == 0, done.stderr
    document = report(folder)
    assert document["outcome"] == "healthy"
    found = losses(folder)
    assert len(found) >= 5
    if name in LOGGED_BY_THE_FRAMEWORK:
        return
    with (folder / "out" / "losses.csv").open() as file:
        original = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert found == {step: original[step] for step in found}


@pytest.mark.parametrize("trained", sorted(PLANTED), indirect=True)
def test_the_fault_that_an_example_can_plant_is_found(trained: tuple[str, Path]) -> None:
    name, folder = trained
    config = folder / "configs" / "projects" / name / "nanhunt.yaml"
    text = config.read_text()
    config.write_text(re.sub(r"(?m)^# data: ", "data: ", re.sub(r"(?m)^data: .*\n", "", text)))
    try:
        done = replayed(name, folder, "--exit-code")
    finally:
        config.write_text(text)
    assert done.returncode == 1, done.stderr
    document = report(folder)
    first, onset = document["suspects"][0], document["onset"]
    assert (first["cause"], onset["kind"], onset["step"], first["location"]["samples"]) == PLANTED[name]


def test_the_page_and_the_readme_name_each_example() -> None:
    page, readme = (ROOT / "docs" / "projects.md").read_text(), (ROOT / "README.md").read_text()
    assert "docs/projects.md" in readme
    for name in NAMES:
        assert f"\n## {name}\n" in page
