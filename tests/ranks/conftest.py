"""Replays by several ranks: a launch costs a fork of a process that holds torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.diagnosis.diagnose import Diagnosis, diagnose
from nanhunt.trace.reader import Trace
from tests.ranks.programs.net import Net

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What a launch left."""

    folder: Path
    codes: list[int]
    seconds: float

    @property
    def trace(self) -> Trace:
        return Trace.open(self.folder / "trace.parquet")

    @property
    def diagnosis(self) -> Diagnosis:
        return diagnose(self.trace)

    def said(self, rank: int) -> str:
        """Return what a rank wrote to its terminal."""
        return (self.folder / f"rank-{rank}.log").read_text()


class Ranks:
    """Launches replays of the small net, each in a folder of its own."""

    def __init__(self, forks: subprocess.Popen[str], checkpoint: Path, folder: Path) -> None:
        self._forks = forks
        self._checkpoint = checkpoint
        self._folder = folder
        self._launches = 0

    def replay(self, *options: str, size: int = 2, within: float = 60.0, **config: Any) -> Launched:
        """Replay from step 10, by a config as `config_text` writes it."""
        folder = self._folder / str(self._launches)
        self._launches += 1
        folder.mkdir()
        (folder / "nanhunt.yaml").write_text(config_text(**config))
        return self.launch(folder, ["replay", str(self._checkpoint), *options], size=size, within=within)

    def launch(self, folder: Path, argv: list[str], *, size: int = 2, within: float = 60.0) -> Launched:
        """Run `nanhunt argv` by so many ranks in a folder."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        asked = {"folder": str(folder), "argv": argv, "size": size, "within": within}
        print(json.dumps(asked), file=self._forks.stdin, flush=True)
        answer = json.loads(self._forks.stdout.readline())
        launched = Launched(folder=folder, **answer)
        for rank in range(size):
            print(f"--- rank {rank}: {launched.codes[rank]}\n{launched.said(rank)}")
        print(f"--- {launched.seconds:.1f} s")
        return launched


def config_text(*, wrap: str, more: str = "", data: str = "", **arguments: Any) -> str:
    """Return a config of the small net; `arguments` go to its batches, `more` is added."""
    net = "tests.ranks.programs.net"
    return "".join(
        (
            f"model: {{call: {net}:build_model, kwargs: {{wrap: {wrap}}}}}\n" if wrap else "",
            f"data: {{call: {data or f'{net}:batches'}, kwargs: {json.dumps(arguments)}}}\n",
            f"loss: {net}:compute_loss\n",
            "optimizer: {call: torch.optim:AdamW, kwargs: {lr: 1.0e-3}}\n",
            more,
        )
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small net and its AdamW after some steps, saved as of step 10."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "ckpt.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 10}, path)
    return path


@pytest.fixture(scope="session")
def ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ranks.forks"]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forks:
        yield Ranks(forks, checkpoint, tmp_path_factory.mktemp("ranks"))
        assert forks.stdin is not None
        forks.stdin.close()
