"""What a report says of a diagnosis, whatever it looks like: the verdict, the cure, what to type next.

Renderers for people share these sentences, so that a terminal and an issue cannot tell two stories.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from nanhunt.diagnosis.cause import Diagnosis, Grade, Suspect
from nanhunt.diagnosis.certificate import Certificate
from nanhunt.interventions import Prediction, Trial
from nanhunt.report.words import listed, number, printable, prose
from nanhunt.trace.schema import Element

__all__ = [
    "came_out",
    "cure",
    "element_cells",
    "evidence",
    "headline",
    "is_incomplete",
    "leading_suspect",
    "next_commands",
    "rank_cells",
    "replayed",
    "sampled",
    "sharded",
    "tried",
    "whose_batch",
    "why_incomplete",
]

_MARKS = {"fault": "✗", "healthy": "✓", "inconclusive": "?"}


def headline(diagnosis: Diagnosis) -> str:
    """Return the verdict in a few words: marker, outcome, and up to which step where the trace is incomplete."""
    words = f"{_MARKS.get(diagnosis.outcome, '?')} {printable(diagnosis.outcome)}"
    if is_incomplete(diagnosis):
        last = diagnosis.run.get("last_step")
        words += " · incomplete trace" + (", no step finished" if last is None else f", up to step {_word(last)}")
    return words


def is_incomplete(diagnosis: Diagnosis) -> bool:
    """Return whether the trace says that it is incomplete; one that says nothing is taken as whole."""
    return diagnosis.run.get("complete") is False


def why_incomplete(diagnosis: Diagnosis) -> str:
    """Return why the trace ends early, as far as it says; '' for a complete one."""
    note = diagnosis.run.get("note") if is_incomplete(diagnosis) else None
    return _word(note) if note else ""


def rank_cells(diagnosis: Diagnosis) -> list[tuple[str, str, str, str]]:
    """Return (rank, loss, gradient norm, what of its own was not finite first) of each rank that is shown."""
    onset = diagnosis.onset
    cells = []
    for view in diagnosis.ranks:
        loss, norm = ("" if value is None else number(value) for value in (view.loss, view.grad_norm))
        said = (
            f"not finite first: {printable(view.bad)}"
            if view.bad
            else "all finite"
            if loss
            else "did not finish the step"
        )
        said += ", looked into" if onset is not None and onset.rank == view.rank else ""
        cells.append((f"rank {view.rank}", f"loss {loss}" if loss else "", f"grad norm {norm}" if norm else "", said))
    return cells


def leading_suspect(diagnosis: Diagnosis) -> Suspect | None:
    """Return the first suspect that is not refuted."""
    return next((s for s in diagnosis.suspects if s.grade != Grade.REFUTED), None)


def cure(diagnosis: Diagnosis) -> tuple[Suspect, str] | None:
    """Return the suspect whose fix was tried and worked, with a sentence; None where none was.

    Those that are proved or confirmed come first; of others it is said where the cure tells for no one cause.
    """
    sure = [s for s in diagnosis.suspects if s.grade in (Grade.PROVED, Grade.CONFIRMED)]
    others = [s for s in diagnosis.suspects if s not in sure and s.grade is not Grade.REFUTED]
    for suspect in (*sure, *others):
        for trial, prediction in suspect.trials:
            if trial.outcome != "cured" or prediction is None or prediction.expect != "cured" or trial.name == "exact":
                continue
            if any(t.intervention.get("placebo_of") == trial.name and t.outcome == "cured" for t in diagnosis.trials):
                continue  # anything of this size helps
            whose = "" if suspect is leading_suspect(diagnosis) else f", as {printable(suspect.cause)} predicts"
            also = "" if prediction.confirms else ", as it would against other causes"
            return suspect, f"trial {printable(trial.name)} cured it{whose}{also}{_placebo(trial, diagnosis.trials)}"
    return None


def named(diagnosis: Diagnosis) -> set[str]:
    """Return the trials that a suspect predicted something of, or that were asked for by name."""
    asked = {trial.name for trial in diagnosis.trials if trial.asked}
    return asked | {p.trial for suspect in diagnosis.suspects for p in suspect.predictions}


def before_and_after(trial: Trial) -> tuple[str, str]:
    """Return "loss 2.3 → 1.1" and "grad norm …" of a trial that was run; '' of what is not known."""
    pairs = (("loss", trial.loss_before, trial.loss), ("grad norm", trial.grad_norm_before, trial.grad_norm))
    if trial.outcome == "failed":
        return "", ""
    loss, norm = (
        ""
        if after is None
        else f"{name} {number(before)} → {number(after)}"
        if before is not None
        else f"{name} {number(after)}"
        for name, before, after in pairs
    )
    return loss, norm


def _placebo(trial: Trial, trials: Iterable[Trial]) -> str:
    """Return what the trial's placebo did, as the end of a sentence."""
    for other in trials:
        if other.intervention.get("placebo_of") == trial.name and other.outcome == "persists":
            return f"; its placebo, {printable(other.name)}, did not"
    return ""


