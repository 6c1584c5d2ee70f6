"""Ask every cause, join what the trials said, rank: a trace becomes a diagnosis.

Pure: the same trace gives the same diagnosis, without torch, model or user code.

How a grade is earned. A cause gives `proved` for an arithmetic certificate, `supported` for its own discriminating
measurement, `consistent` for a signature that others share. Then its predictions are held against the trials. All hold,
one of them a cure, the exact repetition still fails and no placebo cures: `confirmed`. A predicted cure that did not
come: `refuted`, unless the certificate stands, which no trial can take back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nanhunt.diagnosis.advice import advice
from nanhunt.diagnosis.cause import Cause, Diagnosis, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.diagnosis.certificate import certificate
from nanhunt.diagnosis.damage import damage
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.format_verdict import format_verdicts
from nanhunt.diagnosis.headroom import headroom_rows
from nanhunt.diagnosis.original import original_run
from nanhunt.diagnosis.precision import precision_facts
from nanhunt.diagnosis.rank_views import rank_views
from nanhunt.diagnosis.recording import Recording
from nanhunt.diagnosis.shards import bad_shards
from nanhunt.diagnosis.tensors import merged_tensors
from nanhunt.diagnosis.verdict import outcome_of, summary
from nanhunt.interventions import Prediction, Trial
from nanhunt.library import library
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind, Onset

__all__ = ["diagnose"]

_ORDER = {grade: index for index, grade in enumerate(Grade)}
#: Assumptions of other ranks that are told.
_SHOWN = 8
_SERIES = ("loss", "grad_norm", "loss_scale", "lr")


def diagnose(trace: Trace) -> Diagnosis:
    """Return what the trace shows: verdict, ranked suspects, headroom, and what could not be told."""
    evidence = Evidence(trace)
    onset = evidence.onset
    suspects, cleared, untold = _examined(evidence) if onset else ([], [], [])
    ranked = _ranked([_with_trials(s, evidence) for s in suspects])
    tensors = merged_tensors(trace)
    rows = headroom_rows(tensors)
    original = original_run(evidence)
    return Diagnosis(
        outcome=outcome_of(onset, original, complete=trace.complete),
        summary=summary(evidence, ranked, original),
        onset=_told_onset(onset, ranked),
        suspects=tuple(ranked),
        cleared=tuple(cleared),
        untold=tuple(untold),
        headroom=rows,
        verdicts=format_verdicts(tensors, rows, birth=evidence.birth),
        advice=advice(trace, tensors, rows),
        trials=tuple(evidence.trials.values()),
        assumptions=tuple(_assumptions(evidence)),
        run=_run_facts(trace),
        series={name: _series(evidence.trace, name) for name in _SERIES if evidence.trace.scalars(name)},
        damage=damage(evidence),
        certificate=certificate(evidence),
        **_samples(evidence),
        lineage=tuple((h.op, h.module, h.source or "", h.does) for h in evidence.lineage),
        **_code(evidence),
        precision=precision_facts(evidence),
        original=original,
        shards=bad_shards(evidence),
        ranks=rank_views(evidence),
        recording=Recording(evidence),
    )


def _examined(evidence: Evidence) -> tuple[list[Suspect], list[str], list[tuple[str, str]]]:
    suspects: list[Suspect] = []
    cleared: list[str] = []
    untold: list[tuple[str, str]] = []
    for cause in CAUSES:
        answer = _answer(cause, evidence)
        if isinstance(answer, Suspect):
            suspects.append(answer)
        elif isinstance(answer, NotApplicable):
            untold.append((cause.slug, answer.reason))
        else:
            cleared.append(cause.slug)
    return suspects, cleared, untold


def _answer(cause: Cause, evidence: Evidence) -> Suspect | NotApplicable | None:
    """Ask one cause; a defect in one must not cost the user the other twenty-nine at three in the morning."""
    try:
        return cause.examine(evidence)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return NotApplicable(reason=f"a defect in nanhunt while examining it: {type(error).__name__}: {error}")


#: A cure by these counts only beside a placebo that does not cure.
_WITH_PLACEBO = frozenset(i.placebo_of for i in library() if i.placebo_of is not None)

# --- trials ----------------------------------------------------------------------------------------------------------


def _with_trials(suspect: Suspect, evidence: Evidence) -> Suspect:
    """Hold the suspect's predictions against the trials that were run."""
    ran = [(evidence.trials[p.trial], p) for p in suspect.predictions if p.trial in evidence.trials]
    pairs = [(trial, p) for trial, p in ran if _is_of(trial, suspect)]
    grade = _regraded(suspect, pairs, evidence)
    return replace(suspect, trials=(*pairs, *_beside(suspect, pairs, evidence)), grade=grade)


