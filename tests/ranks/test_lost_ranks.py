"""Ranks that leave the others: nobody hangs, and the traces of those who stay say why they end."""

from __future__ import annotations

import signal

import pytest

from tests.ranks.conftest import Ranks

STEPS = "train: {steps: 8}\n"


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_a_rank_that_is_killed(ranks: Ranks, wrap: str) -> None:
    seen = ranks.replay(wrap=wrap, more=STEPS, fault="killed")
    assert seen.codes[1] == -signal.SIGKILL
    assert seen.seconds < 30


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_a_rank_whose_data_end(ranks: Ranks, wrap: str) -> None:
    seen = ranks.replay(wrap=wrap, more=STEPS, fault="ends")
    assert seen.codes == [0, 0]


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_a_rank_that_raises(ranks: Ranks, wrap: str) -> None:
    seen = ranks.replay(wrap=wrap, more=STEPS, fault="raises")
    assert seen.codes == [0, 0]
