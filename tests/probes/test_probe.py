"""Rows wait on the device and come out in order; the stack of modules survives what breaks a forward off."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.closer import Closer
from nanhunt.probes.memory import Memory, shows_all
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import ModuleStack, RowBuffer, split_name
from nanhunt.trace.schema import Phase, Role
from tests.conftest import tiny_run


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(2, 2)
        self.seen: list[str] = []
        self.stack: ModuleStack | None = None
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        assert self.stack is not None
        self.seen.append(self.stack.current)
        if self.fails:
            raise ValueError("broken off")
        return self.leaf(x)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Tree(), Tree()
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.b(self.a(x))
        return checkpoint(self.b, self.a(x), use_reentrant=self.reentrant)


def followed(model: Root) -> ModuleStack:
    stack = ModuleStack()
    model.a.stack = model.b.stack = stack
    return stack


def test_the_innermost_running_module_is_known_by_its_state_dict_name() -> None:
    model = Root()
    with followed(model).following({"": model}) as stack:
        model(torch.zeros(1, 2))
        assert stack.current == ""
    assert model.a.seen + model.b.seen == ["a", "b"]


def test_a_forward_that_raises_leaves_the_stack_as_it_was() -> None:
    model = Root()
    with followed(model).following({"": model}) as stack:
        model.b.fails = True
        with pytest.raises(ValueError, match="broken off"):
            model(torch.zeros(1, 2))
        assert stack.current == ""


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_module_is_known_as_recomputing_and_leaves_nothing_behind(reentrant: bool) -> None:
    model = Root()
    model.reentrant = reentrant
    states: list[tuple[str, bool]] = []
    with followed(model).following({"": model}) as stack:
        model.b.leaf.register_forward_pre_hook(lambda m, a: states.append((stack.current, stack.is_recomputing)))
        model(torch.zeros(1, 2, requires_grad=True)).sum().backward()
        assert stack.current == ""
        assert not stack.is_recomputing
    assert states == [("b.leaf", False), ("b.leaf", True)]


def test_following_leaves_no_hook_behind_even_after_an_error() -> None:
    model = Root()
    with pytest.raises(ZeroDivisionError), ModuleStack().following({"": model}):
        raise ZeroDivisionError
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_passed_by() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with ModuleStack().following({"": Outer()}) as stack:
        assert stack.current == ""


def test_rows_keep_the_order_of_observation_whatever_they_hold() -> None:
    rows = RowBuffer(rank=3)
    rows.step, rows.micro, rows.pass_ = 7, 1, "zoom"
    rows.scalar("on the device", torch.tensor(2.5), phase=Phase.FORWARD)
    rows.tensor(torch.tensor([1.0, math.nan]), phase=Phase.BACKWARD, role=Role.GRAD, module="m", name="w")
    rows.scalar("on the host", 3, phase=Phase.UPDATE)
    taken = rows.take()
    assert [r.seq for r in taken] == [1, 2, 3]
    assert [r.value for r in taken] == [2.5, None, 3.0]
    assert {(r.step, r.micro, r.rank, r.pass_) for r in taken} == {(7, 1, 3, "zoom")}
    assert taken[1].stats is not None
    assert (taken[1].stats.nan, taken[1].shape, taken[1].dtype) == (1, (2,), "float32")
    assert rows.next_seq() == 4


def test_rows_that_were_peeked_at_stand_before_those_that_came_after_and_are_the_same() -> None:
    def observe(rows: RowBuffer, value: float) -> None:
        table = torch.tensor([value, value + 1], dtype=torch.float64)
        rows.tensor(torch.full((3,), value), phase=Phase.FORWARD, role=Role.OUTPUT, module="m")
        rows.scalars([("m", "a"), ("m", "b")], np.array([1, 0]), table, phase=Phase.UPDATE)
        rows.tensors({"m.w": torch.full((2, 2), value), "m.b": torch.ones(2)}, phase=Phase.UPDATE, role=Role.WEIGHT)
        rows.later("bound", torch.full((2,), value), lambda held: float(held.sum()), phase=Phase.FORWARD)
        rows.scalar("loss", torch.tensor(value), phase=Phase.FORWARD)

    peeked, plain = RowBuffer(), RowBuffer()
    for value in (1.0, 2.0, 3.0):
        observe(plain, value)
        observe(peeked, value)
        assert peeked.peek() is peeked.peek()
    found, expected = peeked.take(), plain.take()
    assert list(found) == list(expected)
    assert [row.value for row in found][:7] == [None, 2.0, 1.0, None, None, 2.0, 1.0]
    assert not len(peeked.take())


def test_a_row_holds_what_the_tensor_was_and_not_what_it_became() -> None:
    rows, tensor = RowBuffer(), torch.ones(3)
    rows.tensor(tensor, phase=Phase.FORWARD, role=Role.OUTPUT)
    tensor.fill_(math.inf)
    (row,) = rows.take()
    assert row.stats is not None
    assert (row.stats.posinf, row.stats.amax) == (0, 1.0)


def test_an_unrecorded_step_keeps_only_the_scalars_that_are_forced() -> None:
    rows = RowBuffer()
    rows.recording = False
    rows.tensor(torch.ones(2), phase=Phase.FORWARD, role=Role.OUTPUT)
    rows.scalar("lr", 0.1, phase=Phase.UPDATE)
    rows.scalar("loss", 1.0, phase=Phase.FORWARD, force=True)
    rows.scalar("grad_norm", None, phase=Phase.FORWARD, force=True)
    assert [r.name for r in rows.take()] == ["loss"]


def test_what_cannot_be_measured_leaves_no_row() -> None:
    rows = RowBuffer()
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    for tensor in (nested, torch.ones(2, device="meta"), torch.ones(2).to_mkldnn()):
        rows.tensor(tensor, phase=Phase.FORWARD, role=Role.OUTPUT)
    assert not list(rows.take())


def test_a_name_splits_at_its_last_dot() -> None:
    assert split_name("h.0.attn.weight") == ("h.0.attn", "weight")
    assert split_name("scale") == ("", "scale")


def test_memory_is_the_same_through_views_and_another_after_it_is_freed() -> None:
    memory = Memory()
    tensor = torch.ones(4)
    cell = memory.of(tensor)
    assert memory.of(tensor.view(2, 2).t().detach()) is cell
    del tensor
    assert all(memory.of(torch.ones(4)) is not cell for _ in range(50))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_tensor_is_known_by_the_memory_of_its_values() -> None:
    memory, values = Memory(), torch.ones(2)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), values, (3,))
    assert memory.of(sparse) is memory.of(sparse._values())


def test_who_spoiled_memory_is_remembered_until_all_of_it_is_made_anew() -> None:
    cell = Memory().of(torch.ones(4))
    cell.wrote(1, "", bad=True, whole=False)
    cell.wrote(2, "", bad=False, whole=False)
    assert cell.writer_of(bad=True) == (1, "")
    assert cell.writer_of(bad=False) == (2, "")
    cell.wrote(3, "", bad=False, whole=True)
    assert cell.writer_of(bad=True) is None  # what is bad in it now was written by no op


def test_a_tensor_shows_all_of_its_memory_or_a_part() -> None:
    base = torch.zeros(4, 6)
    whole = [base, base.t(), base.view(-1), base.reshape(2, 12), torch.zeros(3).expand(5, 3), torch.zeros(()).expand(4)]
    part = [base[0], base[:, :3], base[::2], base[0].expand(4, 6), base.diagonal()]
    part.append(torch.zeros(4).as_strided((2, 2), (1, 1)))  # the windows overlap, and end before the last
    memory = Memory()
    assert all(shows_all(t, memory.of(t)) for t in whole)
    assert not any(shows_all(t, memory.of(t)) for t in part)


def test_a_graph_that_outlives_the_step_keeps_no_hook_of_the_look() -> None:
    run, kept = tiny_run(nn.Linear(2, 2), lambda m, b: m(b).exp().mean(), [torch.ones(1, 2)]), torch.ones(2)
    closer = Closer(range(8))
    with OpProbe(run, RowBuffer(), closer):
        made = kept.requires_grad_().exp()
        made.sum()
    closer.release()
    made.sum().backward()
    assert closer.captures
    assert not closer.slopes
