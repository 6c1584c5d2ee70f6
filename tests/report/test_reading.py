"""The sentences that renderers share: cures, next commands."""

from __future__ import annotations

from dataclasses import replace

from nanhunt.diagnosis.cause import Grade
from nanhunt.interventions import Prediction, Trial
from nanhunt.report import reading
from tests.report.samples import EMPTY, OVERFLOW, diagnosis


def test_a_cure_is_that_of_a_suspect_who_stands_and_of_the_surest_one() -> None:
    first = reading.cure(OVERFLOW)
    assert first is not None
    weaker = replace(OVERFLOW.suspects[0], cause="bad-sample", grade=Grade.SUPPORTED)
    assert reading.cure(replace(OVERFLOW, suspects=(weaker, *OVERFLOW.suspects))) == (
        first[0],
        first[1].replace("cured it", f"cured it, as {first[0].cause} predicts"),
    )
    assert reading.cure(replace(OVERFLOW, suspects=(weaker,))) is not None
    refuted = replace(weaker, grade=Grade.REFUTED)
    assert reading.cure(replace(OVERFLOW, suspects=(refuted,))) is None


def test_a_cure_that_helps_against_other_causes_too_says_so() -> None:
    suspect = OVERFLOW.suspects[0]
    vague = tuple((t, replace(p, confirms=False) if p else None) for t, p in suspect.trials)
    found = reading.cure(replace(OVERFLOW, suspects=(replace(suspect, trials=vague),)))
    assert found is not None
    assert "as it would against other causes" in found[1]


def test_what_a_placebo_cures_as_well_is_no_cure() -> None:
    trials = tuple(replace(t, outcome="cured") if t.intervention.get("placebo_of") else t for t in OVERFLOW.trials)
    assert reading.cure(replace(OVERFLOW, trials=trials)) is None


def test_a_cure_that_refutes_its_suspect_is_not_named() -> None:
    cured = Trial(name="fp64", outcome="cured", detail="")
    suspect = replace(OVERFLOW.suspects[0], trials=((cured, Prediction(trial="fp64", expect="persists")),))
    assert reading.cure(replace(OVERFLOW, suspects=(suspect,))) is None


def test_a_failed_trial_says_so_without_a_word_on_predictions() -> None:
    trial = Trial(name="fp64", outcome="failed", detail="out of memory")
    assert reading.tried(trial, Prediction(trial="fp64", expect="cured")) == "failed: out of memory"


def test_a_trace_that_does_not_say_is_taken_as_complete() -> None:
    assert not reading.is_incomplete(EMPTY)
    cut = diagnosis("fault", "", run={"complete": False})
    assert "incomplete trace, no step finished" in reading.headline(cut)


def test_without_a_suspect_there_is_nothing_to_explain() -> None:
    assert [command for command, _ in reading.next_commands(EMPTY)] == ["nanhunt report TRACE --verbose"]


def test_trials_are_pointed_at_where_there_were_any() -> None:
    assert "nanhunt trials trace.parquet" in [command for command, _ in reading.next_commands(OVERFLOW)]
