"""What the plan makes of a loop's habits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nanhunt.hunt.loop_note import _habit

CLEAN, TWICE, NOTHING = (("update",), ()), (("update", "update"), (("w", "twice"),)), (("skip",), ())


@pytest.mark.parametrize(
    ("steps", "at", "habit"),
    [
        ([TWICE, TWICE, TWICE, CLEAN, CLEAN], 4, []),
        ([CLEAN, TWICE, TWICE, TWICE], 3, [1, 2, 3]),
        ([TWICE, TWICE, TWICE, CLEAN], 3, [0, 1, 2]),
        ([TWICE, NOTHING, TWICE, NOTHING], 3, [0, 2]),
        ([CLEAN, TWICE, TWICE, TWICE], 1, [1, 2, 3]),
    ],
    ids=[
        "given up",
        "up to the bad step",
        "the bad step follows",
        "over steps without an update",
        "from its first step",
    ],
)
def test_a_habit_is_the_unbroken_row_of_updates_around_the_bad_step(
    steps: list[Any], at: int, habit: list[int]
) -> None:
    results = {i: SimpleNamespace(order=order, reused=reused) for i, (order, reused) in enumerate(steps)}
    assert _habit(SimpleNamespace(results=results), at) == habit  # type: ignore[arg-type]
