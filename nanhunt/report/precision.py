"""A precision recipe in sentences: the step beside fp32, what broke first, and which operands lost most."""

from __future__ import annotations

import math

from nanhunt.diagnosis.precision import ROWS, LostOperand, PrecisionFacts, StepBeside, broken_from
from nanhunt.report.words import counted, number, percent, printable

__all__ = ["first_break", "headline", "holds", "lost", "operand_cells", "step_beside", "worst_gradients"]

#: Parameters whose gradients are told by name.
_NAMED = 3


def headline(facts: PrecisionFacts) -> str:
    """Return the recipe and what it covers."""
    if not facts.quantized:
        return printable(facts.recipe)
    left = f", {counted(len(facts.skipped), 'weight')} left alone" if facts.skipped else ""
    others = (
        f"; {counted(facts.others, 'product')} of matrices that are no parameters stay as they are"
        if facts.others
        else ""
    )
    return f"{printable(facts.recipe)}: products with {counted(facts.quantized, 'weight')}{left}{others}"


def step_beside(step: StepBeside) -> str:
    """Return one step beside fp32: loss, and the gradient's direction and error."""
    said = f"step {step.step}: loss {number(step.loss)}, in fp32 {number(step.loss_fp32)}"
    if step.cosine is None or step.error is None:
        return said
    if not (math.isfinite(step.cosine) and math.isfinite(step.error)):
        return f"{said}; the gradient is not finite"
    return f"{said}; gradient {percent(step.error)} off, cosine {step.cosine:.4f}"


def worst_gradients(step: StepBeside) -> str:
    """Return the parameters whose gradients are furthest from fp32's in a step."""
    named = [f"{printable(name)} {percent(error)}" for name, error, _ in step.worst[:_NAMED] if math.isfinite(error)]
    return f"furthest off in step {step.step}: {', '.join(named)}" if named else ""


def holds(facts: PrecisionFacts) -> bool:
    """Whether neither an operand nor a gradient's direction is lost."""
    return facts.first is None and facts.astray is None


def first_break(facts: PrecisionFacts) -> str:
    """Return where the recipe breaks first, or that rounding is all that it does."""
    steps = f" on the {counted(facts.looked_at, 'step')} looked at" if facts.looked_at else ""
    if facts.first is not None:
        first = facts.first
        whose = (
            f"the weight {printable(first.weight)}"
            if first.role == "weight"
            else f"the {first.role} of {printable(first.weight)}"
        )
        return f"step {first.step}, {whose}: {lost(first)}"
    if facts.astray is not None:
        astray = facts.astray
        return f"step {astray.step}: the gradient is another one than fp32's, by rounding alone: no operand loses more{steps}"
    return f"no operand of a product loses more than rounding in its format loses{steps}" if facts.worst else ""


def lost(operand: LostOperand) -> str:
    """Return what an operand lost, against what rounding can lose."""
    how = [f"{percent(operand.flushed)} of its elements flushed to zero"] if operand.flushed > 0 else []
    how += [f"{percent(operand.saturated)} cut off at the end"] if operand.saturated > 0 else []
    if not operand.error <= broken_from(operand.format):
        said = f"{percent(operand.error)} of its norm lost in {operand.format}, where rounding loses less than {percent(broken_from(operand.format))}"
    elif operand.rows >= ROWS and operand.role != "gradient":
        said = f"{percent(operand.rows)} of its rows lose half of their norm in {operand.format}"
    else:
        return f"{', '.join(how)} in {operand.format}, beside one that sets the scale"
    return f"{said}; {', '.join(how)}" if how else said


def operand_cells(operand: LostOperand) -> tuple[str, str, str, str, str, str]:
    """Return weight, role, format, norm lost, flushed, cut off."""
    return (
        printable(operand.weight),
        operand.role,
        operand.format,
        percent(operand.error),
        percent(operand.flushed),
        percent(operand.saturated),
    )
