"""Comparisons as large as runs get, without the traces of such runs: what a page of them has to leave out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from nanhunt.comparison.compare import compare
from nanhunt.comparison.comparison import Comparison, DepthRow, Difference, StepRow, Verdict
from nanhunt.trace.reader import Trace
from tests.browser.kept import trace_of

__all__ = ["compared", "large"]


def compared(a: str, b: str) -> Comparison:
    """Return the comparison of the kept traces of two faults."""
    return compare(Trace.open(trace_of(a)), Trace.open(trace_of(b)))


def large(
    modules: int, steps: int, *, every: int = 0, name: str = "model.decoder.layers.{}.self_attn.q_proj"
) -> Comparison:
    """Return a comparison that parts in the middle of the model and of the run.

    A module has an output, its gradient and its weight's. Behind the first difference others are inherited; `every` so
    many rows one is born as well.
    """
    found = compared("fp16-overflow", "bad-sample")
    rng = np.random.default_rng(0)
    names = [name.format(i) for i in range(modules)]
    noise = iter(np.exp(rng.standard_normal(3 * modules)).tolist())
    places = [*_places(names)]
    first = modules // 2
    depth = tuple(
        _row(*place, _verdict(i - first, every), size)
        for i, (place, size) in enumerate(zip(places, noise, strict=True))
    )
    step = steps // 2
    born = tuple(_born(found.born[0], row, step) for row in depth if row.verdict == "born")
    drift = np.exp(0.5 * rng.standard_normal((4, steps)))
    return replace(
        found, prefaces=(), born=born, depth=depth, depth_step=step, steps=steps, observations=len(depth) * steps,
        judged=len(depth) * steps, inherited=len(depth) * steps // 2,
        by_step=tuple(_step(at, at >= step, *drift[:, at].tolist()) for at in range(steps)),
    )  # fmt: skip


def _places(names: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (phase, role, module, name) in the order of a step."""
    yield from (("forward", "output", module, "") for module in names)
    for module in reversed(names):
        yield "backward", "grad_output", module, ""
        yield "backward", "grad", module, "weight"


def _verdict(behind: int, every: int) -> Verdict:
    if behind < 0:
        return "within"
    return "born" if behind == 0 or (every and behind % every == 0) else "inherited"


def _row(phase: str, role: str, module: str, name: str, verdict: Verdict, size: float) -> DepthRow:
    bound, rms = 2e-7 * math.sqrt(size), 0.7 * size
    apart = {"within": 3e-8, "inherited": 2e-3, "born": 9e-3}[verdict] * size
    return DepthRow(
        phase=phase, role=role, module=module, name=name, rms_a=rms, rms_b=rms * (1 + apart), apart=apart, bound=bound,
        ratio=apart / bound, verdict=verdict,
    )  # fmt: skip


def _born(like: Difference, row: DepthRow, step: int) -> Difference:
    return replace(
        like, step=step, phase=row.phase, role=row.role, module=row.module, name=row.name, statistic="rms", a=row.rms_a,
        b=row.rms_b, apart=row.apart, bound=row.bound, ratio=row.ratio, rounding=row.bound, source="model.py:88",
    )  # fmt: skip


def _step(at: int, parted: bool, outputs: float, gradients: float, weights: float, loss: float) -> StepRow:
    scale = 1e-3 if parted else 1e-7
    return StepRow(
        step=at, outputs=scale * outputs, gradients=3 * scale * gradients, weights=scale * weights,
        loss_a=2.0 + loss, loss_b=(2.0 + loss) * (1 + 0.1 * scale), inherited=300 * parted, born=int(parted),
    )  # fmt: skip
