"""The command that a user types, `torchrun -m nanhunt replay`: with gloo on the CPU, with NCCL where there are GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nanhunt.diagnosis.diagnose import Diagnosis, diagnose
from nanhunt.trace.reader import Trace
from tests.ranks.conftest import ROOT, config_text

STEPS = "train: {steps: 6}\n"


def torchrun(folder: Path, checkpoint: Path, *options: str, **config: Any) -> subprocess.CompletedProcess[str]:
    """Replay by two ranks in a folder."""
    (folder / "nanhunt.yaml").write_text(config_text(**config))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "nanhunt", "replay", str(checkpoint), *options],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


def diagnosed(folder: Path) -> Diagnosis:
    return diagnose(Trace.open(folder / "trace.parquet"))


def test_the_rank_at_fault_is_found_under_torchrun(tmp_path: Path, checkpoint: Path) -> None:
    done = torchrun(tmp_path, checkpoint, "--device", "cpu", "--no-trials", wrap="ddp", more=STEPS, fault="zeros")
    assert done.returncode == 0
    assert "step 13: loss is NaN" in done.stderr
    assert sorted(p.name for p in (tmp_path / "trace.parquet").iterdir()) == ["rank-0000.parquet", "rank-0001.parquet"]
    assert set(pd.read_parquet(tmp_path / "trace.parquet")["rank"]) == {0, 1}
    report = subprocess.run(
        [sys.executable, "-m", "nanhunt", "report", "trace.parquet", "--repro", "repro.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "repro.py").exists()
    assert "forward, rank 1" in report.stdout
    assert "(zero-denominator, proved)" in report.stdout.replace("\n  ", " ")


# --- on two GPUs, with NCCL ------------------------------------------------------------------------------------------

needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.cuda
@needs_two_gpus
@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "tp"])
def test_on_gpus_the_rank_at_fault_is_found(tmp_path: Path, checkpoint: Path, wrap: str) -> None:
    done = torchrun(tmp_path, checkpoint, wrap=wrap, more=STEPS, fault="zeros", shared=wrap == "tp")
    assert done.returncode == 0
    found = diagnosed(tmp_path)
    assert found.onset is not None
    assert (found.onset.step, found.onset.op, found.onset.samples) == (13, "aten.div.Tensor", [2])
    assert found.onset.rank == (0 if wrap == "tp" else 1)
    assert found.suspects[0].cause == "zero-denominator"


@pytest.mark.cuda
@needs_two_gpus
@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "tp"])
def test_on_gpus_a_healthy_run_is_healthy(tmp_path: Path, checkpoint: Path, wrap: str) -> None:
    assert torchrun(tmp_path, checkpoint, wrap=wrap, more=STEPS, shared=wrap == "tp").returncode == 0
    assert diagnosed(tmp_path).outcome == "healthy"


@pytest.mark.cuda
@needs_two_gpus
def test_on_gpus_ranks_that_part_are_told(tmp_path: Path, checkpoint: Path) -> None:
    apart = "tests.ranks.programs.apart"
    more = f"{STEPS}train_step: {apart}:own_skip\n"
    assert torchrun(tmp_path, checkpoint, wrap="ddp", more=more, data=f"{apart}:batches").returncode == 0
    found = diagnosed(tmp_path)
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step, found.onset.rank) == ("mismatch", 13, 1)
    assert found.suspects[0].cause == "rank-divergence"


@pytest.mark.cuda
@needs_two_gpus
@pytest.mark.parametrize("fault", ["killed", "raises", "short", "ends"])
def test_on_gpus_nobody_waits_for_a_rank_that_has_gone(tmp_path: Path, checkpoint: Path, fault: str) -> None:
    torchrun(tmp_path, checkpoint, wrap="fsdp", more=STEPS, fault=fault)  # raises where it takes minutes
    trace = Trace.open(tmp_path / "trace.parquet")
    assert trace.steps[:3] == (10, 11, 12)
    if fault in ("killed", "raises"):  # an index out of range ends the process of a GPU
        assert not trace.complete
    if fault == "short":
        assert diagnose(trace).onset is not None
        assert diagnose(trace).onset.rank == 1  # type: ignore[union-attr]
