"""`nanhunt run`: the script is what it was, and what it leaves replays bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanhunt.commands.replay import ReplayOptions, replay
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import original_run
from nanhunt.trace.reader import Trace

SCRIPTS = Path(__file__).parent / "scripts"
FAULTS = {
    "outside.py": (["16"], 7, "nan", [3]),
    "accumulated.py": ([], 6, "nan", []),
    "scaled.py": ([], 6, "inf", [2]),
    "raising.py": ([], 4, "exception", [1]),
    "llama.py": ([], 4, "nan", []),
    "gan.py": (["--width", "24"], 4, "nan", [1]),
}


def executed(folder: Path, *command: str, bare: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, as Python does or with `nanhunt run`."""
    own = [sys.executable] if bare else [sys.executable, "-P", "-m", "nanhunt", "run", "--no-report", "-o", "bundles"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [*own, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize("name", FAULTS)
def test_the_bundle_of_a_script_replays_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "train", raising=False)
    if name == "llama.py":
        pytest.importorskip("transformers")
    shutil.copy(SCRIPTS / name, tmp_path / "train.py")
    arguments, step, kind, samples = FAULTS[name]
    executed(tmp_path, "train.py", *arguments)
    trace = tmp_path / "trace.parquet"
    onset = replay(ReplayOptions(checkpoint=tmp_path / "bundles", out=trace, trials=False, quiet=True, announce=False))
    original = original_run(Evidence(Trace.open(trace)))
    assert onset is not None
    assert original is not None
    assert (onset.step, onset.kind, onset.samples) == (step, kind, samples)
    assert (original.bitwise, original.alone) == (True, ())
    assert original.compared == step + (kind != "exception")
    if name == "accumulated.py":
        assert onset.source == "train.py:35"
    if name == "raising.py":
        assert onset.source == "train.py:17"


def test_what_a_script_computes_outside_of_its_graph_is_named_and_not_called_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "train", raising=False)
    shutil.copy(SCRIPTS / "advantages.py", tmp_path / "train.py")
    executed(tmp_path, "train.py")
    trace = tmp_path / "trace.parquet"
    replay(ReplayOptions(checkpoint=tmp_path / "bundles", out=trace, trials=False, quiet=True, announce=False))
    first = diagnose(Trace.open(trace)).suspects[0]
    assert (first.cause, first.grade.value, first.location.step) == ("bad-target", "supported", 7)
    assert first.summary.startswith("`adv` (field 'inputs.mul.1') holds 4 NaN")


def test_a_script_is_what_it_was_and_does_not_see_the_recorder(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "outside.py", tmp_path / "train.py")
    bare = executed(tmp_path, "train.py", "16", bare=True)
    saved = (tmp_path / "model.pt").read_bytes()
    recorded = executed(tmp_path, "train.py", "16")
    assert (recorded.returncode, recorded.stdout) == (3, bare.stdout)
    assert bare.stderr == ""
    assert recorded.stderr.count("\n") == 1
    assert (tmp_path / "model.pt").read_bytes() == saved


def test_a_traceback_is_the_scripts_own(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "raising.py", tmp_path / "train.py")
    bare, recorded = executed(tmp_path, "train.py", bare=True), executed(tmp_path, "train.py")
    assert recorded.returncode == bare.returncode == 1
    assert recorded.stderr.startswith(bare.stderr)
    assert "bundles/step-4" in recorded.stderr.removeprefix(bare.stderr)


def test_a_module_trains_in_what_it_imports(tmp_path: Path) -> None:
    package = tmp_path / "project"
    package.mkdir()
    shutil.copy(SCRIPTS / "scaled.py", package / "loop.py")
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nfrom project.loop import train\ntrain()\nprint(sys.argv[1:])\n")
    done = executed(tmp_path, "-m", "project", "--every", "3", "-o", "x", "--")
    assert (done.returncode, done.stdout) == (0, "['--every', '3', '-o', 'x', '--']\n")
    assert (tmp_path / "bundles" / "step-6" / "run.json").is_file()


def test_a_script_that_trains_nothing_leaves_one_line_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("print('hello')")
    done = executed(tmp_path, "none.py")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert done.stderr == "nanhunt: no training step was seen, nothing is recorded\n"
    assert not (tmp_path / "bundles").exists()


def test_a_script_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = executed(tmp_path, "missing.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: run: no file missing.py\n")


def test_the_report_of_a_fault_is_printed_on_stderr(tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "raising.py", tmp_path / "train.py")
    command = [sys.executable, "-P", "-m", "nanhunt", "run", "--every", "3", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout) == (1, "")
    assert "bad-target" in done.stderr
    assert "train.py:17" in done.stderr


def test_a_healthy_run_says_nothing_and_its_weights_are_those_of_the_bare_run(tmp_path: Path) -> None:
    text = (SCRIPTS / "accumulated.py").read_text().replace("range(8)", "range(6)")
    (tmp_path / "train.py").write_text(text + "\ntorch.save(model.state_dict(), 'weights.pt')\n")
    executed(tmp_path, "train.py", bare=True)
    bare = torch.load(tmp_path / "weights.pt")
    assert executed(tmp_path, "train.py").stderr == ""
    recorded = torch.load(tmp_path / "weights.pt")
    assert bare.keys() == recorded.keys()
    assert all(weight.isfinite().all() and torch.equal(weight, recorded[name]) for name, weight in bare.items())
