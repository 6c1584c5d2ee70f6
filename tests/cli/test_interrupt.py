"""A replay that is killed or interrupted leaves every finished step, and its report says that it is incomplete."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanhunt.trace.reader import Trace

#: Longer than any test waits for; a process that never gets there fails the test by this.
PATIENCE = 60.0

SIGNALLING = """
import os
import signal


def signalling_model():
    open("built", "w").close()
    os.kill(os.getpid(), signal.SIGINT)
    return build_model()


def signalling_batches(start_step, number, at):
    for step in range(start_step, start_step + 100):
        if step == at:
            os.kill(os.getpid(), number)
            time.sleep(1)
        yield make_batch(step)


def signalling_loss(model, batch, number, calls=[]):
    loss = compute_loss(model, batch)
    calls.append(loss.item())
    if len(calls) == 3:
        os.kill(os.getpid(), number)
    return loss
"""


@dataclass(kw_only=True)
class Killed:
    """A replay that was killed: its folder, the steps that had begun, and its partial as it lay at several moments."""

    root: Path
    process: subprocess.Popen[str]
    #: copies of the partial, each with the steps that were finished before it was taken
    moments: list[tuple[Path, list[int]]] = field(default_factory=list)

    def began(self) -> list[int]:
        """Return the steps whose batch was asked for, which is only done after the step before was flushed."""
        log = self.root / "began.log"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def finished_of(self, steps: int) -> list[int]:
        """Wait until so many steps have begun and return those that are finished."""
        patience = time.monotonic() + PATIENCE
        while len(self.began()) < steps:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < patience
            time.sleep(0.005)
        return self.began()[:-1]


@pytest.fixture(scope="module")
def killed(template, project_class, environment, tmp_path_factory) -> Iterator[Killed]:
    root = tmp_path_factory.mktemp("killed")
    shutil.copytree(template, root, dirs_exist_ok=True)
    arguments = {"log": str(root / "began.log"), "pause": 0.02}
    project_class(root=root).configure(data={"call": "train:batches", "kwargs": arguments}, train={"steps": 1000})
    process = subprocess.Popen(
        [sys.executable, "-m", "nanhunt", "replay", "ckpt.pt"],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    replay = Killed(root=root, process=process)
    try:
        for count in (2, 3, 7, 20):
            finished = replay.finished_of(count)
            # what lies on the disk now is what a kill now would leave
            copy = root / f"after{count}" / "trace.parquet.partial"
            copy.parent.mkdir()
            shutil.copy(root / "trace.parquet.partial", copy)
            replay.moments.append((copy, finished))
    finally:
        process.kill()
        process.communicate()
    return replay


def test_every_finished_step_survives_a_kill_at_any_moment(killed):
    assert [len(finished) > 0 for _, finished in killed.moments] == [True] * 4
    for copy, finished in killed.moments:
        trace = Trace.open(copy)
        assert not trace.complete
        assert list(trace.steps)[: len(finished)] == finished
        assert set(trace.scalars("loss")) >= set(finished)


def test_a_kill_leaves_the_partial_alone_and_whole_steps_only(killed):
    *finished, last = killed.began()
    assert not (killed.root / "trace.parquet").exists()
    trace = Trace.open(killed.root / "trace.parquet.partial")
    assert list(trace.steps) in (finished, [*finished, last])
    assert set(trace.scalars("loss")) == set(trace.steps)


@pytest.mark.parametrize("name", ["trace.parquet.partial", "trace.parquet"])
def test_the_report_of_a_killed_replay_says_up_to_which_step(name, killed, nanhunt):
    path = killed.root / name
    last = Trace.open(path).last_step
    page = nanhunt("report", path)
    assert page.code == 0
    assert "incomplete" in page.out
    assert str(last) in page.out

    document = json.loads(nanhunt("report", path, "-f", "json").out)
    assert document["run"]["complete"] is False
    assert document["outcome"] != "fault"
    assert nanhunt("report", path, "--exit-code").code == 0


def test_a_killed_replay_is_not_overwritten_without_force(killed, project, nanhunt):
    partial = project.root / "trace.parquet.partial"
    shutil.copy(killed.root / partial.name, partial)
    before = partial.read_bytes()

    refused = nanhunt("replay", "ckpt.pt")
    assert refused.is_clean_refusal
    assert "trace.parquet.partial exists already" in refused.err
    assert "--force" in refused.err
    assert "nanhunt report trace.parquet.partial" in refused.err
    assert partial.read_bytes() == before

    assert nanhunt("replay", "ckpt.pt", "--force").code == 0
    assert not partial.exists()
    assert Trace.open(project.root / "trace.parquet").complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["data", "loss"])
def test_an_interrupt_leaves_a_parquet_file_up_to_there(number, where, project, nanhunt):
    project.add_code(SIGNALLING)
    if where == "data":
        project.configure(data={"call": "train:signalling_batches", "kwargs": {"number": int(number), "at": 12}})
    else:
        project.configure(loss={"call": "train:signalling_loss", "kwargs": {"number": int(number)}})
    handler = signal.getsignal(signal.SIGTERM)
    interrupted = nanhunt("replay", "ckpt.pt", "--steps", "50")

    assert interrupted.code == 130
    assert interrupted.out == ""
    assert interrupted.err == "interrupted\nthe trace so far (up to step 11): trace.parquet\n"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (project.root / "trace.parquet").read_bytes()[:4] == b"PAR1"
    assert not (project.root / "trace.parquet.partial").exists()
    trace = Trace.open(project.root / "trace.parquet")
    assert trace.steps == (10, 11)
    assert not trace.complete
    assert "interrupted" in trace.reason

    page = nanhunt("report", "trace.parquet")
    assert "incomplete" in page.out
    assert "11" in page.out
    assert json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)["run"]["complete"] is False


def test_an_interrupt_in_the_first_step_keeps_what_was_seen_of_the_checkpoint(project, nanhunt):
    project.add_code(SIGNALLING)
    project.configure(data={"call": "train:signalling_batches", "kwargs": {"number": int(signal.SIGINT), "at": 10}})
    interrupted = nanhunt("replay", "ckpt.pt")
    assert interrupted.code == 130
    assert interrupted.err == "interrupted\nthe trace so far (no step was finished): trace.parquet\n"
    trace = Trace.open(project.root / "trace.parquet")
    assert not trace.complete
    assert trace.steps == ()
    assert "no step is here" in trace.reason
    document = json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)
    assert document["outcome"] == "inconclusive"
    assert "no step is here" in document["summary"]


def test_an_interrupt_before_the_replay_leaves_an_older_trace_alone(project, nanhunt):
    project.add_code(SIGNALLING)
    project.configure(model="train:signalling_model")
    (project.root / "trace.parquet").write_bytes(b"older")
    interrupted = nanhunt("replay", "ckpt.pt", "--force")
    assert interrupted.code == 130
    assert interrupted.err == "interrupted\n"
    assert (project.root / "built").exists()
    assert (project.root / "trace.parquet").read_bytes() == b"older"
    assert not (project.root / "trace.parquet.partial").exists()


def test_ctrl_c_in_a_terminal_ends_with_130(project, environment):
    project.add_code(SIGNALLING)
    project.configure(data={"call": "train:signalling_batches", "kwargs": {"number": int(signal.SIGINT), "at": 12}})
    done = subprocess.run(
        [sys.executable, "-m", "nanhunt", "replay", "ckpt.pt"],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "the trace so far (up to step 11): trace.parquet"
    assert "Traceback" not in done.stderr
