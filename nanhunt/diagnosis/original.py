"""Whether the replay follows the run that it replays: its losses against those that the run logged.

How two losses are compared
---------------------------
A log has rounded its losses: within half of its last digit they are the same, *to the digits logged*. Beyond that a
difference may be rounding's, for other kernels add in another order: at first no more than `ROUNDING` of the loss, by
the format that the step computes in; and since a difference feeds on itself, a step may differ by `GROWTH` times what the
steps before it did, up to `APART` of the loss. What differs by more has left the run, if at least half of the losses
from there on do; a step that differs alone is a slip of the log. Which steps an entry stands for, and how many times
their loss it holds, is found out first (`log_count.py`).

A NaN in both is agreement. A Trainer leaves losses that are not finite out of its mean: where nothing says that a mean
hides none, a replayed NaN is not held against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from nanhunt.diagnosis.log_count import Pair, log_count, pairs_of
from nanhunt.trace.schema import NoteKind

if TYPE_CHECKING:
    from nanhunt.diagnosis.evidence import Evidence

__all__ = ["OriginalRun", "original_run"]

#: Relative difference of two first losses that kernels may make, by the format of the step: some units of rounding,
#: averaged by the loss; fp32 counts TF32's 10 bits, which a GPU may have used.
ROUNDING = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 4e-3}
#: How much a difference may grow from a logged step to the next.
GROWTH = 4.0
#: Relative difference that no rounding explains: losses of neighbouring batches differ by as much.
APART = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRun:
    """The replay's losses beside the logged ones. Steps are the replay's.

    `verdict` is "digits" (the same to the digits logged), "rounding", "leaves" (follows first, then not), "apart" (not
    from the first one on) or "unknown" (no loss of these steps is logged).
    """

    source: str
    verdict: str
    compared: int = 0
    #: first and last of the steps that could be compared
    first_step: int | None = None
    last_step: int | None = None
    #: last step that follows, and whether all up to it do to the digits logged
    through: int | None = None
    exact: bool = False
    #: whether no bit differs up to there, of a log that gives every bit
    bitwise: bool = False
    #: largest difference up to there
    difference: float = 0.0
    #: the first step that does not follow, and the first of the steps whose mean was logged there
    leaves: int | None = None
    leaves_since: int | None = None
    #: the two losses there, the replay's as many times as the log counts it
    replayed: float | None = None
    logged: float | None = None
    #: whose loss it is, where the replay has several ranks: "the mean of 4 ranks", "rank 0's loss"; '' elsewhere
    whose: str = ""
    #: the log's number of a step less the replay's
    offset: int = 0
    #: whether losses are means over several steps, those since the entry before
    mean: bool = False
    #: a logged loss over the replay's of the same steps, and what that is, as in `LogCount`
    factor: float = 1.0
    origin: str = ""
    #: the first step up to `through` where neither is finite
    both_nonfinite: int | None = None
    #: steps that differ alone
    alone: tuple[int, ...] = ()
    #: first and last step of the log
    log_steps: tuple[int, int] | None = None

    @property
    def is_another(self) -> bool:
        """Whether the replay is another run than the logged one, from its first loss or from a later one on."""
        return self.verdict in ("apart", "leaves")


def _micros(config: dict[str, Any]) -> int:
    """Return `train.accumulate` as the trace tells it; 1 where that is no number of micro-batches."""
    train = config.get("train")
    told = train.get("accumulate") if isinstance(train, dict) else None
    return told if isinstance(told, int) and told > 0 else 1


def original_run(evidence: Evidence) -> OriginalRun | None:
    """Return how the replay and the logged losses agree; None where the trace holds none."""
    body = evidence.note(NoteKind.ORIGINAL)
    if body is None:
        return None
    own = _compared(evidence, body, evidence.scalars("loss"))
    each = evidence.ranks.scalars_of_ranks("loss") if evidence.ranks.rank_count > 1 else []
    if not each or own.verdict == "unknown":
        return own
    # a log has one rank's loss, or what it was on all of them
    mean = _compared(evidence, body, _mean(each)) if own.is_another else own
    if mean is not own and not mean.is_another:
        return replace(mean, whose=f"the mean of {len(each)} ranks")
    return replace(own, whose=f"rank {evidence.trace.manifest.rank}'s loss")


def _mean(each: Sequence[dict[int, float]]) -> dict[int, float]:
    """Return the ranks' mean, of the steps that all of them have."""
    steps = set(each[0]).intersection(*each[1:])
    return {step: sum(losses[step] for losses in each) / len(each) for step in sorted(steps)}


