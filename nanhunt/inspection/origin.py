"""How poison got into a checkpoint, by the pattern that it left: which tensors, which elements, which moments.

What leaves which pattern was taken from real torch optimizers and `clip_grad_norm_` (`tests/inspection/test_origin.py` makes
each of them anew):

- A NaN gradient meets the clip: the norm is NaN, every gradient is multiplied by it, and the update leaves NaN in every
  element of weights and moments, rows of an embedding that no batch used among them.
- A NaN loss without a clip: NaN wherever a gradient arrives, and rows that no batch used stay finite, their gradient was 0.
- An inf gradient meets the clip: the factor is 1/inf = 0, so 0·inf = NaN in its own elements and 0 in all others.
- An inf gradient without a clip: its m and v are infinite, its weight is inf/inf = NaN.
- A NaN gradient without a clip: NaN in its own elements of weight, m and v.
- Weights that are NaN beside moments that are finite were not written by a sound update: an eps that fp16 lost, a rate that
  was NaN, or no optimizer at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanhunt.formats.catalogue import FP16
from nanhunt.inspection.facts import Facts, Role, TensorFacts
from nanhunt.inspection.finding import Origin

__all__ = ["origin_of"]

_TABLES = ("emb", "wte", "wpe", "tok", "vocab", "lookup")
_RUNNING = ("running_mean", "running_var")
#: Rows from which a batch is unlikely to use all of a table, and the ratio that a decay by β1 may miss.
_MANY_ROWS, _NEAR = 32, 0.01
_EARLIER = "go back to the last finite checkpoint and replay from it: it names the op that made the first bad value"
_CLIP = "clip with error_if_nonfinite=True, or skip the step where the norm is not finite; " + _EARLIER


def origin_of(facts: Facts) -> Origin | None:
    """Return how the poison got in; None where nothing is poisoned."""
    poisoned = [t for t in facts.tensors if t.is_poisoned]
    if not poisoned:
        return None
    if all(t.bad == sum(bool(f.payload) for f in t.flips) for t in poisoned):
        return _origin("a bit flipped, in memory or on the way to the disk", "no arithmetic makes these NaN payloads",
                       fix="restore the tensor from an earlier checkpoint; have the machine's memory checked")  # fmt: skip
    weights = [t for t in poisoned if t.role is Role.WEIGHT]
    moments = [t for t in poisoned if t.role is Role.MOMENT]
    if weights:
        return _of_weights(facts, weights, moments)
    if moments:
        return _of_moments(facts, moments)
    averages = [t for t in poisoned if t.role is Role.AVERAGE]
    return _of_averages(averages) if len(averages) == len(poisoned) else _of_buffers(facts, poisoned)


def _origin(claim: str, *reasons: str, fix: str = _EARLIER, cause: str = "poisoned-state") -> Origin:
    return Origin(claim=claim, cause=cause, reasons=tuple(r for r in reasons if r), fix=fix)


def _of_weights(facts: Facts, weights: Sequence[TensorFacts], moments: Sequence[TensorFacts]) -> Origin:
    trained = _trained(facts)
    whole = [t for t in trained if t.is_all_bad]
    has_moments = any(t.role is Role.MOMENT for t in facts.tensors)
    if has_moments and not moments:
        return _not_by_moments(facts, weights)
    if trained and len(whole) == len(trained):
        return _everywhere(trained)
    if len(whole) > 0.7 * len(trained) and all(t.bad for t in trained):
        return _all_but_rows([t for t in trained if not t.is_all_bad])
    if any(t.is_all_bad or t.bad_rows for t in weights):
        return _some_tensors(weights, trained)
    return _isolated(facts, weights, moments) if has_moments else _isolated_alone(weights)


def _trained(facts: Facts) -> list[TensorFacts]:
    """Return the weights that have moments; all of them where no names are known."""
    named = {t.parameter for t in facts.tensors if t.role is Role.MOMENT and t.parameter}
    weights = facts.of_role(Role.WEIGHT)
    return [t for t in weights if t.name in named] or weights


def _everywhere(trained: Sequence[TensorFacts]) -> Origin:
    tables = [t for t in trained if len(t.shape) == 2 and t.shape[0] >= _MANY_ROWS and _is_table(t)]
    count = f"all {len(trained)} trained weights are NaN in every element"
    if tables:
        rows = f"{tables[0].name} too, all {tables[0].shape[0]} rows: no gradient of its own reaches rows that a batch does not use"
        return _origin("a NaN gradient met the clip: the norm was NaN, and every gradient was multiplied by it", count, rows,
                       fix=_CLIP, cause="training-loop-bug")  # fmt: skip
    return _origin("a NaN gradient met the clip, or a NaN loss reached every parameter", count,
                   "no embedding is there whose unused rows would tell the two apart", fix=_CLIP)  # fmt: skip


def _all_but_rows(partly: Sequence[TensorFacts]) -> Origin:
    first = partly[0]
    finite = first.shape[0] - first.bad_rows if first.shape else 0
    return _origin(
        "a NaN loss reached every parameter, and no clip stood between",
        f"every trained weight holds NaN, and {first.name} kept {finite} of {first.shape[0]} rows: their gradient was 0",
        "a clip by a NaN norm would have spoiled these rows as well",
    )


def _some_tensors(weights: Sequence[TensorFacts], trained: Sequence[TensorFacts]) -> Origin:
    whole = sum(t.is_all_bad for t in weights)
    rows = [t for t in weights if t.bad_rows and not t.is_all_bad]
    told = f"{whole} of {len(trained)} weights are NaN throughout" if whole else ""
    kept = f"{rows[0].name}: {rows[0].bad_rows} of {rows[0].shape[0]} rows" if rows else ""
    return _origin(
        "a NaN gradient reached these weights alone, and no global clip spread it",
        told, kept, "a clip by a NaN norm leaves no weight finite",
    )  # fmt: skip


def _isolated(facts: Facts, weights: Sequence[TensorFacts], moments: Sequence[TensorFacts]) -> Origin:
    bad = sum(t.bad for t in weights)
    count = f"{_elements(bad)} of {_weights(weights)}, with m and v beside it"
    if any(t.stats is not None and t.stats.posinf + t.stats.neginf for t in moments):
        return _origin("an inf gradient reached the optimizer, and no clip stood before it", count,
                       "moments are infinite there: behind a clip they would be NaN", fix=_EARLIER)  # fmt: skip
    decayed = _decayed(facts)
    if decayed:
        return _origin("an inf gradient met the clip: where it was, 0·inf is NaN, and all other gradients became 0", count, decayed,
                       fix=_CLIP, cause="training-loop-bug")  # fmt: skip
    return _origin(
        "an inf gradient met the clip, if the run has one: where it was, 0·inf is NaN, and all other gradients became 0",
        count, "a NaN gradient would have made the norm NaN, and every weight with it",
        "without a clip, a NaN in the gradient of these elements alone leaves the same",
        "--reference with the checkpoint before decides: behind a zeroed gradient m is β1 times what it was"
        if facts.reference is None
        else "the reference is too far back to decide: gradients came in between", fix=_CLIP,
        cause="training-loop-bug",
    )  # fmt: skip


def _decayed(facts: Facts) -> str:
    """Return in words that all moments only decayed since the reference; '' where gradients came, or without one."""
    ratio = facts.reference.moment_ratio if facts.reference else None
    betas = next((g.settings["betas"] for o in facts.optimizers for g in o.groups if "betas" in g.settings), None)
    if ratio is None or not isinstance(betas, tuple) or not 0.0 < ratio < 1.0 or not 0.0 < betas[0] < 1.0:
        return ""
    steps = math.log(ratio) / math.log(betas[0])
    if round(steps) < 1 or abs(steps - round(steps)) > _NEAR:
        return ""
    return f"all other moments are {ratio:.4g} times what they were, β1 = {betas[0]} to the power {round(steps)}: gradients were 0"


def _isolated_alone(weights: Sequence[TensorFacts]) -> Origin:
    bad = sum(t.bad for t in weights)
    return _origin(
        "an inf gradient met the clip, or these elements were written from outside",
        f"{_elements(bad)} of {_weights(weights)}; the rest is finite",
        "no moments are in the file, which would tell the two apart",
    )


def _not_by_moments(facts: Facts, weights: Sequence[TensorFacts]) -> Origin:
    groups = [g for o in facts.optimizers for g in o.groups]
    finite = f"{_spoiled(len(weights), 'weight')}, and every moment is finite"
    if any(not math.isfinite(g.number("lr") or 0.0) for g in groups):
        return _origin("the learning rate was not finite", finite, "a group's lr is NaN or Inf", cause="optimizer-state",
                       fix="mend the schedule: a division by 0 warm-up steps, say")  # fmt: skip
    halves = any(t.key == "exp_avg_sq" and t.dtype == "float16" and t.stats and t.stats.zero for t in facts.tensors)
    if halves and any(0 < (g.number("eps") or 0) <= FP16.smallest / 2 and not g.settings.get("fused") for g in groups):
        return _origin("an update divided by 0: eps is 0 in the moments' format", finite,
                       "v is float16, 0 in places, and eps rounds to 0 there", cause="epsilon-underflow",
                       fix="keep moments in fp32, or an eps of 1e-7 at least")  # fmt: skip
    if facts.scaler is not None and facts.scaler.scale <= 2.0**-127:
        return _origin("the loss scale collapsed, and dividing by it wrote Inf", finite, f"the scale is {facts.scaler.scale:.3g}",
                       cause="gradient-underflow")  # fmt: skip
    return _origin(
        "not the optimizer: something wrote the weights behind it",
        finite, "an update that writes NaN leaves NaN in its moments as well",
        fix="look at what writes weights between steps: a merge, an average, a cast, a load; or a bit flipped: restore them",
    )  # fmt: skip


def _of_moments(facts: Facts, moments: Sequence[TensorFacts]) -> Origin:
    squares = [t for t in moments if t.kind == "exp_avg_sq"]
    infinite = all(t.stats is not None and t.stats.posinf == t.bad for t in squares)
    if squares and infinite and len(squares) == len(moments):
        return _origin("the squares of large gradients overflowed", f"{len(squares)} second moments are inf, m and weights are finite",
                       "a gradient above 1.8e19 has a square beyond fp32: its weight no longer moves")  # fmt: skip
    return _origin(
        "the weights were put back behind the update, the moments were not",
        f"{_spoiled(len(moments), 'moment')}, and every weight is finite",
        "an update writes both: who restored, averaged or cleaned the weights left the moments as they were",
        fix="restore the moments from the same checkpoint as the weights, or start them anew with a warm-up",
    )


def _of_averages(averages: Sequence[TensorFacts]) -> Origin:
    return _origin(
        "the average took in weights that were NaN or Inf, and the weights were put back behind it",
        f"{_spoiled(len(averages), 'averaged tensor')}; the weights themselves and their moments are finite",
        "an average that met a NaN once keeps it for good",
        fix="begin the average anew from the weights; update it behind the check of the loss, or of the gradients",
    )


def _of_buffers(facts: Facts, poisoned: Sequence[TensorFacts]) -> Origin:
    running = [t for t in poisoned if t.kind in _RUNNING]
    if running and len(running) == len(poisoned):
        skipped = "the gradient scaler skipped its update: it guards weights, not buffers" if facts.scaler else ""
        return _origin(
            "a forward pass in training mode met NaN or Inf, and its update was skipped",
            f"{_spoiled(len(running), 'running statistic')}; weights and moments are finite", skipped,
            fix="reset_running_stats() and recalibrate on a few hundred batches; find the batch by a replay",
        )  # fmt: skip
    return _origin("something wrote these tensors outside of the optimizer",
                   f"{_spoiled(len(poisoned), 'tensor')}, and no weight or moment")  # fmt: skip


def _spoiled(count: int, noun: str) -> str:
    return f"1 {noun} is spoiled" if count == 1 else f"{count} {noun}s are spoiled"


def _elements(count: int) -> str:
    return "1 single element" if count == 1 else f"{count} single elements"


def _weights(weights: Sequence[TensorFacts]) -> str:
    return weights[0].name if len(weights) == 1 else f"{len(weights)} weights"


def _is_table(t: TensorFacts) -> bool:
    return any(word in t.name.lower() for word in _TABLES)
