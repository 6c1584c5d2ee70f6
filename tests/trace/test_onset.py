"""The spike watch: alarms that do not hide themselves, leads, and the difference between a hard batch and damage."""

from __future__ import annotations

import math
import random

import pytest

from nanhunt.trace.onset import ALARM, LEAD, PATIENCE, Event, Series, SpikeWatch, StepScalars

#: BLOOM-176B, steps 31214 to 31222, as its public chronicle gives them.
BLOOM_NORMS = [0.242, 0.947, 2.39, 15.9, 145, 960, 353, 379, 650]
BLOOM_LOSSES = [2.199, 2.220, 2.595, 2.242, 2.345, 5.098, 3.492, 3.213, 2.805]


def watched(losses: list[float], norms: list[float] | None = None, updates: list[float] | None = None) -> list[Event]:
    watch = SpikeWatch()
    events = []
    for step, loss in enumerate(losses):
        event = watch.observe(
            StepScalars(
                step=step,
                loss=loss,
                grad_norm=norms[step] if norms else None,
                update_norm=updates[step] if updates else None,
            )
        )
        events += [event] if event else []
    last = watch.finish()
    return [*events, *([last] if last else [])]


def healthy(steps: int, seed: int = 0, noise: float = 0.03) -> list[float]:
    draw = random.Random(seed)
    return [2.0 + 1.5 * math.exp(-i / 40) + draw.gauss(0, noise) for i in range(steps)]


@pytest.mark.parametrize("seed", range(20))
def test_a_falling_noisy_loss_never_alarms(seed: int) -> None:
    draw = random.Random(seed)
    norms = [math.exp(draw.gauss(0, 0.25)) for _ in range(300)]
    assert not [e for e in watched(healthy(300, seed), norms) if e.verdict == "fault"]


@pytest.mark.parametrize("start", [6, 12, 60, 200])
def test_a_loss_that_stays_up_is_a_fault_that_begins_at_its_first_high_step(start: int) -> None:
    losses = [2.5 + x for x in healthy(start + 12, noise=0.01)]
    losses[start:] = [9.0] * (len(losses) - start)
    event = watched(losses)[0]
    assert event.verdict == "fault"
    assert event.lead_step == event.alarm_step == start


def test_a_hard_batch_that_recovers_at_once_is_benign() -> None:
    losses = healthy(60)
    losses[40] *= 4
    (event,) = watched(losses)
    assert event.verdict == "benign"


@pytest.mark.parametrize(("last", "verdict"), [(4.0, "benign"), (20.0, "fault")])
def test_a_rise_at_the_very_end_is_judged_by_those_that_the_run_recovered_from(last: float, verdict: str) -> None:
    losses = healthy(80)
    losses[30] *= 4
    losses[55] *= 4
    losses[-1] *= last
    assert [e.verdict for e in watched(losses)] == ["benign", "benign", verdict]


def test_a_loss_near_zero_with_a_heavy_tail_has_seen_its_own_peaks() -> None:
    losses = [0.02 + 0.002 * (i % 5) for i in range(40)]
    losses[14], losses[22] = 0.44, 0.24
    losses[30:37] = [0.1, 0.02, 0.08, 0.12, 0.33, 0.02, 0.09]
    assert not [e for e in watched(losses) if e.verdict == "fault"]


def test_a_loss_that_stays_where_it_had_one_peak_before_is_a_fault() -> None:
    losses = healthy(60)
    losses[20] = 9.0
    losses[40:] = [8.0 + 0.01 * i for i in range(20)]
    assert "fault" in [e.verdict for e in watched(losses)]


@pytest.mark.parametrize(("rise", "found"), [(1.8, True), (1.02, False)])
def test_a_loss_that_rises_from_its_first_steps_on_runs_away_where_it_multiplies(rise: float, found: bool) -> None:
    losses = [1.9, 1.87, *(1.87 * rise ** (i + 1) for i in range(5)), *[1.87 * rise**5] * 12]
    faults = [e for e in watched(losses) if e.verdict == "fault"]
    assert bool(faults) == found
    if found:
        assert (faults[0].lead_step, faults[0].baseline_loss) == (1, pytest.approx(1.885))


def test_a_burst_does_not_hide_its_own_continuation() -> None:
    losses = healthy(60, noise=0.01)
    losses[40:52] = [8.0] * 12
    event = watched(losses)[0]
    assert event.verdict == "fault"
    assert all(event.after)
    assert len(event.after) == PATIENCE


def test_a_norm_that_leads_the_loss_moves_the_onset_to_where_the_lead_begins() -> None:
    draw = random.Random(1)
    before = 60
    losses = [2.2 + draw.gauss(0, 0.01) for _ in range(before)] + BLOOM_LOSSES + [3.2] * 8
    norms = [0.24 * math.exp(draw.gauss(0, 0.1)) for _ in range(before)] + BLOOM_NORMS + [300.0] * 8
    event = next(e for e in watched(losses, norms) if e.verdict == "fault")
    # the norm leaves its range at 31215, four steps before the loss peaks
    assert before + 1 <= event.lead_step <= before + 2
    assert event.lead == "grad_norm"
    assert event.peak_loss == 5.098


def test_an_update_that_precedes_the_loss_is_where_the_damage_was_done() -> None:
    losses = [2.0 + 0.01 * (i % 3) for i in range(20)] + [7.0] * 10
    updates = [0.1 * (1 + 0.05 * (i % 4)) for i in range(30)]
    updates[19] = 40.0
    event = watched(losses, [1.0 + 0.05 * (i % 5) for i in range(30)], updates)[0]
    assert (event.lead_step, event.lead) == (19, "update_norm")


