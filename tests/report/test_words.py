"""How numbers, names and prose are spelt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nanhunt.report import words
from nanhunt.report.page import middle


@pytest.mark.parametrize(
    ("value", "spelt"),
    [
        (65504.0, "65504"),
        (0.0, "0"),
        (-0.0, "0"),
        (3.4028234663852886e38, "3.403e38"),
        (1e-8, "1e-8"),
        (0.031, "0.031"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (None, "-"),
        (np.float64(2.5), "2.5"),
    ],
)
def test_numbers_are_short(value: float | None, spelt: str) -> None:
    assert words.number(value) == spelt


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_to_four_digits(value: float) -> None:
    # past 1.797e308 four digits round up beyond the largest double
    if abs(value) < 1.79e308:
        assert float(words.number(value)) == pytest.approx(value, rel=6e-4, abs=1e-320)


def test_a_small_share_never_reads_as_none() -> None:
    assert words.percent(0.0) == "0 %"
    assert words.percent(1.8e-9) == "<0.01 %"
    assert words.percent(0.31) == "31 %"
    assert words.percent(1.0) == "100 %"
    assert words.percent(None) == "-"


def test_a_margin_just_beyond_the_end_keeps_its_sign_and_size() -> None:
    assert words.binades(-0.04) == "-0.04 binades"
    assert words.binades(1.24) == "+1.2 binades"
    assert words.binades(math.inf) == "inf binades"


def test_scales_below_one_are_fractions() -> None:
    assert words.scale(256.0) == "×256"
    assert words.scale(0.125) == "×1/8"
    for nothing in (1.0, None, math.nan, 0.0, -2.0):
        assert words.scale(nothing) == ""


def test_places_name_the_root_and_never_the_module_twice() -> None:
    assert words.place("") == "(root)"
    assert words.place("h.0", "weight") == "h.0.weight"
    assert words.place("h.0", "h.0.weight") == "h.0.weight"
    assert words.place("", "loss") == "loss"


def test_long_lists_say_how_many_more() -> None:
    assert words.listed([1, 2, 3]) == "1, 2, 3"
    assert words.listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


@given(st.text())
def test_printable_text_holds_nothing_that_drives_a_terminal(text: str) -> None:
    assert words.printable(text).isprintable()
    assert words.prose(text).isprintable()


@given(st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P"))))
def test_plain_text_is_left_as_it_is(text: str) -> None:
    assert words.printable(text) == text


@given(st.text(alphabet="ab.模型é", max_size=40), st.integers(min_value=1, max_value=30))
def test_the_middle_goes_and_the_width_is_exact(text: str, width: int) -> None:
    cut = middle(text, width)
    assert cell_len(cut) == width
    if cell_len(text) > width:
        assert "…" in cut


@pytest.mark.parametrize(
    ("count", "spelt"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_944, "98.9 kB"),
        (3_314_176, "3.3 MB"),
        (16.1e9, "16.1 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_have_two_or_three_digits(count: float, spelt: str) -> None:
    assert words.size(count) == spelt


@pytest.mark.parametrize(
    ("seconds", "spelt"),
    [
        (0.012, "12 ms"),
        (0.43, "0.43 s"),
        (4.9, "4.9 s"),
        (12.3, "12 s"),
        (89.9, "90 s"),
        (180, "3 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_have_two_digits(seconds: float, spelt: str) -> None:
    assert words.duration(seconds) == spelt
