"""What a bad step spoiled: three patterns that a training log does not tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.damage import damage_of
from nanhunt.diagnosis.damage import damage, pattern
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from nanhunt.trace.schema import NoteKind, Onset
from nanhunt.verdicts import Known
from tests.conftest import tiny_run
from tests.diagnosis.conftest import EvidenceOf


def ignored(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch), torch.full((4,), -100))


def beyond(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean() + math.inf


def at_the_root(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) * 0.0).abs().sqrt().mean()


def undefined(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1e4).log().mean()


def indefinite(model: nn.Module, batch: Tensor) -> Tensor:
    out = model(batch) * math.inf
    return (out - out).mean()


@pytest.mark.parametrize(
    ("loss", "name", "words"),
    [
        (ignored, "nan-loss-zero-gradients", "the loss is NaN, every gradient exactly zero"),
        (beyond, "inf-loss-finite-gradients", "the loss is infinite, every gradient finite"),
        (at_the_root, "finite-loss-bad-gradients", "the loss is finite, 2 of 2 gradients are not"),
        (undefined, "nan-loss-finite-gradients", "the loss is NaN, every gradient finite"),
        (indefinite, "both", "the loss is not finite, nor are 2 of 2 gradients"),
    ],
)
def test_the_patterns_of_loss_and_gradients_are_told_apart(
    loss: Callable[[nn.Module, Tensor], Tensor], name: str, words: str, evidence_of: EvidenceOf
) -> None:
    torch.manual_seed(0)
    run, rows = tiny_run(nn.Linear(3, 2), loss, [torch.randn(4, 3)]), RowBuffer()
    known = Known.of(run)
    seen = replay_step(run, 0, rows, recorded=True)
    body = damage_of(run, seen, rows.take(), known)
    evidence = evidence_of(Onset(kind="nan", step=0, phase="forward"), notes=[(NoteKind.DAMAGE, body)])
    assert pattern(evidence) == name
    assert damage(evidence).startswith(words)
