"""`nanhunt report --repro` as a user types it: what it writes, what it says, and with which exit code."""

from __future__ import annotations

import subprocess
import sys


def test_a_fault_of_an_op_becomes_a_script_that_shows_it(project, nanhunt, environment):
    project.plant(index_at=11)
    assert nanhunt("replay", "ckpt.pt", "--steps", 2).code == 0
    done = nanhunt("report", "trace.parquet", "--repro", "repro.py")
    assert done.code == 0
    assert done.err == "wrote repro.py and repro.pt: python repro.py\n"
    ran = subprocess.run(
        [sys.executable, "repro.py"], cwd=project.root, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "aten.embedding.default" in ran.stdout


def test_a_script_is_not_written_over(project, nanhunt):
    project.plant(index_at=10)
    assert nanhunt("replay", "ckpt.pt", "--steps", 1).code == 0
    (project.root / "repro.pt").write_text("mine")
    done = nanhunt("report", "trace.parquet", "--repro", "repro.py")
    assert done.is_clean_refusal
    assert "repro.pt exists already" in done.err
    assert not (project.root / "repro.py").exists()


def test_a_trace_without_a_culprit_op_says_why(fault_trace, healthy_trace, nanhunt, tmp_path):
    done = nanhunt("report", fault_trace, "--repro", tmp_path / "repro.py")
    assert done.is_clean_refusal
    assert "no op broke it: what was not finite was there before the step (batch x)" in done.err
    done = nanhunt("report", healthy_trace, "--repro", tmp_path / "repro.py")
    assert done.is_clean_refusal
    assert "no fault was found" in done.err


def test_a_script_is_a_python_file(fault_trace, nanhunt, tmp_path):
    assert "ends in .py" in nanhunt("report", fault_trace, "--repro", tmp_path / "repro.pt").err
    assert "there is no folder" in nanhunt("report", fault_trace, "--repro", tmp_path / "no" / "repro.py").err
