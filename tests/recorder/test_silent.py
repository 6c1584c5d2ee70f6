"""What is not finite and shows in no loss and no gradient norm is a fault where it is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.recorder.recorder import Recorder
from tests.recorder.test_bundle import replayed

BAD, STEPS = 13, 22


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Hides(torch.autograd.Function):
    """Replaces what is not finite in its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].nan_to_num(0.0, 0.0, 0.0)


class Breaks(torch.autograd.Function):
    """Puts an infinity into its gradient where the input is marked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: Tensor) -> Tensor:
        ctx.save_for_backward(mark)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (mark,) = ctx.saved_tensors
        return torch.where(mark[:, None], torch.inf, grads[0]), None


class Net(nn.Module):
    """Feature 0 is divided by its root mean square, which makes 0 of it where x² overflows; a mark spoils gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.hold = Square(), nn.Identity()
        self.middle, self.out = nn.Linear(3, 8), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1] * torch.rsqrt(self.square(x[:, :1]) + 1e-3)
        hidden = self.middle(x[:, 1:])
        hidden = Breaks.apply(self.hold(Hides.apply(hidden)), x[:, 1] > 1e3)
        return self.out(torch.cat([torch.tanh(hidden), first], 1))  # type: ignore[no-any-return]


def compute_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch), torch.ones(len(batch), 2))


def record(out: Path, spoilt: int, feature: int = 0, value: float = 1e25, **settings: Any) -> list[Path]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    with Recorder(model, optimizer, build=Net, loss=compute_loss, out=out, **settings) as recorder:
        for step in range(STEPS):
            batch = torch.rand(6, 4) + 0.1
            if step == spoilt:
                batch[2, feature] = value
            recorder.step(batch)
            loss = compute_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            assert loss.isfinite()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            optimizer.step()
    return recorder.bundles


def test_an_output_is_a_fault_in_its_own_step_where_each_is_looked_at(tmp_path: Path) -> None:
    bundles = record(tmp_path / "bundles", BAD, detect="outputs")
    assert [path.name for path in bundles] == [f"step-{BAD}"]
    detail = json.loads((bundles[0] / "run.json").read_text())["fault"]["detail"]
    assert detail == "output of square holds an infinity, loss and gradient norm do not show it"
    onset, original = replayed(bundles[0], tmp_path / "trace.parquet")
    assert onset is not None
    assert (onset.step, onset.module) == (BAD, "square")
    assert original.bitwise


def test_an_output_is_a_fault_in_a_close_look_alone_by_default(tmp_path: Path) -> None:
    assert not record(tmp_path / "a", BAD, every=10)
    assert [path.name for path in record(tmp_path / "b", 10, every=10)] == ["step-10"]


def test_a_gradient_that_a_backward_hides_is_a_fault_in_a_close_look(tmp_path: Path) -> None:
    bundles = record(tmp_path, 10, feature=1, value=1e4, every=10)
    detail = json.loads((bundles[0] / "run.json").read_text())["fault"]["detail"]
    assert detail == "gradient of the output of hold holds an infinity, loss and gradient norm do not show it"


def test_what_is_so_in_each_step_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Square, "forward", lambda self, x: (x + 1e25) ** 2)
    assert [path.name for path in record(tmp_path, -1, every=2, detect="outputs")] == ["step-0"]


def test_what_is_silent_keeps_nothing_loud_from_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        return Net_forward(self, x) * (torch.nan if x[2, 0] > 1e3 else 1.0)

    Net_forward = Net.forward
    monkeypatch.setattr(Net, "forward", forward)
    monkeypatch.setattr(Square, "forward", lambda self, x: (x + 1e25) ** 2)
    with pytest.raises(AssertionError):
        record(tmp_path, BAD, every=50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0", f"step-{BAD}"]
