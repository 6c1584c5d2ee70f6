"""What each rank saw of one step, side by side: the onset's, or the last that all of them finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["RankView", "rank_views"]

#: Ranks that a report shows; those that saw something non-finite go before the others.
_SHOWN = 8
#: Roles of what a forward pass reads and makes.
_BEFORE_THE_LOSS = ("batch", "buffer", "input", "output", "op")
_COLUMNS = ["rank", "seq", "role", "module", "name", "nan", "posinf", "value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """One rank's own numbers of a step; None where they were not measured."""

    rank: int
    step: int
    loss: float | None
    grad_norm: float | None
    #: the first of its tensors with a NaN or +inf, `output of blocks.0` or `the loss`; '' of none
    bad: str


def rank_views(evidence: Evidence) -> tuple[RankView, ...]:
    """Return the ranks by number, at most eight of them; () of a trace of one rank."""
    trace = evidence.ranks
    if trace.rank_count < 2 or not trace.steps:
        return ()
    step = evidence.onset.step if evidence.onset is not None else trace.steps[-1]
    frame = trace.in_parts().frame(_COLUMNS, passes=["replay"], steps=(step, step)).sort_values("seq")
    views = [_view(rank, step, frame[frame["rank"] == rank]) for rank in sorted(frame["rank"].unique())]
    odd = [view for view in views if view.bad]
    shown = (odd + [view for view in views if not view.bad])[:_SHOWN]
    return tuple(sorted(shown, key=lambda view: view.rank))


def _view(rank: int, step: int, rows: Any) -> RankView:
    bad, loss = rows[(rows["nan"] > 0) | (rows["posinf"] > 0)], _scalar(rows, "loss")
    first = "" if bad.empty else _place(bad.iloc[0])
    # made by the loss function, which no module's row shows: what comes behind it has it from there
    is_made_by_loss = loss is not None and not math.isfinite(loss)
    if is_made_by_loss and (bad.empty or bad.iloc[0]["role"] not in _BEFORE_THE_LOSS):
        first = "the loss"
    return RankView(rank=int(rank), step=step, loss=loss, grad_norm=_scalar(rows, "grad_norm"), bad=first)


def _scalar(rows: Any, name: str) -> float | None:
    values = rows[(rows["role"] == "scalar") & (rows["name"] == name) & (rows["module"] == "")]["value"]
    return None if values.empty else float(values.iloc[-1])


def _place(row: Any) -> str:
    name = f"{row['module']}.{row['name']}".strip(".") or "the model"
    return f"{str(row['role']).replace('_', ' ')} of {name}"
