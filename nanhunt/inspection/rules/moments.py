"""Adam's moments: signs and pairs that no history of gradients leaves, and epsilons that their format has lost."""

from __future__ import annotations

from collections.abc import Iterator

from nanhunt.formats.catalogue import FP16
from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding, Severity
from nanhunt.inspection.state_facts import OptimizerFacts

__all__ = ["examine"]

#: Share of all elements below eps from which eps, not the gradients, sets the updates.
_RULED = 0.5
#: β2 from which a bf16 moment never decays: half an ulp is at least 2^-9 of a number.
_STUCK = 1.0 - 2.0**-9


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with moments, an optimizer at a time."""
    yield from _negative(facts)
    for optimizer in facts.optimizers:
        yield from _beyond(optimizer)
        yield from _ruled_by_eps(optimizer)
        yield from _lost_eps(facts, optimizer)
        yield from _stuck(facts, optimizer)


def _negative(facts: Facts) -> Iterator[Finding]:
    for t in facts.tensors:
        if t.negative:
            yield Finding(
                severity=Severity.FAULT,
                kind="negative-square",
                cause="poisoned-state",
                tensor=t.name,
                claim=f"{t.negative} of {t.numel} elements of {t.name} are below zero: a mean of squares never is",
                value=float(t.negative),
                threshold=0.0,
                fix="restore it from an earlier checkpoint; find what wrote it: a cast, a merge, a bad copy, a flipped sign",
                next="nanhunt inspect CKPT --reference EARLIER_CKPT",
            )


def _beyond(optimizer: OptimizerFacts) -> Iterator[Finding]:
    bad = sorted((h for h in optimizer.health if h.beyond), key=lambda h: -h.worst)
    if not bad:
        return
    total, zero = sum(h.beyond for h in bad), sum(min(h.v_zero, h.beyond) for h in bad)
    worst = bad[0]
    yield Finding(
        severity=Severity.FAULT,
        kind="collapsed-v",
        cause="adam-v-collapse",
        tensor=worst.parameter,
        claim=f"v is too small for m in {total} elements of {len(bad)} {'parameter' if len(bad) == 1 else 'parameters'}: "
        "their next update is up to "
        f"{worst.worst:.3g} times the learning rate",
        value=worst.worst,
        threshold=worst.ceiling,
        evidence=(
            f"whatever the gradients were, |m| stays below {worst.ceiling:.3g} √v with these betas",
            *(
                f"{h.parameter}: {h.beyond} of {h.numel} elements, |m| up to {h.worst:.3g} (√v + eps)"
                for h in bad[:3]
            ),
            *([f"v is exactly 0 in {zero} of them"] if zero else []),
        ),
        fix="restore v from an earlier checkpoint, or set m to 0 as well; keep v in fp32",
        next="nanhunt explain adam-v-collapse",
    )  # fmt: skip


def _ruled_by_eps(optimizer: OptimizerFacts) -> Iterator[Finding]:
    total = sum(h.numel for h in optimizer.health)
    below = sum(h.below_eps for h in optimizer.health)
    if total and below > _RULED * total:
        yield Finding(
            severity=Severity.NOTICE,
            kind="ruled-by-eps",
            tensor=max(optimizer.health, key=lambda h: h.below_eps / max(h.numel, 1)).parameter,
            claim=f"√v is below eps in {100 * below / total:.0f} % of all elements: eps sets the updates, not the gradients",
            value=below / total,
            threshold=_RULED,
            fix="a smaller eps, or a loss that is not divided by so much",
        )


def _lost_eps(facts: Facts, optimizer: OptimizerFacts) -> Iterator[Finding]:
    """Yield an eps that fp16 moments round to zero; a fused kernel computes in fp32 and keeps it."""
    halves = [t for t in facts.tensors if t.key == "exp_avg_sq" and t.dtype == "float16"]
    lost = [
        g for g in optimizer.groups if 0 < (g.number("eps") or 0) <= FP16.smallest / 2 and not g.settings.get("fused")
    ]
    if not halves or not lost:
        return
    zeros = sum(t.stats.zero for t in halves if t.stats is not None)
    yield Finding(
        severity=Severity.FAULT if zeros else Severity.NOTICE,
        kind="lost-eps",
        cause="epsilon-underflow",
        tensor=halves[0].name,
        claim=f"eps {lost[0].number('eps'):.3g} is 0 in float16, the format of {len(halves)} second moments"
        + (f", of which {zeros} elements are 0" if zeros else ""),
        value=lost[0].number("eps"),
        threshold=FP16.smallest / 2,
        evidence=("where v is 0 and eps is lost, an update divides by 0: NaN where m is 0 too",) if zeros else (),
        fix="keep the moments in fp32, or use an eps of 1e-7 at least, or the fused optimizer",
        next="nanhunt explain epsilon-underflow",
    )


def _stuck(facts: Facts, optimizer: OptimizerFacts) -> Iterator[Finding]:
    if not any(t.key == "exp_avg_sq" and t.dtype == "bfloat16" for t in facts.tensors):
        return
    for group in optimizer.groups:
        betas = group.settings.get("betas")
        beta2 = betas[1] if isinstance(betas, tuple) and len(betas) == 2 else None
        if isinstance(beta2, float) and _STUCK < beta2 < 1.0:
            yield Finding(
                severity=Severity.NOTICE,
                kind="stuck-v",
                cause="low-precision-accumulation",
                claim=f"second moments in bfloat16 cannot decay at β2 = {beta2}: what they lose in a step is below half an ulp",
                value=beta2,
                threshold=_STUCK,
                fix="keep v in fp32, or β2 at 0.99 or less",
                next="nanhunt explain low-precision-accumulation",
            )
            return
