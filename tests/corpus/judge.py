"""Holds a report against a program's truth."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from tests.corpus.program import Program, Truth

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was right; None where the truth leaves it open, or where nothing was detected to judge it by."""

    program: str
    cause: str
    family: str
    detected: bool
    top1: bool
    top3: bool
    step: bool | None
    phase: bool | None
    module: bool | None
    op: bool | None
    line: bool | None
    samples: bool | None
    #: grade of each suspect that is proved or confirmed, and whether its cause is accepted
    graded: tuple[tuple[str, str, bool], ...]
    #: first suspect, as "cause (grade)"; the outcome where there is none
    said: str
    #: whether the true cause was called innocent
    cleared: bool
    error: str = ""

    @property
    def location(self) -> bool | None:
        """Whether step, module, op and line are all right, as far as they are judged."""
        judged = [x for x in (self.step, self.module, self.op, self.line) if x is not None]
        return all(judged) if judged else None

    @property
    def misses(self) -> tuple[str, ...]:
        """What was wrong, by name."""
        names = ("detected", "top1", "step", "phase", "module", "op", "line", "samples")
        return tuple(n for n in names if getattr(self, n) is False)


def judge(program: Program, report: dict[str, Any], error: str = "") -> Verdict:
    """Return the verdict on the report of a faulty program."""
    truth = program.truth
    onset: dict[str, Any] = report.get("onset") or {}
    suspects = [s for s in report.get("suspects", ()) if s["grade"] != "refuted"]
    first = suspects[0] if suspects else None
    places = [onset, *([first["location"]] if first else [])] if onset else []
    named = [s["cause"] for s in suspects]
    return Verdict(
        program=program.name,
        cause=truth.causes[0],
        family=truth.family,
        detected=bool(onset),
        top1=bool(named) and named[0] in truth.causes,
        top3=any(c in truth.causes for c in named[:3]),
        step=_any(truth.step, places, lambda p: _in_range(p.get("step"), truth.step)),
        phase=_any(truth.phase, places, lambda p: p.get("phase") in truth.phase),
        module=_any(truth.module or truth.parameter, places, lambda p: _at(p, truth)),
        op=_any(truth.op, places, lambda p: (p.get("op") or "").startswith(truth.op)),
        line=_any(truth.line, places, lambda p: _line(p.get("source")) in program.lines()),
        samples=_samples(truth, onset, first),
        graded=tuple(
            (s["grade"], s["cause"], s["cause"] in (*truth.causes, *truth.also))
            for s in suspects
            if s["grade"] in ("proved", "confirmed")
        ),
        said=f"{first['cause']} ({first['grade']})" if first else report.get("outcome", "no report"),
        cleared=truth.causes[0] in report.get("cleared", ()),
        error=error,
    )


def _any(stated: Any, places: list[dict[str, Any]], right: Any) -> bool | None:
    if stated is None or stated == ():
        return None
    return any(right(place) for place in places)


def _in_range(step: Any, truth: Any) -> bool:
    if step is None:
        return False
    first, last = truth if isinstance(truth, tuple) else (truth, truth)
    return bool(first <= step <= last)


def _at(place: dict[str, Any], truth: Truth) -> bool:
    module, parameter = place.get("module") or "", place.get("parameter") or place.get("name") or ""
    if any(fnmatch(module, glob) for glob in truth.module):
        return True
    whole = parameter if parameter.startswith(module) else f"{module}.{parameter}"
    return any(fnmatch(whole, glob) for glob in truth.parameter)


def _line(source: str | None) -> int:
    file, _, line = (source or "").rpartition(":")
    return int(line) if file.endswith("train.py") and line.isdigit() else 0


def _samples(truth: Truth, onset: dict[str, Any], first: dict[str, Any] | None) -> bool | None:
    if truth.samples is None:
        return None
    found = (first["location"]["samples"] if first else None) or onset.get("samples") or []
    return bool(onset) and sorted(found) == sorted(truth.samples)
