"""A fault on one rank: the step, the line, the sample and the rank are named, however the model is spread."""

from __future__ import annotations

import pytest

from tests.ranks.conftest import Ranks

QUIET = "train: {steps: 8}\n"


@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "tp"])
def test_the_rank_that_saw_it_first_is_named(ranks: Ranks, wrap: str) -> None:
    seen = ranks.replay("--no-trials", wrap=wrap, more=QUIET, fault="zeros", shared=wrap == "tp")
    onset = seen.diagnosis.onset
    assert seen.codes == [0, 0]
    assert onset is not None
    assert (onset.step, onset.op, onset.samples) == (13, "aten.div.Tensor", [2])
    assert onset.source == "net.py:30"
    assert onset.rank == (0 if wrap == "tp" else 1)
    assert seen.diagnosis.suspects[0].cause == "zero-denominator"


@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "tp"])
def test_a_healthy_run_of_two_ranks_is_healthy(ranks: Ranks, wrap: str) -> None:
    seen = ranks.replay(wrap=wrap, more=QUIET, shared=wrap == "tp")
    assert seen.codes == [0, 0]
    assert seen.diagnosis.outcome == "healthy"
    assert seen.trace.rank_count == 2
