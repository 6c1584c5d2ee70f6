"""The whole path on programs that it has not seen: the cause ranks first, the place is exact, the twin is healthy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from nanhunt.commands.replay import ReplayOptions, replay
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.trace.reader import Trace
from nanhunt.training.user_code import resolve
from tests.faults.programs import HEAD, HEALTHY, PROGRAMS, Program


def diagnosed(program: Program, folder: Path, *, faulty: bool) -> Diagnosis:
    """Train the program up to its checkpoint, replay it through the command's own code, and return the diagnosis."""
    source = HEAD + program.source
    (folder / "train.py").write_text(source if faulty else source.replace("FAULTY = True", "FAULTY = False"))
    config = {
        "model": "train:build_model",
        "data": "train:batches",
        "loss": "train:compute_loss",
        "optimizer": "train:make_optimizer",
        **program.config,
    }
    config["train"] = {"steps": program.steps, **config.get("train", {})}
    (folder / "nanhunt.yaml").write_text(yaml.safe_dump(config))
    save_checkpoint(program, folder)
    trace = folder / "trace.parquet"
    # on a GPU an index out of range would spoil the device for every test behind it
    options = ReplayOptions(
        checkpoint=folder / "ckpt.pt", config=folder / "nanhunt.yaml", out=trace, quiet=True, device="cpu"
    )
    replay(options)
    return diagnose(Trace.open(trace))


def save_checkpoint(program: Program, folder: Path) -> None:
    """Train `before` plain steps in fp32 and save, as a user's script does."""
    part = {
        name: resolve(f"train:{name}", key=name, root=folder) for name in ("build_model", "batches", "compute_loss")
    }
    torch.manual_seed(0)
    model = part["build_model"]()
    optimizer = resolve("train:make_optimizer", key="optimizer", root=folder)(model)
    data = iter(part["batches"](0))
    for _ in range(program.before):
        optimizer.zero_grad()
        part["compute_loss"](model, next(data)).backward()
        optimizer.step()
    state = {"model": model.state_dict(), "step": program.before}
    if program.before:
        state["optimizer"] = optimizer.state_dict()
    torch.save(state, folder / "ckpt.pt")
    sys.modules.pop("train", None)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_the_planted_cause_ranks_first_at_its_exact_place(program: Program, tmp_path: Path) -> None:
    diagnosis = diagnosed(program, tmp_path, faulty=True)
    truth, onset = program.truth, diagnosis.onset
    assert truth is not None
    assert onset is not None, diagnosis.summary
    told = diagnosis.summary + "".join(f"\n{s.cause} {s.grade}" for s in diagnosis.suspects)
    assert onset.kind in truth.kind, told
    first, last = truth.step if isinstance(truth.step, tuple) else (truth.step, truth.step)
    assert first <= onset.step <= last, told
    assert truth.phase in (None, onset.phase), told
    assert truth.module in (None, onset.module), told
    assert truth.op in (None, onset.op), told
    if truth.line is not None:
        assert onset.source is not None
        number = int(onset.source.rpartition(":")[2])
        assert (tmp_path / "train.py").read_text().splitlines()[number - 1].strip() == truth.line
    if truth.samples is not None:
        assert tuple(onset.samples) == truth.samples, told
    assert [t.outcome for t in diagnosis.trials if t.name == "exact"] == ["persists"]
    assert diagnosis.suspects, told
    assert diagnosis.suspects[0].cause in truth.causes, told


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_its_twin_without_the_fault_is_healthy(program: Program, tmp_path: Path) -> None:
    diagnosis = diagnosed(program, tmp_path, faulty=False)
    assert diagnosis.outcome == "healthy", diagnosis.summary


@pytest.mark.parametrize("program", HEALTHY, ids=lambda p: p.name)
def test_a_healthy_look_alike_is_left_alone(program: Program, tmp_path: Path) -> None:
    diagnosis = diagnosed(program, tmp_path, faulty=False)
    assert diagnosis.outcome == "healthy", diagnosis.summary
    assert not diagnosis.suspects
