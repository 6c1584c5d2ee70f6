"""The page for a terminal: verdict, findings with their evidence and mend, then census, optimizer and tensors."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text

from nanhunt.inspection.facts import Change, Role, TensorFacts
from nanhunt.inspection.finding import Finding, Inspection, Severity
from nanhunt.inspection.moved import moved
from nanhunt.inspection.reading import (
    apart,
    census,
    margins,
    oddities,
    place_in_run,
    settings,
    share,
    shown_tensors,
    size,
    summary,
)  # fmt: skip
from nanhunt.inspection.state_facts import GroupFacts, OptimizerFacts
from nanhunt.report import words
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle
from nanhunt.report.words import counted

__all__ = ["InspectionTerminal"]

_STYLES = {"fault": "bold red", "healthy": "bold green", "notice": "yellow"}
_NARROWEST = 40
#: cells of a tensor's numbers, beside its name
_NUMBERS = 64
#: Groups that are told one by one, and changes against the reference.
_GROUPS, _CHANGES = 4, 5


class InspectionTerminal(Options):
    """A page of at most `width` cells; `top` limits findings' tensors, and `verbose` shows moments as well."""

    __slots__ = ()
    name: ClassVar[str] = "terminal"
    suffix: ClassVar[str] = ".txt"

    def render(self, inspection: Inspection) -> str:
        """Return the page."""
        page = Page(max(self.width, _NARROWEST))
        for section in _SECTIONS:
            section(page, inspection, self)
        return page.text(color=self.color)


def _field(page: Page, label: str, value: str, style: str = "") -> None:
    page.put(Text(f"{label:<9}", "dim"), Text(words.prose(value), style))


def _verdict(page: Page, inspection: Inspection, options: Options) -> None:
    facts, outcome = inspection.facts, inspection.outcome
    style = _STYLES[outcome]
    line = Text().append(outcome, style).append(" · ", "dim").append(words.prose(summary(inspection)), "bold")
    page.put(Text("✗ " if outcome == "fault" else "✓ ", style), line, indent=0)
    _field(page, "file", f"{facts.path}, {facts.container}{place_in_run(facts)}, {size(facts.bytes)}", "dim")
    origin = inspection.origin
    if origin is not None:
        _field(page, "origin", origin.claim, "bold")
        for reason in origin.reasons:
            page.put(Text("         • ", "dim"), Text(words.prose(reason)))
        _field(page, "fix", origin.fix)


def _findings(page: Page, inspection: Inspection, options: Options) -> None:
    if not inspection.findings:
        return
    page.heading("findings")
    shown = (
        inspection.findings if options.verbose else inspection.findings[: max(options.top, len(inspection.faults[:20]))]
    )
    for finding in shown:
        _finding(page, finding)
    hidden = len(inspection.findings) - len(shown)
    if hidden:
        page.put(Text(f"and {counted(hidden, 'more finding')} (-v)", "dim"))


def _finding(page: Page, finding: Finding) -> None:
    head = Text(f"{finding.severity:<8}", _STYLES[finding.severity])
    cause = f"  ({finding.cause})" if finding.cause else ""
    quiet = "" if finding.severity is Severity.FAULT else "dim"
    page.put(head, Text(words.prose(finding.claim), "bold" if not quiet else "").append(cause, "dim"))
    for line in finding.evidence:
        page.put(Text("• ", "dim"), Text(words.prose(line)), indent=10)
    if finding.fix:
        page.put(Text("fix   ", "dim"), Text(words.prose(finding.fix)), indent=10)
    if finding.next:
        page.put(Text("next  ", "dim"), Text(words.prose(finding.next), "cyan"), indent=10)