def _compared(evidence: Evidence, body: dict[str, Any], losses: dict[int, float]) -> OriginalRun:
    micros = _micros(evidence.manifest.config)
    rounding = ROUNDING[_format(evidence.manifest.config.get("precision") or {}, evidence.manifest.settings)]
    logged = body.get("logged") or body["steps"] or [0]
    unknown = OriginalRun(source=str(body["source"]), verdict="unknown", log_steps=(int(logged[0]), int(logged[-1])))
    count = log_count(body, losses, micros, rounding)
    pairs = list(pairs_of(body, losses, micros, count))
    if not pairs:
        return unknown
    held = _held(pairs, unknown, rounding)
    bitwise = held.exact and held.difference == 0.0 and _gives_every_bit(body)
    return replace(
        held,
        bitwise=bitwise,
        offset=count.offset,
        mean=any(p.since != p.step for p in pairs),
        factor=count.factor,
        origin=count.origin,
    )


def _gives_every_bit(body: dict[str, Any]) -> bool:
    """Whether the log's digits tell two neighbouring numbers of fp32 apart."""
    kept = zip(body["losses"], body["resolution"], strict=True)
    return all(resolution <= 2.0**-26 * abs(loss) for loss, resolution in kept if math.isfinite(loss) and loss)


def _format(precision: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return the coarsest format that the step computes in; a recipe is narrower than all of them."""
    if precision.get("recipe") or settings.get("precision"):
        return "bf16"
    return next((f for f in ("bf16", "fp16") if f in (precision.get("autocast"), precision.get("params"))), "fp32")


# --- whether it follows ----------------------------------------------------------------------------------------------


def _held(pairs: Sequence[Pair], empty: OriginalRun, rounding: float) -> OriginalRun:
    beyond = _beyond(pairs, rounding)
    left = next((i for i in range(len(pairs)) if beyond[i] and _stays(pairs[i:], beyond[i:])), None)
    kept = [p for p, is_beyond in zip(pairs[:left], beyond, strict=False) if not is_beyond]
    alone = tuple(p.step for p, is_beyond in zip(pairs[:left], beyond, strict=False) if is_beyond)
    exact = all(p.difference <= p.digits for p in kept)
    found = replace(
        empty,
        verdict="digits" if exact else "rounding",
        compared=len(pairs),
        first_step=pairs[0].since,
        last_step=pairs[-1].step,
        through=kept[-1].step if kept else None,
        exact=exact and bool(kept),
        difference=max((p.difference for p in kept), default=0.0),
        both_nonfinite=next((p.step for p in kept if not math.isfinite(p.logged)), None),
        alone=alone,
    )
    if left is None:
        return found
    at = pairs[left]
    return replace(
        found,
        verdict="leaves" if kept else "apart",
        leaves=at.step,
        leaves_since=at.since,
        replayed=at.replayed,
        logged=at.logged,
    )


def _stays(pairs: Sequence[Pair], beyond: Sequence[bool]) -> bool:
    """Whether a difference is more than a slip of the log: half of what comes differs, or one of the two is not finite."""
    return 2 * sum(beyond) >= len(beyond) or math.isinf(pairs[0].difference)


def _beyond(pairs: Sequence[Pair], rounding: float) -> list[bool]:
    """Return of each pair whether it differs by more than the log's digits, rounding and its growth explain."""
    # a loss near zero is rounded by the size of what it is a difference of
    typical = median([abs(p.logged) for p in pairs if math.isfinite(p.logged)] or [0.0])
    earlier, found = 0.0, []
    for pair in pairs:
        scale = max(abs(pair.logged), typical) if math.isfinite(pair.logged) else 0.0
        allowed = pair.digits + min(max(rounding * scale, GROWTH * earlier), APART * scale)
        found.append(pair.difference > allowed)
        if not found[-1]:
            earlier = max(earlier, pair.difference - pair.digits)
    return found
