"""An optimizer's groups: settings that cannot be, counters that differ, moments that belong to nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nanhunt.inspection.facts import Facts, Role
from nanhunt.inspection.finding import Finding, Severity
from nanhunt.inspection.state_facts import GroupFacts, OptimizerFacts

__all__ = ["examine"]

#: Counts up to which 1 can be added in a counter's format.
_LAST_COUNT = {"bfloat16": 256.0, "float16": 2048.0}
#: A counter this far from the checkpoint's own step, as a factor and in steps, counts something else, or was reset.
_FACTOR, _STEPS = 2.0, 10
_CAUSE, _NEXT = "optimizer-state", "nanhunt explain optimizer-state"


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with the groups of each optimizer."""
    for optimizer in facts.optimizers:
        for group in optimizer.groups:
            yield from _impossible(optimizer, group)
            yield from _counters(optimizer, group)
        yield from _against_checkpoint(facts, optimizer)
        yield from _unowned(facts, optimizer)


def _finding(severity: Severity, kind: str, claim: str, *, value: float | None = None, threshold: float | None = None,
             evidence: tuple[str, ...] = (), fix: str = "", cause: str = _CAUSE) -> Finding:  # fmt: skip
    return Finding(severity=severity, kind=kind, cause=cause, claim=claim, value=value, threshold=threshold,
                   evidence=evidence, fix=fix, next=f"nanhunt explain {cause}")  # fmt: skip


def _impossible(optimizer: OptimizerFacts, group: GroupFacts) -> Iterator[Finding]:
    where = f"group {group.index} of the {optimizer.label}"
    for key in ("lr", "eps", "weight_decay", "momentum"):
        value = group.number(key)
        if value is not None and not (math.isfinite(value) and value >= 0.0):
            yield _finding(Severity.FAULT, "impossible-setting", f"{key} of {where} is {value}", value=value,
                           threshold=0.0, fix="find what computed it: a schedule that divides by 0 steps, say")  # fmt: skip
    betas = group.settings.get("betas")
    if isinstance(betas, tuple) and not all(isinstance(b, (int, float)) and 0.0 <= b < 1.0 for b in betas):
        yield _finding(Severity.FAULT, "impossible-setting", f"betas of {where} are {betas}", threshold=1.0,
                       fix="betas lie in [0, 1)")  # fmt: skip


def _counters(optimizer: OptimizerFacts, group: GroupFacts) -> Iterator[Finding]:
    where = f"group {group.index} of the {optimizer.label}"
    if len(group.steps) > 1:
        told = ", ".join(f"step {step:.0f} in {count}" for step, count in group.steps[:4])
        spread = max(s for s, _ in group.steps) - min(s for s, _ in group.steps)
        yield _finding(Severity.NOTICE, "counters-differ", f"the step counters of {where} differ by {spread:.0f}", value=spread,
                       threshold=0.0, evidence=(f"{told} of {group.with_state} parameters",),
                       fix="meant where parameters joined late or had no gradient; else a state was mixed")  # fmt: skip
    for step, _ in group.steps[:1]:
        if not math.isfinite(step) or step < 0:
            yield _finding(
                Severity.FAULT,
                "impossible-setting",
                f"the step counter of {where} is {step}",
                value=step,
                threshold=0.0,
            )
        last = _LAST_COUNT.get(group.step_dtype, math.inf)
        if last <= step:
            yield _finding(Severity.FAULT, "stopped-counter", f"the step counter of {where} is {group.step_dtype} and stands at "
                           f"{step:.0f}, where adding 1 changes nothing", value=step, threshold=last,
                           cause="low-precision-accumulation", fix="keep the counter in fp32: bias correction is frozen")  # fmt: skip


def _against_checkpoint(facts: Facts, optimizer: OptimizerFacts) -> Iterator[Finding]:
    ours, theirs = optimizer.step, facts.step
    if not ours or not theirs or abs(ours - theirs) <= _STEPS:
        return
    if not 1 / _FACTOR <= ours / theirs <= _FACTOR:
        yield _finding(Severity.NOTICE, "counter-apart", f"the {optimizer.label} counted {ours:.0f} steps, the checkpoint {theirs}",
                       value=ours, threshold=float(theirs),
                       fix="meant where one of them counts micro-batches or epochs; else the state was reset on a resume")  # fmt: skip


def _unowned(facts: Facts, optimizer: OptimizerFacts) -> Iterator[Finding]:
    with_state = sum(g.with_state for g in optimizer.groups)
    if optimizer.orphans:
        yield _finding(Severity.FAULT, "orphaned-moments", f"{optimizer.orphans} entries of the {optimizer.label}'s state belong to no "
                       "parameter of its groups", value=float(optimizer.orphans), threshold=0.0,
                       fix="the state and the groups come from two runs: save optimizer.state_dict() whole")  # fmt: skip
    has_more = sum(g.parameters for g in optimizer.groups) > len(facts.of_role(Role.WEIGHT))
    if optimizer.foreign_shapes and has_more:  # a loss with weights of its own, say
        yield _finding(Severity.NOTICE, "absent-weights", f"the {optimizer.label} trains parameters that the file does not hold",
                       value=float(len(optimizer.foreign_shapes)), threshold=0.0,
                       evidence=(", ".join(str(list(s)) for s in optimizer.foreign_shapes[:4]),),
                       fix="save them as well: a resume draws them anew")  # fmt: skip
    elif optimizer.foreign_shapes:
        shown = ", ".join(str(list(s)) for s in optimizer.foreign_shapes[:4])
        yield _finding(Severity.FAULT, "foreign-moments", f"{len(optimizer.foreign_shapes)} moments of the {optimizer.label} have a shape "
                       "that no tensor of the model has", value=float(len(optimizer.foreign_shapes)), threshold=0.0,
                       evidence=(shown,), fix="load the optimizer state of the run that this model comes from")  # fmt: skip
    if optimizer.is_adam and not with_state and (facts.step or 0) > 0 and facts.of_role(Role.WEIGHT):
        # a discriminator may begin late: where another optimizer has moments, they were not lost in saving
        others = any(g.with_state for o in facts.optimizers for g in o.groups)
        yield _finding(Severity.NOTICE if others else Severity.FAULT, "missing-moments", f"the {optimizer.label} has no moments at step {facts.step}: a resume starts "
                       "them from zero", value=0.0, threshold=float(sum(g.parameters for g in optimizer.groups)),
                       fix="save optimizer.state_dict() after a step, from the optimizer that trains")  # fmt: skip
