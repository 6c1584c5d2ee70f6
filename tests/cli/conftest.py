"""A user's project of three files that trains in a moment, and the command line that is run on it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.cli import main

TRAIN = '''
"""A small classifier whose batches are counted by step, with faults that the config can plant."""

import time

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x, tokens):
        return self.head(torch.relu(self.hidden(x + self.embed(tokens))))


def build_model(width=8):
    torch.manual_seed(0)
    return Net(width)


def make_batch(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "x": torch.randn(4, 8, generator=generator),
        "tokens": torch.randint(16, (4,), generator=generator),
        "labels": torch.randint(4, (4,), generator=generator),
    }


def batches(start_step, nan_at=None, index_at=None, raise_at=None, end_at=None, log=None, pause=0.0):
    step = start_step
    while step != end_at:
        if log:
            with open(log, "a") as file:
                file.write(f"{step}\\n")
        time.sleep(pause)
        if step == raise_at:
            raise OSError(f"shard {step} is not readable")
        batch = make_batch(step)
        if step == nan_at:
            batch["x"][2, 5] = float("nan")
        if step == index_at:
            batch["tokens"][1] = 99
        yield batch
        step += 1


def compute_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"], batch["tokens"]), batch["labels"])
'''

#: The checkpoint's step, so that steps that are counted from 0 would be noticed.
FIRST_STEP = 10

CONFIG: dict[str, Any] = {
    "model": "train:build_model",
    "data": "train:batches",
    "loss": "train:compute_loss",
    "optimizer": {"call": "torch.optim:AdamW", "kwargs": {"lr": 1e-3}},
    "train": {"steps": 4, "clip_grad_norm": 1.0, "seed": 7},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with train.py, nanhunt.yaml and ckpt.pt."""

    root: Path

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project, without the text's common indent."""
        path = self.root / name
        path.write_text(textwrap.dedent(text))
        return path

    def add_code(self, text: str) -> None:
        """Append to train.py."""
        with (self.root / "train.py").open("a") as file:
            file.write("\n\n" + textwrap.dedent(text))

    def configure(self, **changes: Any) -> None:
        """Write the config with these keys in place of its own; None leaves a key out. JSON is YAML."""
        document = {k: v for k, v in {**CONFIG, **changes}.items() if v is not None}
        (self.root / "nanhunt.yaml").write_text(json.dumps(document))

    def plant(self, **arguments: Any) -> None:
        """Write the config with these arguments for `batches`."""
        self.configure(data={"call": "train:batches", "kwargs": arguments})

    def checkpoint(self) -> dict[str, Any]:
        """Return what ckpt.pt holds."""
        content: dict[str, Any] = torch.load(self.root / "ckpt.pt", weights_only=True)
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def is_clean_refusal(self) -> bool:
        """Whether this is bad input as a user should see it: exit 2, an `error:` line first, no traceback, no result."""
        return self.code == 2 and self.err.startswith("error: ") and "Traceback" not in self.err and not self.out


@pytest.fixture(scope="session")
def project_class() -> type[Project]:
    """`Project`, for fixtures that need another folder: tests cannot import from here."""
    return Project


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is copied for each test; its checkpoint holds moments of two real steps."""
    project = Project(root=tmp_path_factory.mktemp("template"))
    (project.root / "train.py").write_text(TRAIN.lstrip())
    project.configure()
    names: dict[str, Any] = {}
    exec(TRAIN, names)
    model = names["build_model"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        names["compute_loss"](model, names["make_batch"](step)).backward()
        optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": FIRST_STEP}
    torch.save(saved, project.root / "ckpt.pt")
    return project.root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, which is the current directory."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Project(root=tmp_path)


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the user's modules: the next project has a train.py too, possibly of the same size and second."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in [n for n in sys.modules if n not in before and n.startswith(("train", "other", "broken"))]:
        del sys.modules[name]


class _Terminal(io.StringIO):
    """A stream that says that somebody looks at it."""

    def isatty(self) -> bool:
        return True


def _in_process(*arguments: object, terminal: bool = False) -> Outcome:
    """Run `main` with both streams caught."""
    out, err = (_Terminal(), _Terminal()) if terminal else (io.StringIO(), io.StringIO())
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["nanhunt", *map(str, arguments)], out, err
    try:
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        sys.argv, sys.stdout, sys.stderr = before
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="session")
def nanhunt() -> Callable[..., Outcome]:
    """The command line, run in this process: `nanhunt("report", path)`; `terminal=True` makes its streams ttys."""
    return _in_process


def _traced(template: Path, folder: Path, **arguments: Any) -> Path:
    """Replay the project with these arguments for `batches`, and return the trace."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    Project(root=folder).plant(**arguments)
    out = folder / "trace.parquet"
    done = _in_process("replay", folder / "ckpt.pt", "-c", folder / "nanhunt.yaml", "-o", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def healthy_trace(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the project as it is: steps 10 to 13."""
    return _traced(template, tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="session")
def fault_trace(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the project with a NaN in sample 2 of step 12."""
    return _traced(template, tmp_path_factory.mktemp("fault"), nan_at=12)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a child process: one thread, and no wish for colour inherited from this one."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if k not in unwanted}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def shell(environment: dict[str, str]) -> Callable[..., Outcome]:
    """The command line as a user starts it, in a process of its own: `shell("--version", cwd=folder)`."""

    def run(*arguments: object, cwd: Path, **variables: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "nanhunt", *map(str, arguments)],
            cwd=cwd,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)

    return run
