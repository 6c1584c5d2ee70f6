"""Builders of small synthetic traces: what a hunt would have written, with the numbers that a cause looks at."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Birth, Hop, Manifest, NoteKind, Observation, Onset, Operand
from nanhunt.trace.writer import TraceWriter

#: Traces are read as long as their evidence is asked; they go when the tests end.
_FOLDER = tempfile.TemporaryDirectory()
_NUMBER = itertools.count()

ADAMW = {
    "class": "AdamW",
    "groups": [{"parameters": 2, "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}],
    "state_steps": [30.0],
    "with_state": 2,
    "trainable": 2,
    "scaler": False,
    "clip_grad_norm": None,
    "custom_step": False,
}
SGD = {
    **ADAMW,
    "class": "SGD",
    "groups": [{"parameters": 2, "lr": 1e-2, "momentum": 0}],
    "with_state": 0,
    "state_steps": [],
}

Notes = Iterable[tuple[NoteKind, dict[str, Any]]]
Series = Mapping[int, float]


def evidence(
    onset: Onset | None = None,
    *,
    notes: Notes = (),
    rows: Iterable[Observation] = (),
    scalars: Mapping[str, Series] | None = None,
    optimizer: dict[str, Any] | None = None,
    **manifest: Any,
) -> Evidence:
    """Return the evidence of a trace with these notes, rows and scalars; `manifest` sets fields of the manifest."""
    return Evidence(Trace.open(written(onset, notes, rows, scalars or {}, optimizer or ADAMW, manifest)))


def written(
    onset: Onset | None,
    notes: Notes,
    rows: Iterable[Observation],
    scalars: Mapping[str, Series],
    optimizer: dict[str, Any],
    manifest: dict[str, Any],
    folder: Path | None = None,
) -> Path:
    fields: dict[str, Any] = {"checkpoint_step": 30, "match": "matched 2 of 2 tensors"} | manifest
    told = Manifest(**fields)
    path = (folder or Path(_FOLDER.name)) / f"trace-{next(_NUMBER)}.parquet"
    with TraceWriter(path, told) as writer:
        writer.note(NoteKind.OPTIMIZER, optimizer)
        for kind, body in notes:
            writer.note(kind, body)
        if onset is not None:
            writer.note(NoteKind.ONSET, onset.to_json())
        writer.write([*rows, *itertools.chain.from_iterable(scalar(n, s) for n, s in scalars.items())])
    return path


def spike(step: int = 36, phase: str = "update", **more: Any) -> Onset:
    return Onset(kind="loss-spike", step=step, phase=phase, lead_step=step, detail="loss rises from 3 to 6", **more)


def nan(step: int = 36, phase: str = "forward", **more: Any) -> Onset:
    return Onset(kind="nan", step=step, phase=phase, detail="loss is NaN", **more)


def scalar(name: str, series: Series, module: str = "") -> list[Observation]:
    return [
        Observation(step=s, phase="update", role="scalar", module=module, name=name, value=v) for s, v in series.items()
    ]


def health(parameter: str, key: str, series: Series) -> list[Observation]:
    module, _, leaf = parameter.rpartition(".")
    return scalar(f"{leaf}.{key}", series, module)


def tensor(
    step: int,
    role: str,
    name: str = "",
    *,
    rms: float = 1.0,
    mean: float = 0.0,
    numel: int = 1024,
    phase: str = "update",
    shape: Sequence[int] | None = None,
    **more: Any,
) -> Observation:
    """A row of a tensor of `numel` elements with this root mean square and mean; `more` are counts and extremes."""
    module, _, leaf = name.rpartition(".")
    exponents = more.pop("exponents", None)
    if role in ("output", "grad_output"):
        module, leaf = name, ""
    pass_, seq, op = more.pop("pass_", "replay"), more.pop("seq", 0), more.pop("op", None)
    dtype, rank = more.pop("dtype", "float32"), more.pop("rank", 0)
    counts: dict[str, Any] = {"amax": 3 * rms, "amin": rms / 1e3} | more
    stats = TensorStats(
        numel=numel, sum=mean * numel, sum_of_squares=rms * rms * numel,
        exponents=ExponentHistogram(*exponents) if exponents else None, **counts,
    )  # fmt: skip
    return Observation(step=step, phase=phase, role=role, module=module, name=leaf, stats=stats, dtype=dtype,
                       shape=tuple(shape or (numel,)), pass_=pass_, seq=seq, op=op, rank=rank)  # fmt: skip


def steady(first: int, last: int, value: float, **exceptions: float) -> dict[int, float]:
    """A constant series with a little ripple; `exceptions` are values by step, as s36=5.5."""
    series = {s: value * (1.0 + 0.02 * math.sin(1.7 * s)) for s in range(first, last + 1)}
    return series | {int(k[1:]): v for k, v in exceptions.items()}


def birth(op: str = "aten.mm", **more: Any) -> tuple[NoteKind, dict[str, Any]]:
    fields: dict[str, Any] = {"kind": "inf-from-finite", "seq": 100, "phase": "forward", "bad": 1, "of": 64} | more
    return NoteKind.BIRTH, Birth(op=op, **fields).to_json()


def operand(name: str, origin: str = "", dtype: str = "float32", **more: Any) -> Operand:
    return Operand(
        **{"numel": 64, "amax": 2.0, "amin": 0.1, "low": -2.0, "high": 2.0} | more,
        name=name,
        origin=origin,
        dtype=dtype,
        shape=[64],
    )


def lineage(*hops: tuple[str, str], to: str = "loss", phase: str = "forward") -> tuple[NoteKind, dict[str, Any]]:
    """The way of (op, module) pairs."""
    made = [Hop(seq=i, phase=phase, op=op, module=module).to_json() for i, (op, module) in enumerate(hops)]
    return NoteKind.LINEAGE, {"hops": made, "to": to}


def batch(*fields: dict[str, Any], size: int = 8, step: int = 36) -> tuple[NoteKind, dict[str, Any]]:
    return NoteKind.BATCH, {"step": step, "micros": [{"micro": 0, "size": size, "fields": list(fields)}]}


def floats(field: str, sample_amax: Sequence[float], nonfinite: Sequence[int] | None = None) -> dict[str, Any]:
    bad = list(nonfinite or [0] * len(sample_amax))
    return {
        "field": field, "dtype": "float32", "shape": [len(bad), 16], "numel": 16 * len(bad), "nan": sum(bad), "inf": 0,
        "amax": max(sample_amax), "sample_amax": list(sample_amax), "sample_nonfinite": bad,
    }  # fmt: skip


def integers(field: str, low: int, high: int) -> dict[str, Any]:
    return {"field": field, "dtype": "int64", "shape": [8, 16], "numel": 128, "nan": 0, "inf": 0, "amax": float(high),
            "min": low, "max": high, "ignored": 0}  # fmt: skip


def samples(*found: int, placebo: Sequence[int] = (6,)) -> tuple[NoteKind, dict[str, Any]]:
    return NoteKind.SAMPLES, {"samples": list(found), "method": "coordinates", "size": 8, "placebo": list(placebo)}
