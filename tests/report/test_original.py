"""Every report says whether the replay is the run that failed, and warns where a diagnosis may be of another run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.diagnosis.original import OriginalRun
from nanhunt.report.json import JsonRenderer
from nanhunt.report.markdown import MarkdownRenderer
from nanhunt.report.original import follows, warning
from nanhunt.report.terminal import TerminalRenderer
from nanhunt.trace.schema import NoteKind
from tests.diagnosis.builders_b import evidence
from tests.report.samples import HEALTHY, OVERFLOW

FOLLOWS: dict[str, Any] = {
    "source": "log.csv",
    "verdict": "digits",
    "compared": 38,
    "first_step": 1200,
    "last_step": 1237,
    "through": 1237,
    "exact": True,
}
LEAVES = FOLLOWS | {
    "verdict": "leaves",
    "through": 1231,
    "leaves": 1232,
    "leaves_since": 1232,
    "replayed": 2.3113,
    "logged": 2.3456,
}
APART = LEAVES | {"verdict": "apart", "through": None, "exact": False, "leaves": 1200, "leaves_since": 1200}


def diagnosed(replayed: dict[int, float], logged: dict[int, float]) -> Diagnosis:
    """What a trace without an onset is told as, beside what the original run logged."""
    body = {
        "source": "log.csv",
        "mean": None,
        "steps": list(logged),
        "losses": list(logged.values()),
        "resolution": [1e-6] * len(logged),
        "hides": [],
        "logged": [min(logged), max(logged)],
    }
    return diagnose(evidence(notes=[(NoteKind.ORIGINAL, body)], scalars={"loss": replayed}).trace)


def told(sample: Diagnosis = OVERFLOW, **fields: Any) -> Diagnosis:
    return replace(sample, original=OriginalRun(**fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (FOLLOWS, "follows the original run to the digits logged through step 1237 (38 losses of log.csv)"),
        (
            FOLLOWS | {"exact": False, "difference": 0.00031},
            "follows the original run within rounding, by 0.00031 at most, through step 1237 (38 losses of log.csv)",
        ),
        (
            LEAVES,
            "follows the original run to the digits logged through step 1231, leaves it at step 1232: 2.3113 here, 2.3456 "
            "logged (38 losses of log.csv)",
        ),
        (LEAVES | {"leaves_since": 1230}, "leaves it at steps 1230 to 1232: 2.3113 here"),
        (
            APART,
            "does not follow the original run from step 1200 on: 2.3113 here, 2.3456 logged (38 losses of log.csv)",
        ),
        (FOLLOWS | {"offset": 1, "mean": True}, "means over steps, whose step 1238 is step 1237 here)"),
        (FOLLOWS | {"both_nonfinite": 1236}, "through step 1237, with a loss that is not finite from step 1236 on"),
        (FOLLOWS | {"alone": (1203,)}, "step 1203 apart"),
        (FOLLOWS | {"compared": 1}, "(1 loss of log.csv)"),
        (
            {"source": "log.csv", "verdict": "unknown", "log_steps": (0, 99)},
            "cannot be compared: log.csv logs steps 0 to 99, and no loss of the steps that were replayed",
        ),
    ],
)
def test_the_sentence_says_how_far_it_follows_and_how_closely(fields: dict[str, Any], said: str) -> None:
    assert said in follows(told(**fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (APART, "what this replay shows may be of another run"),
        (LEAVES, "the fault of step 1237 lies behind that: it may be of another run"),
        (
            LEAVES | {"replayed": math.nan},
            "the original run's loss was finite in step 1232: this fault may be the replay's",
        ),
        (
            LEAVES | {"logged": math.nan},
            "the original run's loss was not finite in step 1232, which the replay does not",
        ),
    ],
)
def test_a_replay_that_is_another_run_is_warned_of_with_what_may_differ(fields: dict[str, Any], said: str) -> None:
    text = warning(told(**fields))
    assert text.startswith(said)
    assert all(
        word in text for word in ("order of the data", "random state", "precision", "accumulate", "learning rate")
    )


def test_one_that_follows_up_to_its_fault_is_not_warned_of() -> None:
    assert warning(told(**FOLLOWS)) == ""
    assert warning(told(**LEAVES | {"leaves": 1237, "leaves_since": 1237})) == ""
    assert warning(told(HEALTHY, **FOLLOWS)) == ""


def test_without_logged_losses_no_report_speaks_of_them() -> None:
    assert "original run" not in TerminalRenderer().render(OVERFLOW)
    assert "original run" not in MarkdownRenderer().render(OVERFLOW)
    assert json.loads(JsonRenderer().render(OVERFLOW))["original_run"] is None


@pytest.mark.parametrize("fields", [FOLLOWS, LEAVES, APART], ids=["follows", "leaves", "apart"])
def test_every_renderer_says_it(fields: dict[str, Any]) -> None:
    sample = told(**fields)
    page = " ".join(TerminalRenderer(width=200).render(sample).split())
    issue = " ".join(MarkdownRenderer().render(sample).replace("\\", "").split())
    body = json.loads(JsonRenderer().render(sample))["original_run"]
    for text in (follows(sample), warning(sample)):
        assert text in page
        assert text in issue
    assert (body["said"], body["warning"]) == (follows(sample), warning(sample) or None)
    assert body["leaves"] == fields.get("leaves")


def test_a_script_reads_a_loss_that_is_not_finite_as_a_text() -> None:
    body = json.loads(JsonRenderer().render(told(**LEAVES | {"logged": math.nan})))["original_run"]
    assert body["logged"] == "NaN"


@pytest.mark.parametrize("fields", [LEAVES, APART], ids=["leaves", "apart"])
def test_a_replay_of_another_run_that_finds_nothing_is_told_first_and_never_headed_healthy(
    fields: dict[str, Any],
) -> None:
    losses = {step: 2.3 + 0.1 * math.sin(step) for step in range(1200, 1238)}
    first = fields["leaves"]
    found = diagnosed(losses, {step: loss + 0.2 * (step >= first) for step, loss in losses.items()})
    assert (found.outcome, found.onset) == ("inconclusive", None)
    how = "leaves the original run at" if fields is LEAVES else "does not follow the original run from"
    assert found.summary.startswith(f"The replay {how} step {first}")
    assert "% apart" in found.summary
    for renderer in (TerminalRenderer(width=200), MarkdownRenderer(), JsonRenderer()):
        page = " ".join(renderer.render(found).split())
        assert "healthy" not in page
        assert page.index(f"step {first}") < page.index("No fault was found")


def test_one_that_follows_to_its_end_is_healthy() -> None:
    losses = {step: 2.3 + 0.1 * math.sin(step) for step in range(1200, 1238)}
    found = diagnosed(losses, losses)
    assert (found.outcome, found.summary) == ("healthy", "38 steps replayed and healthy.")


def test_the_factor_of_a_log_is_told_with_what_it_may_come_from() -> None:
    said = follows(told(**FOLLOWS, factor=4.0, origin="sum"))
    assert said.startswith("follows the original run under a factor of 4, to the digits logged through step 1237")
    assert "each 4 times the loss here: train.accumulate" in said
    assert "each 1/8 of the loss here: divided by the number of ranks" in follows(
        told(**FOLLOWS, factor=0.125, origin="whole")
    )
    assert "2.3113 here (times 4), 2.3456 logged" in follows(told(**LEAVES, factor=4.0, origin="sum"))
