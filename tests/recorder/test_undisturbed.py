"""A recorder changes no bit of the loop that it rides along in, and raises nothing into it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nanhunt.probes.probe import RowBuffer
from nanhunt.recorder.closely import CloseLook
from nanhunt.recorder.history import History
from nanhunt.recorder.outputs import Outputs
from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recorder import Recorder
from tests.recorder.loop import Loop, nan_at

LOOPS = {
    "plain": Loop(clip=False, schedule=False),
    "clipped, scheduled": Loop(),
    "accumulated": Loop(accumulate=3),
    "fp16 with a scaler": Loop(fp16=True, accumulate=2),
    "bf16": Loop(dtype=torch.bfloat16),
    "with a fault": Loop(spoil=nan_at(17)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_no_bit_differs_with_a_recorder(name: str, tmp_path: Path) -> None:
    loop = LOOPS[name]
    loop.recorder = None
    plain = loop.run()
    loop.recorder = {"out": tmp_path, "every": 5, "detect": "outputs"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = loop.run()
    assert recorded == plain


def test_torchs_own_functions_are_back_afterwards(tmp_path: Path) -> None:
    owners = [
        (torch.autograd, "backward"),
        (torch.amp.GradScaler, "unscale_"),
        (torch.amp.GradScaler, "step"),
        (torch.nn.utils.clip_grad, "_clip_grads_with_norm_"),
    ]
    before = [getattr(owner, name) for owner, name in owners]
    Loop(steps=3, recorder={"out": tmp_path}).run()
    assert [getattr(owner, name) for owner, name in owners] == before


@pytest.mark.parametrize("method", ["begin", "add", "is_due"])
def test_a_recorder_that_fails_says_so_once_and_lets_the_training_go_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Loop(steps=12).run()
    calls = []

    def fails(self: Any, *args: Any) -> None:
        calls.append(args)
        raise RuntimeError("planted")

    monkeypatch.setattr(History, method, fails)
    with pytest.warns(RuntimeWarning, match="the training goes on: RuntimeError: planted") as told:
        recorded = Loop(steps=12, recorder={"out": tmp_path}).run()
    assert recorded == plain
    assert len(calls) == len(told) == 1


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (RowBuffer, "tensor"),
        (CloseLook, "gradients_ready"),
        (CloseLook, "update_begins"),
        (CloseLook, "update_done"),
        (PresentStep, "add_root"),
        (PresentStep, "send"),
        (Outputs, "add"),
    ],
)
def test_what_fails_inside_of_a_hook_raises_nothing(
    owner: type, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Loop(steps=6).run()

    def fails(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(owner, method, fails)
    with pytest.warns(RuntimeWarning, match="RuntimeError: planted") as told:
        recorded = Loop(steps=6, recorder={"out": tmp_path, "detect": "outputs"}).run()
    assert recorded == plain
    assert len(told) == 1


def test_a_batch_that_no_file_can_hold_ends_the_recording_alone(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    with Recorder(model, optimizer, out=tmp_path) as recorder:
        with pytest.warns(RuntimeWarning, match="a object cannot be kept; turn the batch into a dict of tensors"):
            recorder.step({"x": torch.ones(2), "meta": object()})
        model(torch.ones(2)).sum().backward()
        optimizer.step()
    assert not recorder.bundles


def test_an_exception_of_the_loop_comes_out_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    error = ValueError("the loop's own")
    with (
        pytest.raises(ValueError, match="the loop's own") as raised,
        Recorder(model, torch.optim.SGD(model.parameters()), out=tmp_path) as recorder,
    ):
        recorder.step(torch.ones(2))
        raise error
    assert raised.value is error


def test_a_disk_that_refuses_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="recorder has stopped"):
        recorded = Loop(spoil=nan_at(3), recorder={"out": tmp_path / "file"}).run()
    assert len(recorded["losses"]) == Loop.steps
