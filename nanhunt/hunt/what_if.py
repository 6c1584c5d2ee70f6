"""What a precision recipe makes of a step: its loss and gradients beside those of fp32, from the same weights and batch.

Written of the first step and of the last one that was replayed. A format shows in a gradient's direction long before it
shows in a loss: `cosine` is that of the whole gradient, `error` the norm of the difference over the norm in fp32, for each
parameter too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nanhunt.changes.precision import precision_of
from nanhunt.hunt.state import HuntState
from nanhunt.precision import in_precision
from nanhunt.rewind import KeptGradients, kept, rewind
from nanhunt.trace.schema import NoteKind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import train_step

__all__ = ["note_recipe"]

#: Parameters that are told by name, those with the largest error first.
_WORST = 8


def note_recipe(state: HuntState, step: int) -> None:
    """Write what the run's recipe makes of `step`, which the ring still reaches; nothing for a run without one."""
    run = state.run
    if not run.recipe or precision_of(run) == "fp32" or state.lost_device or not state.ring.reaches(step):
        return
    own = wide = None
    # what moments are stored in changes no gradient of the same weights
    if run.emulator is None or run.emulator.quantizes or run.autocast or run.emulator.recipe.params:
        with kept(run, step + 1):
            own = _run_once(state, step, None)
            wide = _run_once(state, step, "fp32")
    body: dict[str, Any] = {"recipe": run.recipe, "step": step, **_products(run)}
    if own is not None and wide is not None:
        body |= {"loss": own[0], "loss_fp32": wide[0], **_compared(own[1], wide[1])}
    state.writer.note(NoteKind.RECIPE, body)


def _run_once(state: HuntState, step: int, precision: str | None) -> tuple[float, dict[str, Tensor]] | None:
    """Return loss and gradients of a step; None where it raises, or the user's code fixes a dtype by hand."""
    run, grads = state.run, KeptGradients(state.run)
    rewind(run, state.ring, step)
    try:
        if precision is None:
            return train_step(run, step, grads).loss, grads.grads
        with in_precision(run, precision):
            return train_step(run, step, grads).loss, grads.grads
    except Exception:
        return None


def _products(run: TrainingRun) -> dict[str, Any]:
    emulator = run.emulator
    products = emulator.recipe.products if emulator is not None else None
    if emulator is None or products is None:
        return {}
    roles = {"input": products.input, "weight": products.weight, "gradient": products.gradient}
    return {
        "quantized": len(emulator.quantized),
        "skipped": sorted(emulator.skipped),
        "others": emulator.others,
        "formats": {role: operand.format for role, operand in roles.items()},
    }


def _compared(own: dict[str, Tensor], wide: dict[str, Tensor]) -> dict[str, Any]:
    """Return the cosine and error of the whole gradient, and of the parameters that fare worst."""
    sums = torch.zeros(3, dtype=torch.float64)
    told: list[tuple[float, str, float | None]] = []
    for name in (n for n in own if n in wide):
        a, b = own[name].flatten().float(), wide[name].flatten().float()
        dots = torch.stack([torch.dot(a.double(), b.double()), a.double().square().sum(), b.double().square().sum()])
        sums += dots.cpu()
        error = float(torch.linalg.vector_norm(a - b, dtype=torch.float64)) / math.sqrt(max(float(dots[2]), 1e-300))
        told.append((error, name, _cosine(dots.tolist())))
    told.sort(key=lambda t: -math.inf if math.isnan(t[0]) else -t[0])
    lost = sums[1] + sums[2] - 2 * sums[0]
    return {
        "cosine": _cosine(sums.tolist()),
        "error": math.sqrt(max(float(lost), 0.0) / float(sums[2])) if float(sums[2]) > 0 else None,
        "worst": [{"name": name, "error": error, "cosine": cosine} for error, name, cosine in told[:_WORST]],
    }


def _cosine(sums: list[float]) -> float | None:
    """Return a·b / |a||b|; None where one of them is zero, NaN where one is not finite."""
    length = math.sqrt(sums[1]) * math.sqrt(sums[2]) if sums[1] > 0 and sums[2] > 0 else 0.0
    finite = all(math.isfinite(s) for s in sums)
    return (sums[0] / length if length else None) if finite else math.nan