def test_a_nonfinite_value_never_enters_the_baseline() -> None:
    series = Series("loss", log=False, material=0.05, floor=0.01)
    for step in range(20):
        series.observe(step, math.nan if step % 4 == 3 else 2.0)
    assert series.baseline == 2.0
    assert all(math.isfinite(a) for a in series.accepted)


def test_too_few_values_judge_nothing() -> None:
    series = Series("loss", log=False, material=0.05, floor=0.01)
    assert [series.observe(i, 1.0 + 100.0 * i) for i in range(4)] == [None] * 4


def test_a_rising_value_scores_above_the_alarm_and_a_falling_one_below_the_lead() -> None:
    series = Series("loss", log=False, material=0.05, floor=0.01)
    for step in range(30):
        series.observe(step, 2.0 + 0.01 * (step % 3))
    assert (series.score(4.0) or 0) > ALARM
    assert (series.score(0.5) or 0) < LEAD


def test_a_loss_that_falls_and_rises_beyond_its_beginning_is_a_divergence_from_where_it_turned() -> None:
    losses = [1.5, 1.3, 1.1, 0.9, 0.7, 0.5, 0.4, 0.8, 1.6, 1.9, 2.2, 2.1, 2.0, 2.1, 2.0, 2.0]
    (event,) = watched(losses)
    assert (event.verdict, event.kind, event.lead_step) == ("fault", "divergence", 7)


def test_a_loss_that_comes_back_to_where_it_began_is_none() -> None:
    """Batches that were seen before, after a resume, and then new ones again."""
    losses = [2.0, 1.4, 1.2, 1.1, 1.0, 1.0, 1.1, 1.4, 1.7, 1.9, 2.0, 2.0, 1.9, 2.0, 2.0]
    assert not [e for e in watched(losses) if e.verdict == "fault"]


#: A classifier near its end: most batches cost next to nothing, and one mistake makes a loss.
NEARLY_SOLVED = [0.004, 0.003, 0.0003, 0.002, 0.0003, 0.006, 0.052, 0.005, 0.0003, 0.035, 0.001, 0.0004, 0.071, 0.002,
                 0.0006, 0.009, 0.0002, 0.059, 0.003, 0.0011]  # fmt: skip


def test_losses_near_zero_change_by_factors_without_a_fault() -> None:
    assert not [e for e in watched(NEARLY_SOLVED) if e.verdict == "fault"]


@pytest.mark.parametrize("start", [2, 3, 4])
def test_low_first_losses_of_a_heavy_tail_are_no_baseline(start: int) -> None:
    losses = [0.05, 0.12, 0.03, 0.06, 0.29, 0.07, 0.17, 0.38, 0.09, 0.3, 0.12, 0.37, 0.1, 0.25]
    assert not [e for e in watched(losses[4 - start :]) if e.verdict == "fault"]


def test_a_rise_within_the_first_steps_is_held_against_the_leaps_before_it() -> None:
    leaps = [0.049, 0.050, 0.203, 0.051, 0.291, 0.102, 0.170, 0.201, 0.203, 0.110, 0.369, 0.081, 0.368]
    assert not [e for e in watched(leaps) if e.verdict == "fault"]
    # as much noise behind it, and losses before it that agree: nothing of that kind had been seen
    assert [e.verdict for e in watched([0.049, 0.050, 0.053, 0.051, *leaps[4:]])][:1] == ["fault"]
    away = [0.78, 0.71, 2.28, 12.4, 6.15, 37.9, 1062.0, 1.94, 1.91]
    assert [e.verdict for e in watched([0.049, 0.2, 0.05, *away])][:1] == ["fault"]


def test_leaps_that_grow_are_no_noise() -> None:
    losses = [7.2, 2.2, 10.6, 2.6, 33.0, 8.0, 102.0, 25.0, 316.0, 77.0, 977.0]
    assert [e.verdict for e in watched(losses)][:1] == ["fault"]


def test_a_loss_near_zero_that_rises_for_good_is_a_fault() -> None:
    events = watched([*NEARLY_SOLVED, *(2.0 + 0.1 * (i % 4) for i in range(16))])
    assert [e.lead_step for e in events if e.verdict == "fault"] == [len(NEARLY_SOLVED)]


def test_zeros_are_no_scale() -> None:
    losses = [0.0] * 40
    losses[10], losses[20], losses[21] = 1e-5, 5e-3, 1e-6
    assert not [e for e in watched(losses) if e.verdict == "fault"]


@pytest.mark.parametrize(("peak", "found"), [(0.0106, False), (1.0, True)])
def test_first_losses_some_of_which_are_zero_are_held_against_the_largest_of_them(peak: float, found: bool) -> None:
    losses = [1.3e-3, 0.0, 1.9e-3, 0.0, peak, *([0.0043, 0.0, 0.0, 0.0] if not found else [peak] * 12)]
    assert any(e.verdict == "fault" for e in watched(losses)) == found


def test_a_peak_behind_zeros_that_the_run_comes_back_from_is_no_fault() -> None:
    losses = [2.0, 0.0, 0.0, 20.0, 1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.1, 1.0]
    assert not [e for e in watched(losses) if e.verdict == "fault"]
