"""Judge the facts: every rule in turn, faults before notices, and the origin of the poison where there is one."""

from __future__ import annotations

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Inspection, Severity
from nanhunt.inspection.origin import origin_of
from nanhunt.inspection.rules import RULES

__all__ = ["judge"]


def judge(facts: Facts) -> Inspection:
    """Return what the rules make of the facts; findings keep the rules' order among their like."""
    found = [finding for rule in RULES for finding in rule(facts)]
    known = {(f.kind, f.tensor) for f in found if f.severity is Severity.FAULT}
    told = [f for f in found if f.severity is Severity.FAULT or (f.kind, f.tensor) not in known]
    return Inspection(
        facts=facts,
        findings=tuple(sorted(told, key=lambda f: f.severity is not Severity.FAULT)),
        origin=origin_of(facts),
    )
