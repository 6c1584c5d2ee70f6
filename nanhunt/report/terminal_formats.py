"""The terminal page's formats: the run's precision recipe, headroom, and advice."""

from __future__ import annotations

from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import precision, words
from nanhunt.report.advice import advice_lines
from nanhunt.report.brief import brief_advice, brief_formats
from nanhunt.report.headroom import format_lines
from nanhunt.report.headroom_page import put_formats
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle

__all__ = ["put_advice", "put_headroom", "put_precision"]


def put_precision(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print what the run's precision recipe did: beside fp32, where it breaks first, and the worst operands."""
    facts = diagnosis.precision
    if facts is None:
        return
    page.heading("precision", precision.headline(facts))
    for beside in facts.beside:
        page.put(Text(precision.step_beside(beside)))
    far = precision.worst_gradients(facts.beside[-1]) if facts.beside else ""
    if far:
        page.put(Text(far, "dim"), indent=4)
    breaks = precision.first_break(facts)
    if breaks:
        is_whole = precision.holds(facts)
        page.field("holds" if is_whole else "breaks", breaks, style="green" if is_whole else "yellow")
    rows = [precision.operand_cells(operand) for operand in facts.worst[: options.top]]
    if not rows:
        return
    weights = column((row[0] for row in rows), max(page.width - 60, 20))
    page.row(
        Text(
            f"{'worst operands':<{weights}}  {'role':<9} {'format':<8} {'lost':>8} {'flushed':>8} {'cut off':>8}", "dim"
        )
    )
    for (weight, role, form, *shares), operand in zip(rows, facts.worst, strict=False):
        line = Text(middle(weight, weights), "cyan").append(f"  {role:<9} {form:<8}", "dim")
        page.row(line.append("".join(f" {share:>8}" for share in shares), "yellow" if operand.is_broken else ""))


def put_headroom(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print a line a format; below one that does not simply fit, where anything is at fault, the tensors that decide."""
    whole = _is_whole(diagnosis, options)
    if whole:
        lines = format_lines(diagnosis.verdicts, diagnosis.headroom, everything=options.verbose)
    else:
        lines = brief_formats(diagnosis)
    if not lines:
        return
    tensors = words.counted(len({(row.module, row.role, row.name) for row in diagnosis.headroom}), "tensor")
    more = "" if options.verbose else "; --verbose for every tight one" if whole else "; --verbose for all"
    page.heading("headroom", f"{tensors} at modules, over all steps{more}")
    put_formats(page, lines, roomy=options.verbose, tight=options.verbose or diagnosis.outcome == "fault")


def _is_whole(diagnosis: Diagnosis, options: Options) -> bool:
    """Whether formats are what is asked about: by an option, or by the run's precision recipe."""
    return options.verbose or diagnosis.precision is not None


def put_advice(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print what to set, and what stays wide."""
    lines = advice_lines(diagnosis) if _is_whole(diagnosis, options) else brief_advice(diagnosis)
    if not lines:
        return
    page.heading("precision advice")
    for topic, text in lines:
        page.put(Text(f"{topic:<12}", "dim"), Text(words.prose(text)))
