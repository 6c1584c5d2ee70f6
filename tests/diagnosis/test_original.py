"""Whether a replay follows the run that it replays is told by the logged losses alone, and to the step."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.original import OriginalRun, original_run
from nanhunt.report.original import told
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind
from tests.diagnosis.builders_b import ADAMW, evidence, written

FIRST = 30
_DRAW = random.Random(0)
#: a loss as batches make it: falling slowly, and up and down by some per cent
LOSSES = {FIRST + i: 2.5 - 0.01 * i + _DRAW.uniform(-0.1, 0.1) for i in range(20)}


def held(
    logged: dict[int, float],
    replayed: dict[int, float] = LOSSES,
    *,
    resolution: float = 1e-4,
    mean: bool | None = None,
    hides: list[int] | None = None,
    precision: dict[str, Any] | None = None,
    accumulate: int = 1,
) -> OriginalRun:
    body = {
        "source": "log.csv",
        "mean": mean,
        "steps": list(logged),
        "losses": [round(v, 4) if resolution == 1e-4 and math.isfinite(v) else v for v in logged.values()],
        "resolution": [resolution] * len(logged),
        "hides": hides or [],
        "logged": [min(logged), max(logged)],
    }
    config = {"precision": precision or {}, "train": {"accumulate": accumulate}}
    found = original_run(evidence(notes=[(NoteKind.ORIGINAL, body)], scalars={"loss": replayed}, config=config))
    assert found is not None
    return found


def test_without_logged_losses_there_is_nothing_to_say() -> None:
    assert original_run(evidence(scalars={"loss": LOSSES})) is None


def test_the_same_losses_rounded_are_followed_to_the_digits_logged() -> None:
    found = held(LOSSES)
    assert (found.verdict, found.exact, found.through, found.compared, found.offset) == ("digits", True, 49, 20, 0)


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_log_that_counts_before_or_after_the_step_is_understood(offset: int) -> None:
    found = held({step + offset: loss for step, loss in LOSSES.items()})
    assert (found.verdict, found.offset, found.mean) == ("digits", offset, False)


@pytest.mark.parametrize("known", [True, None], ids=["a Trainer", "found out"])
def test_means_over_the_steps_since_the_last_entry_are_understood(known: bool | None) -> None:
    means = {s + 1: sum(LOSSES[k] for k in range(s - 4, s + 1)) / 5 for s in (34, 39, 44, 49)}
    found = held({FIRST: 9.0} | means, mean=known)
    assert (found.verdict, found.mean, found.offset, found.compared) == ("digits", True, 1, 4)
    assert (found.first_step, found.last_step) == (30, 49)


def test_a_log_of_every_tenth_step_is_compared_there() -> None:
    found = held({step: LOSSES[step] for step in (30, 40)} | {50: 1.0})
    assert (found.verdict, found.compared, found.through) == ("digits", 2, 40)


@pytest.mark.parametrize(("precision", "noise"), [({}, 5e-5), ({"autocast": "bf16"}, 2e-3), ({"params": "fp16"}, 5e-4)])
def test_other_kernels_rounding_is_followed_within_rounding(precision: dict[str, Any], noise: float) -> None:
    draw = random.Random(1)
    logged = {s: loss * (1 + draw.uniform(-noise, noise)) for s, loss in LOSSES.items()}
    found = held(logged, resolution=1e-12, precision=precision)
    assert (found.verdict, found.exact, found.through) == ("rounding", False, 49)
    assert 0 < found.difference <= 3 * noise


def test_a_difference_that_feeds_on_itself_is_rounding_until_it_is_a_hundredth() -> None:
    logged = {s: loss * (1 + 1e-7 * 2.5 ** (s - FIRST)) for s, loss in LOSSES.items()}
    found = held(logged, resolution=1e-12)
    assert found.verdict == "leaves"
    assert found.leaves == next(s for s in LOSSES if 1e-7 * 2.5 ** (s - FIRST) > 0.01)


def test_the_step_where_another_batch_comes_in_is_where_it_leaves() -> None:
    found = held({s: loss + 0.0343 * (s >= 42) for s, loss in LOSSES.items()})
    assert (found.verdict, found.exact, found.through, found.leaves) == ("leaves", True, 41, 42)
    assert found.logged == pytest.approx(found.replayed + 0.0343, abs=1e-4)  # type: ignore[operator]


def test_another_data_order_is_apart_from_the_first_step() -> None:
    shuffled = dict(zip(LOSSES, random.Random(3).sample(list(LOSSES.values()), 20), strict=True))
    found = held(shuffled)
    assert (found.verdict, found.leaves, found.through, found.offset) == ("apart", 30, None, 0)


def test_a_step_that_differs_alone_is_named_and_does_not_end_it() -> None:
    found = held(LOSSES | {36: 9.0})
    assert (found.verdict, found.through, found.alone) == ("digits", 49, (36,))


def test_a_nan_in_both_is_followed() -> None:
    broken = LOSSES | {48: math.nan, 49: math.inf}
    found = held(broken, broken | {49: math.nan})
    assert (found.verdict, found.through, found.both_nonfinite) == ("digits", 49, 48)


def test_a_nan_in_one_is_where_it_leaves() -> None:
    found = held(LOSSES, {s: v for s, v in LOSSES.items() if s < 45} | {45: math.nan})
    assert (found.verdict, found.leaves, found.logged) == ("leaves", 45, round(LOSSES[45], 4))
    found = held(LOSSES | {49: math.nan})
    assert (found.verdict, found.leaves, found.replayed) == ("leaves", 49, LOSSES[49])


def test_a_nan_that_the_log_may_hide_is_not_held_against_the_replay() -> None:
    replayed = LOSSES | {45: math.nan}
    logged = {s + 1: loss for s, loss in LOSSES.items()}
    assert held({FIRST: 9.0} | logged, replayed, mean=True, hides=[46]).verdict == "digits"
    assert held({FIRST: 9.0} | logged, replayed, mean=True, hides=[]).leaves == 45


def test_a_log_of_other_steps_is_not_compared() -> None:
    found = held({100: 1.0, 140: 0.9})
    assert (found.verdict, found.compared, found.log_steps) == ("unknown", 0, (100, 140))


def test_steps_that_were_not_recorded_are_passed_over() -> None:
    found = held(LOSSES, {s: loss for s, loss in LOSSES.items() if s % 3 == 0})
    assert (found.verdict, found.compared) == ("digits", 7)


def test_a_loss_near_zero_is_rounded_by_the_size_of_what_it_comes_from() -> None:
    replayed = {FIRST + i: 1.0 / (1 + i) ** 4 for i in range(20)}
    logged = {s: loss + 1e-8 for s, loss in replayed.items()}
    assert held(logged, replayed, resolution=1e-12).verdict == "rounding"


def test_two_digits_do_not_make_another_count_of_a_chance() -> None:
    flat = {FIRST + i: 2.3 for i in range(20)}
    assert held(flat, flat, resolution=0.1).offset == 0


@pytest.mark.parametrize(
    ("factor", "accumulate", "origin"),
    [
        (4.0, 4, "sum"),
        (0.25, 4, "share"),
        (8.0, 1, "whole"),
        (8.0, 4, "whole"),
        (1 / 16, 1, "whole"),
        (1 / math.log(2), 1, "constant"),
        (0.9, 1, "constant"),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_a_log_that_holds_the_loss_several_times_is_followed_under_that_factor(
    factor: float, accumulate: int, origin: str, offset: int
) -> None:
    found = held({s + offset: factor * loss for s, loss in LOSSES.items()}, resolution=1e-5, accumulate=accumulate)
    assert (found.verdict, found.through, found.origin, found.offset) == ("digits", 49, origin, offset)
    assert found.factor == pytest.approx(factor, rel=1e-5)


def test_means_over_an_interval_are_followed_under_a_factor_as_well() -> None:
    sums = {s + 1: sum(LOSSES[k] for k in range(s - 4, s + 1)) for s in (34, 39, 44, 49)}
    found = held({FIRST: 9.0} | sums, resolution=1e-6)
    assert (found.verdict, found.mean, found.origin, found.factor, found.compared) == ("digits", True, "whole", 5.0, 4)


def test_a_fault_behind_losses_under_a_factor_is_where_the_replay_leaves() -> None:
    found = held({s: 4 * loss + 0.3 * (s >= 42) for s, loss in LOSSES.items()}, accumulate=4)
    assert (found.verdict, found.through, found.leaves, found.factor) == ("leaves", 41, 42, 4.0)
    assert found.replayed == pytest.approx(4 * LOSSES[42])


@pytest.mark.parametrize("precision", [{}, {"autocast": "bf16"}], ids=["fp32", "bf16"])
def test_another_run_follows_under_no_factor(precision: dict[str, Any]) -> None:
    for seed in range(300):
        draw = random.Random(seed)
        factor = draw.choice([1.0, 2.0, 4.0, draw.uniform(0.5, 3.0)])
        shuffled = draw.sample(list(LOSSES.values()), 20)
        found = held({s: factor * v for s, v in zip(LOSSES, shuffled, strict=True)}, accumulate=4, precision=precision)
        assert found.origin == "" or found.verdict == "apart", (seed, found)


def test_a_loss_that_stands_still_shows_no_factor() -> None:
    flat = {FIRST + i: 2.3 + 1e-5 * i for i in range(20)}
    assert held({s: 4 * v for s, v in flat.items()}, flat, accumulate=4).origin == ""


def test_losses_that_fit_as_they_are_are_not_looked_at_under_a_factor() -> None:
    halves = {s: v / 2 if s > FIRST else v for s, v in LOSSES.items()}
    assert (held(halves).verdict, held(halves).origin) == ("leaves", "")


@pytest.mark.parametrize("logs_mean", [True, False])
def test_of_several_ranks_the_log_may_hold_the_mean_or_one_ranks_own(logs_mean: bool, tmp_path: Path) -> None:
    ranks = [LOSSES, {step: loss + 0.4 * (step % 3 + 1) for step, loss in LOSSES.items()}]
    logged = {step: (ranks[0][step] + ranks[1][step]) / 2 for step in LOSSES} if logs_mean else LOSSES
    body = {
        "source": "log.csv", "mean": False, "steps": list(logged), "losses": list(logged.values()),
        "resolution": [1e-9] * len(logged), "hides": [], "logged": [min(logged), max(logged)],
    }  # fmt: skip
    folder = tmp_path / "trace.parquet"
    folder.mkdir()
    for rank, losses in enumerate(ranks):
        manifest = {"rank": rank, "world_size": 2}
        notes = [(NoteKind.ORIGINAL, body)] if rank == 0 else []
        written(None, notes, (), {"loss": losses}, ADAMW, manifest, tmp_path).rename(folder / f"rank-{rank}.parquet")
    found = original_run(Evidence(Trace.open(folder)))
    assert found is not None
    whose = "the mean of 2 ranks" if logs_mean else "rank 0's loss"
    assert (found.verdict, found.compared, found.whose) == ("digits", 20, whose)
    assert told(found).endswith(f"(20 losses of log.csv, held against {whose})")
