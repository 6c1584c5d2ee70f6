"""A fix names what the line divides by, as the line has it."""

from __future__ import annotations

import pytest

from nanhunt.diagnosis.spelled import argument_in, divisor_in, operand_in


@pytest.mark.parametrize(
    ("code", "divisor"),
    [
        ("z = (x - mean) / spread", "spread"),
        ("return x / (a + b)", "(a + b)"),
        ("loss = total.div(batch['weight'].sum())", "batch['weight'].sum()"),
        ("y = torch.div(x, std)", "std"),
        ("with torch.autocast('cpu', enabled=a / b):", "b"),
        ("y = a / b / c", ""),  # which of both?
        ("y = x / 2", ""),
        ("x / spread,)", ""),  # a line of a longer statement
        ("((((" * 300, ""),
        ("", ""),
    ],
)
def test_the_divisor_is_the_lines_own(code: str, divisor: str) -> None:
    assert divisor_in(code) == divisor


def test_the_argument_of_a_function_or_a_method_is_found() -> None:
    assert argument_in("std = (0.5 * logvar).exp()", "exp") == "(0.5 * logvar)"
    assert argument_in("p = torch.exp(scores)", "exp") == "scores"
    assert argument_in("p = scores.exp_()", "exp") == "scores"
    assert argument_in("p = torch.exp(a) + torch.exp(b)", "exp") == ""


@pytest.mark.parametrize(
    ("code", "function", "index", "operand"),
    [
        ("loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean() + 0.04 * kl", "mul", 1, "adv"),
        ("loss = (logp * weight[mask]).sum()", "mul", 1, "weight[mask]"),
        ("loss = F.mse_loss(value, returns)", "mse_loss", 1, "returns"),
        ("loss = value.sub(returns).square().mean()", "sub", 1, "returns"),
        ("loss = a * b + c * d", "mul", 1, ""),
        ("loss = a * b", "mul", 2, ""),
        ("loss = a * (", "mul", 1, ""),
    ],
)
def test_an_operand_is_found_by_its_function_and_its_place(code: str, function: str, index: int, operand: str) -> None:
    assert operand_in(code, function, index) == operand
