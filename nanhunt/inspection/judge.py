"""Judge the facts: every rule in turn, faults before notices, and the origin of the poison where there is one."""

from __future__ import annotations

import shlex
from dataclasses import replace

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding, Inspection, Severity
from nanhunt.inspection.origin import origin_of
from nanhunt.inspection.rules import RULES

__all__ = ["judge"]


def judge(facts: Facts) -> Inspection:
    """Return what the rules make of the facts; findings keep the rules' order among their like."""
    found = [_addressed(finding, facts) for rule in RULES for finding in rule(facts)]
    known = {(f.kind, f.tensor) for f in found if f.severity is Severity.FAULT}
    told = [f for f in found if f.severity is Severity.FAULT or (f.kind, f.tensor) not in known]
    return Inspection(
        facts=facts,
        findings=tuple(sorted(told, key=lambda f: f.severity is not Severity.FAULT)),
        origin=origin_of(facts),
    )


def _addressed(finding: Finding, facts: Facts) -> Finding:
    """Put paths that are known into the command that a rule names; what a reference would tell is told where it is there."""
    command, reference = finding.next, facts.reference
    if reference is not None:
        earlier = shlex.quote(reference.path)
        if "--reference" in command:
            command = f"nanhunt replay {earlier}" if reference.is_finite else ""
        if reference.is_finite:
            command = command.replace("EARLIER_CKPT", earlier)
    return replace(finding, next=command.replace("inspect CKPT", f"inspect {shlex.quote(facts.path)}"))
