"""What a custom loop did around the onset, as the trace keeps it: its order, and the gradients that it used twice."""

from __future__ import annotations

from nanhunt.hunt.state import HuntState
from nanhunt.trace.schema import NoteKind
from nanhunt.training.taped_step import taped_step

__all__ = ["note_loop"]


def note_loop(state: HuntState, step: int) -> None:
    """Write what a custom loop did around the onset, and in how many steps in a row it did so."""
    orders = {s: r.order for s, r in state.results.items() if r.order}
    at = step if step in orders else max(orders, default=None)
    if at is None:
        return
    result = state.results[at]
    passes = max(order.count("backward") for order in orders.values())
    if passes > 1 and getattr(state.run.train_step, "__module__", "") == taped_step.__module__:
        state.assume(f"loss: the sum of the {passes} losses from which the script's backward passes start")
    used_twice = _habit(state, at)
    body = {
        "step": at,
        "order": list(result.order),
        "before": list(orders.get(at - 1, ())),
        "alike": sum(set(order) == set(result.order) for order in orders.values()),
        "reused": [list(pair) for pair in state.results[used_twice[0]].reused] if used_twice else [],
        "reused_steps": used_twice,
        "loss_scale": result.loss_scale,
        "clip_coefficient": result.clip_coefficient,
    }
    state.writer.note(NoteKind.LOOP, body)


def _habit(state: HuntState, at: int) -> list[int]:
    """Return the steps around `at` that used a gradient twice, up to the nearest ones that made a clean update.

    The bad step itself may make none, or one with what a scaler skipped.
    """
    results = sorted(state.results.items())
    clean = [step for step, r in results if not r.reused and "update" in r.order and step != at]
    first = max((s for s in clean if s < at), default=-1)
    last = min((s for s in clean if s > at), default=max(state.results) + 1)
    return [step for step, r in results if r.reused and first < step < last]
