"""One source line in fp64: what it computes, what leaves it, and what it must not disturb."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.bench import NotApplicableError
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, LinePrecision
from nanhunt.training.run import TrainingRun
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run

HERE = Path(__file__).parent


class Held(nn.Module):
    """A weight, and a function of it and of the batch."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4) if weight is None else weight)
        self.function = function

    def forward(self, x: Any) -> Tensor:
        return self.function(self.weight, x)


def line_of(function: Callable[..., Any], text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    number = next(i for i, line in enumerate(lines) if text in line)
    return f"{Path(__file__).name}:{first + number}"


def run_of(function: Callable[[Tensor, Any], Tensor], weight: Tensor | None = None, **settings: Any) -> TrainingRun:
    batches = [torch.tensor([1.0, 2.0, 3.0, 4.0])] * 4
    return tiny_run(Held(function, weight), lambda m, b: m(b).float().sum(), batches, root=HERE, **settings)


def under(run: TrainingRun, source: str, body: Callable[[], Any]) -> tuple[Any, list[str]]:
    bench = bench_of(run)
    with change_made(bench, LinePrecision(source)) as made:
        result = body()
    return result, made.readback


def test_a_line_that_overflows_in_half_precision_holds_in_fp64() -> None:
    def squares(w: Tensor, x: Tensor) -> Tensor:
        h = (w * x).half()
        s = (h * 300.0).square().mean().log()  # the line
        return s.float()

    run = run_of(squares)
    bench = bench_of(run)
    before = bits_of(run)
    plain = run_trial(bench, Intervention(name="exact", question=""))
    wide = run_trial(bench, Intervention(name="op", question="", change=LinePrecision(line_of(squares, "# the line"))))
    assert plain.outcome == "persists"
    assert wide.outcome == "cured", wide
    assert "ran in fp64" in wide.readback
    assert same_bits(before, bits_of(run))


def test_a_sum_that_rounds_away_in_fp32_is_the_one_of_fp64() -> None:
    def cancels(w: Tensor, x: Tensor) -> Tensor:
        return (w * x + 1e9) - 1e9  # the line

    run = run_of(cancels)
    out, _ = under(run, line_of(cancels, "# the line"), lambda: cancels(torch.ones(4), torch.full((4,), 0.25)) * 1)
    assert out.tolist() == [0.25] * 4
    assert out.dtype is torch.float32


def test_what_leaves_the_line_has_the_dtype_that_it_had() -> None:
    seen: list[torch.dtype] = []

    def line(w: Tensor, x: Tensor) -> Tensor:
        h = torch.softmax(w.bfloat16() * x, -1, dtype=torch.float32).to(torch.float16)  # the line
        seen.append(h.dtype)
        return h + 0

    run = run_of(line)
    out, _ = under(run, line_of(line, "# the line"), lambda: line(torch.ones(4), torch.ones(4)))
    assert seen == [torch.float16]
    assert out.dtype is torch.float16


def test_a_product_under_autocast_leaves_the_line_in_the_format_of_autocast() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        h = w.outer(x) @ x.outer(x)  # the line
        return h * 1

    run = run_of(line)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert line(torch.ones(4), torch.ones(4)).dtype is torch.bfloat16
        out, _ = under(run, line_of(line, "# the line"), lambda: line(torch.ones(4), torch.ones(4)))
    assert out.dtype is torch.bfloat16


def test_the_gradient_through_the_line_is_that_of_fp64() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        return ((w * x + 3000.0).square() - 9e6).sum()  # the line

    w64 = torch.full((4,), 0.1, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0.1, 0.4, 4)
    ((w64 * x.double() + 3000.0).square() - 9e6).sum().backward()
    w = torch.full((4,), 0.1, requires_grad=True)
    run = run_of(line)
    under(run, line_of(line, "# the line"), lambda: (line(w, x) * 1).backward())
    assert w.grad is not None
    assert w.grad.dtype is torch.float32
    expected = w64.grad
    assert expected is not None
    torch.testing.assert_close(w.grad, expected.float(), rtol=1e-6, atol=0)


def test_the_lines_own_casts_do_not_narrow_it() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        return (w * x * 1e30).float().square().type_as(w).sqrt().float()  # the line

    out, _ = under(run_of(line), line_of(line, "# the line"), lambda: line(torch.ones(4), torch.ones(4)) * 1)
    assert torch.isfinite(out).all()


def test_a_write_in_place_reaches_the_users_own_tensor() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        w[1:3].add_(x).mul_(2)  # the line
        w[0] += 5  # another line
        return w

    w = torch.zeros(4)
    under(run_of(line), line_of(line, "# the line"), lambda: line(w, torch.ones(2)))
    assert w.tolist() == [5.0, 2.0, 2.0, 0.0]


def test_running_statistics_are_kept() -> None:
    norm = nn.BatchNorm1d(2)

    def line(w: Tensor, x: Tensor) -> Tensor:
        return norm(x)  # type: ignore[no-any-return]  # the line

    expected = nn.BatchNorm1d(2)
    x = torch.randn(8, 2)
    expected(x)
    under(run_of(line), line_of(line, "# the line"), lambda: line(x, x) * 1)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected.running_mean)


def test_random_numbers_are_drawn_once() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        return F.dropout(w * x, 0.5)  # the line

    x = torch.ones(4)
    torch.manual_seed(0)
    F.dropout(x.double(), 0.5)
    expected = torch.rand(1)
    torch.manual_seed(0)
    out, _ = under(run_of(line), line_of(line, "# the line"), lambda: (line(x, x) * 1, torch.rand(1)))
    assert torch.equal(out[1], expected)


def test_what_reads_values_on_the_line_still_does() -> None:
    def line(w: Tensor, x: Tensor) -> Tensor:
        s = (w * x).sum().item()  # the line
        return x[x > 2] * s

    out, said = under(run_of(line), line_of(line, "# the line"), lambda: line(torch.ones(4), torch.arange(4.0)))
    assert out.tolist() == [18.0]
    assert "3 calls" in said[0]


def test_a_line_that_never_ran_is_not_applicable() -> None:
    run = run_of(lambda w, x: w * x)
    trial = run_trial(bench_of(run), Intervention(name="op", question="", change=LinePrecision("model.py:999")))
    assert trial.outcome == "failed"
    assert "model.py:999" in trial.detail


def test_an_error_of_the_body_is_not_hidden_behind_the_line_that_never_ran() -> None:
    run = run_of(lambda w, x: w * x)
    with pytest.raises(ValueError, match="mine"), change_made(bench_of(run), LinePrecision("model.py:999")):
        raise ValueError("mine")
    with pytest.raises(NotApplicableError), change_made(bench_of(run), LinePrecision("model.py:999")):
        pass


def test_an_attention_on_the_line_runs_in_fp64() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def line(w: Tensor, x: Tensor) -> Tensor:
        return attention(x, x, x)[0]  # the line

    x = torch.randn(1, 3, 4)
    out, _ = under(run_of(line), line_of(line, "# the line"), lambda: line(x, x) * 1)
    wide = nn.MultiheadAttention(4, 2, batch_first=True).double()
    wide.load_state_dict(attention.state_dict())
    expected = wide(x.double(), x.double(), x.double())[0].float()
    assert torch.equal(out, expected)
    assert math.isfinite(float(out.detach().sum()))
