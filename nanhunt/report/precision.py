"""A precision recipe in sentences: the step beside fp32, what broke first, and which operands lost most."""

from __future__ import annotations

from nanhunt.diagnosis.precision import LostOperand, PrecisionFacts, StepBeside, broken_from
from nanhunt.report.words import counted, number, percent, printable

__all__ = ["first_break", "headline", "lost", "operand_cells", "step_beside", "worst_gradients"]

#: Parameters whose gradients are told by name.
_NAMED = 3


def headline(facts: PrecisionFacts) -> str:
    """Return the recipe and what it covers."""
    if not facts.quantized:
        return printable(facts.recipe)
    left = f", {counted(len(facts.skipped), 'weight')} left alone" if facts.skipped else ""
    return f"{printable(facts.recipe)}: products with {counted(facts.quantized, 'weight')}{left}"


def step_beside(step: StepBeside) -> str:
    """Return one step beside fp32: loss, and the gradient's direction and error."""
    said = f"step {step.step}: loss {number(step.loss)}, in fp32 {number(step.loss_fp32)}"
    if step.cosine is None or step.error is None:
        return said
    return f"{said}; gradient {percent(step.error)} off, cosine {step.cosine:.4f}"


def worst_gradients(step: StepBeside) -> str:
    """Return the parameters whose gradients are furthest from fp32's."""
    named = [f"{printable(name)} {percent(error)}" for name, error, _ in step.worst[:_NAMED]]
    return f"furthest off: {', '.join(named)}" if named else ""


def first_break(facts: PrecisionFacts) -> str:
    """Return where the recipe breaks first, or that rounding is all that it does."""
    if facts.first is None:
        return "no operand of a product loses more than rounding" if facts.worst else ""
    first = facts.first
    return f"step {first.step}, the {first.role} of {printable(first.weight)}: {lost(first)}"


def lost(operand: LostOperand) -> str:
    """Return what an operand lost, against what rounding can lose."""
    if not operand.error <= broken_from(operand.format):
        said = f"{percent(operand.error)} of its norm lost in {operand.format}, where rounding loses less than {percent(broken_from(operand.format))}"
    else:
        said = f"{percent(operand.rows)} of its rows lose half of their norm in {operand.format}"
    how = [f"{percent(operand.flushed)} of its elements flushed to zero"] if operand.flushed > 0 else []
    how += [f"{percent(operand.saturated)} cut off at the end"] if operand.saturated > 0 else []
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
