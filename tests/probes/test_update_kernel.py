"""Updates and Adam's health of all parameters at once, on a GPU, against the numbers of each alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.probes.optimizer import OptimizerProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.training.step import train_step
from tests.conftest import tiny_run

pytestmark = pytest.mark.cuda

#: small, at the edges of a tile, of several tiles, sampled
SHAPES = [(1,), (1023,), (1024,), (1025,), (40, 70), (300, 300), (1500, 1500)]


class Bag(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.tensors = nn.ParameterList([torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES])
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, batch: Tensor) -> Tensor:
        return sum(((t.float() * batch).sin() * (1 + i)).sum() for i, t in enumerate(self.tensors)) * 1e-3


def rows_of(
    dtype: torch.dtype, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, alone: bool, own_step: Any = None
) -> list[Any]:
    if alone:
        monkeypatch.setattr("nanhunt.probes.optimizer.has_triton", lambda: False)
    device = torch.device("cuda")
    model = Bag(dtype).to(device)
    run = tiny_run(
        model,
        lambda m, b: m(b.to(device)),
        [torch.tensor(1.0 + i) for i in range(4)],
        optimizer=torch.optim.AdamW(model.parameters(), **settings),
        train_step=own_step,
    )
    run.device = device
    rows = RowBuffer()
    for step in range(3):
        rows.take()
        train_step(run, step, OptimizerProbe(run, rows))
    monkeypatch.undo()
    return list(rows.take())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{"lr": 1e-3, "fused": True}, {"lr": 1e-8, "eps": 0.0}, {"lr": 0.0, "foreach": True}]
)
def test_all_at_once_are_measured_as_each_alone(
    dtype: torch.dtype, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = rows_of(dtype, settings, monkeypatch, alone=False)
    alone = rows_of(dtype, settings, monkeypatch, alone=True)
    found = {(r.module, r.name, r.role): r for r in together}
    assert found.keys() == {(r.module, r.name, r.role) for r in alone}
    for expected in alone:
        row = found[expected.module, expected.name, expected.role]
        if expected.value is not None:
            assert row.value == pytest.approx(expected.value, rel=1e-5, nan_ok=True), (row.module, row.name)
        if expected.role == "update":
            assert row.stats is not None
            assert expected.stats is not None
            assert (row.shape, row.dtype, row.stats.numel) == (expected.shape, expected.dtype, expected.stats.numel)
            assert (row.stats.zero, row.stats.amax, row.stats.exponents) == (
                expected.stats.zero, expected.stats.amax, expected.stats.exponents,
            )  # fmt: skip


def step_that_writes(model: Bag, batch: Any, optimizer: Any) -> Tensor:
    optimizer.zero_grad()
    loss = model(batch.to("cuda"))
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.tensors[3].mul_(0.5)
        model.tensors[6].add_(1.0)
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_after_an_update_is_the_same_of_all_at_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    for alone in (False, True):
        rows = rows_of(dtype, {"lr": 1e-3}, monkeypatch, alone=alone, own_step=step_that_writes)
        moved.append({(r.module, r.name): r.value for r in rows if r.name.endswith("moved_outside")})
    assert moved[0].keys() == moved[1].keys()
    assert len(moved[0]) == len(SHAPES) + 1
    assert sum(value > 0 for value in moved[0].values()) == 2
    for key, value in moved[0].items():
        assert value == pytest.approx(moved[1][key], rel=1e-9), key


def test_a_part_that_holds_no_gradient_says_nothing_of_frozen_weights() -> None:
    device = torch.device("cuda")
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1 << 20, device=device))
    run = tiny_run(
        model,
        lambda m, b: m.weight[5000] * b.to(device),
        [torch.tensor(1.0)] * 2,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
    )
    rows = RowBuffer()
    train_step(run, 0, OptimizerProbe(run, rows))
    (share,) = (r.value for r in rows.take() if r.name == "weight.frozen")
    assert share is None or math.isnan(share)
