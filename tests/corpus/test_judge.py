"""The judge is strict: what the truth states must be in the report, and nothing is right where nothing was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.judge import Verdict, judge
from tests.corpus.program import Program, Truth
from tests.corpus.scoreboard import Scoreboard

SOURCE = "import torch\n\nFAULTY = True\nx = torch.log(torch.zeros(1))\n"


def program(**truth: Any) -> Program:
    body = {"family": "mlp", "causes": ["domain-error"], "step": 7, **truth}
    return Program(path=Path("domain-error/log.py"), source=SOURCE, truth=Truth.of(body))


def report(cause: str = "domain-error", grade: str = "proved", **onset: Any) -> dict[str, Any]:
    place = {"step": 7, "phase": "forward", "module": "", "op": "aten.log", "source": "train.py:4", "samples": []}
    place |= onset
    return {
        "outcome": "fault",
        "onset": place,
        "suspects": [{"cause": cause, "grade": grade, "location": {**place, "parameter": None}}],
        "cleared": [],
    }


def test_what_is_right_is_called_right() -> None:
    verdict = judge(program(line="torch.log", op="aten.log", samples=[]), report())
    assert verdict.misses == ()
    assert verdict.graded == (("proved", "domain-error", True),)


def test_a_wrong_cause_is_wrong_however_it_is_graded() -> None:
    verdict = judge(program(), report(cause="bad-sample", grade="confirmed"))
    assert (verdict.top1, verdict.top3) == (False, False)
    assert verdict.graded == (("confirmed", "bad-sample", False),)


def test_a_refuted_suspect_accuses_nobody() -> None:
    verdict = judge(program(), report(grade="refuted"))
    assert (verdict.top1, verdict.graded) == (False, ())


def test_each_part_of_a_place_is_judged_by_itself() -> None:
    truth = program(line="torch.log", op="aten.log", module="head", samples=[3])
    verdict = judge(truth, report(step=9, op="aten.exp", source="train.py:1", samples=[2]))
    assert (verdict.step, verdict.op, verdict.line, verdict.module, verdict.samples) == (False,) * 5
    assert verdict.location is False


def test_nothing_is_right_where_nothing_was_found() -> None:
    verdict = judge(program(samples=[], line="torch.log"), {"outcome": "healthy", "onset": None, "suspects": []})
    assert verdict.misses == ("detected", "top1", "step", "line", "samples")


def test_what_the_truth_leaves_open_is_not_judged() -> None:
    assert judge(program(step=None), report(step=99)).location is None


def test_a_range_of_steps_holds_both_its_ends() -> None:
    assert [judge(program(step=(5, 7)), report(step=s)).step for s in (4, 5, 7, 8)] == [False, True, True, False]


def verdict(**wrong: bool) -> Verdict:
    right = judge(program(), report())
    return replace(right, **wrong)


@pytest.mark.parametrize(
    ("wrong", "short"), [(0, False), (12, False), (13, True)], ids=["none", "5 % and two", "one more"]
)
def test_a_scoreboard_is_short_of_its_reach_beyond_what_rounding_may_tip_over(wrong: int, short: bool) -> None:
    verdicts = [verdict(top1=False)] * wrong + [verdict()] * (200 - wrong)
    board = Scoreboard(verdicts=tuple(verdicts), healthy=())
    assert [said.split()[0] for said in board.short_of()] == (["top1"] if short else [])


def test_three_false_alarms_are_short_of_the_reach() -> None:
    alarm = ("healthy/a", "fault", "loss rises")
    assert [len(Scoreboard(verdicts=(), healthy=(alarm,) * n).short_of()) for n in (0, 2, 3)] == [0, 0, 1]
