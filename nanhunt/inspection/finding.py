"""Finding: one thing that a rule has to say; Inspection: all of them, with the facts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nanhunt.inspection.facts import Facts

__all__ = ["Finding", "Inspection", "Origin", "Severity"]


class Severity(StrEnum):
    """A fault is what no sound training leaves behind; a notice is rare, and can be meant."""

    FAULT = "fault"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, where, by which number, and what to do."""

    severity: Severity
    #: stable name of the rule: "flipped-bit"
    kind: str
    claim: str
    #: slug of the cause that `nanhunt explain` has a page of; '' where none fits
    cause: str = ""
    tensor: str = ""
    value: float | None = None
    threshold: float | None = None
    evidence: tuple[str, ...] = ()
    #: what mends it
    fix: str = ""
    #: a command that looks further
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How the poison got in, by its pattern; each reason is a count from the file."""

    claim: str
    cause: str
    reasons: tuple[str, ...]
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The facts and what the rules made of them, faults first."""

    facts: Facts
    findings: tuple[Finding, ...]
    origin: Origin | None = None

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are faults."""
        return tuple(f for f in self.findings if f.severity is Severity.FAULT)

    @property
    def outcome(self) -> str:
        """`fault` or `healthy`."""
        return "fault" if self.faults else "healthy"
