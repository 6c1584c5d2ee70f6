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
The largest score of the attention that broke, recomputed in fp64: 1 000 or more; with queries and keys normalised it
cannot pass sqrt(d). And its history: the largest output of the modules inside the same attention over the steps before,
doubled and rising.

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

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import bare, in_words, place_of
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

#: A score of this size saturates any softmax: its neighbours have weights of exp(-1000) = 0.
_STRONG = 1000.0
#: Growth of what makes the scores over the recorded steps that is a trend; scores grow as its square.
_GROWN = 2.0
_PRODUCTS = ("bmm", "baddbmm", "mm", "mul", "div")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for the size of the scores where an attention broke, then for how they came to it."""
    onset = evidence.onset
    if onset is None or not (evidence.is_nonfinite or evidence.is_spike):
        return None
    if evidence.is_spike:
        return NotApplicable(
            reason="attention scores are seen only in a step that is looked at op by op, and a spike is not"
        )
    birth, score = _scores(evidence)
    if birth is None or score < _STRONG:
        return None
    module, growth = _grown(evidence, birth.module)
    if onset.samples and growth < _GROWN:
        return None
    return Suspect(
        cause="attention-logit-growth",
        grade=Grade.SUPPORTED if growth >= _GROWN else Grade.CONSISTENT,
        summary=f"attention scores reach {in_words(score)}"
        + (f", after the output of {module} grew {in_words(growth)} times" if growth >= _GROWN else ""),
        location=place_of(evidence, birth),
        exhibits=(
            Exhibit(claim="largest attention score of the bad step, in fp64", value=score, threshold=_STRONG),
            Exhibit(claim=f"largest output of {module or 'the modules inside'} before the onset over its first recorded one", value=growth, threshold=_GROWN),
        ),
        fixes=(
            "normalise queries and keys (QK-norm), or cap the scores",
            f"scale query and key weights of {birth.module or 'this attention'} by {in_words(math.sqrt(100.0 / score))} each",
        ),
        depth=1,
    )  # fmt: skip


def _scores(evidence: Evidence) -> tuple[Birth | None, float]:
    """Return the first birth that shows attention scores, and the largest of them."""
    for birth in evidence.births:
        size = birth.facts.get("score_amax")
        if size is not None:
            return birth, float(size)
    root = evidence.birth
    softmax = any("softmax" in hop.op for hop in evidence.lineage[1:8])
    if root is None or root.phase != "forward" or bare(root.op) not in _PRODUCTS or not softmax:
        return None, 0.0
    # a mask's constant times its ones is no score: a product of two computed tensors is
    computed = sum(o.origin.startswith("op") for o in root.inputs)
    return (root, root.fp64_amax or 0.0) if root.fp64 == "beyond-range" and computed >= 2 else (None, 0.0)


def _grown(evidence: Evidence, module: str) -> tuple[str, float]:
    """Return the module inside the attention whose largest output rose most over the steps before, and how much."""
    inside = f"{module}." if module else ""
    best = ("", 1.0)
    for (name, _), series in evidence.history("output").items():
        past = evidence.before(series)
        if not name or not name.startswith(inside) or len(past) < 4 or past[0] <= 0.0:
            continue
        half = len(past) // 2
        rising = max(past[:half]) < min(past[half:])
        if rising and past[-1] / past[0] > best[1]:
            best = (name, past[-1] / past[0])
    return best


CAUSE = Cause(slug="attention-logit-growth", doc=__doc__ or "", examine=examine)
