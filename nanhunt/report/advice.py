"""Precision advice in sentences: each with its number and the tensors that it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from nanhunt.diagnosis.advice import Advice, GradientLoss, Kept
from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.format_verdict import Answer, FormatVerdict, Side
from nanhunt.diagnosis.loss_scale import FLUSHED, LossScales, ScaleEnd
from nanhunt.report.headroom import looked, said, shares
from nanhunt.report.words import counted, number, percent, place

__all__ = ["advice_lines", "scale_in_brief"]


def advice_lines(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Return (topic, sentence) of all that is advised; [] where the trace holds no tensor."""
    found = diagnosis.advice
    if found is None:
        return []
    verdicts = {v.format: v for v in diagnosis.verdicts}
    lines = [("loss scale", _loss_scale(found))] if found.loss_scale else []
    lines += [(name, _suits(name, verdicts[name])) for name in ("fp16", "bf16") if name in verdicts]
    lines += [("fp8", text) for text in _fp8(verdicts)]
    lines += [("backward", text) for text in _backward(found, verdicts)]
    lines += [("keep wide", _kept(kept)) for kept in found.kept]
    return [*lines, *(("not told", text) for text in found.missing)]


# --- the loss scale --------------------------------------------------------------------------------------------------


def _loss_scale(found: Advice) -> str:
    scales = found.loss_scale
    assert scales is not None
    low, high = _end(scales.low), _end(scales.high)
    if scales.recommended is None:
        text = (
            f"no one scale works in fp16: {low} needs 2^{scales.low.shift} or more, {high} takes "
            f"2^{scales.high.shift} or less"
        )
    else:
        scale = f"2^{int(math.log2(scales.recommended))} ({number(scales.recommended)}) for fp16"
        text = (
            f"{'none is needed for fp16' if scales.holds(1.0) else scale}; 2^{scales.low.shift} to "
            f"2^{scales.high.shift} work: with less, over {percent(FLUSHED)} of {low} becomes zero; with more, "
            f"{high} overflows, whose largest is {number(scales.high.magnitude)}"
        )
    return text + _used(scales, found.used) + (
        "; what fp16 had flushed before is not in these numbers" if found.in_fp16 else ""
    )  # fmt: skip


def scale_in_brief(found: Advice) -> str:
    """Return the loss scale to set, those that work, and the run's own; `found` has some."""
    scales = found.loss_scale
    assert scales is not None
    if scales.recommended is None:
        return f"no one scale works in fp16{_used(scales, found.used)}"
    best = f"2^{int(math.log2(scales.recommended))} ({number(scales.recommended)}) for fp16"
    text = "none is needed for fp16" if scales.holds(1.0) else best
    return f"{text}; 2^{scales.low.shift} to 2^{scales.high.shift} work{_used(scales, found.used)}"


def _used(scales: LossScales, used: tuple[float, float] | None) -> str:
    """Return how the run's own loss scale compares."""
    if used is None:
        return "; this run used none"
    least, most = used
    span = number(least) if least == most else f"{number(least)} to {number(most)}"
    if not scales.works:
        return f"; this run used {span}"
    if scales.holds(least) and scales.holds(most):
        return f"; this run used {span}, within the range"
    low = "too small" if least < math.ldexp(1.0, scales.low.shift) else ""
    high = "too large" if most > math.ldexp(1.0, scales.high.shift) else ""
    return f"; this run used {span}, {' and '.join(part for part in (low, high) if part)}"


def _end(end: ScaleEnd) -> str:
    return f"{place(end.module, end.name)} ({end.role})"


# --- formats ---------------------------------------------------------------------------------------------------------


def _suits(name: str, verdict: FormatVerdict) -> str:
    """Return whether fp16 or bf16 suits the run, and the tensor that says so."""
    if verdict.answer is Answer.UNTOLD:
        return "cannot be told: no output and no gradient is in the trace"
    side = verdict.forward if verdict.forward.answer >= verdict.gradients.answer else verdict.gradients
    if verdict.answer is Answer.NOT:
        return f"does not suit this run: {_named(side)}"
    # what holds forward is the margin; a loss scale is told above
    if verdict.gradients.answer is Answer.UNTOLD:
        return f"suits the forward pass; the tightest is {_named(side)}"
    if verdict.answer is Answer.SCALED:
        ends = " to ".join(f"2^{int(d.number)}" for d in verdict.gradients.deciding if d.what.endswith("loss scale"))
        forward = f"; forward the tightest is {_named(verdict.forward)}" if verdict.forward.deciding else ""
        return f"suits with a loss scale{ends and ' of '}{ends}{forward}"
    return f"suits without a loss scale; the tightest is {_named(side)}"


