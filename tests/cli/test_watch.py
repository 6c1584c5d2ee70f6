"""A running replay under watch: it is shown as it grows, its alarms are raised, and the view ends when the run does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.schema import Manifest, Observation
from nanhunt.trace.writer import TraceWriter

PATIENCE = 60.0
LONG = "model.layers.11.self_attention.output_projection"

#: A run in a process of its own: `python -c WRITER trace.parquet steps pause`; it waits for `go` behind the first step.
WRITER = """
import sys, time
from pathlib import Path
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.schema import Manifest, Observation
from nanhunt.trace.writer import TraceWriter

path, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with TraceWriter(path, Manifest(settings={"steps": steps})) as writer:
    for step in range(steps):
        seen = TensorStats(numel=4, amax=1000.0, amin=1.0)
        writer.write([
            Observation(step=step, phase="forward", role="output", module="mlp", dtype="float16", shape=(4,), stats=seen),
            Observation(step=step, phase="update", role="scalar", name="loss", value=2.0),
        ])
        writer.flush()
        time.sleep(pause)
"""


def scalar(step: int, name: str, value: float) -> Observation:
    return Observation(step=step, phase="update", role="scalar", name=name, value=value)


def output(step: int, module: str, amax: float, **stats: int) -> Observation:
    seen = TensorStats(numel=100, amax=amax, amin=0.5, **stats)
    return Observation(
        step=step, phase="forward", role="output", module=module, dtype="float16", shape=(100,), stats=seen
    )


def write(path: Path, losses: list[float], *, scales: list[float] | None = None, close: bool = True) -> TraceWriter:
    writer = TraceWriter(path, Manifest(settings={"steps": len(losses)}))
    for step, loss in enumerate(losses):
        writer.write([output(step, "head", 32752.0), output(step, LONG, 16376.0), scalar(step, "loss", loss)])
        if scales:
            fell = step > 0 and scales[step] < scales[step - 1]
            writer.write([scalar(step, "loss_scale", scales[step]), scalar(step, "skipped", float(fell))])
        writer.flush()
    if close:
        writer.close()
    return writer


@pytest.fixture
def start(environment, tmp_path):
    """Start a process; it is ended with the test."""
    running = []

    def begin(*arguments: object, **more: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def lines_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    assert process.stdout is not None
    found: list[str] = []
    for line in process.stdout:
        found.append(line.rstrip("\n"))
        if wanted in line:
            return found
    raise AssertionError(f"{wanted!r} was not printed: {found} {process.stderr.read() if process.stderr else ''}")


def test_a_slow_run_is_followed_from_before_its_file_is_there_to_its_end(start, tmp_path):
    watching = start("-m", "nanhunt", "watch", "trace.parquet", "--interval", "0.1")
    assert watching.stderr is not None
    assert watching.stderr.readline().startswith("waiting for trace.parquet.partial")
    start("-c", WRITER, "trace.parquet", 25, 0.1)
    out, _ = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0
    lines = out.splitlines()
    steps = [int(line.split()[1]) for line in lines if line.startswith("step ")]
    assert steps == sorted(set(steps))
    assert len(steps) > 5  # each look that finds a new step prints it
    assert steps[-1] == 24
    assert lines[-2:] == ["the run ended: the last step is 24", "next: nanhunt report trace.parquet"]
    assert not [line for line in lines if line.startswith("!")]


def test_a_killed_writer_is_a_silence_and_the_watcher_leaves_by_ctrl_c(start, tmp_path, monkeypatch):
    writing = start("-c", WRITER, "trace.parquet", 1000, 0.05)
    while not (tmp_path / "trace.parquet.partial").exists():
        time.sleep(0.01)
    program = "import nanhunt.live.pace as p; p.LATE = 0.5; from nanhunt.cli import main; main()"
    watching = start("-c", program, "watch", "trace.parquet.partial", "--interval", "0.05")
    lines_until(watching, "step ")
    writing.kill()
    writing.wait()
    size = (tmp_path / "trace.parquet.partial").stat().st_size
    told = lines_until(watching, "nothing was written")[-1]
    assert "or the writer is gone" in told
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 130
    assert err == "interrupted\n"
    assert "next" not in out
    assert (tmp_path / "trace.parquet.partial").stat().st_size == size


def test_one_frame_of_a_running_replay(tmp_path, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    writer = write(tmp_path / "trace.parquet", [2.0, 1.9, 1.8], close=False)
    before = writer.partial.read_bytes()
    for name in ("trace.parquet", "trace.parquet.partial"):
        frame = nanhunt("watch", tmp_path / name, "--once")
        assert (frame.code, frame.err) == (0, "")
        assert "running" in frame.out
        assert "3 of 3" in frame.out
        assert re.search(r"loss +1.8 +█▄▁", frame.out)
        rows = [line.split() for line in frame.out.splitlines() if " fp16 " in line]
        # the maximum of fp16 is 65504: one binade above the first, two above the second
        assert [(row[0][0], row[-1]) for row in rows] == [("h", "+1.0"), ("m", "+2.0")]
    assert writer.partial.read_bytes() == before
    writer.close()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_names_are_cut_in_the_middle(width, tmp_path, nanhunt, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    write(tmp_path / "trace.parquet", [2.0] * 300 + [float("nan")])
    out = nanhunt("watch", tmp_path / "trace.parquet").out
    *frame, following = out.splitlines()
    assert max(len(line) for line in frame) <= width
    assert following == f"next: nanhunt report {tmp_path}/trace.parquet"
    if width == 200:
        assert LONG in out
    if width == 80:
        assert re.search(r"model\.\S*…\S*projection ", out)


def test_a_finished_trace_is_shown_once_as_its_stream_was(tmp_path, nanhunt):
    writer = write(tmp_path / "trace.parquet", [2.0, 1.9], close=False)
    live = nanhunt("watch", writer.partial, "--once").out
    writer.close()
    for name in ("trace.parquet", "trace.parquet.partial"):
        shown = nanhunt("watch", tmp_path / name).out
        assert "finished" in shown
        assert shown.splitlines()[1:-1] == live.splitlines()[1:]


def test_a_real_replay_is_shown_with_its_fault(fault_trace, nanhunt):
    shown = nanhunt("watch", fault_trace)
    assert shown.code == 0
    assert "step 12: the replay found a fault" in shown.out
    assert "✗" in shown.out


def test_non_finite_spike_and_falling_scale_alarm_once_each(tmp_path, nanhunt):
    steady = [2.0 + 0.01 * (-1) ** step for step in range(40)]
    write(tmp_path / "nan.parquet", [*steady, float("nan"), float("nan")])
    out = nanhunt("watch", tmp_path / "nan.parquet").out
    assert out.count("! step 40: loss is NaN") == 1
    assert "step 41:" not in out

    write(tmp_path / "spike.parquet", [*steady, 9.0, *steady])
    out = nanhunt("watch", tmp_path / "spike.parquet").out
    assert out.count("! step 40: spike: loss 9") == 1
    assert "the loss is back from the spike of step 40" in out

    write(tmp_path / "scale.parquet", steady, scales=[2.0 ** max(16 - step, 10) for step in range(40)])
    out = " ".join(nanhunt("watch", tmp_path / "scale.parquet").out.split())
    assert "step 3: the loss scale fell 3 times within 20 steps, to 8192" in out
    assert "6 steps skipped, the last in step 6" in out

    write(tmp_path / "steady.parquet", steady)
    assert "alarms" not in nanhunt("watch", tmp_path / "steady.parquet").out


def test_the_live_view_draws_in_a_terminal_and_leaves_the_last_frame(tmp_path, nanhunt, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    writer = write(tmp_path / "trace.parquet", [2.0, 1.9], close=False)

    def finish() -> None:
        time.sleep(0.4)
        writer.write([scalar(2, "loss", 1.7)])
        writer.close()

    thread = threading.Thread(target=finish)
    thread.start()
    shown = nanhunt("watch", tmp_path / "trace.parquet", "--interval", "0.1", terminal=True)
    thread.join()
    assert shown.code == 0
    assert "\x1b[" in shown.out
    last = shown.out[shown.out.rindex("trace.parquet.partial") :]
    assert "finished" in last
    assert "1.7" in last
    assert shown.out.rstrip().endswith(f"next: nanhunt report {tmp_path}/trace.parquet")


def test_no_colour_is_asked_for_and_given(tmp_path, nanhunt, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("TERM", raising=False)
    write(tmp_path / "trace.parquet", [2.0, float("nan")])
    assert "\x1b" not in nanhunt("watch", tmp_path / "trace.parquet", terminal=True).out


def test_what_cannot_be_watched_is_refused(tmp_path, nanhunt):
    nothing = nanhunt("watch", tmp_path / "t.parquet", "--wait", "0.2", "--interval", "0.1")
    assert nothing.code == 2
    assert "there is no trace" in nothing.err
    assert nanhunt("watch", tmp_path / "t.parquet", "--once").is_clean_refusal
    assert nanhunt("watch", tmp_path).is_clean_refusal
    (tmp_path / "text.parquet.partial").write_text("not a stream of anything")
    assert nanhunt("watch", tmp_path / "text.parquet").is_clean_refusal
    (tmp_path / "text.parquet").write_text("not a trace either")
    assert nanhunt("watch", tmp_path / "text.parquet").is_clean_refusal


def test_a_run_that_starts_anew_under_the_same_name_is_told(tmp_path, nanhunt):
    write(tmp_path / "t.parquet", [2.0], close=False)

    def begin_again() -> None:
        time.sleep(0.3)
        # the name goes to another file in one move, as for a reader that looks seldom
        TraceWriter(tmp_path / "other.parquet", Manifest())
        os.replace(tmp_path / "other.parquet.partial", tmp_path / "t.parquet.partial")

    thread = threading.Thread(target=begin_again)
    thread.start()
    told = nanhunt("watch", tmp_path / "t.parquet", "--interval", "0.05")
    thread.join()
    assert told.code == 2
    assert "begun anew" in told.err


def test_memory_does_not_grow_with_the_steps():
    from nanhunt.live.curve import Curve

    curve = Curve()
    for step in range(100_000):
        curve.add(step, float("nan") if step == 77 else float(step == 5000))
    assert len(curve.values) <= 1024
    assert curve.steps == sorted(curve.steps)
    assert curve.steps[0] == 0
    assert curve.values.count(1.0) == 1
    assert sum(value != value for value in curve.values) == 1
    assert curve.last == 0.0


def test_the_view_needs_no_torch(tmp_path, environment):
    write(tmp_path / "trace.parquet", [2.0, 1.9])
    program = textwrap.dedent("""
        import sys
        from nanhunt.cli import main
        sys.argv = ["nanhunt", "watch", "trace.parquet"]
        try:
            main()
        except SystemExit:
            print([m for m in ("torch", "pandas") if m in sys.modules])
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
