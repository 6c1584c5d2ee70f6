"""A replay that is killed or interrupted leaves every finished step, and its report says that it is incomplete."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanhunt.trace.reader import Trace

FIRST_STEP = 10
#: Longer than any test waits for; a step that never ends fails the test by this.
PATIENCE = 60.0


class Replay:
    """A replay of a thousand slow steps in a process of its own; its data logs each step that begins.

    The data is asked for a step's batch only after the step before was flushed: that log tells what must be there.
    """

    def __init__(self, project: Any, environment: dict[str, str], *options: str) -> None:
        self.log = project.root / "began.log"
        self.log.unlink(missing_ok=True)
        project.configure(
            data={"call": "train:batches", "kwargs": {"log": str(self.log), "pause": 0.02}},
            train={"steps": 1000},
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nanhunt", "replay", "ckpt.pt", *options],
            cwd=project.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def began(self) -> list[int]:
        """Return the steps that have begun."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def wait_for(self, steps: int) -> list[int]:
        """Wait until so many steps have begun."""
        patience = time.monotonic() + PATIENCE
        while len(self.began()) < steps:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < patience
            time.sleep(0.005)
        return self.began()

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal and return the exit code and both streams."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def start(project: Any, environment: dict[str, str]) -> Iterator[Callable[..., Replay]]:
    """A function that starts a replay; whatever it started is gone after the test."""
    started: list[Replay] = []

    def begin(*options: str) -> Replay:
        started.append(Replay(project, environment, *options))
        return started[-1]

    yield begin
    for replay in started:
        if replay.process.poll() is None:
            replay.process.kill()
            replay.process.communicate()


def test_every_finished_step_survives_a_kill_at_any_moment(start, project, nanhunt):
    replay = start()
    for moment, count in enumerate((2, 3, 7, 20)):
        finished = replay.wait_for(count)[:-1]
        # what lies on the disk now is what a kill now would leave
        copy = project.root / f"moment{moment}" / "trace.parquet.partial"
        copy.parent.mkdir()
        shutil.copy(project.root / "trace.parquet.partial", copy)
        trace = Trace.open(copy)
        assert not trace.complete
        assert list(trace.steps)[: len(finished)] == finished
        assert set(trace.scalars("loss")) >= set(finished)

    replay.process.kill()
    replay.process.communicate()
    *finished, last = replay.began()
    assert list(Trace.open(project.root / "trace.parquet").steps) in (finished, [*finished, last])
    assert not (project.root / "trace.parquet").exists()


def test_the_report_of_a_killed_replay_says_up_to_which_step(start, project, nanhunt):
    replay = start()
    replay.wait_for(4)
    assert replay.end(signal.SIGKILL)[0] == -signal.SIGKILL
    last = Trace.open(project.root / "trace.parquet").last_step

    for name in ("trace.parquet.partial", "trace.parquet"):
        page = nanhunt("report", name)
        assert page.code == 0
        assert "incomplete" in page.out
        assert f"step {last}" in page.out or f"to {last}" in page.out
        document = json.loads(nanhunt("report", name, "-f", "json").out)
        assert document["run"]["complete"] is False
        assert document["outcome"] != "fault"
        assert "1000 steps replayed" not in document["summary"]


def test_a_killed_replay_is_not_overwritten_without_force(start, project, nanhunt):
    replay = start()
    replay.wait_for(3)
    replay.end(signal.SIGKILL)
    partial = project.root / "trace.parquet.partial"
    before = partial.read_bytes()
    project.configure()

    refused = nanhunt("replay", "ckpt.pt")
    assert refused.is_clean_refusal
    assert "trace.parquet.partial exists already" in refused.err
    assert "--force" in refused.err
    assert "nanhunt report trace.parquet.partial" in refused.err
    assert partial.read_bytes() == before

    assert nanhunt("replay", "ckpt.pt", "--force").code == 0
    assert not partial.exists()
    assert Trace.open(project.root / "trace.parquet").complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_parquet_file_up_to_there(number, start, project, nanhunt):
    replay = start()
    replay.wait_for(5)
    code, out, err = replay.end(number)
    *finished, last = replay.began()
    assert code == 130
    assert "Traceback" not in err
    assert out == ""

    trace = Trace.open(project.root / "trace.parquet")
    assert trace.path.read_bytes()[:4] == b"PAR1"
    assert not (project.root / "trace.parquet.partial").exists()
    assert list(trace.steps) in (finished, [*finished, last])
    assert not trace.complete
    assert "interrupted" in trace.reason
    assert f"(up to step {trace.last_step}): trace.parquet" in err.splitlines()[-1]

    document = json.loads(nanhunt("report", "trace.parquet", "-f", "json").out)
    assert document["run"]["complete"] is False


def test_an_interrupt_before_the_first_step_writes_nothing(project, environment):
    project.add_code(
        """
        def slow_model():
            open("building", "w").close()
            time.sleep(60)
        """
    )
    project.configure(model="train:slow_model")
    (project.root / "trace.parquet").write_bytes(b"older")
    process = subprocess.Popen(
        [sys.executable, "-m", "nanhunt", "replay", "ckpt.pt", "--force"],
        cwd=project.root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = time.monotonic() + PATIENCE
    while not (project.root / "building").exists() and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert (project.root / "trace.parquet").read_bytes() == b"older"
    assert not Path(project.root / "trace.parquet.partial").exists()


def test_a_replay_beside_a_running_one_is_refused(start, project, nanhunt):
    replay = start()
    replay.wait_for(2)
    refused = nanhunt("replay", "ckpt.pt", "--steps", "2")
    assert refused.is_clean_refusal
    assert "still writing" in refused.err or "exists already" in refused.err
    assert replay.process.poll() is None