def _fp8(verdicts: dict[str, FormatVerdict]) -> Iterator[str]:
    """Yield whether FP8 suits: E4M3 forward, E5M2 backward."""
    e4m3, e5m2 = verdicts.get("e4m3fn"), verdicts.get("e5m2")
    if e4m3 is None or e5m2 is None:
        return
    sides = [("E4M3 forward", e4m3.forward), ("E5M2 backward", e5m2.gradients)]
    told = [(name, side) for name, side in sides if side.answer is not Answer.UNTOLD]
    if not told:
        return
    worst = max(side.answer for _, side in told)
    suits = {
        Answer.SCALED: "suits with a scale per tensor",
        Answer.SCALED_PER_BLOCK: "suits with a scale per block only",
    }
    parts = [f"{name} loses {_most(side)}" for name, side in told]
    known = "" if len(told) == len(sides) else ", as far as can be told"
    if worst in suits:
        text = suits[worst]
    else:
        failed = [side for _, side in told if side.answer is Answer.NOT]
        text = f"does not suit every tensor{_not_even(*failed)}"
        known += _instead(name for name, other in verdicts.items() if _fits(name, other, other.answer))
    blocks = looked(e4m3, "; blocks ") if worst > Answer.SCALED else ""
    yield f"{text}{known}: {'; '.join(parts)}{blocks}"


def _not_even(*sides: Side) -> str:
    """Return how far a misfit in FP8 was looked into."""
    per = {d.per for side in sides for d in side.deciding if d.answer is Answer.NOT}
    return (
        ", not even with a scale per block" if "block" in per else " with a scale per tensor" if "tensor" in per else ""
    )


def _fits(name: str, verdict: FormatVerdict, answer: Answer) -> bool:
    """Whether a format other than FP8's two is known to fit, with a loss scale maybe."""
    return name not in ("e4m3fn", "e5m2") and verdict.measured and answer in (Answer.FITS, Answer.SCALED)


def _instead(names: Iterable[str]) -> str:
    """Return what fits where FP8 does not, the narrowest last."""
    listed = ", ".join(names)
    return f" ({listed} fit)" if "," in listed else f" ({listed} fits)" if listed else " (no other format is known to)"


def _most(side: Side) -> str:
    return f"most in {_named(side)}" if side.deciding and side.deciding[0].number else "nothing to zero"


def _named(side: Side) -> str:
    """Return the tensor that decides a side, with its number."""
    if not side.deciding:
        return side.answer.words
    first = side.deciding[0]
    if side.answer is Answer.NOT and first.what == "least loss scale":
        # each of both alone could be helped
        return "no one loss scale works: " + ", ".join(
            f"{place(d.module, d.name)} ({d.role}) {said(d)}" for d in side.deciding
        )
    per = f" with a scale per {first.per}" if first.per in ("tensor", "block") and side.answer > Answer.SCALED else ""
    return f"{place(first.module, first.name)} ({first.role}): {said(first)}{per}"


def _backward(found: Advice, verdicts: dict[str, FormatVerdict]) -> Iterator[str]:
    """Yield E4M3 against E5M2 for the gradients of outputs."""
    by_format: dict[str, list[GradientLoss]] = {}
    for loss in found.gradients:
        by_format.setdefault(loss.format, []).append(loss)
    e4m3, e5m2 = verdicts.get("e4m3fn"), verdicts.get("e5m2")
    if not by_format or e4m3 is None:
        return
    parts = [f"{name.removesuffix('fn').upper()} {_flushes(losses)}" for name, losses in by_format.items()]
    blocks = looked(e4m3, "; blocks ") if any(loss.per == "block" for loss in found.gradients) else ""
    yield f"{_choice(e4m3, e5m2, verdicts)}. Of all output gradients {'; '.join(parts)}{blocks}"


