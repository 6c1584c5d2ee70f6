"""How a trace becomes a diagnosis: pure, never raising, and with grades that are earned by their rule."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanhunt.diagnosis.cause import Grade, Location, Suspect
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.diagnosis.diagnose import _ranked, _with_trials, diagnose
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.interventions import Prediction, Trial
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Observation, Onset
from nanhunt.trace.writer import TraceWriter

KINDS = ("nan", "inf", "loss-spike", "divergence", "stall", "mismatch", "exception")


def bare_trace(folder: Path, kind: str | None, trials: tuple[Trial, ...] = ()) -> Trace:
    """A trace of ten ordinary steps, with an onset of `kind` at the last and nothing else known."""
    path = folder / "trace.parquet"
    with TraceWriter(path, Manifest(checkpoint="ckpt.pt", settings={"steps": 10})) as writer:
        for step in range(10):
            for name, value in (("loss", 2.0 - 0.01 * step), ("grad_norm", 1.0), ("lr", 1e-3)):
                writer.write([Observation(step=step, phase="forward", role="scalar", name=name, value=value)])
            writer.flush()
        if kind is not None:
            onset: Any = Onset(kind=kind, step=9, phase="forward", detail="it broke")  # type: ignore[arg-type]
            writer.note(NoteKind.ONSET, onset.to_json())
        for trial in trials:
            writer.note(NoteKind.TRIAL, trial.to_json())
        writer.close()
    return Trace.open(path)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda c: c.slug)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cause_can_be_silent(cause: Any, kind: str, tmp_path: Path) -> None:
    """An onset of which nothing else is known accuses nobody of more than fitting the picture."""
    answer = cause.examine(Evidence(bare_trace(tmp_path, kind)))
    assert not isinstance(answer, Suspect) or answer.grade in (Grade.CONSISTENT, Grade.SUPPORTED)


def test_a_healthy_trace_asks_no_cause(tmp_path: Path) -> None:
    diagnosis = diagnose(bare_trace(tmp_path, None))
    assert (diagnosis.outcome, diagnosis.suspects, diagnosis.cleared) == ("healthy", (), ())


def test_every_cause_is_answered_for_in_a_faulty_trace(tmp_path: Path) -> None:
    diagnosis = diagnose(bare_trace(tmp_path, "nan"))
    answered = {s.cause for s in diagnosis.suspects} | set(diagnosis.cleared) | {slug for slug, _ in diagnosis.untold}
    assert answered == {c.slug for c in CAUSES}
    assert not [reason for _, reason in diagnosis.untold if "defect in nanhunt" in reason]


def test_the_same_trace_gives_the_same_diagnosis(tmp_path: Path) -> None:
    bare_trace(tmp_path, "loss-spike")
    first, second = (diagnose(Trace.open(tmp_path / "trace.parquet")) for _ in range(2))
    assert first == second


def test_a_report_needs_neither_torch_nor_user_code(tmp_path: Path) -> None:
    bare_trace(tmp_path, "nan")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # any import of torch raises ImportError
        f"sys.argv = ['nanhunt', 'report', {str(tmp_path / 'trace.parquet')!r}, '-f', 'json']\n"
        "from nanhunt.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"outcome": "fault"' in done.stdout


# --- grades ----------------------------------------------------------------------------------------------------------

EXACT = Trial(name="exact", outcome="persists", detail="")
CURE = Trial(name="fp32", outcome="cured", detail="")
DROP = Trial(name="drop-samples", outcome="cured", detail="")
PLACEBO_HELPS = Trial(name="drop-placebo", outcome="cured", detail="", intervention={"placebo_of": "drop-samples"})


def graded(folder: Path, grade: Grade, predictions: tuple[Prediction, ...], *trials: Trial) -> Grade:
    suspect = Suspect(cause="x", grade=grade, summary="", location=Location(), predictions=predictions)
    return _with_trials(suspect, Evidence(bare_trace(folder, "nan", trials))).grade


FP32_CURES = (Prediction(trial="fp32", expect="cured"),)


def test_a_predicted_cure_beside_a_failing_repetition_confirms(tmp_path: Path) -> None:
    assert graded(tmp_path, Grade.SUPPORTED, FP32_CURES, EXACT, CURE) is Grade.CONFIRMED


def test_a_cure_without_a_failing_repetition_confirms_nothing(tmp_path: Path) -> None:
    healed = Trial(name="exact", outcome="cured", detail="")
    assert graded(tmp_path, Grade.SUPPORTED, FP32_CURES, healed, CURE) is Grade.SUPPORTED
    assert graded(tmp_path / "b", Grade.SUPPORTED, FP32_CURES, CURE) is Grade.SUPPORTED


def test_a_placebo_that_cures_too_confirms_nothing(tmp_path: Path) -> None:
    predictions = (Prediction(trial="drop-samples", expect="cured"),)
    assert graded(tmp_path, Grade.SUPPORTED, predictions, EXACT, DROP, PLACEBO_HELPS) is Grade.SUPPORTED


def test_a_cure_that_did_not_come_refutes_unless_a_certificate_stands(tmp_path: Path) -> None:
    stays = Trial(name="fp32", outcome="persists", detail="")
    assert graded(tmp_path / "a", Grade.SUPPORTED, FP32_CURES, EXACT, stays) is Grade.REFUTED
    assert graded(tmp_path / "b", Grade.PROVED, FP32_CURES, EXACT, stays) is Grade.PROVED


def test_a_trial_that_could_not_be_applied_says_nothing(tmp_path: Path) -> None:
    failed = Trial(name="fp32", outcome="failed", detail="the step runs in fp32 already")
    assert graded(tmp_path, Grade.CONSISTENT, FP32_CURES, EXACT, failed) is Grade.CONSISTENT


def test_a_cure_that_helps_against_other_causes_too_neither_confirms_nor_refutes(tmp_path: Path) -> None:
    vague = (Prediction(trial="fp32", expect="cured", refutes=False, confirms=False),)
    stays = Trial(name="fp32", outcome="persists", detail="")
    assert graded(tmp_path / "a", Grade.SUPPORTED, vague, EXACT, CURE) is Grade.SUPPORTED
    assert graded(tmp_path / "b", Grade.SUPPORTED, vague, EXACT, stays) is Grade.SUPPORTED


def test_a_cure_that_ought_to_have_a_placebo_confirms_only_beside_one(tmp_path: Path) -> None:
    predictions = (Prediction(trial="drop-samples", expect="cured"),)
    idle = Trial(name="drop-placebo", outcome="persists", detail="", intervention={"placebo_of": "drop-samples"})
    assert graded(tmp_path / "a", Grade.SUPPORTED, predictions, EXACT, DROP) is Grade.SUPPORTED
    assert graded(tmp_path / "b", Grade.SUPPORTED, predictions, EXACT, DROP, idle) is Grade.CONFIRMED


@pytest.mark.parametrize(
    ("location", "change", "counts"),
    [
        (Location(samples=(3,)), {"change": "without-samples", "samples": [3]}, True),
        (Location(samples=(3,)), {"change": "without-samples", "samples": [4]}, False),
        (Location(module="blocks.2"), {"change": "redrawn", "module": "blocks"}, True),
        (Location(module="head"), {"change": "redrawn", "module": "blocks"}, False),
        (Location(parameter="a.weight"), {"change": "second-moment-floor", "parameters": ["a.weight"]}, True),
        (Location(parameter="a.weight"), {"change": "second-moment-floor"}, True),
        (Location(parameter="a.weight"), {"change": "second-moment-floor", "parameters": ["b.weight"]}, False),
    ],
)
def test_a_trial_counts_for_the_suspect_whose_part_it_changed(
    location: Location, change: dict[str, Any], counts: bool, tmp_path: Path
) -> None:
    trial = Trial(name="fp32", outcome="cured", detail="", intervention=change)
    suspect = Suspect(cause="x", grade=Grade.SUPPORTED, summary="", location=location, predictions=FP32_CURES)
    told = _with_trials(suspect, Evidence(bare_trace(tmp_path, "nan", (EXACT, trial))))
    assert (told.grade is Grade.CONFIRMED) == counts


def test_predictions_without_a_cure_never_confirm(tmp_path: Path) -> None:
    persists = (Prediction(trial="exact", expect="persists"),)
    assert graded(tmp_path, Grade.SUPPORTED, persists, EXACT) is Grade.SUPPORTED


def test_ranking_puts_deeper_before_proximate_and_refuted_last() -> None:
    def suspect(name: str, grade: Grade, depth: int = 0) -> Suspect:
        return Suspect(cause=name, grade=grade, summary="", location=Location(), depth=depth)

    ranked = _ranked(
        [
            suspect("refuted", Grade.REFUTED, 1),
            suspect("consistent", Grade.CONSISTENT, 1),
            suspect("proximate", Grade.PROVED),
            suspect("supported", Grade.SUPPORTED),
            suspect("deeper", Grade.SUPPORTED, 1),
        ]
    )
    assert [s.cause for s in ranked] == ["deeper", "proximate", "supported", "consistent", "refuted"]
