"""The bad step with the ranks' batches swapped: a batch takes its fault along, a device keeps it."""

from __future__ import annotations

import pytest

from nanhunt.trace.schema import NoteKind
from tests.ranks.conftest import Launched, Ranks
from tests.ranks.test_ranks_that_part import launch


@pytest.fixture(scope="module")
def launched(ranks: Ranks) -> dict[str, Launched]:
    bad_batch = {"wrap": "fsdp", "more": "train: {steps: 6}\n", "fault": "zeros", "size": 3}
    asked = {"device": launch("worn"), "batch": bad_batch}
    return dict(
        zip(asked, ranks.replay_all(*(one | {"options": ("--no-trials",)} for one in asked.values())), strict=True)
    )


def test_a_rank_that_fails_on_every_batch_is_a_matter_of_its_device(launched: dict[str, Launched]) -> None:
    found = launched["device"].diagnosis
    assert found.onset is not None
    assert (found.onset.step, found.onset.rank) == (13, 1)
    assert found.suspects[0].cause == "hardware-fault"
    assert "rank 1 fails on another rank's batch too" in found.suspects[0].summary


def test_a_batch_that_fails_on_every_rank_clears_the_device(launched: dict[str, Launched]) -> None:
    seen = launched["batch"]
    swap = seen.trace.note_of(NoteKind.SWAP)
    assert swap == {"step": 13, "failed": [1], "swapped": [2], "world_size": 3}
    assert seen.diagnosis.suspects[0].cause == "zero-denominator"
    assert "hardware-fault" in seen.diagnosis.cleared