def _choice(e4m3: FormatVerdict, e5m2: FormatVerdict | None, verdicts: dict[str, FormatVerdict]) -> str:
    """Return which FP8 format output gradients fit, by the verdicts on both, and on E4M3 forward."""
    four, forward = e4m3.gradients.answer, e4m3.forward.answer
    five = e5m2.gradients.answer if e5m2 is not None else Answer.UNTOLD
    if four is Answer.SCALED:
        if forward is Answer.SCALED:
            return "E4M3 for both passes: half the rounding, and no tensor loses more than is allowed"
        but = {
            Answer.SCALED_PER_BLOCK: "forward it fits with a scale per block only",
            Answer.NOT: f"forward it does not fit{_not_even(e4m3.forward)}",
        }.get(forward, "how it fits forward cannot be told")
        return f"E4M3: half the rounding, and no gradient loses more than is allowed; {but}"
    if four is Answer.SCALED_PER_BLOCK:
        blocks = "E4M3 with a scale per block" + (
            " for both passes" if forward in (Answer.SCALED, Answer.SCALED_PER_BLOCK) else ""
        )
        return f"E5M2 with a scale per tensor, or {blocks}" if five is Answer.SCALED else blocks
    misfit = f"in E4M3 some gradients do not fit{_not_even(e4m3.gradients)}"
    if five is Answer.SCALED:
        return f"E5M2: {misfit}"
    if five is Answer.SCALED_PER_BLOCK:
        return f"E5M2 with a scale per block: {misfit}"
    if e5m2 is None or five is Answer.UNTOLD:
        return f"{misfit}; whether they fit E5M2 cannot be told"
    others = (name for name, other in verdicts.items() if _fits(name, other, other.gradients.answer))
    return f"neither E4M3 nor E5M2 fits every gradient{_not_even(e5m2.gradients)}{_instead(others)}"


def _flushes(losses: list[GradientLoss]) -> str:
    """Return what one format flushes, under each kind of scale, and how it rounds."""
    rounds = f"rounds by up to 2^{int(math.log2(losses[0].rounding))}"
    if not any(one.lost.flushed for one in losses):
        return f"flushes nothing and {rounds}"
    shares = [
        f"{percent(one.lost.flushed_share)} ({percent(one.lost.energy_share)} of energy) with a scale per {one.per}"
        if one.lost.flushed
        else f"nothing with one per {one.per}"
        for one in losses
    ]
    worst = max(losses, key=lambda one: one.worst)
    most = f"most in {place(worst.module, worst.name)}, {percent(worst.worst)} per {worst.per}"
    return f"flushes {', '.join(shares)} ({most}), and {rounds}"


# --- what stays wide -------------------------------------------------------------------------------------------------


def _kept(kept: Kept) -> str:
    """Return what stays in a wider format, and why."""
    of = f"{kept.count} of {counted(kept.of, 'tensor')}"
    named = _listed(kept)
    if kept.why == "fp8":
        blocks = any(tensor.of_elements is not None for tensor in kept.tensors)
        return f"{of} do not fit FP8{', not even with a scale per block' if blocks else ''}: {named}"
    if kept.why == "fp8-tensor":
        return f"{of} do not fit FP8 with a scale per tensor; blocks were not looked at: {named}"
    if kept.why == "fp8-blocks":
        return f"{of} fit FP8 with a scale per block only: {named}"
    if kept.why == "moment":
        return f"{kept.count} of {counted(kept.of, 'moment')} lose over {percent(FLUSHED)} to zero in {kept.format}: {named}"
    if kept.why == "decay":
        return (
            f"second moments cannot decay in {kept.format} unless they are rounded by lot: 1 - beta2 = "
            f"{number(kept.number)} is below half an ulp, 2^-9 to 2^-8"
        )
    return (
        f"{kept.count} of {counted(kept.of, 'weight')} need an fp32 master copy where they are held in {kept.format}: a typical update is "
        f"below half an ulp of the weight: {named}"
    )


def _listed(kept: Kept) -> str:
    texts = []
    for tensor in kept.tensors:
        if tensor.of_elements is not None and tensor.of_energy is not None:
            share = shares(tensor.of_elements, tensor.of_energy)
        else:
            share = f"{number(tensor.number)} of it" if kept.why == "update" else percent(tensor.number)
        role = "" if kept.why == "update" else f"{tensor.role}, "
        texts.append(f"{place(tensor.module, tensor.name)} ({role}{share})")
    return ", ".join(texts) + (" …" if kept.count > len(kept.tensors) else "")
