"""Ranks that hold different values where they must agree: which tensor, when, on which rank, and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ranks.conftest import Ranks

APART = "tests.ranks.programs.apart"


def replay(ranks: Ranks, step: str, model: str = "", **arguments: Any) -> Any:
    """Replay a loop of `apart`, its batches with these arguments."""
    more = f"train: {{steps: 6}}\ntrain_step: {APART}:{step}\n{model}"
    wrap = "" if model else arguments.pop("wrap", "ddp")
    return ranks.replay(data=f"{APART}:batches", wrap=wrap, more=more, **arguments)


@pytest.mark.parametrize(
    ("step", "tensor", "why"),
    [
        ("no_sync", "module.blocks.0.up.weight", "differs already, by rank 1: it was not reduced over all ranks"),
        ("own_skip", "module.blocks.0.up.weight", "rank 1 made no update, the others did"),
        ("own_noise", "module.blocks.0.up.weight", "gradients are equal, and the update of rank 1 is another"),
        ("own_state", "module.blocks.0.up.weight", "gradients are equal, and the update of rank 1 is another"),
    ],
)
def test_what_parted_first_is_named(ranks: Ranks, step: str, tensor: str, why: str) -> None:
    found = replay(ranks, step).diagnosis
    assert (found.onset.kind, found.onset.step, found.onset.rank) == ("mismatch", 13, 1)
    suspect = found.suspects[0]
    assert (suspect.cause, suspect.location.parameter) == ("rank-divergence", tensor)
    assert why in suspect.summary
