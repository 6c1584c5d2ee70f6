"""Looks at rows and blocks: on which steps, of which tensors, and that the trace is what it was without them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.hunt import HuntSettings, hunt
from nanhunt.probes.blocks import BlockLooks, is_looked_at
from nanhunt.probes.probe import RowBuffer
from nanhunt.stats.blocks import LOOKS
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Manifest, NoteKind, Phase, Role
from nanhunt.trace.writer import TraceWriter
from tests.conftest import tiny_run

ONE = torch.ones((), dtype=torch.float64)


def hunted(folder: Path, *, every: int = 1) -> Trace:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 3))
    data = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(12)]
    run = tiny_run(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), data)
    with TraceWriter(folder / f"trace{every}.parquet", Manifest()) as writer:
        hunt(run, writer, HuntSettings(steps=10, every=every, trials=False))
    return Trace.open(folder / f"trace{every}.parquet")


def test_the_first_second_fourth_and_eighth_recorded_steps_are_looked_at() -> None:
    assert [i + 1 for i in range(70) if is_looked_at(i)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 3, 7]), (3, [0, 3, 9])])
def test_a_replay_leaves_a_note_on_each_of_them(every: int, steps: list[int], tmp_path: Path) -> None:
    trace = hunted(tmp_path, every=every)
    notes = trace.notes_of(NoteKind.BLOCKS)
    first = trace.steps[0]
    assert [note["step"] - first for note in notes] == steps
    for note in notes:
        roles = {role for role, *_ in note["tensors"]}
        assert {"output", "grad_output", "weight", "grad", "update"} <= roles
        assert all(len(row) == 3 + 4 + 3 * len(LOOKS) for row in note["tensors"])
        assert len({tuple(row[:3]) for row in note["tensors"]}) == len(note["tensors"])


def test_the_rows_of_a_trace_are_those_of_a_replay_without_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_looks = hunted(tmp_path).frame()
    monkeypatch.setattr("nanhunt.hunt.steps.is_looked_at", lambda _: False)
    (tmp_path / "trace1.parquet").unlink()
    without = hunted(tmp_path)
    assert without.notes_of(NoteKind.BLOCKS) == []
    columns = [c for c in with_looks.columns if c not in ("shape", "exp_hist")]
    assert with_looks[columns].equals(without.frame()[columns])


def test_looks_at_one_tensor_in_one_step_add_up() -> None:
    looks = BlockLooks()
    looks.on = True
    for values in ([1.0, 2.0**-30], [1.0, 0.5, 0.0]):
        looks.add(torch.tensor(values), ONE, role=Role.OUTPUT, module="m", name="")
    note = looks.take(5)
    assert note is not None
    ((role, module, name, numel, seen, of, energy, flushed, *_),) = note["tensors"]
    assert (role, module, name, note["step"]) == ("output", "m", "", 5)
    assert (numel, seen, of, flushed) == (5, 5, 4, 1)
    assert energy == pytest.approx(2.25)
    assert looks.take(6) is None


def test_nothing_is_looked_at_unless_asked_for_nor_what_is_no_operand() -> None:
    looks = BlockLooks()
    looks.add(torch.ones(3), ONE, role=Role.OUTPUT, module="", name="")
    looks.on = True
    looks.add(torch.ones(3), ONE, role=Role.BATCH, module="", name="")
    looks.add(torch.ones(3, dtype=torch.int64), ONE, role=Role.OUTPUT, module="", name="")
    looks.add(torch.ones(3), None, role=Role.OUTPUT, module="", name="")
    assert looks.take(0) is None


def test_a_shared_energy_that_all_flushes_is_a_share_of_one_after_rounding() -> None:
    looks = BlockLooks()
    looks.on = True
    looks.add(torch.tensor([1e-5, 1.0 / 3]), ONE * 1e9, role=Role.OUTPUT, module="", name="")
    note = looks.take(0)
    assert note is not None
    (row,) = note["tensors"]
    # NVFP4 under a tensor's amax of 1e9: both are below every block scale
    assert row[-1] == row[6]


class Rows(Tensor):
    """A subclass without reductions."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.count_nonzero, torch.Tensor.to):
            raise NotImplementedError
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_that_knows_no_reduction_is_passed_over() -> None:
    looks = BlockLooks()
    looks.on = True
    looks.add(torch.ones(3).as_subclass(Rows), ONE, role=Role.OUTPUT, module="", name="")
    assert looks.take(0) is None


def test_dropped_rows_take_their_looks_with_them() -> None:
    rows = RowBuffer()
    rows.blocks.on = True
    rows.tensor(nn.Parameter(torch.ones(4, 4)), phase=Phase.UPDATE, role=Role.WEIGHT, module="m", name="w")
    rows.drop()
    assert rows.blocks.take(0) is None


def test_every_role_of_a_parameter_shares_the_parameters_blocks() -> None:
    weight = torch.ones(2, 2)
    weight[1] = 2.0**-40  # one scale per row saves it, one for the 128 x 128 block does not
    notes = []
    for role in (Role.WEIGHT, Role.GRAD, Role.EXP_AVG, Role.EXP_AVG_SQ, Role.UPDATE):
        looks = BlockLooks()
        looks.on = True
        looks.add(weight, ONE, role=role, module="m", name="w")
        note = looks.take(0)
        assert note is not None
        notes.append(note["tensors"][0][3:])
    assert all(a == b for a, b in itertools.pairwise(notes))
    by_look = {tuple(look): notes[0][4 + 3 * i] for i, look in enumerate(LOOKS)}
    assert (by_look["row", "e4m3fn"], by_look["block", "e4m3fn"]) == (0, 2)
