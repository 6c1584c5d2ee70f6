"""Judge the facts: every rule in turn, faults before notices, and the origin of the poison where there is one."""

from __future__ import annotations

from dataclasses import replace

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding, Inspection, Severity
from nanhunt.inspection.origin import origin_of
from nanhunt.inspection.rules import RULES

__all__ = ["judge"]


def judge(facts: Facts) -> Inspection:
    """Return what the rules make of the facts; findings keep the rules' order among their like."""
    found = [_addressed(finding, facts.path) for rule in RULES for finding in rule(facts)]
    known = {(f.kind, f.tensor) for f in found if f.severity is Severity.FAULT}
    told = [f for f in found if f.severity is Severity.FAULT or (f.kind, f.tensor) not in known]
    return Inspection(
        facts=facts,
        findings=tuple(sorted(told, key=lambda f: f.severity is not Severity.FAULT)),
        origin=origin_of(facts),
    )


def _addressed(finding: Finding, path: str) -> Finding:
    """Put the checkpoint's own path into the command that a rule names."""
    return replace(finding, next=finding.next.replace("inspect CKPT", f"inspect {path}"))