def _is_of(trial: Trial, suspect: Suspect) -> bool:
    """Whether a trial changed what this suspect is accused of: its samples, its layers, its parameter."""
    change, at = trial.intervention, suspect.location
    kind = change.get("change")
    if kind == "without-samples" and change.get("placebo_of") is None and at.samples:
        return set(change.get("samples", ())) == set(at.samples)
    if kind == "redrawn" and at.module:
        drawn = str(change.get("module", ""))
        return at.module == drawn or at.module.startswith(f"{drawn}.")
    if kind == "second-moment-floor" and change.get("placebo_of") is None and at.parameter:
        return at.parameter in (change.get("parameters") or (at.parameter,))
    return True


def _beside(
    suspect: Suspect, pairs: list[tuple[Trial, Prediction]], evidence: Evidence
) -> Iterator[tuple[Trial, Prediction | None]]:
    """Yield what a suspect predicted nothing of: placebos and controls of its cures, and trials with its own samples."""
    named = {trial.name for trial, _ in pairs}
    cured = {trial.name for trial, _ in pairs if trial.outcome == "cured"}
    for other in evidence.trials.values():
        if other.intervention.get("placebo_of") in cured and other.name not in named and other.outcome != "failed":
            named.add(other.name)
            yield other, None
    for name in ("drop-samples", "drop-placebo") if suspect.location.samples else ():
        trial = evidence.trials.get(name)
        if trial is not None and name not in named and trial.outcome != "failed":
            yield trial, None


def _regraded(suspect: Suspect, pairs: list[tuple[Trial, Prediction]], evidence: Evidence) -> Grade:
    """Return the grade behind the trials; the rules are in docs/trials.md."""
    told = [(t, p) for t, p in pairs if t.outcome != "failed"]
    if suspect.grade in (Grade.PROVED, Grade.REFUTED) or not told:
        return suspect.grade
    if not _baseline_fails(pairs, evidence):
        return suspect.grade  # what does not fail again is cured by anything
    if any(p.refutes and p.expect == "cured" and t.outcome == "persists" for t, p in told):
        return Grade.REFUTED
    holds = all(t.outcome == p.expect for t, p in told if p.confirms)
    cured = [t for t, p in told if p.confirms and p.expect == "cured" and t.outcome == "cured"]
    return Grade.CONFIRMED if holds and cured and not _placebo_cures(cured, evidence) else suspect.grade


def _baseline_fails(pairs: list[tuple[Trial, Prediction]], evidence: Evidence) -> bool:
    """Whether the very same step failed again; a cause that says it will not is held against what it says."""
    return evidence.outcome("exact") == "persists" or any(p.trial == "exact" for _, p in pairs)


def _placebo_cures(cured: list[Trial], evidence: Evidence) -> bool:
    """Whether a placebo of a cure cures as well, or one that there ought to be was not run to its end."""
    names = {t.name for t in cured}
    placebos = [i for i in library() if i.placebo_of in names]
    ran = {i.name: evidence.trials[i.name] for i in placebos if i.name in evidence.trials}
    if any(t.outcome == "cured" for t in ran.values()):
        return True
    return any(
        not any(i.placebo_of == name and ran[i.name].outcome == "persists" for i in placebos if i.name in ran)
        for name in names
        if name in _WITH_PLACEBO
    )


def _ranked(suspects: list[Suspect]) -> list[Suspect]:
    """Order by: not refuted, more than consistent, deeper before proximate, grade, the registry's order."""

    def key(suspect: Suspect) -> tuple[int, int, int]:
        tier = {Grade.REFUTED: 2, Grade.CONSISTENT: 1}.get(suspect.grade, 0)
        return tier, -suspect.depth, _ORDER[suspect.grade]

    return sorted(suspects, key=key)


