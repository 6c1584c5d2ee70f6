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

    def replay(self, *options: str, size: int = 2, **config: Any) -> Launched:
        """Replay from step 10, by a config as `config_text` writes it."""
        return self.replay_all({"options": options, "size": size, **config})[0]

    def replay_all(self, *asked: dict[str, Any]) -> list[Launched]:
        """Replay several times side by side: what waits takes no time."""
        launches = []
        for one in asked:
            folder = self._folder / str(self._launches)
            self._launches += 1
            folder.mkdir()
            own = {"checkpoint": "ckpt.pt", "size": 2, "within": 240.0, "term": None, "options": (), **one}
            config = {
                key: own.pop(key) for key in list(own) if key not in ("checkpoint", "size", "within", "term", "options")
            }
            (folder / "nanhunt.yaml").write_text(config_text(**config))
            own["argv"] = ["replay", str(self._checkpoint.with_name(own.pop("checkpoint"))), *own.pop("options")]
            launches.append({"folder": str(folder), **own})
        return self.launch(*launches)

    def launch(self, *launches: dict[str, Any]) -> list[Launched]:
        """Run commands of nanhunt by several ranks, side by side."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        print(json.dumps(launches), file=self._forks.stdin, flush=True)
        answers = json.loads(self._forks.stdout.readline())
        found = [Launched(folder=Path(one["folder"]), **a) for one, a in zip(launches, answers, strict=True)]
        for launched in found:
            print(f"=== {launched.folder}: {launched.seconds:.1f} s")
            for rank, code in enumerate(launched.codes):
                print(f"--- rank {rank}: {code}\n{launched.said(rank)}")
        return found


def config_text(*, wrap: str, more: str = "", data: str = "", **arguments: Any) -> str:
    """Return a config of the small net; `arguments` go to its batches, `more` is added."""
    net = "tests.ranks.programs.net"
    return "".join(
        (
            f"model: {{call: {net}:build_model, kwargs: {{wrap: {wrap}}}}}\n" if wrap else "",
            f"data: {{call: {data or f'{net}:batches'}, kwargs: {json.dumps(arguments)}}}\n",
            f"loss: {net}:compute_loss\n",
            # a fused update takes no DTensors beside plain tensors
            "optimizer: {call: torch.optim:AdamW, kwargs: {lr: 1.0e-3, foreach: false}}\n",
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
        model(torch.randn(8, 16), torch.ones(8, 1)).square().mean().backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "ckpt.pt"
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 10}
    torch.save(state, path)
    with (
        torch.no_grad()
    ):  # of two shards the second one's half of a layer is large, and what reads it makes up for that
        model.blocks[0].up.weight[32:] *= 1500.0
        model.blocks[0].down.weight[:, 32:] /= 1500.0
    torch.save(state, folder / "large.pt")
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
