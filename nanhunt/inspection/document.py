"""The inspection for scripts: one JSON document, complete, non-finite numbers as strings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, ClassVar

from nanhunt.formats.headroom import Headroom
from nanhunt.inspection.facts import Average, Reference, TensorFacts
from nanhunt.inspection.finding import Finding, Inspection
from nanhunt.inspection.reading import census, margins, summary
from nanhunt.inspection.state_facts import OptimizerFacts
from nanhunt.report.json import plain
from nanhunt.report.options import Options

__all__ = ["INSPECTION_SCHEMA", "InspectionJson", "document"]

#: Version of the document; keys are added without a new one, a key that changes or goes needs one.
#: 1 - first one.
INSPECTION_SCHEMA = 1


class InspectionJson(Options):
    """The document of `document`, indented; ASCII, so that it survives any pipe."""

    __slots__ = ()
    name: ClassVar[str] = "json"
    suffix: ClassVar[str] = ".json"

    def render(self, inspection: Inspection) -> str:
        """Return the document as text."""
        return json.dumps(document(inspection), indent=2, allow_nan=False) + "\n"


def document(inspection: Inspection) -> dict[str, Any]:
    """Return the inspection as JSON values; non-finite numbers are "NaN", "Infinity" and "-Infinity"."""
    facts = inspection.facts
    body: dict[str, Any] = plain(
        {
            "schema": INSPECTION_SCHEMA,
            "outcome": inspection.outcome,
            "summary": summary(inspection),
            "checkpoint": {
                "path": facts.path, "container": facts.container, "step": facts.step, "epoch": facts.epoch,
                "bytes": facts.bytes,
            },
            "origin": None if inspection.origin is None else asdict(inspection.origin),
            "findings": [_finding(f) for f in inspection.findings],
            "census": [asdict(row) for row in census(facts)],
            "averages": [_average(a) for a in facts.averages],
            "optimizers": [_optimizer(o) for o in facts.optimizers],
            "scaler": None if facts.scaler is None else asdict(facts.scaler),
            "schedulers": [asdict(s) for s in facts.schedulers],
            "tensors": [_tensor(t) for t in facts.tensors],
            "duplicates": [asdict(t) for t in facts.twins],
            "reference": None if facts.reference is None else _reference(facts.reference),
            "log": [{"step": s, "loss": loss, "grad_norm": norm} for s, loss, norm in facts.log.last],
            "notes": facts.notes,
        }
    )  # fmt: skip
    return body


def _finding(finding: Finding) -> dict[str, Any]:
    body = asdict(finding)
    return {key: body[key] or None if key in ("cause", "tensor") else body[key] for key in body}


def _optimizer(optimizer: OptimizerFacts) -> dict[str, Any]:
    body = asdict(optimizer)
    body["groups"] = [g | {"steps": [{"step": s, "parameters": n} for s, n in g["steps"]]} for g in body["groups"]]
    return body


def _average(average: Average) -> dict[str, Any]:
    return asdict(average) | {"furthest": {"name": average.furthest[0], "apart": average.furthest[1]}}


def _tensor(t: TensorFacts) -> dict[str, Any]:
    own, half = margins(t)
    s = t.stats
    body: dict[str, Any] = {
        "name": t.name,
        "role": t.role,
        "dtype": t.dtype,
        "shape": t.shape,
        "numel": t.numel,
        "bytes": t.bytes,
        "average_of": t.average_of or None,
        "tied_to": t.tied_to or None,
        "copy_of": t.copy_of or None,
        "constant": t.constant,
        "zero_rows": t.zero_rows,
        "runs": [asdict(run) for run in t.runs],
        "flips": [asdict(flip) for flip in t.flips],
        "first_nonfinite": t.bad_at,
        "nonfinite_rows": t.bad_rows,
        "is_mask": t.is_mask,
        "headroom": [_headroom(h) for h in {h.format: h for h in (own, half) if h}.values()],
    }
    if s is not None:
        body |= {
            key: getattr(s, key)
            for key in ("nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin", "rms", "mean", "std")
        }
    return body


def _headroom(h: Headroom) -> dict[str, Any]:
    return {key: getattr(h, key) for key in ("format", "overflow_margin", "underflow_margin", "flushed_fraction")}


def _reference(reference: Reference) -> dict[str, Any]:
    body = asdict(reference)
    body["retyped"] = [{"name": n, "before": a, "after": b} for n, a, b in reference.retyped]
    return body
