"""Tensors merged over steps, against a plain loop over rows and against casts of the elements themselves."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nanhunt.diagnosis.headroom import FORMATS_SHOWN, headroom_rows
from nanhunt.diagnosis.tensors import MergedTensor, merged_tensors
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.headroom import ExponentHistogram, headroom
from nanhunt.formats.number_format import NumberFormat
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Observation
from nanhunt.trace.writer import TraceWriter

NUMBER = itertools.count()
CASTS = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def stats_of(values: np.ndarray) -> TensorStats:
    finite = np.abs(values[np.isfinite(values)])
    some = finite[finite > 0]
    exponents = (np.frexp(some)[1] - 1).tolist()
    lowest = min(exponents, default=0)
    bins = Counter(exponents)
    counts = tuple(bins[e] for e in range(lowest, max(exponents, default=-1) + 1))
    return TensorStats(
        numel=values.size, nan=int(np.isnan(values).sum()), posinf=int((values == math.inf).sum()),
        neginf=int((values == -math.inf).sum()), zero=int((finite == 0).sum()),
        amax=float(some.max()) if some.size else 0.0, amin=float(some.min()) if some.size else 0.0,
        sum=0.0, sum_of_squares=float(np.sum(finite**2)), exponents=ExponentHistogram(lowest, counts),
    )  # fmt: skip


def seen(values: Any, step: int = 0, role: str = "output", module: str = "m", **more: Any) -> Observation:
    stats = stats_of(np.asarray(values, dtype=np.float64))
    return Observation(step=step, phase="forward", role=role, module=module, stats=stats, **more)


def trace_of(folder: Path, rows: list[Observation], notes: list[dict[str, Any]] = [], *, cut: bool = False) -> Trace:  # noqa: B006
    path = folder / f"trace{next(NUMBER)}.parquet"
    writer = TraceWriter(path, Manifest())
    for at in range(0, len(rows), 3):  # several batches
        writer.write(rows[at : at + 3])
        writer.flush()
    for body in notes:
        writer.note(NoteKind.BLOCKS, body)
    writer.flush()
    if not cut:
        writer.close()
    return Trace.open(path)


def scalar(name: str, value: float, step: int = 0) -> Observation:
    return Observation(step=step, phase="backward", role="scalar", name=name, value=value)


values = st.lists(
    st.floats(-(2.0**60), 2.0**60, width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1.75, 1e-40]),
    max_size=12,
)
observations = st.lists(
    st.builds(
        seen, values, step=st.integers(0, 3), role=st.sampled_from(["output", "grad_output", "weight"]),
        module=st.sampled_from(["a", "b"]),
    ),
    max_size=10,
)  # fmt: skip


def plain(rows: list[Observation], scales: dict[int, float]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Merge row by row, the simplest way."""
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        stats = row.stats
        if stats is None or not stats.amax > 0 or stats.exponents is None:
            continue
        scale = scales.get(row.step, 1.0) if row.role == "grad_output" else 1.0
        told = merged.setdefault((row.module, row.role, row.name), {"amax": 0.0, "amin": math.inf, "bins": Counter()})
        told["amax"] = max(told["amax"], stats.amax / scale)
        told["amin"] = min(told["amin"], stats.amin / scale)
        for exponent, count in enumerate(stats.exponents.counts, start=stats.exponents.lowest):
            told["bins"][exponent - round(math.log2(scale))] += count
    return merged


