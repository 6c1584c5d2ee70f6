"""Logits that run away are a fault though no loss shows one; sharper or shifted ones are not."""

from __future__ import annotations

import pytest

from nanhunt.hunt.drift import LogitWatch
from nanhunt.trace.schema import Observation
from nanhunt.trace.step_rows import StepRows


def watched(log_z: list[float]) -> LogitWatch:
    watch = LogitWatch()
    for step, value in enumerate(log_z):
        row = Observation(
            step=step, micro=0, rank=0, seq=step, pass_="replay", phase="forward", role="scalar", module="head",
            name="logits.log_z", value=value,
        )  # fmt: skip
        watch.observe(step, StepRows.of([row]))
    return watch


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_log_z_that_triples_beyond_thirty_is_a_drift_from_where_it_left_its_level(sign: float) -> None:
    values = [4.0] * 6 + [4.0 * 1.25**i for i in range(1, 14)]
    found = watched([sign * v for v in values]).drifted()
    assert found is not None
    onset, body = found
    assert (onset.kind, onset.module, onset.step) == ("divergence", "head", 7)
    assert body["first"] == sign * 4.0


@pytest.mark.parametrize(
    "values",
    [
        [40.0] * 20,  # large from the start: an offset
        [4.0 + 0.5 * i for i in range(20)],  # sharper and sharper, as a head that learns
        [4.0] * 10 + [90.0] + [4.0] * 9,  # one batch
        [4.0 * 1.3**i for i in range(8)],  # too few steps
    ],
)
def test_what_is_no_drift_is_left_alone(values: list[float]) -> None:
    assert watched(values).drifted() is None
