"""A fix names what the line divides by, as the line has it."""

from __future__ import annotations

import pytest

from nanhunt.diagnosis.spelled import argument_in, divisor_in


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
