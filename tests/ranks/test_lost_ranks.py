"""Ranks that leave the others: nobody hangs, and the traces of those who stay say why they end."""

from __future__ import annotations

import signal

import pytest

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.ranks.lookout import GRACE
from tests.ranks.conftest import Launched, Ranks

STEPS = "train: {steps: 6}\n"
FAULTS = ("killed", "raises", "ends", "deaf")


@pytest.fixture(scope="module")
def lost(ranks: Ranks) -> dict[str, Launched]:
    """Rank 1 leaves in step 13, in four ways; of the last one only the launcher knows."""
    asked = [{"wrap": "ddp", "more": STEPS, "fault": fault} for fault in FAULTS[:-1]]
    deaf = {"wrap": "fsdp", "more": STEPS, "fault": "deaf", "term": 25.0, "within": 40.0}
    return dict(zip(FAULTS, ranks.replay_all(*asked, deaf), strict=True))


def test_where_a_rank_is_killed_the_others_end_with_their_traces(lost: dict[str, Launched]) -> None:
    seen = lost["killed"]
    assert seen.codes == [2, -signal.SIGKILL]
    assert "step 13: another rank has gone, or does not answer" in seen.said(0)
    assert (seen.trace.complete, seen.trace.steps[:3]) == (False, (10, 11, 12))


def test_where_a_rank_raises_its_error_is_found_and_the_others_end(lost: dict[str, Launched]) -> None:
    seen, found = lost["raises"], lost["raises"].diagnosis
    assert seen.codes == [0, 0]
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step, found.onset.rank) == ("exception", 13, 1)
    assert found.suspects[0].cause == "bad-target"
    assert "rank 0: it waits in a step that another rank has left" in seen.said(0)
    assert "rank 1: IndexError" in seen.said(0)


def test_where_a_ranks_data_end_the_steps_before_are_kept(lost: dict[str, Launched]) -> None:
    seen = lost["ends"]
    assert seen.codes == [0, 0]
    assert seen.trace.steps[:3] == (10, 11, 12)
    assert any("data ended before step 13: 3 of 6" in text for text in seen.diagnosis.assumptions)


def test_a_rank_that_waits_hears_the_launcher(lost: dict[str, Launched]) -> None:
    seen = lost["deaf"]
    assert seen.codes == [0, -signal.SIGABRT]
    assert "rank 0: the launcher ends it, as another rank has gone" in seen.said(0)
    assert not diagnose(seen.trace).onset


def test_nobody_waits_for_long(lost: dict[str, Launched]) -> None:
    assert lost["killed"].seconds < 30
    assert lost["raises"].seconds < 30 + 2 * GRACE
    assert lost["ends"].seconds < 30 + 2 * GRACE
