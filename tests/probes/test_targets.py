"""Targets that a loss is not defined for are counted, and those at the ends of its domain are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.softmax import watch_softmax
from tests.probes.test_softmax import _Run


def outside(loss: nn.Module, target: Tensor) -> tuple[list[float | None], list[int]]:
    rows = RowBuffer()
    with watch_softmax(_Run(loss), rows, exact=True) as heard:  # type: ignore[arg-type]
        loss(target)
    counts = [row.value for row in rows.take() if row.name == "target.outside"]
    targets = heard.targets
    return counts, targets[0].body()["rows"] if targets and bool(targets[0].outside.any()) else []


class Loss(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, target: Tensor) -> Tensor:
        scores = torch.full_like(target, 0.3)
        return {
            "bce": lambda: F.binary_cross_entropy_with_logits(scores, target),
            "poisson": lambda: nn.PoissonNLLLoss()(scores, target),
            "mse": lambda: F.mse_loss(scores, target),
        }[self.name]()


@pytest.mark.parametrize(
    ("name", "target", "rows"),
    [
        ("bce", [0.0, 1.0, 0.5], []),
        ("bce", [0.0, 255.0, -0.1], [1, 2]),
        ("poisson", [0.0, 12.0], []),
        ("poisson", [3.0, -999.0], [1]),
    ],
)
def test_targets_outside_of_a_losss_domain_are_counted_by_row(name: str, target: list[float], rows: list[int]) -> None:
    counts, found = outside(Loss(name), torch.tensor(target)[:, None])
    assert counts == [float(len(rows))]
    assert found == rows


def test_a_loss_that_takes_any_target_is_not_asked() -> None:
    assert outside(Loss("mse"), torch.tensor([[-999.0]])) == ([], [])