# --- the onset ---------------------------------------------------------------------------------------------------------


def _told_onset(onset: Onset | None, suspects: list[Suspect]) -> Onset | None:
    """Give the onset the samples of the first suspect, where the hunt itself left them open."""
    refuted = {s.location.samples for s in suspects if s.cause == "bad-sample" and s.grade is Grade.REFUTED}
    if onset is not None and onset.samples and tuple(onset.samples) in refuted:
        return replace(onset, samples=[])  # without them the fault is there as well
    if onset is None or onset.samples or not suspects or not suspects[0].location.samples:
        return onset
    return replace(onset, samples=list(suspects[0].location.samples))


def _assumptions(evidence: Evidence) -> list[str]:
    texts = [str(body["text"]) for body in evidence.notes(NoteKind.ASSUMPTION)]
    skipped = [b for b in evidence.notes(NoteKind.SKIPPED) if not b.get("unscaled_nonfinite")]
    if skipped:
        texts.append(f"the gradient scaler skipped {len(skipped)} steps while it found its scale: ordinary work")
    repeat = evidence.note(NoteKind.REPEAT)
    if evidence.onset is not None and repeat and repeat.get("reproduced"):
        same = "bit for bit" if repeat.get("same_gradients") else "though not bit for bit"
        texts.append(f"the bad step was run again and failed again, {same}")
    return [*texts, *_of_swapped(evidence), *_of_others(evidence)]


def _of_swapped(evidence: Evidence) -> list[str]:
    """Return what the bad step did with the ranks' batches swapped."""
    swap = evidence.note(NoteKind.SWAP)
    if swap is None:
        return []
    own, other = (" and ".join(map(str, swap[key])) or "none" for key in ("failed", "swapped"))
    return [
        f"with each rank on its neighbour's batch the loss of rank {other} is not finite, on their own that of rank {own}"
    ]


def _of_others(evidence: Evidence) -> list[str]:
    """Return what other ranks assumed, and the one that looked into the fault did not."""
    if evidence.ranks.rank_count < 2:
        return []
    own = {str(body["text"]) for body in evidence.notes(NoteKind.ASSUMPTION)}
    return [
        f"rank {rank}: {body['text']}"
        for rank, body in evidence.ranks.notes_by_rank(NoteKind.ASSUMPTION)
        if body["text"] not in own
    ][:_SHOWN]


def _run_facts(trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    asked = manifest.settings.get("steps")
    return {
        "steps": asked if isinstance(asked, int) else len(trace.steps),
        "replayed": len(trace.steps),
        "device": manifest.device,
        "checkpoint": manifest.checkpoint,
        "complete": trace.complete,
        "first_step": trace.first_step,
        "last_step": trace.last_step,
        "note": trace.reason,
        "match": manifest.match,
        "parameters": manifest.parameters,
        "trace": str(trace.path),
        "repro": str((trace.note_of(NoteKind.REPRO) or {}).get("file") or ""),
        "versions": {"nanhunt": manifest.nanhunt_version, "torch": manifest.torch_version},
    }


def _series(trace: Trace, name: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    values = sorted(trace.scalars(name).items())
    return tuple(s for s, _ in values), tuple(float(v) if v is not None else math.nan for _, v in values)


def _samples(evidence: Evidence) -> dict[str, Any]:
    body = evidence.note(NoteKind.SAMPLES) or evidence.note(NoteKind.SAMPLE_LOSSES) or {}
    positions = body.get("positions") or {}
    onset = evidence.onset
    is_update = onset is not None and onset.phase == "update" and evidence.is_nonfinite
    return {
        "positions": tuple((int(sample), tuple(places)) for sample, places in positions.items()),
        # loss and gradients of an update that breaks were finite: no sample has a part in it
        "no_samples": "" if is_update else str(body.get("reason", "")),
    }


def _code(evidence: Evidence) -> dict[str, Any]:
    body = evidence.note(NoteKind.SOURCE)
    if not body:
        return {}
    lines = tuple((int(n), str(text), int(n) == int(body["line"])) for n, text in body["text"])
    return {"code": lines, "code_file": str(body["file"])}
