"""Rows and traces made of numpy arrays, for comparisons of what no program has to run for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.schema import Manifest, Observation
from nanhunt.trace.writer import TraceWriter

__all__ = ["model", "row", "write"]


def stats(values: npt.NDArray[np.float64]) -> TensorStats:
    finite = values[np.isfinite(values)]
    sizes = np.abs(finite[finite != 0])
    exponents = np.frexp(sizes)[1] - 1
    low = int(exponents.min()) if sizes.size else 0
    counts = np.bincount(exponents - low) if sizes.size else np.zeros(0, int)
    return TensorStats(
        numel=values.size, nan=int(np.isnan(values).sum()), posinf=int((values == math.inf).sum()),
        neginf=int((values == -math.inf).sum()), zero=int((finite == 0).sum()), amax=float(sizes.max(initial=0.0)),
        amin=float(sizes.min(initial=math.inf)) if sizes.size else 0.0, sum=float(finite.sum()),
        sum_of_squares=float((finite**2).sum()), exponents=ExponentHistogram(low, tuple(counts.tolist())),
    )  # fmt: skip


def row(values: npt.NDArray[np.float64], **site: Any) -> Observation:
    """An observation of some values; by default a module's output in fp32."""
    given = {"step": 0, "phase": "forward", "role": "output", "module": "m", "dtype": "float32"} | site
    return Observation(shape=values.shape, stats=stats(values), **given)  # type: ignore[arg-type]


def model(steps: Sequence[int] = (0, 1, 2), modules: Sequence[str] = ("a", "b", "c"), **site: Any) -> list[Observation]:
    """The outputs of a chain of modules, the same at every call, and a loss a step."""
    rng, rows = np.random.default_rng(0), []
    for step in steps:
        for seq, module in enumerate(modules):
            values = rng.standard_normal((8, 32))
            rows.append(row(values, step=step, seq=100 * step + seq, module=module, **site))
        rows.append(
            Observation(
                step=step, seq=100 * step + 50, phase="forward", role="scalar", name="loss", value=2.0 + rng.random()
            )
        )
    return rows


def write(path: Path, rows: Sequence[Observation], **manifest: Any) -> Path:
    """Write a trace of the rows."""
    path.parent.mkdir(exist_ok=True)
    with TraceWriter(path, Manifest(**manifest)) as writer:
        writer.write(list(rows))
    return path
