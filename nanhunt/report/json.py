"""The report for scripts: one JSON document, complete, with every non-finite number as a string."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any, ClassVar

from nanhunt.diagnosis.cause import Diagnosis, HeadroomRow, Location, Suspect
from nanhunt.diagnosis.certificate import Certificate
from nanhunt.diagnosis.format_verdict import Deciding, FormatVerdict
from nanhunt.interventions import Prediction, Trial
from nanhunt.report.advice import advice_lines
from nanhunt.report.headroom import said
from nanhunt.report.options import Options
from nanhunt.report.original import follows, warning
from nanhunt.trace.schema import Onset

__all__ = ["REPORT_SCHEMA", "JsonRenderer", "document", "headroom_entry", "plain", "verdict_entry"]

#: Version of the document; keys are added without a new one, a key that changes or goes needs one.
#: 1 - first one.
REPORT_SCHEMA = 1

#: keys that `run` always has; null where the trace does not say
_RUN_KEYS = ("steps", "device", "checkpoint", "complete")


class JsonRenderer(Options):
    """The document of `document`, indented; ASCII, so that it survives any pipe."""

    __slots__ = ()
    name: ClassVar[str] = "json"
    suffix: ClassVar[str] = ".json"

    def render(self, diagnosis: Diagnosis) -> str:
        """Return the document as text; raises ValueError rather than write a number that JSON does not have."""
        return json.dumps(document(diagnosis), indent=2, allow_nan=False) + "\n"


def document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the report as JSON values; non-finite numbers are "NaN", "Infinity" and "-Infinity"."""
    body: dict[str, Any] = plain(
        {
            "schema": REPORT_SCHEMA,
            "outcome": diagnosis.outcome,
            "summary": diagnosis.summary,
            "onset": _onset(diagnosis.onset),
            "suspects": [_suspect(s, rank) for rank, s in enumerate(diagnosis.suspects, start=1)],
            "cleared": diagnosis.cleared,
            "untold": [{"cause": slug, "reason": reason} for slug, reason in diagnosis.untold],
            "headroom": [headroom_entry(row) for row in diagnosis.headroom],
            "verdicts": [verdict_entry(verdict) for verdict in diagnosis.verdicts],
            "advice": _advice(diagnosis),
            "precision": None if diagnosis.precision is None else asdict(diagnosis.precision),
            "assumptions": diagnosis.assumptions,
            "run": dict.fromkeys(_RUN_KEYS) | diagnosis.run,
            "original_run": _original(diagnosis),
            "trials": [trial.to_json() for trial in diagnosis.trials],
            "lineage": [
                {"op": op, "module": module, "source": source, "does": does}
                for op, module, source, does in diagnosis.lineage
            ],
            "damage": diagnosis.damage,
            "shards": [asdict(shards) | {"bad": shards.bad} for shards in diagnosis.shards],
            "certificate": _certificate(diagnosis.certificate),
            "positions": {str(sample): places for sample, places in diagnosis.positions},
            "no_samples": diagnosis.no_samples,
            "code": {
                "file": diagnosis.code_file,
                "lines": [{"line": line, "text": text, "onset": here} for line, text, here in diagnosis.code],
            },
            "ranks": [asdict(view) for view in diagnosis.ranks],
            "series": {name: {"steps": steps, "values": v} for name, (steps, v) in diagnosis.series.items()},
        }
    )
    return body