def _census(page: Page, inspection: Inspection, options: Options) -> None:
    rows = census(inspection.facts)
    weights = {row.dtype for row in rows if row.role is Role.WEIGHT}
    page.heading("census", "weights in more than one dtype" if len(weights) > 1 else "")
    for row in rows:
        line = Text(f"{row.role:<8}").append(f"{row.dtype:<16}", "cyan")
        line.append(f"{row.tensors:>6} tensors {row.elements:>16,} elements {size(row.bytes):>9}")
        page.row(line)
    tied = [t for t in inspection.facts.tensors if t.tied_to]
    for t in tied[:4]:
        page.row(Text(f"tied    {words.printable(t.name)} is {words.printable(t.tied_to)}", "dim"))
    copies = [t for t in inspection.facts.tensors if t.copy_of]
    if copies:
        first = f"{words.printable(copies[0].name)} has the bytes of {words.printable(copies[0].copy_of)}"
        more = f", and {len(copies) - 1} more pairs" if len(copies) > 1 else ""
        page.row(Text(f"copies  {first}{more}", "dim"))


def _averages(page: Page, inspection: Inspection, options: Options) -> None:
    averages = inspection.facts.averages
    if not averages:
        return
    page.heading("averages", "of the weights; nothing trains them")
    wide = column((a.name for a in averages), 24)
    for average in averages:
        line = f"{counted(average.tensors, 'tensor')} of {average.elements:,} elements, {apart(average)}"
        page.put(Text(f"{middle(words.printable(average.name), wide):<{wide}}  "), Text(words.prose(line)))


def _optimizers(page: Page, inspection: Inspection, options: Options) -> None:
    for optimizer in inspection.facts.optimizers:
        kinds = f"{', '.join(optimizer.keys)} in {', '.join(optimizer.dtypes)}" if optimizer.keys else "no moments"
        named = f"; parameters named {optimizer.naming}" if optimizer.naming else "; parameters not named"
        page.heading(optimizer.label, f"{kinds}{named if optimizer.keys else ''}")
        shown = optimizer.groups if options.verbose else optimizer.groups[:_GROUPS]
        for group in shown:
            _group(page, group)
        if len(shown) < len(optimizer.groups):
            page.row(Text(f"and {len(optimizer.groups) - len(shown)} more groups (-v)", "dim"))
        _health(page, optimizer)
    scaler = inspection.facts.scaler
    if scaler is not None:
        tracker = f", {scaler.growth_tracker} steps since it changed" if scaler.growth_tracker is not None else ""
        _field(page, "scaler", f"scale {words.number(scaler.scale)}{tracker}")
    for schedule in inspection.facts.schedulers:
        rates = ", ".join(dict.fromkeys(map(words.number, schedule.last_lr)))
        bases = ", ".join(dict.fromkeys(map(words.number, schedule.base_lrs)))
        _field(page, "schedule", f"at {schedule.last_epoch}, last lr {rates or '-'}, base lr {bases or '-'}")


def _group(page: Page, group: GroupFacts) -> None:
    steps = ", ".join(f"{s:.0f} ({n})" if len(group.steps) > 1 else f"{s:.0f}" for s, n in group.steps[:4])
    state = "" if group.with_state == group.parameters else f", {group.with_state} with state"
    line = Text(f"{counted(group.parameters, 'parameter')}{state}, step {steps or '-'}")
    for key, value in settings(group):
        line.append(f"  {key} ", "dim").append(words.printable(value))
    page.put(Text(f"group {group.index}  ", "dim"), line)


def _health(page: Page, optimizer: OptimizerFacts) -> None:
    if not optimizer.health:
        return
    total = sum(h.numel for h in optimizer.health)
    worst = max(optimizer.health, key=lambda h: h.worst)
    below = share(sum(h.below_eps for h in optimizer.health), total) or "none"
    zero = sum(h.v_zero for h in optimizer.health)
    told = f"largest |m| / (√v + eps) {words.number(worst.worst)} in {worst.parameter}, of at most {words.number(worst.ceiling)}"
    _field(page, "health", f"{told}; √v below eps: {below}; v = 0 beside m ≠ 0: {zero or 'none'}")


