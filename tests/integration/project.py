"""A worked example of configs/projects/, copied as a user would and run by its commands in a process of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tests.forked import python

PROJECTS = Path(__file__).resolve().parents[2] / "configs" / "projects"


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with train.py and nanhunt.yaml."""

    folder: Path

    @property
    def trace(self) -> Path:
        return self.folder / "trace.parquet"

    def train(self, *arguments: str) -> None:
        done = python("train.py", *arguments, cwd=self.folder, timeout=500)
        assert done.returncode == 0, done.stderr

    def nanhunt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return python("-m", "nanhunt", *arguments, cwd=self.folder, timeout=500)

    def replay(
        self,
        checkpoint: str,
        *options: str,
        steps: int,
        data: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Replay with other kwargs of `data:`, or other keys, and return the JSON report; its exit code must agree."""
        config = {**yaml.safe_load((self.folder / "nanhunt.yaml").read_text()), **(changes or {})}
        if data:
            config["data"] = {"call": config["data"], "kwargs": dict(data)}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))
        done = self.nanhunt(
            *("replay", checkpoint, "-c", "run.yaml", "--steps", str(steps), "--force", "--quiet", "--exit-code"),
            *options,
        )
        assert done.returncode in (0, 1), done.stderr
        assert "Warning" not in done.stderr
        told = self.nanhunt("report", "trace.parquet", "--format", "json")
        assert told.returncode == 0, told.stderr
        document: dict[str, Any] = json.loads(told.stdout)
        assert done.returncode == int(document["outcome"] == "fault")
        return document


def copied(name: str, folder: Path) -> Project:
    """Copy the example into `folder`, alone."""
    for file in ("train.py", "nanhunt.yaml"):
        shutil.copy(PROJECTS / name / file, folder / file)
    return Project(folder)


def losses(trace: Path) -> dict[int, float]:
    """Return the loss of each replayed step, from the trace."""
    table = pd.read_parquet(trace, columns=["step", "role", "name", "pass", "value"])
    rows = table[(table["role"] == "scalar") & (table["name"] == "loss") & (table["pass"] == "replay")]
    return dict(zip(rows["step"].tolist(), rows["value"].tolist(), strict=True))