def _original(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return how the replay and the logged losses agree, and the sentences of it; null where none were logged."""
    if diagnosis.original is None:
        return None
    return asdict(diagnosis.original) | {"said": follows(diagnosis), "warning": warning(diagnosis) or None}


def _certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {
        "of": certificate.of,
        "verdict": certificate.verdict,
        "bad": certificate.bad,
        "numel": certificate.numel,
        "inputs": certificate.names,
        "elements": [element.to_json() for element in certificate.elements],
    }


def _onset(onset: Onset | None) -> dict[str, Any] | None:
    if onset is None:
        return None
    return {
        "kind": onset.kind,
        "step": onset.step,
        "micro": onset.micro,
        "rank": onset.rank,
        "phase": onset.phase,
        "module": onset.module,
        "op": onset.op,
        "source": onset.source,
        "samples": onset.samples,
        "lead_step": onset.lead_step,
        "name": onset.name,
        "detail": onset.detail,
    }


def _suspect(suspect: Suspect, rank: int) -> dict[str, Any]:
    return {
        "cause": suspect.cause,
        "rank": rank,
        "grade": suspect.grade,
        "summary": suspect.summary,
        "location": _location(suspect.location),
        "exhibits": [{"claim": e.claim, "value": e.value, "threshold": e.threshold} for e in suspect.exhibits],
        "trials": [_trial(trial, prediction) for trial, prediction in suspect.trials],
        "predictions": [{"trial": p.trial, "expect": p.expect} for p in suspect.predictions],
        "fixes": suspect.fixes,
        "depth": suspect.depth,
    }


def _location(location: Location) -> dict[str, Any]:
    return {
        "step": location.step,
        "phase": location.phase,
        "module": location.module,
        "parameter": location.parameter,
        "op": location.op,
        "source": location.source,
        "samples": location.samples,
    }


def _trial(trial: Trial, prediction: Prediction | None) -> dict[str, Any]:
    return {
        "name": trial.name,
        "outcome": trial.outcome,
        "predicted": prediction.expect if prediction else None,
        "detail": trial.detail,
        "readback": trial.readback,
    }


def headroom_entry(row: HeadroomRow) -> dict[str, Any]:
    """Return what one format would do to one tensor."""
    headroom = row.headroom
    return {
        "module": row.module,
        "role": row.role,
        "name": row.name,
        "format": headroom.format,
        "overflow_margin": headroom.overflow_margin,
        "underflow_margin": headroom.underflow_margin,
        "overflow_fraction": headroom.overflow_fraction,
        "subnormal_fraction": headroom.subnormal_fraction,
        "flushed_fraction": headroom.flushed_fraction,
        "flushed_energy": headroom.flushed_energy,
        "best_shift": headroom.best_shift,
        "best_scale": headroom.best_scale,
        "scaled": {
            per: {
                "subnormal_fraction": lost.subnormal_share,
                "flushed_fraction": lost.flushed_share,
                "flushed_energy": lost.energy_share,
            }
            for per, lost in row.scaled
        },
        "measured": row.measured,
        "sampled": row.sampled,
        "overflowed": row.overflowed is not None,
    }


def verdict_entry(verdict: FormatVerdict) -> dict[str, Any]:
    """Return whether the run fits one format, and what decides."""
    sides = {"forward": verdict.forward, "gradients": verdict.gradients}
    return {
        "format": verdict.format,
        "verdict": verdict.answer.words,
        "measured": verdict.measured,
        **{
            name: {"verdict": side.answer.words, "deciding": [_deciding(d) for d in side.deciding]}
            for name, side in sides.items()
        },
    }


def _deciding(told: Deciding) -> dict[str, Any]:
    return asdict(told) | {"answer": told.answer.words, "said": said(told)}


def _advice(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """Return the advice as numbers, and as the sentences that a page prints."""
    found = diagnosis.advice
    if found is None:
        return None
    scales = found.loss_scale
    body = asdict(found)
    if scales is not None:
        body["loss_scale"] |= {"works": scales.works, "recommended": scales.recommended}
    for loss, told in zip(body["gradients"], found.gradients, strict=True):
        loss["lost"] |= {"flushed_fraction": told.lost.flushed_share, "flushed_energy_share": told.lost.energy_share}
    return body | {"sentences": [{"topic": topic, "text": text} for topic, text in advice_lines(diagnosis)]}


def plain(value: Any) -> Any:
    """Return a value as JSON has it: spelt-out non-finite numbers, lists for tuples, text for what JSON has no type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _spelt(float(value))
    if isinstance(value, dict):
        return {_text(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return _text(value)


def _spelt(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(value: object) -> str:
    # half of a surrogate pair, as in a file name that is not UTF-8, is no text in JSON: parsers refuse it
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
