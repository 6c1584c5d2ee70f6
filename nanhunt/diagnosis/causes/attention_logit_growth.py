"""Attention scores grow from step to step until the softmax saturates, or the format ends.

What it looks like
------------------
Queries and keys of one layer grow over hundreds of steps; the largest score passes 100, then 1 000. The head attends to
one key each, the loss spikes; in fp16 the product of queries and keys becomes inf.

Why training breaks
-------------------
A saturated softmax has no gradient except where it is wrong, and there a large one. Nothing in the loss bounds q·k:
rate and weight norm feed each other. In one study every run whose largest score passed 1e4 diverged. fp16 ends at 65504.

Evidence
--------
Scores are heard on every recorded step: exactly where the softmax is the user's own, as max|q| · max|k| · scale where
the attention is fused, which no score passes; on a step that is looked at, fused ones are computed too. What counts is
their rise before the first sign of the fault, doubled and steady, to 100 or more; beside it the entropy of the rows,
which falls. Of an overflow: the score that broke, recomputed in fp64, 1 000 or more. With queries and keys normalised
it cannot pass sqrt(d).

Fix
---
Normalise queries and keys (QK-norm), cap the scores, or rescale the head's W_q and W_k by sqrt(100/score) (QK-clip). A
lower rate slows it. fp32 scores or pre-scaling q and k by d^-1/4 each only put the overflow off.

How it is confirmed
-------------------
A replay from an earlier checkpoint with capped scores stays healthy. fp32 cures the overflow, and not the growth.

When it is mistaken
-------------------
For activation-overflow, the proximate fault where a product overflows: both are named. For bad-sample, where one input
makes the scores and nothing grew before. Attention sinks are normal: it is the growth that tells.

References
----------
Wortsman et al. 2023 (arXiv 2309.14322); Dehghani et al. 2023 (arXiv 2302.05442, QK-norm); Kimi K2 (QK-clip at 100);
NVlabs/PixelDiT#14, imagen-pytorch#69, stanford mistral#67.
"""

from __future__ import annotations

import math

from nanhunt.diagnosis.births import constant_of
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import rate_jump
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, in_words, place_of
from nanhunt.diagnosis.scores import Attention, attentions, is_rising
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind

__all__ = ["CAUSE"]

#: A fix that is tried; it helps against other causes as well, so that it neither confirms nor refutes.
_TRIED = (Prediction(trial="scores-capped", expect="cured", refutes=False, confirms=False),)

#: A score of this size saturates any softmax: its neighbours have weights of exp(-1000) = 0.
_STRONG = 1000.0
#: Scores from which a softmax that is steadily fed larger ones is on its way there (QK-clip caps at 100).
_LARGE = 100.0
#: Behind every step.
_END = 1 << 62
#: Scores that leave a row to one key: its neighbours have weights of exp(-30) = 1e-13.
_SHARP = 30.0
#: Growth of the scores, or of what makes them, over the recorded steps that is a trend.
_GROWN = 2.0
_PRODUCTS = ("bmm", "baddbmm", "mm", "mul", "div", "matmul", "einsum")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for the size of the scores where an attention broke, then for how they came to it."""
    onset = evidence.onset
    if onset is None or not (evidence.is_nonfinite or evidence.is_spike):
        return None
    if evidence.is_spike:
        return _of_a_spike(evidence)
    birth, score = _scores(evidence)
    if birth is None or score < _STRONG or constant_of(birth, evidence) is not None:
        return None
    module, growth = _grown(evidence, birth.module)
    before = _before(evidence, birth.module) if growth > 1.0 else 0.0  # scores that stand are no growth
    if onset.samples and growth < _GROWN and before < _STRONG:
        return None
    return Suspect(
        cause="attention-logit-growth",
        grade=Grade.SUPPORTED if growth >= _GROWN or before >= _STRONG else Grade.CONSISTENT,
        summary=f"attention scores reach {in_words(score)}"
        + (f", after {module} grew {in_words(growth)} times" if growth >= _GROWN else ""),
        location=place_of(evidence, birth),
        exhibits=(
            Exhibit(claim="largest attention score of the bad step, in fp64", value=score, threshold=_STRONG),
            Exhibit(claim=f"growth of {module or 'what is inside'} before the onset", value=growth, threshold=_GROWN),
            *(
                (Exhibit(claim="largest score on the healthy steps before", value=before, threshold=_STRONG),)
                if before
                else ()
            ),
        ),
        predictions=_TRIED,
        fixes=_fixes(birth.module, score, evidence),
        depth=1,
    )


def _before(evidence: Evidence, module: str) -> float:
    """Return the largest score that was heard in a module on the steps before the onset; 0 where none was."""
    onset = evidence.onset
    own = [a.at(onset.step - 1) for a in attentions(evidence) if a.module == module] if onset else []
    return max(own, default=0.0)


def _fixes(module: str, score: float, evidence: Evidence) -> tuple[str, ...]:
    other = ", or cap the scores"
    if evidence.outcome("scores-capped") == "persists":
        # where the product itself leaves its format, a cap behind it comes too late
        other = ", or scale them by 1/√d before their product" if evidence.is_nonfinite else ""
    return (
        f"normalise queries and keys (QK-norm){other}",
        f"scale query and key weights of {module or 'this attention'} by {in_words(math.sqrt(100.0 / score))} each",
    )


def _of_a_spike(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Scores that rose, steadily, before the first sign of the spike."""
    onset = evidence.onset
    assert onset is not None
    lead = _until(evidence)
    heard = attentions(evidence)
    if not heard:
        return None if evidence.hears("log_z") else NotApplicable(reason="no attention was heard in the replay")
    if not any(sum(s <= lead for s in a.scores) >= 4 for a in heard):
        return NotApplicable(
            reason="fewer than 4 steps were recorded before the onset: no trend of the scores can be told"
        )
    grown = [(a.grown(lead), a.at(lead), a) for a in heard]
    growing = [g for g in grown if g[0] >= _GROWN and g[1] >= _LARGE]
    # a slow divergence feeds its own scores: what they reach in its course is a sign, and no more
    ends = [(a.grown(_END), a.largest, a) for a in heard] if onset.kind == "divergence" else []
    late = [g for g in ends if g[0] >= _GROWN and g[1] >= _LARGE]
    saturated = late + [
        g for g in grown if g[1] >= _STRONG or (g[0] > 1.0 and g[1] >= _SHARP and g[2].is_saturated(lead))
    ]
    growth, score, attention = max(growing or saturated, key=lambda g: g[1], default=(1.0, 0.0, None))
    if attention is None:
        return None
    first = next(iter(sorted(attention.scores.items())))[1]
    where = attention.module or "the model"
    rose = f", {in_words(growth)} times what it was {'(a bound)' if attention.is_bound else ''}".rstrip()
    return Suspect(
        cause="attention-logit-growth",
        grade=Grade.SUPPORTED if growing else Grade.CONSISTENT,
        summary=f"the largest attention score of {where} is {in_words(score)} at step {lead}" + (rose if growing else ""),
        location=Location(step=lead, phase="forward", module=attention.module),
        exhibits=(
            Exhibit(claim=f"largest attention score in {where} up to step {lead}", value=score, threshold=_LARGE),
            Exhibit(claim=f"its rise over the steps before, from {in_words(first)} on the first recorded one", value=growth, threshold=_GROWN),
            *_entropy(attention, lead),
        ),
        predictions=_TRIED,
        fixes=_fixes(attention.module, score, evidence),
        # a rate that jumped is what made them grow
        depth=0 if rate_jump(evidence) or not growing else 1,
    )  # fmt: skip


