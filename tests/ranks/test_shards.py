"""A folder of ranks that hold tensors in parts says of each tensor what one process says of the whole."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.stats.summarize import summarize
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Observation, Onset, Phase, Role
from nanhunt.trace.writer import TraceWriter

EXACT = ["numel", "nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin", "exp_lo"]
ODD = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, 3.0, -7.5e8]


@dataclass(frozen=True)
class Case:
    """A tensor, and by mesh dimension the dimension that it is cut along; None where ranks hold replicas."""

    whole: Tensor
    cuts: tuple[int | None, ...]


def parts_of(case: Case, mesh: tuple[int, ...], at: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """Return a rank's part and where it begins, as DTensor cuts: each dimension of the mesh by `torch.chunk`."""
    part, offset = case.whole, [0] * case.whole.dim()
    for cut, size, index in zip(case.cuts, mesh, at, strict=True):
        if cut is None:
            continue
        pieces = part.chunk(size, cut)
        # torch gives fewer pieces than asked for where there is nothing left
        offset[cut] += sum(p.shape[cut] for p in pieces[:index])
        part = pieces[index] if index < len(pieces) else part.narrow(cut, 0, 0)
    return part, offset


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Case]]:
    """Return a mesh, and tensors that are cut by it: even, uneven, with empty parts, of odd values."""
    mesh = draw(st.sampled_from([(2,), (3,), (2, 2), (1, 3)]))
    cases = []
    for _ in range(3):
        shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
        seed = draw(st.integers(0, 2**31))
        generator = torch.Generator().manual_seed(seed)
        whole = torch.randn(shape, generator=generator) * 2.0 ** draw(st.integers(-40, 40))
        for value in draw(st.lists(st.sampled_from(ODD), max_size=4)):
            whole.view(-1)[int(torch.randint(whole.numel(), (), generator=generator))] = value
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
        cuts = tuple(draw(st.sampled_from([None, *range(len(shape))])) for _ in mesh)
        cases.append(Case(whole.to(dtype), cuts))
    return mesh, cases


def rows(step: int, rank: int, role: Role, number: int, tensor: Tensor, shape: tuple[int, ...]) -> Observation:
    return Observation(
        step=step, rank=rank, phase=Phase.UPDATE, role=role, module=f"h.{number}", name="weight",
        dtype=str(tensor.dtype).removeprefix("torch."), shape=shape, stats=summarize(tensor),
    )  # fmt: skip


def written(folder: Path, mesh: tuple[int, ...], cases: list[Case], *, partial: bool = False, bad: Any = None) -> Trace:
    """Write what each rank of the mesh would of two steps."""
    for rank, at in enumerate(itertools.product(*map(range, mesh))):
        manifest = Manifest(rank=rank, world_size=math.prod(mesh))
        with TraceWriter(folder / f"rank-{rank:04d}.parquet", manifest) as writer:
            held = {number: parts_of(case, mesh, at) for number, case in enumerate(cases)}
            spread = {
                f"h.{number}.weight": {
                    "shape": list(case.whole.shape), "held": list(held[number][0].shape), "offset": held[number][1],
                    "partial": partial,
                }
                for number, case in enumerate(cases) if any(cut is not None for cut in case.cuts)
            }  # fmt: skip
            writer.note(NoteKind.SHARDS, {"tensors": spread})
            if bad is not None and rank == bad:
                writer.note(NoteKind.ONSET, Onset(kind="nan", step=1, phase="update", rank=rank).to_json())
            for step in (0, 1):
                role = Role.GRAD if partial else Role.EXP_AVG_SQ
                writer.write([rows(step, rank, role, n, part, tuple(part.shape)) for n, (part, _) in held.items()])
                writer.flush()
    return Trace.open(folder)


@given(tensors())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_statistics_of_parts_are_those_of_the_whole_tensor(drawn: tuple[tuple[int, ...], list[Case]]) -> None:
    mesh, cases = drawn
    with tempfile.TemporaryDirectory() as folder:
        found = written(Path(folder) / "t", mesh, cases).frame()
        with TraceWriter(Path(folder) / "one.parquet", Manifest()) as writer:
            whole = [
                rows(step, 0, Role.EXP_AVG_SQ, n, case.whole, tuple(case.whole.shape))
                for step in (0, 1)
                for n, case in enumerate(cases)
            ]
            writer.write(whole)
        want = Trace.open(Path(folder) / "one.parquet").frame()
    for number, case in enumerate(cases):
        own = found[found["module"] == f"h.{number}"].reset_index(drop=True)
        if all(cut is None for cut in case.cuts):  # every rank has all of it
            assert len(own) == 2 * math.prod(mesh)
            continue
        expected = want[want["module"] == f"h.{number}"].reset_index(drop=True)
        assert own[["step", *EXACT]].equals(expected[["step", *EXACT]])
        for row in (0, 1):
            assert np.array_equal(own["exp_hist"][row], expected["exp_hist"][row])
            assert np.array_equal(own["shape"][row], expected["shape"][row])
        for column in ("mean", "l2"):
            size = expected["l2"].fillna(0).max()
            assert np.allclose(own[column], expected[column], rtol=1e-6, atol=1e-7 * size, equal_nan=True)


def test_a_gradient_of_addends_and_a_tensor_with_a_part_missing_stay_the_ranks_own(tmp_path: Path) -> None:
    cases = [Case(torch.randn(6, 2), (0,))]
    addends = written(tmp_path / "addends", (2,), cases, partial=True).frame()
    assert addends["numel"].tolist() == [6.0] * 4
    written(tmp_path / "missing", (3,), cases)
    (tmp_path / "missing" / "rank-0001.parquet").unlink()
    assert Trace.open(tmp_path / "missing").frame()["numel"].tolist() == [4.0] * 4


def test_the_rank_whose_part_holds_the_bad_elements_is_named(tmp_path: Path) -> None:
    whole = torch.ones(4, 5)
    whole[3, 1] = math.nan
    trace = written(tmp_path / "t", (2, 2), [Case(whole, (0, None))], bad=3)
    shards = diagnose(trace).shards
    assert [(part.rank, part.bad, part.numel, part.offset) for part in shards[0].parts] == [
        (0, 0, 10, (0, 0)),
        (2, 1, 10, (2, 0)),
    ]
    assert (shards[0].bad, shards[0].numel) == (1, 20)


def test_the_queries_of_the_plan_run_over_the_folder(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", text, flags=re.S)
    assert len(queries) == 2
    whole = torch.ones(4, 5)
    whole[3, 1] = math.nan
    written(tmp_path / "trace.parquet", (2,), [Case(whole, (0,))], bad=1)
    table = pq.read_table(tmp_path / "trace.parquet")
    known = {"as", *table.column_names}
    for query in queries:
        words = re.findall(r"[a-z_][a-z_0-9]*", re.sub(r"'[^']*'", "", query))
        functions = set(re.findall(r"([a-z_]+)\(", query))
        named = set(re.findall(r"AS ([a-z_0-9]+)", query))
        assert set(words) <= known | functions | named, "columns that a trace does not have"
    duckdb = pytest.importorskip("duckdb")
    asked = [query.replace("'trace.parquet/", f"'{tmp_path}/trace.parquet/") for query in queries]
    first = duckdb.sql(asked[0]).fetchall()
    assert [(row[0], row[1], row[4]) for row in first] == [(0, 1, 1), (1, 1, 1)]
    sizes = duckdb.sql(asked[1]).fetchall()
    assert [(row[4], row[5]) for row in sizes] == [(20, 1), (20, 1)]
