"""The corpus holds what it promises, and a spread of it is diagnosed rightly through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from nanhunt.diagnosis.causes import CAUSES
from tests.corpus.judge import judge
from tests.corpus.program import HEALTHY, PROGRAMS, Program, programs
from tests.corpus.runner import Job, run_one

ROOT = Path(__file__).resolve().parents[2]
SLUGS = {cause.slug for cause in CAUSES}
EVERY = programs()


@pytest.mark.parametrize("program", EVERY, ids=lambda p: p.name)
def test_a_program_states_a_truth_that_can_be_judged(program: Program) -> None:
    truth = program.truth
    assert set(truth.causes) | set(truth.also) <= SLUGS
    assert program.path.parent.name == (program.cause or HEALTHY)
    assert bool(truth.causes) == program.has_twin
    assert not truth.line or program.lines(), "the line that the truth names is not in the program"
    assert {"build_model", "make_optimizer", "batches"} - {"make_optimizer"} <= program.functions


def test_there_are_three_programs_of_each_cause_from_different_families_and_thirty_that_are_healthy() -> None:
    families = defaultdict(set)
    for program in EVERY:
        families[program.cause].add(program.truth.family)
    counts = Counter(program.cause for program in EVERY)
    assert {slug: counts[slug] for slug in SLUGS if counts[slug] < 3} == {}
    assert {slug: families[slug] for slug in SLUGS if len(families[slug]) < 3} == {}
    assert counts[None] >= 30


def spread() -> list[Program]:
    """Return one program of each third cause, another one than the first in the list, and two healthy ones.

    `make corpus` runs them all.
    """
    chosen = []
    for slug in sorted(SLUGS)[::3]:
        own = [p for p in EVERY if p.cause == slug]
        chosen.append(own[len(own) // 2])
    healthy = [p for p in EVERY if p.cause is None]
    return chosen + healthy[:: max(1, len(healthy) // 2)]


def test_a_spread_of_the_corpus_is_diagnosed_rightly(tmp_path: Path) -> None:
    names = [p.name for p in spread()]
    command = [sys.executable, "-m", "tests.corpus", "-j", "2", "--keep", str(tmp_path), *names]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=1500)
    wrong = []
    by_name = {p.name: p for p in spread()}
    for run in json.loads((tmp_path / "runs.json").read_text()):
        report = Path(run["folder"]) / "report.out"
        body = json.loads(report.read_text()) if report.exists() and report.stat().st_size else {}
        program = by_name.get(run["job"])
        if program is None or program.cause is None:
            if body.get("outcome") != "healthy":
                wrong.append(f"{run['job']}: {body.get('summary', run['error'])}")
            continue
        verdict = judge(program, body, run["error"])
        if not verdict.top3 or any(not right for _, _, right in verdict.graded):
            wrong.append(f"{program.name}: {verdict.said}, {verdict.misses}")
    assert len(wrong) <= 1, "\n".join(wrong)


def test_a_clip_by_an_infinite_norm_stands_beside_the_gradients_own_cause(tmp_path: Path) -> None:
    (program,) = programs("root_of_zero_clipped")
    run = run_one(Job(program, True), tmp_path / "run")
    assert not run.error
    assert [s["cause"] for s in run.report["suspects"]] == ["singular-gradient", "training-loop-bug"]


def test_the_scoreboard_in_the_documents_counts_the_programs_that_are_here() -> None:
    page = (ROOT / "docs" / "scoreboard.md").read_text()
    faulty = sum(p.cause is not None for p in EVERY)
    assert f"on {faulty} programs that fail for a known reason" in page, "run `make corpus`"


def test_no_rule_knows_a_program() -> None:
    """No name of a program, nor of a function or class in one, stands in the package."""
    code = "\n".join(p.read_text() for p in (ROOT / "nanhunt").rglob("*.py") if "demo" not in p.parts)
    assert [p.path.stem for p in EVERY if p.path.stem in code] == []
    assert PROGRAMS.name not in {line.strip() for line in code.splitlines()}
