"""The module probe records each module's outputs and their gradients, once, under its own name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.module import watch_modules
from nanhunt.probes.probe import RowBuffer
from nanhunt.trace.schema import Observation


def watched(model: nn.Module, *inputs: Tensor, scale: float = 1.0) -> list[Observation]:
    rows = RowBuffer()
    with watch_modules({"": model}, rows):
        output = model(*inputs)
        total = output if isinstance(output, Tensor) else output.first
        (total.sum() * scale).backward()
    return rows.take()


def named(rows: list[Observation], role: str) -> list[tuple[str, str]]:
    return [(r.module, r.name) for r in rows if r.role == role]


def test_outputs_come_in_forward_order_and_gradients_in_backward_order() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    rows = watched(model, torch.ones(4, 2))
    assert named(rows, "output") == [("0", ""), ("1", ""), ("2", ""), ("", "")]
    assert {m for m, _ in named(rows, "grad_output")} == {"", "0", "1", "2"}
    assert [m for m, _ in named(rows, "grad_output")][-1] == "0"


def test_a_gradient_is_recorded_with_the_loss_scale_in_it() -> None:
    plain, scaled = (watched(nn.Linear(2, 1), torch.ones(1, 2), scale=s) for s in (1.0, 1024.0))
    amax = [next(r.stats.amax for r in rows if r.role == "grad_output" and r.stats) for rows in (plain, scaled)]
    assert amax == [1.0, 1024.0]


def test_every_tensor_of_a_nested_output_has_its_path() -> None:
    @dataclass
    class Out:
        first: Tensor
        rest: dict[str, Any]

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Out:
            return Out(x * 2, {"ids": torch.arange(3), "text": "kept"})

    rows = watched(Net(), torch.ones(2, requires_grad=True))
    assert named(rows, "output") == [("", "first"), ("", "rest.ids")]
    assert named(rows, "grad_output") == [("", "first")]


def test_a_module_called_twice_is_recorded_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(x))

    rows = watched(Twice(), torch.ones(1, 2))
    assert named(rows, "output").count(("shared", "")) == 2
    assert named(rows, "grad_output").count(("shared", "")) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_is_not_recorded_again(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    rows = watched(Net(), torch.ones(1, 2, requires_grad=True))
    assert named(rows, "output").count(("inner", "")) == 1


def test_nothing_is_recorded_or_hooked_on_an_unrecorded_step() -> None:
    model, rows = nn.Linear(2, 1), RowBuffer()
    rows.recording = False
    with watch_modules({"": model}, rows):
        output = model(torch.ones(1, 2))
        output.sum().backward()
    assert not output._backward_hooks
    assert not list(rows.take())


def test_every_hook_is_gone_after_an_error_also_from_tensors_that_live_on() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self) -> Tensor:
            return self.weight

    model = Own()

    def breaks_off() -> None:
        with watch_modules({"": model}, RowBuffer()):
            model()
            assert model.weight._backward_hooks
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert not model._forward_hooks
    assert not model.weight._backward_hooks