def element_cells(certificate: Certificate, element: Element) -> tuple[str, ...]:
    """Return an element as cells: where, sample and position, what went in, what came out, what fp64 gives."""
    at = f"[{', '.join(map(str, element.coordinate))}]"
    sample = "" if element.sample is None else f"sample {element.sample}"
    position = "" if element.position is None else f", position {element.position}"
    given = [f"{printable(n)} {number(v)}" for n, v in zip(certificate.names, element.inputs, strict=False)]
    given += [f"largest in its {printable(n)} {number(v)}" for n, v in element.reach.items()]
    fp64 = "" if element.fp64 is None else number(element.fp64)
    return at, sample + position, ", ".join(given), number(element.output), fp64


def sampled(diagnosis: Diagnosis) -> str:
    """Return which samples carry the fault, with the positions in their sequence; or why none is named."""
    onset = diagnosis.onset
    if onset is None or not onset.samples:
        return prose(diagnosis.no_samples)
    where = dict(diagnosis.positions)
    told = [
        f"{s} (position{'s' if len(where[s]) > 1 else ''} {listed(where[s], limit=4)})" if where.get(s) else str(s)
        for s in onset.samples
    ]
    return f"number {listed(told)} of {whose_batch(diagnosis)}, counted from 0"


def came_out(trial: Trial) -> str:
    """Return a trial's outcome: one that found nothing to change has not failed."""
    return "not applicable" if trial.detail.startswith("not applicable") else trial.outcome


def whose_batch(diagnosis: Diagnosis) -> str:
    """Return which rank's batch the onset's samples are of, where each reads its own."""
    onset = diagnosis.onset
    return f"the batch of rank {onset.rank}" if onset is not None and diagnosis.ranks else "the batch"


def evidence(value: float | None, threshold: float | None) -> str:
    """Return an exhibit's number beside the number it is held against; '' where it has none.

    Zero is left out: that there should be none, or that something lies below it, is what the claim says.
    """
    if value is None:
        return "" if threshold is None else f"threshold {number(threshold)}"
    return number(value) if not threshold else f"{number(value)} against {number(threshold)}"


def tried(trial: Trial, prediction: Prediction | None) -> str:
    """Return a trial's outcome, whether it was foretold, and what was seen; what was read back is in the table.

    Without a prediction it is a control of another trial, or one that tells neither for nor against the cause.
    """
    said = printable(trial.outcome)
    if prediction is None:
        control = trial.intervention.get("placebo_of")
        helps = ": then anything of its size helps" if control and trial.outcome == "cured" else ""
        said += (
            f", the control of {printable(str(control))}{helps}"
            if control
            else "; it would be under other causes too, and counts neither for this one nor against it"
        )
    elif trial.outcome != "failed":
        kept = trial.outcome == prediction.expect
        said += ", as predicted" if kept else f", though '{prediction.expect}' was predicted"
    said += f": {prose(trial.detail)}" if trial.detail else ""
    return said


def next_commands(diagnosis: Diagnosis) -> tuple[tuple[str, str], ...]:
    """Return the commands to type next, each with what it is good for."""
    trace = shlex.quote(_word(diagnosis.run.get("trace") or "TRACE"))
    suspect = leading_suspect(diagnosis)
    if suspect is None:
        return ((f"nanhunt report {trace} --verbose", "everything that was measured"),)
    shown = (
        ((f"nanhunt report {trace} --repro repro.py", "the op alone, as a script"),)
        if diagnosis.run.get("repro")
        else ()
    )
    tried_it = ((f"nanhunt trials {trace}", "what was tried"),) if diagnosis.trials else ()
    return (
        (f"nanhunt explain {shlex.quote(printable(suspect.cause))}", "signature, look-alikes, fix"),
        *tried_it,
        *shown,
        (f"nanhunt report {trace} --format markdown", "the same, for an issue"),
    )


def replayed(diagnosis: Diagnosis) -> str:
    """Return what was replayed: checkpoint, steps and device, as far as the trace says; '' where it does not."""
    run = diagnosis.run
    first, last, steps = run.get("first_step"), run.get("last_step"), run.get("steps")
    span = f"steps {_word(first)} to {_word(last)}" if first is not None and last is not None else ""
    span = f"step {_word(last)}" if span and first == last else span
    asked = f"{_word(steps)} asked for" if steps is not None else ""
    device = f"on {_word(run['device'])}" if run.get("device") else ""
    return ", ".join(part for part in (_word(run.get("checkpoint") or ""), span, asked, device) if part)


def _word(value: object) -> str:
    return prose(str(value))


def sharded(diagnosis: Diagnosis) -> str:
    """Return whose part holds the bad elements of the first sharded tensor that some part is free of; '' without one."""
    for shards in diagnosis.shards:
        holders = shards.holders
        if len(holders) == len(shards.parts):
            continue
        where = ".".join(part for part in (shards.module, shards.name) if part)
        who = [f"rank {part.rank} has {part.bad}" for part in holders[:3]]
        if len(holders) == 1:
            begins = f" from {list(holders[0].offset)} on" if any(holders[0].offset) else ""
            who = [f"all in the part of rank {holders[0].rank}{begins}"]
        more = f" and {len(holders) - 3} ranks more" if len(holders) > 3 else ""
        said = (
            f"{shards.role} of {where}: {shards.bad} of {shards.numel} elements are not finite, {', '.join(who)}{more}"
        )
        return prose(said)
    return ""