def _until(evidence: Evidence) -> int:
    """Return the step at which the loss alarmed: its scores were made by the updates before it."""
    onset = evidence.onset
    assert onset is not None
    note = evidence.note(NoteKind.SAMPLE_LOSSES) or evidence.note(NoteKind.SAMPLES)
    return max(onset.step, int(note["step"]) if note and "step" in note else onset.step)


def _entropy(attention: Attention, lead: int) -> list[Exhibit]:
    """Show how the rows' entropy fell, of what it can be."""
    past = [(s, v) for s, v in sorted(attention.entropy.items()) if s <= lead and math.isfinite(v)]
    if not past or attention.keys < 2:
        return []
    most = math.log(attention.keys)
    claim = f"mean entropy of its rows at step {past[-1][0]}, in nats, of ln {attention.keys:.0f} = {most:.2f} at most"
    return [Exhibit(claim=claim, value=past[-1][1], threshold=past[0][1] if len(past) > 1 else most)]


def _scores(evidence: Evidence) -> tuple[Birth | None, float]:
    """Return the first birth that shows attention scores, and the largest of them."""
    for birth in evidence.births:
        size = birth.facts.get("score_amax")
        if size is not None:
            return birth, float(size)
    root = evidence.birth
    # a log_softmax is a loss's, and what comes before it are logits
    softmax = any("softmax" in hop.op and "log_softmax" not in hop.op for hop in evidence.lineage[1:8])
    if root is None or root.phase != "forward" or bare(root.op) not in _PRODUCTS or not softmax:
        return None, 0.0
    # a mask's constant times its ones is no score: a product of two computed tensors is
    computed = sum(o.origin.startswith("op") for o in root.inputs)
    return (root, root.fp64_amax or 0.0) if root.fp64 == "beyond-range" and computed >= 2 else (None, 0.0)


def _grown(evidence: Evidence, module: str) -> tuple[str, float]:
    """Return what rose most over the steps before: the scores themselves, or the output of a module that makes them."""
    onset = evidence.onset
    limit = onset.step - 1 if onset else 0
    inside = f"{module}." if module else ""
    best = ("", 1.0)
    for attention in attentions(evidence):
        grown = attention.grown(limit)
        if (attention.module == module or attention.module.startswith(inside)) and grown > best[1]:
            best = (f"the largest score of {attention.module or 'the model'}", grown)
    if best[1] >= _GROWN:
        return best
    for (name, _), series in evidence.history("output").items():
        past = evidence.before(series)
        if not name or not name.startswith(inside) or len(past) < 4 or past[0] <= 0.0:
            continue
        if is_rising(past) and past[-1] / past[0] > best[1]:
            best = (f"the output of {name}", past[-1] / past[0])
    return best


CAUSE = Cause(slug="attention-logit-growth", doc=__doc__ or "", examine=examine)
