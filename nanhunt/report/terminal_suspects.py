"""The terminal page's suspects and trials: what may have done it, and what came of changing it."""

from __future__ import annotations

from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis, Grade, Suspect
from nanhunt.report import reading, words
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle

__all__ = ["put_suspects", "put_trials"]


_GRADE_STYLES = {
    Grade.PROVED: "bold red",
    Grade.CONFIRMED: "bold red",
    Grade.SUPPORTED: "bold yellow",
    Grade.CONSISTENT: "yellow",
    Grade.REFUTED: "dim",
}


def put_suspects(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print each suspect with what speaks for it, its trials and its mend; of many the first."""
    if not diagnosis.suspects:
        if diagnosis.onset is not None:
            page.heading("suspects", "none of the known causes shows itself")
        return
    page.heading("suspects")
    for rank, suspect in enumerate(diagnosis.suspects[: options.top], start=1):
        if rank > 1:
            page.put(Text())
        _suspect(page, suspect, rank, diagnosis, options)
    hidden = diagnosis.suspects[options.top :]
    if hidden:
        slugs = words.listed([s.cause for s in hidden])
        page.put(Text(f"and {len(hidden)} more: {slugs} (--top {len(diagnosis.suspects)})", "dim"))


def _suspect(page: Page, suspect: Suspect, rank: int, diagnosis: Diagnosis, options: Options) -> None:
    quiet = "dim" if suspect.grade == Grade.REFUTED else ""
    head = Text(f"{rank}  ", quiet).append(f"{suspect.grade:<11}", _GRADE_STYLES.get(suspect.grade, ""))
    page.put(head, Text(words.printable(suspect.cause), quiet or "bold"))
    step = suspect.location.step
    summary = words.prose(suspect.summary)
    page.put(Text(f"step {step}: {summary}" if step is not None else summary, quiet), indent=5)
    spot = _spot(suspect, diagnosis)
    if spot:
        page.put(Text(f"at {spot}", "dim"), indent=5)
    for exhibit in suspect.exhibits:
        line = Text(words.prose(exhibit.claim), quiet)
        held = reading.evidence(exhibit.value, exhibit.threshold)
        page.put(Text("• ", quiet), line.append(f"  {held}" if held else "", quiet or "yellow"), indent=5)
    trials = [(t, p) for t, p in suspect.trials if t.outcome != "failed" or options.verbose]
    names = column((t.name for t, _ in trials), page.width // 3)
    for trial, prediction in trials:
        label = Text("trial  ", "dim").append(f"{middle(words.printable(trial.name), names)}  ", quiet)
        page.put(label, Text(reading.tried(trial, prediction), quiet or _trial_style(trial.outcome)), indent=5)
    for fix in () if quiet else suspect.fixes:
        page.put(Text("fix    ", "dim"), Text(words.prose(fix)), indent=5)


def put_trials(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print what was changed, what came of it, and loss and gradient norm before and after."""
    told = [t for t in diagnosis.trials if t.outcome != "failed" or t.name in reading.named(diagnosis)]
    if not told:
        return
    page.heading("trials", "one change each: mean loss, and the first gradient norm before a clip")
    rows = [(t, *reading.before_and_after(t)) for t in told]
    names = column((t.name for t in told), 18)
    losses, norms = column((loss for _, loss, _ in rows), 32), column((norm for *_, norm in rows), 36)
    for trial, loss, norm in rows:
        line = Text(f"{middle(words.printable(trial.name), names)}  ")
        line.append(f"{words.printable(trial.outcome):<10}", _trial_style(trial.outcome))
        line.append(f"{middle(loss, losses)}  " if losses else "").append(f"{middle(norm, norms)}  " if norms else "")
        page.put(line)
        said = trial.detail if trial.outcome == "failed" else trial.readback
        if said:
            page.put(Text(words.prose(said), "dim"), indent=names + 4)


def _trial_style(outcome: str) -> str:
    return {"cured": "green", "failed": "dim"}.get(outcome, "")


def _spot(suspect: Suspect, diagnosis: Diagnosis) -> str:
    """Return where a suspect did it; '' where the page has said so already, of the onset."""
    at, onset = suspect.location, diagnosis.onset
    if onset is not None and (at.module, at.op, at.source) == (onset.module, onset.op, onset.source):
        at_name = at.parameter
        return words.printable(at_name) if at_name and at_name != onset.name else ""
    known = at.module is not None or at.parameter
    parts = (words.place(at.module or "", at.parameter or "") if known else None, at.op, at.source)
    return " · ".join(words.printable(part) for part in parts if part)
