"""Numbers as text: what is shown without `~` is the number itself."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.catalogue import FORMATS
from nanhunt.formats.notation import as_typed, decimal_text, exact_text, full_text, value_text

positive = st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False)


def parsed(text: str) -> Fraction:
    """The number that an exact text names."""
    significand, _, power = text.rpartition("2^")
    if not significand:
        return Fraction(2) ** int(power) if text.startswith("2^") else Fraction(text)
    significand = significand.rstrip("·")
    if significand.startswith("("):
        return (2 - Fraction(2) ** int(significand[5:-1])) * Fraction(2) ** int(power)
    return Fraction(significand) * Fraction(2) ** int(power)


@given(positive)
def test_exact_text_names_the_number(value: float) -> None:
    text = exact_text(value)
    assert text is None or parsed(text) == Fraction(value)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_facts_of_formats_are_shown_exactly(fmt) -> None:  # type: ignore[no-untyped-def]
    for value in (fmt.smallest_normal, fmt.smallest, fmt.eps):
        text = exact_text(value)
        assert text is not None
        assert parsed(text) == Fraction(value)
    assert (exact_text(fmt.max) is None) == (fmt.name == "nvfp4")


@given(positive)
def test_a_decimal_without_a_tilde_is_exact(value: float) -> None:
    for text in (decimal_text(value), value_text(value)):
        if not text.startswith("~"):
            assert Fraction(text) == Fraction(value)
        else:
            assert Fraction(text[1:]) == pytest.approx(Fraction(value), rel=6e-3) or value < 1e-300


@given(st.floats())
def test_as_typed_reads_back_as_the_same_float(value: float) -> None:
    read = float(as_typed(value))
    assert read == value or (math.isnan(read) and math.isnan(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.3895313892515355e38, "255/128·2^127 = ~3.39e38"),
        (3.4028234663852886e38, "(2-2^-23)·2^127 = ~3.40e38"),
        (1.7976931348623157e308, "(2-2^-52)·2^1023 = ~1.80e308"),
        (Fraction(2) ** 1024 - Fraction(2) ** 970, "(2-2^-53)·2^1023 = ~1.80e308"),
        (65504.0, "2047/1024·2^15 = 65504"),
        (2.0**-14, "2^-14 = 6.103515625e-5"),
        (5e-324, "2^-1074 = ~4.94e-324"),
        (1.0, "1"),
    ],
)
def test_full_text_has_the_exact_form_first(value: float | Fraction, text: str) -> None:
    assert full_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.10009765625, "0.10009765625"),
        (0.1, "~0.1"),
        (-448.0, "-448"),
        (-0.0, "-0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "NaN"),
        (1e300, "~1e300"),
    ],
)
def test_value_text_of_any_float(value: float, text: str) -> None:
    assert value_text(value) == text