def _tensors(page: Page, inspection: Inspection, options: Options) -> None:
    rows = shown_tensors(inspection, None if options.verbose else options.top, moments=options.verbose)
    total = len(inspection.facts.tensors)
    aside = (
        f"{len(rows)} of {total} (-v: all), nearest to fp16's end first; margins in binades"
        if len(rows) < total
        else ""
    )
    page.heading("tensors", aside)
    wide = column((t.name for t in rows), max(page.width - _NUMBERS - 2, 12))
    head = f"{'':{wide}}  {'dtype':<8}{'shape':<13}{'amax':>9}{'rms':>10}{'zero':>8}{'own':>7}{'fp16':>7}"
    page.row(Text(head, "dim"))
    for t in rows:
        _row(page, t, wide)


def _row(page: Page, t: TensorFacts, wide: int) -> None:
    line = Text(middle(words.printable(t.name), wide), "red" if t.is_poisoned else "")
    line.append(f"  {t.dtype.replace('float', 'f'):<8}", "cyan").append(f"{'×'.join(map(str, t.shape)):<13}")
    s = t.stats
    if s is not None:
        line.append(f"{words.number(s.amax):>9}{words.number(s.rms):>10}{share(s.zero, s.numel):>8}")
        line.append("".join(f"{_margin(h.overflow_margin) if h else '':>7}" for h in margins(t)))
    page.row(line)
    odd = oddities(t)
    if odd:
        page.put(Text(words.printable(odd), "yellow" if t.is_poisoned or t.flips else "dim"), indent=4)


def _margin(margin: float) -> str:
    return f"{margin:+.1f}" if abs(margin) < 1e6 else ""


def _reference(page: Page, inspection: Inspection, options: Options) -> None:
    reference = inspection.facts.reference
    if reference is None:
        return
    page.heading("since", f"{words.printable(reference.path)}{_distance(inspection.facts.step, reference.step)}")
    still = sum(c.same == 1.0 for c in reference.changes)
    _field(
        page,
        "changed",
        f"{len(reference.changes) - still} of {len(reference.changes)} tensors; {still} are the same to the bit",
    )
    for names, verb in ((reference.appeared, "new"), (reference.vanished, "gone")):
        if names:
            _field(page, verb, words.listed(names, 4))
    moving = [c for c in reference.changes if c.relative > 0.0 or c.spoiled or c.flips]
    moving.sort(key=lambda c: not (c.spoiled or c.flips))
    shown = moving if options.verbose else moving[:_CHANGES]
    wide = column((c.name for c in shown), 36)
    for c in shown:
        page.row(Text(middle(words.printable(c.name), wide)).append(_changed(c)))
    if len(shown) < len(moving):
        page.row(Text(f"and {counted(len(moving) - len(shown), 'more tensor')} (-v)", "dim"))


def _distance(step: int | None, earlier: int | None) -> str:
    if earlier is None:
        return ""
    apart_by = "" if step is None or step == earlier else f", {counted(abs(step - earlier), 'step')} "
    return f", step {earlier}{apart_by}{('before' if step > earlier else 'after, not before') if step and apart_by else ''}"


def _changed(c: Change) -> Text:
    """Say how far one tensor moved: what became NaN or flipped first, then its norm, beside those of its like."""
    told = [f"{c.spoiled} of {c.numel} elements became NaN or Inf"] if c.spoiled else []
    told += [f"bit {flip.bit} flipped at {list(flip.index)}" for flip in c.flips]
    line = Text(f"  {', '.join(told)}", "red") if told else Text()
    if c.relative > 0.0:
        line.append(f"  {moved(c.relative):>18}", "cyan")
        line.append(f"  {c.outlying:+.1f} σ from its like" if c.like and not told else "", "dim")
    return line


def _log(page: Page, inspection: Inspection, options: Options) -> None:
    facts = inspection.facts
    if facts.log.last:
        page.heading("log", "the last entries of trainer_state.json")
        for step, loss, norm in facts.log.last:
            _field(
                page,
                f"{step}",
                f"loss {words.number(loss)}" + (f", grad norm {words.number(norm)}" if norm is not None else ""),
            )
    if facts.notes:
        page.heading("notes")
        for note in facts.notes:
            page.put(Text("• ", "dim"), Text(words.prose(note)))


_SECTIONS = (_verdict, _findings, _census, _averages, _optimizers, _tensors, _reference, _log)
