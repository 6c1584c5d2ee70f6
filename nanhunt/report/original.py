"""How a report says whether the replay follows the run that it replays."""

from __future__ import annotations

import math

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.original import OriginalRun
from nanhunt.report.words import listed, number, printable

__all__ = ["follows", "is_verdict", "told", "warning"]


def follows(diagnosis: Diagnosis) -> str:
    """Return whether the replay follows the logged losses and where it leaves them, to be read after "the replay".

    '' where no losses were logged.
    """
    return told(diagnosis.original)


def told(original: OriginalRun | None) -> str:
    """Return the same of the comparison itself."""
    if original is None:
        return ""
    source = printable(original.source)
    if original.verdict == "unknown":
        first, last = original.log_steps or (0, 0)
        return f"cannot be compared: {source} logs steps {first} to {last}, and no loss of the steps that were replayed"
    counted = f" ({original.compared} loss{'' if original.compared == 1 else 'es'} of {source}{_counting(original)})"
    if original.verdict == "apart":
        return f"does not follow the original run from step {original.leaves_since} on: {_losses(original)}{counted}"
    under = f"under a factor of {number(original.factor)}, " if original.origin else ""
    said = f"follows the original run {under}{_how(original)} through step {original.through}"
    if original.both_nonfinite is not None:
        said += f", with a loss that is not finite from step {original.both_nonfinite} on"
    if original.alone:
        said += f", step {listed(original.alone, limit=4)} apart"
    if original.verdict == "leaves":
        said += f", leaves it at {_steps(original)}: {_losses(original)}"
    return said + counted


def is_verdict(diagnosis: Diagnosis) -> bool:
    """Whether the verdict itself says that the replay is another run: one that finds nothing else."""
    return diagnosis.onset is None and diagnosis.original is not None and diagnosis.original.is_another


def warning(diagnosis: Diagnosis) -> str:
    """Return what follows for the diagnosis from a replay that is not the original run; '' where it is."""
    original, onset = diagnosis.original, diagnosis.onset
    if original is None or original.replayed is None or original.logged is None:
        return ""
    if math.isfinite(original.logged) and not math.isfinite(original.replayed):
        return f"the original run's loss was finite in {_steps(original)}: this fault may be the replay's own. {_CHECK}"
    if math.isfinite(original.replayed) and not math.isfinite(original.logged):
        return f"the original run's loss was not finite in {_steps(original)}, which the replay does not show. {_CHECK}"
    if is_verdict(diagnosis):
        return _CHECK
    if original.verdict == "apart":
        return f"what this replay shows may be of another run. {_CHECK}"
    if onset is not None and original.leaves is not None and original.leaves < onset.step:
        return f"the fault of step {onset.step} lies behind that: it may be of another run. {_CHECK}"
    return ""


_CHECK = (
    "What may differ: the order of the data (start_step, skip), the random state, the precision, train.accumulate, the "
    "learning rate, what the loop does between its steps"
)


def _how(original: OriginalRun) -> str:
    if original.bitwise:
        return "bit for bit"
    return "to the digits logged" if original.exact else f"within rounding, by {number(original.difference)} at most,"


def _losses(original: OriginalRun) -> str:
    times = f" (times {number(original.factor)})" if original.origin else ""
    return f"{_loss(original.replayed)} here{times}, {_loss(original.logged)} logged"


def _steps(original: OriginalRun) -> str:
    if original.leaves_since in (None, original.leaves):
        return f"step {original.leaves}"
    return f"steps {original.leaves_since} to {original.leaves}"


def _counting(original: OriginalRun) -> str:
    """Return how the log counts, where that is not as the replay does."""
    last = original.last_step
    told = f"whose step {last + original.offset} is step {last} here" if original.offset and last is not None else ""
    means = "means over steps" if original.mean else ""
    whose = f"held against {printable(original.whose)}" if original.whose else ""
    return "".join(f", {part}" for part in (means, told, whose, _factor(original)) if part)


#: what a factor of each origin comes from
_ORIGINS = {
    "sum": "train.accumulate, of a loop that does not divide a loss by it, or logs the sum",
    "share": "one by train.accumulate, of a loop that logs one micro-batch's share, or divides twice",
    "whole": "a sum over ranks, steps or micro-batches?",
    "part": "divided by the number of ranks, steps or micro-batches?",
    "constant": "another unit or weight of the loss?",
}


def _factor(original: OriginalRun) -> str:
    """Return how many times the replay's loss the log holds, and why that may be; '' where it holds the loss itself."""
    if not original.origin:
        return ""
    origin = "part" if original.origin == "whole" and original.factor < 1 else original.origin
    return f"each {_times(original.factor)} the loss here: {_ORIGINS[origin]}"


def _times(factor: float) -> str:
    inverse = round(1 / factor) if factor < 1 else 0
    is_part = inverse > 1 and math.isclose(factor * inverse, 1.0, rel_tol=1e-12)
    return f"1/{inverse} of" if is_part else f"{factor:.6g} times"


def _loss(value: float | None) -> str:
    """Return six significant digits: two losses that differ must not read as one."""
    return f"{value:.6g}" if value is not None and math.isfinite(value) else number(value)