@given(
    rows=observations,
    scales=st.dictionaries(st.integers(0, 3), st.sampled_from([1.0, 2.0**16, 0.5])),
    cut=st.booleans(),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merging_is_that_of_a_plain_loop_over_the_rows(
    rows: list[Observation], scales: dict[int, float], cut: bool, tmp_path: Path
) -> None:
    assume(rows or scales or not cut)  # a trace that was cut off before its first step has nothing to merge
    trace = trace_of(tmp_path, [*rows, *(scalar("loss_scale", v, s) for s, v in scales.items())], cut=cut)
    found = {(t.module, t.role, t.name): t for t in merged_tensors(trace) if t.amax > 0}
    expected = plain(rows, scales)
    assert found.keys() == expected.keys()
    for key, told in expected.items():
        tensor = found[key]
        assert (tensor.amax, tensor.amin) == (told["amax"], told["amin"])
        assert tensor.exponents is not None
        bins = {e: n for e, n in enumerate(tensor.exponents.counts, start=tensor.exponents.lowest) if n}
        assert bins == {e: n for e, n in told["bins"].items() if n}
        assert int(tensor.depths.sum()) == sum(bins.values())
    named = {(r.module, r.role, r.name, r.headroom.format): r.headroom for r in headroom_rows(found.values())}
    for key, name in itertools.product(expected, ("fp16", "bf16", "e4m3fn", "e5m2")):
        tensor = found[key]
        assert named[*key, name] == headroom(
            lookup(name), amax=tensor.amax, amin=tensor.amin, exponents=tensor.exponents
        )


@given(order=st.permutations(range(8)))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merging_does_not_depend_on_the_order_of_the_steps(order: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [seen(rng.standard_normal(20) * 2.0**i, step=i) for i in range(8)]
    (first,) = merged_tensors(trace_of(tmp_path, rows))
    (other,) = merged_tensors(trace_of(tmp_path, [rows[i] for i in order]))
    assert (first.amax, first.amin, first.exponents) == (other.amax, other.amin, other.exponents)
    assert np.array_equal(first.depths, other.depths)
    assert first.rms == pytest.approx(other.rms)


@pytest.mark.parametrize("name", CASTS)
def test_a_scale_per_tensor_follows_each_steps_own_amax_and_loses_what_a_cast_does(name: str, tmp_path: Path) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    rng = np.random.default_rng(7)
    rows, flushed, subnormal, energy, lost, total = [], 0, 0, 0.0, 0.0, 0
    for step in range(12):
        x = (rng.standard_normal(500) * 2.0 ** rng.uniform(-45, 0, 500) * 2.0 ** rng.integers(-20, 20)).astype(
            np.float32
        )
        wide = np.abs(x.astype(np.float64))
        scaled = wide * math.ldexp(1.0, math.floor(math.log2(fmt.max / wide.max())))
        zero = scaled.astype(CASTS[name]).astype(np.float64) == 0
        flushed, subnormal = flushed + int(zero.sum()), subnormal + int(((scaled < fmt.smallest_normal) & ~zero).sum())
        energy, lost, total = energy + float(np.sum(wide**2)), lost + float(np.sum(wide[zero] ** 2)), total + x.size
        rows.append(seen(x, step=step))
    (tensor,) = merged_tensors(trace_of(tmp_path, rows))
    told = tensor.under_own_scale(fmt)
    assert told is not None
    assert (told.of, told.flushed, told.subnormal) == (total, flushed, subnormal)
    assert lost / energy / 4 <= told.energy_share <= lost / energy * 4


def test_energy_is_nothing_where_nothing_flushes_and_all_where_all_does(tmp_path: Path) -> None:
    (tensor,) = merged_tensors(trace_of(tmp_path, [seen([1.0, 0.5, 0.25])]))
    told = tensor.under_own_scale(lookup("e4m3fn"))  # type: ignore[arg-type]
    assert told is not None
    assert told.energy_share == 0.0
    by_format = {
        r.headroom.format: r.headroom for r in headroom_rows(merged_tensors(trace_of(tmp_path, [seen([1e-9])])))
    }
    assert by_format["fp16"].flushed_energy == by_format["e5m2"].flushed_energy == 1.0


def test_an_infinity_that_the_run_met_is_kept_beside_the_finite_extremes(tmp_path: Path) -> None:
    rows = [seen([1.0]), seen([math.inf, 2.0], step=1, seq=41, dtype="float16"), seen([3.0, -math.inf], step=2, seq=77)]
    (tensor,) = merged_tensors(trace_of(tmp_path, rows))
    assert (tensor.amax, tensor.first_infinite, tensor.formats) == (3.0, 41, ("fp16",))
    told = {r.headroom.format: r.overflowed for r in headroom_rows([tensor])}
    assert told["fp16"] == 41
    assert told["bf16"] is None


def note(step: int, *tensors: list[Any]) -> dict[str, Any]:
    looks = [["row", "e4m3fn"], ["block", "e4m3fn"], ["32", "mxfp4"]]
    return {"step": step, "looks": looks, "tensors": list(tensors)}


def test_what_blocks_lose_is_added_up_over_steps_and_stands_in_the_block_formats_own_headroom(tmp_path: Path) -> None:
    one = ["output", "m", "", 100, 100, 80, 10.0, 8, 4, 1.0, 0, 0, 0.0, 20, 0, 2.5]
    two = ["output", "m", "", 1000, 100, 20, 10.0, 2, 6, 1.0, 5, 0, 5.0, 0, 0, 0.0]
    (tensor,) = merged_tensors(trace_of(tmp_path, [seen([1.0])], [note(0, one), note(1, two)]))
    assert tensor.sampled
    assert tensor.looked == (2, 2)
    rows = {r.headroom.format: r for r in headroom_rows([tensor])}
    row, block = rows["e4m3fn"].under("row"), rows["e4m3fn"].under("block")
    assert row is not None
    assert block is not None
    assert (row.flushed_share, row.subnormal_share, row.energy_share) == (0.1, 0.1, 0.1)
    assert (block.flushed_share, block.energy_share) == (0.05, 0.25)
    assert rows["mxfp4"].measured
    assert (rows["mxfp4"].headroom.flushed_fraction, rows["mxfp4"].headroom.flushed_energy) == (0.2, 0.125)
    assert not rows["nvfp4"].measured  # no look at it in these notes


def test_without_notes_nothing_is_said_of_rows_and_blocks(tmp_path: Path) -> None:
    rows = headroom_rows(merged_tensors(trace_of(tmp_path, [seen([1.0, 2.0])])))
    assert [r.headroom.format for r in sorted(rows, key=lambda r: FORMATS_SHOWN.index(r.headroom.format))] == [
        *FORMATS_SHOWN
    ]
    assert not any(r.measured for r in rows)
    assert {per for r in rows for per, _ in r.scaled} == {"tensor"}


def test_a_tensor_of_zeros_is_merged_and_has_no_headroom(tmp_path: Path) -> None:
    tensors = merged_tensors(trace_of(tmp_path, [seen([0.0, 0.0]), seen([math.nan], module="n")]))
    assert [(t.module, t.amax) for t in tensors] == [("m", 0.0)]
    assert headroom_rows(tensors) == ()


def test_a_trace_without_rows_has_no_tensor(tmp_path: Path) -> None:
    assert merged_tensors(trace_of(tmp_path, [scalar("loss", 1.0)])) == []


def tensor_named(tensors: list[MergedTensor], module: str) -> MergedTensor:
    return next(t for t in tensors if t.module == module)


def test_rms_is_over_all_elements_of_all_steps(tmp_path: Path) -> None:
    tensors = merged_tensors(trace_of(tmp_path, [seen([3.0]), seen([0.0, 4.0, 0.0], step=1), seen([2.0], module="n")]))
    assert tensor_named(tensors, "m").rms == pytest.approx(2.5)
