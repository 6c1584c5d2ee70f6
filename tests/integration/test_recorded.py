"""Four scripts of four kinds, recorded: each fails at a known step, its bundle replays bit for bit and names the cause."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forked import python

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A script of configs/, what it is told to break, and what a report then names."""

    script: str
    arguments: tuple[str, ...]
    step: int
    cause: str
    needs: str = "torch"


SCRIPTS = {
    "a nanoGPT-like script": Recorded(
        script="nanogpt/train.py", arguments=("--bad-step", "14"), step=14, cause="empty-reduction"
    ),
    "a GAN with two optimizers": Recorded(
        script="projects/gan/train.py", arguments=("--corrupt", "12"), step=12, cause="bad-sample"
    ),
    "a Hugging Face Trainer": Recorded(
        script="projects/hf-trainer/train.py",
        arguments=("--unlabelled-step", "13"),
        step=13,
        cause="empty-reduction",
        needs="transformers",
    ),
    "a Lightning Trainer": Recorded(
        script="projects/lightning/train.py",
        arguments=("--bad-step", "17"),
        step=17,
        cause="empty-reduction",
        needs="lightning",
    ),
}


def ran(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(*words, cwd=folder, env={"HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_bundle_of_a_script_that_fails_is_the_run_and_names_the_cause(name: str, tmp_path: Path) -> None:
    known = SCRIPTS[name]
    pytest.importorskip(known.needs)
    done = ran(tmp_path, str(ROOT / "configs" / known.script), "--steps", "18", "--record", "bundles", *known.arguments)
    assert done.returncode == 0, done.stderr
    assert f"nanhunt replay {tmp_path / 'bundles' / f'step-{known.step}'}" in done.stderr
    done = ran(tmp_path, "-m", "nanhunt", "replay", "bundles", "--exit-code", "--no-trials")
    assert done.returncode == 1, done.stderr
    assert f"the replay follows the original run bit for bit through step {known.step}" in done.stderr + done.stdout
    told = ran(tmp_path, "-m", "nanhunt", "report", "trace.parquet", "--format", "json")
    report: dict[str, Any] = json.loads(told.stdout)
    assert (report["onset"]["step"], report["suspects"][0]["cause"]) == (known.step, known.cause)
