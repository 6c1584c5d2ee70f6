"""The next trial is the one that tells most for its time; none that tells nothing is run, unless it was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from nanhunt.diagnosis.cause import Grade, Location, Suspect
from nanhunt.hunt.choice import next_trial
from nanhunt.interventions import Intervention, Outcome, Prediction
from nanhunt.library import Given, library

EVERYTHING = Given(samples=(1,), placebo=(2,), other_step=3, earlier_step=4, module="a", other_module="b")


def suspect(cause: str, *predictions: Prediction) -> Suspect:
    return Suspect(cause=cause, grade=Grade.SUPPORTED, summary="", location=Location(), predictions=predictions)


def cures(*trials: str) -> tuple[Prediction, ...]:
    return tuple(Prediction(trial=t, expect="cured") for t in trials)


def order(
    suspects: Sequence[Suspect],
    told: dict[str, Outcome],
    *,
    asked: Sequence[str] = (),
    interventions: Sequence[Intervention] = library(EVERYTHING),
) -> list[str]:
    """The names of trials in the order in which they are chosen; each comes out as `told`, or persists."""
    rest, outcomes, chosen = list(interventions), dict[str, Outcome](), []
    while (trial := next_trial(rest, suspects, outcomes, frozenset(), frozenset(asked))) is not None:
        rest.remove(trial)
        chosen.append(trial.name)
        outcomes[trial.name] = told.get(trial.name, "persists")
    return chosen


def test_the_baseline_comes_before_everything_even_what_was_asked_for() -> None:
    assert order([], {}, asked=["norm-eps"]) == ["exact", "norm-eps"]


def test_what_separates_two_suspects_comes_before_what_only_one_has_a_word_on() -> None:
    both = [
        suspect("a", *cures("lr-0.1"), Prediction(trial="fp32", expect="persists")),
        suspect("b", *cures("fp32"), Prediction(trial="lr-0.1", expect="persists")),
        suspect("c", *cures("norm-eps")),
    ]
    chosen = order(both, {})
    assert chosen.index("lr-0.1") < chosen.index("norm-eps")


def test_a_placebo_is_run_only_behind_a_cure_and_at_once() -> None:
    samples = [suspect("a", *cures("drop-samples", "fp32"))]
    assert "drop-placebo" not in order(samples, {"drop-samples": "persists", "fp32": "cured"})
    chosen = order(samples, {"drop-samples": "cured", "fp32": "cured"})
    assert chosen[chosen.index("drop-samples") + 1] == "drop-placebo"


def test_a_suspect_that_a_trial_refuted_asks_for_no_more() -> None:
    one = [suspect("a", *cures("fp32"), Prediction(trial="v-floor", expect="cured", refutes=False))]
    assert "v-floor" in order(one, {"fp32": "cured"})
    assert "v-floor" not in order(one, {"fp32": "persists", "v-floor": "cured"})


def test_a_failed_trial_is_against_nobody() -> None:
    one = [suspect("a", *cures("fp32", "lr-0.1"))]
    assert set(order(one, {"fp32": "failed"})) == {"exact", "fp32", "lr-0.1"}


def test_of_two_that_tell_as_much_the_quick_one_is_first() -> None:
    one = [suspect("a", *cures("fp64", "fp32"))]
    assert order(one, {"fp32": "cured", "fp64": "cured"}) == ["exact", "fp32", "fp64"]


def test_what_cannot_be_applied_is_chosen_only_where_the_user_named_it() -> None:
    one = [suspect("a", *cures("drop-samples"))]
    assert order(one, {}, interventions=library()) == ["exact"]
    assert order(one, {}, interventions=library(), asked=["drop-samples"]) == ["exact", "drop-samples"]
