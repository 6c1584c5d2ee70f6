"""Rows that cover what a trace can hold, and traces made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.schema import Manifest, Observation, Phase, Role
from nanhunt.trace.writer import TraceWriter

WriteTrace = Callable[..., Path]


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        nanhunt_version="0.1.0",
        checkpoint="ckpt.pt",
        checkpoint_digest="sha256:0a",
        config={"train": {"clip": math.inf, "naïve": ["π", None, 1e-4]}},
        settings={"$float": "kept as it is"},
    )


@pytest.fixture
def rows() -> list[Observation]:
    broken = TensorStats(numel=9, nan=1, posinf=2, neginf=3, zero=1, subnormal=1, amax=2.0, amin=5e-324, sum=2.0)
    scalars = [math.nan, math.inf, -math.inf, -0.0, None, 5e-324]
    return [
        Observation(step=0, phase=Phase.FORWARD, role=Role.OUTPUT, dtype="torch.float16", shape=(3, 3), stats=broken),
        Observation(step=0, phase="load", role="weight", shape=(), stats=TensorStats(numel=1, zero=1)),
        Observation(step=1, phase="batch", role="batch", shape=(0, 2**40), stats=TensorStats()),
        Observation(step=1, phase="forward", role="input", stats=TensorStats(numel=2, nan=2), shape=(2,)),
        Observation(
            step=2**40,
            micro=3,
            rank=0,
            seq=2**50,
            phase="backward",
            role="op",
            pass_="zoom",
            module="blocks.5.mlp — 层",
            name="w\0\n",
            op="aten.exp",
            source="model.py:88",
            stats=TensorStats(
                numel=2**53, amax=1.7e308, amin=1e-308, exponents=ExponentHistogram(-1074, (1, 0, 2**53 - 1))
            ),
        ),
        *(
            Observation(step=i, phase="update", role="scalar", name="loss", seq=i, value=v)
            for i, v in enumerate(scalars)
        ),
    ]


@pytest.fixture
def write_trace(manifest: Manifest) -> WriteTrace:
    """A function that writes a trace of batches of rows, by default complete, and returns its path."""

    def write(
        path: Path,
        *batches: Sequence[Observation],
        notes: Sequence[tuple[str, dict[str, Any]]] = (),
        manifest: Manifest = manifest,
        reason: str | None = None,
    ) -> Path:
        writer = TraceWriter(path, manifest)
        for batch in batches:
            writer.write(batch)
            writer.flush()
        for kind, body in notes:
            writer.note(kind, body)
        writer.close(reason=reason)
        return path

    return write
