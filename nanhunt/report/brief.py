"""Headroom and precision advice in few lines, for a report whose answer is something else.

The two formats of 16 bits get a line each, with the tensor that comes nearest to an end; of those that do not fit, the few
that decide. Narrower formats are gathered by what is said of them. Of the advice there is what to set, without the
tensors that it comes from. All of it stands behind `--verbose`, and in `nanhunt formats --trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nanhunt.diagnosis.advice import Kept
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.format_verdict import FormatVerdict
from nanhunt.diagnosis.loss_scale import FLUSHED
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.report.advice import scale_in_brief
from nanhunt.report.headroom import FormatLine, format_lines, in_brief
from nanhunt.report.words import counted, percent

__all__ = ["brief_advice", "brief_formats"]


def brief_formats(diagnosis: Diagnosis) -> list[FormatLine]:
    """Return the lines: of each wide format, then of narrow ones by their answer. Only wide ones have tensors."""
    lines = {line.format: line for line in format_lines(diagnosis.verdicts, diagnosis.headroom)}
    wide = [v for v in diagnosis.verdicts if _is_wide(v.format)]
    narrow = [v for v in diagnosis.verdicts if not _is_wide(v.format)]
    return [replace(lines[v.format], text=in_brief(v, lines[v.format].level)) for v in wide] + _gathered(narrow, lines)


def _gathered(verdicts: Sequence[FormatVerdict], lines: dict[str, FormatLine]) -> list[FormatLine]:
    """Return a line for all formats of which the same is said; the first is labelled."""
    alike: dict[tuple[str, str], list[FormatLine]] = {}
    for verdict in verdicts:
        line = lines[verdict.format]
        alike.setdefault((line.mark, in_brief(verdict)), []).append(line)
    return [
        replace(same[0], format="" if index else "narrower", text=_said(same, text), tensors=())
        for index, ((_, text), same) in enumerate(alike.items())
    ]


def _said(lines: Sequence[FormatLine], text: str) -> str:
    """Return what is said of formats behind their names."""
    names = ", ".join(line.format for line in lines)
    if len(lines) > 1:
        text = (
            text.replace("does not fit", "do not fit", 1) if text.startswith("does") else text.replace("fits", "fit", 1)
        )
    return f"{names} {text}"


def _is_wide(name: str) -> bool:
    fmt = lookup(name)
    return isinstance(fmt, NumberFormat) and fmt.bits >= 16


def brief_advice(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Return (topic, sentence): the loss scale, and how much has to stay wide; [] where nothing is advised."""
    found = diagnosis.advice
    if found is None:
        return []
    lines = [("loss scale", scale_in_brief(found))] if found.loss_scale else []
    kept = "; ".join(map(_kept, found.kept))
    return [*lines, *([("keep wide", kept)] if kept else [])]


def _kept(kept: Kept) -> str:
    if kept.why == "moment":
        return f"{kept.count} of {counted(kept.of, 'moment')} lose over {percent(FLUSHED)} in {kept.format}"
    if kept.why == "decay":
        return f"second moments do not decay in {kept.format}"
    if kept.why.startswith("fp8"):
        alone = {"fp8-blocks": " with one scale a tensor", "fp8-tensor": " with one scale a tensor"}.get(kept.why, "")
        return f"{kept.count} of {counted(kept.of, 'tensor')} do not fit FP8{alone}"
    return f"{kept.count} of {counted(kept.of, 'weight')} need an fp32 copy beside {kept.format}"
