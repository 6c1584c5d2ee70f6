"""Ranks that leave the others: nobody hangs, and the traces of those who stay say why they end."""

from __future__ import annotations

import signal

import pytest

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.ranks.pace import GRACE
from tests.ranks.conftest import Launched, Ranks

STEPS = "train: {steps: 6}\n"
FAULTS = ("killed", "raises", "ends", "uneven", "deaf")


@pytest.fixture(scope="module")
def lost(ranks: Ranks) -> dict[str, Launched]:
    """Rank 1 leaves in step 13, in some ways; of the last one only the launcher knows."""
    asked = [{"wrap": "ddp", "more": STEPS, "fault": fault} for fault in FAULTS[:-2]]
    asked.append({"wrap": "none", "more": STEPS, "fault": "ends", "shared": True})
    deaf = {"wrap": "fsdp", "more": STEPS, "fault": "deaf", "term": 25.0, "within": 40.0}
    return dict(zip(FAULTS, ranks.replay_all(*asked, deaf), strict=True))


def test_where_a_rank_is_killed_the_others_end_with_their_traces(lost: dict[str, Launched]) -> None:
    seen = lost["killed"]
    assert seen.codes == [2, -signal.SIGKILL]
    assert "step 13: another rank has gone, or does not answer" in seen.said(0)
    assert (seen.trace.complete, seen.trace.steps[:3]) == (False, (10, 11, 12))


def test_where_a_rank_raises_its_error_is_found_and_the_others_end(lost: dict[str, Launched]) -> None:
    seen, found = lost["raises"], lost["raises"].diagnosis
    assert seen.codes == [2, 0]
    assert found.onset is not None
    assert (found.onset.kind, found.onset.step, found.onset.rank) == ("exception", 13, 1)
    assert found.suspects[0].cause == "bad-target"
    assert "rank 0: it waits in a step that another rank has left" in seen.said(0)
    assert "(rank 1: IndexError" in seen.said(0)
    assert "the trace so far (up to step 12): trace.parquet" in seen.said(0)


def test_where_a_ranks_data_end_the_steps_before_are_kept(lost: dict[str, Launched]) -> None:
    seen = lost["ends"]
    assert seen.codes == [2, 0]
    assert seen.trace.steps[:3] == (10, 11, 12)
    assert any("data ended before step 13: 3 of 6" in text for text in seen.diagnosis.assumptions)


def test_where_a_ranks_data_end_and_nobody_waits_for_it_all_end_at_once(lost: dict[str, Launched]) -> None:
    seen = lost["uneven"]
    assert seen.codes == [0, 0]
    assert "step 13 of rank 0: the data of rank 1 ended before it, and no rank goes on" in seen.said(0)
    assert "rank 1: data ended before step 13: 3 of 6 steps were replayed" in seen.said(1)
    assert seen.trace.complete
    assert seen.diagnosis.outcome == "healthy"


def test_a_rank_that_waits_hears_the_launcher(lost: dict[str, Launched]) -> None:
    seen = lost["deaf"]
    assert seen.codes == [130, -signal.SIGABRT]
    assert "rank 0: the launcher ends it, as another rank has gone" in seen.said(0)
    assert not diagnose(seen.trace).onset


def test_nobody_waits_for_long(lost: dict[str, Launched]) -> None:
    assert lost["killed"].seconds < 30
    assert lost["raises"].seconds < 30 + 2 * GRACE
    assert lost["ends"].seconds < 30 + 2 * GRACE
    assert lost["uneven"].seconds < 30
