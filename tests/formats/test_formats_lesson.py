"""The figures of docs/formats.md against numpy and ml_dtypes, op by op."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nanhunt.formats.catalogue import FORMATS, lookup
from tests.formats.test_arithmetic import DTYPES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
LOGITS = [12.0, 11.0, 3.0, -2.0, -90.0]
FLOATS = [name for name in DTYPES if name not in ("e2m3fn", "e3m2fn", "e2m1fn")]

# Overflow and flushing are what the page is about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def tables(heading: str) -> list[dict[str, list[str]]]:
    """The tables under a heading: cells by the row's first."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = [block.splitlines() for block in section.split("\n\n") if block.startswith("|")]
    parsed = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]
    return [{row[0]: row[1:] for row in [*rows[:1], *rows[2:]]} for rows in parsed]


def number(cell: str) -> float:
    return float(cell.split(" (")[0].lstrip("~"))


def assert_says(cell: str, value: float, digits: int = 6) -> None:
    """A cell is the value itself, or, behind a `~`, the value to so many digits."""
    said, value = number(cell), float(value)
    if math.isnan(value) or math.isinf(value) or not cell.startswith("~"):
        assert said == value or (math.isnan(said) and math.isnan(value)), (cell, value)
    else:
        assert said == pytest.approx(value, rel=10.0 ** (1 - digits), abs=0), (cell, value)


def stored(name: str, value: object) -> np.ndarray:
    return np.asarray(value, dtype=np.float64).astype(DTYPES[name])


def wide(value: object) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def added(name: str, terms: np.ndarray) -> list[np.ndarray]:
    """The running sums, each in the dtype, from the second term on."""
    total, sums = terms[0], []
    for term in terms[1:]:
        total = np.asarray(total + term).astype(DTYPES[name])
        sums.append(total)
    return sums


@pytest.mark.parametrize("name", DTYPES)
def test_the_naive_way_op_by_op(name: str) -> None:
    exponentials, sums = tables("Log-sum-exp, as it is written")
    terms = stored(name, np.exp(wide(stored(name, LOGITS))))
    for cell, value in zip(exponentials[name], wide(terms), strict=True):
        assert_says(cell, value, 9)
    running = added(name, terms)
    *cells, log, off = sums[name]
    for cell, total in zip(cells, running, strict=True):
        assert_says(cell, total, 9)
    result = float(stored(name, np.log(wide(running[-1]))))
    assert_says(log, result, 9)
    if math.isfinite(result):
        assert number(off) == pytest.approx(abs(result - np.logaddexp.reduce(LOGITS)), rel=0.06, abs=1e-15)
    else:
        assert off == "-"


@pytest.mark.parametrize("name", DTYPES)
def test_the_stable_way_op_by_op(name: str) -> None:
    differences, exponentials, sums = tables("Log-sum-exp, the stable way")
    logits = stored(name, LOGITS)
    largest = logits[np.argmax(wide(logits))]
    below = (logits - largest).astype(DTYPES[name])
    for cell, value in zip(differences[name], [largest, *below], strict=True):
        assert_says(cell, value)
    terms = stored(name, np.exp(wide(below)))
    for cell, value in zip(exponentials[name], terms, strict=True):
        assert_says(cell, value, 9)
    running = added(name, terms)
    logarithm = stored(name, np.log(wide(running[-1])))
    result = np.asarray(largest + logarithm).astype(DTYPES[name])
    for cell, value in zip(sums[name][:-1], [*running, logarithm, result], strict=True):
        assert_says(cell, value, 9)


def test_moved_logits_break_the_naive_way_only() -> None:
    (moved,) = tables("The same logits, moved")
    for shift, (plain, mended) in zip((0, 80, -120), [moved["exact"][i : i + 2] for i in (0, 2, 4)], strict=True):
        assert number(plain) == number(mended) == pytest.approx(np.logaddexp.reduce(LOGITS) + shift, rel=1e-5)
    naive = {name: [number(cell) for cell in moved[name][::2]] for name in ("fp64", "fp32", "bf16", "fp16")}
    assert naive["fp32"][1:] == naive["bf16"][1:] == naive["fp16"][1:] == [math.inf, -math.inf]
    assert all(math.isfinite(x) for x in naive["fp64"])
    assert all(math.isfinite(number(c)) for name in ("fp64", "fp32", "bf16", "fp16") for c in moved[name][1::2])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(("index", "value"), [(0, 0.001), (1, 1e-6), (2, 2.0)])
def test_loss_scales_against_casts(name: str, index: int, value: float) -> None:
    plain, *scaled = tables("A loss and a gradient, with and without a loss scale")[index][name]
    assert_says(plain, float(stored(name, value)))
    for scale, (held, unscaled) in zip((2.0**8, 2.0**16), (scaled[:2], scaled[2:]), strict=True):
        there = float(stored(name, value * scale))
        assert_says(held, there)
        assert_says(unscaled, float(np.float32(there) / np.float32(scale)))
        assert ("flushed" in held) == (there == 0)


@pytest.mark.parametrize("name", FLOATS)
def test_the_scales_between_which_both_gradients_live_are_those_found_by_trying(name: str) -> None:
    window = tables("A loss and a gradient, with and without a loss scale")[3][name]
    lowest, highest = (int(cell.removeprefix("2^")) for cell in window)
    normal = lookup(name).smallest_normal
    tried = range(40)
    assert lowest == next(k for k in tried if 1e-6 * 2.0**k >= normal)
    if highest < 40:
        assert highest == max(k for k in tried if np.isfinite(wide(stored(name, 2.0 * 2.0**k))))


@pytest.mark.parametrize("name", DTYPES)
def test_a_hundred_updates_one_by_one(name: str) -> None:
    (table,) = tables("A weight and its update")
    weight = stored(name, 0.02)
    seen = [weight]
    for _ in range(100):
        seen.append(stored(name, wide(seen[-1]) - 3e-5))
    said, _, once, at_last = table[name]
    for cell, value in ((said, seen[0]), (once, seen[1]), (at_last, seen[100])):
        assert_says(cell, float(value))


def test_a_mean_of_ones_is_what_is_left_of_it() -> None:
    (table,) = tables("A running sum of 1s")
    ones = np.ones(4096)
    for name in ("fp16", "bf16", "e4m3fn", "e5m2"):
        total = stored(name, 0)
        for one in ones:
            total = (total + stored(name, one)).astype(DTYPES[name])
        assert [number(cell) for cell in table[name]] == [float(total), float(total) / 4096]


def test_every_format_is_in_the_catalogues_tables_and_every_plain_one_in_the_worked_ones() -> None:
    plain, blocks = tables("Side by side")
    assert {*plain, *blocks} - {"format"} == {f.name for f in FORMATS}
    for table in (*tables("Log-sum-exp, as it is written"), *tables("Log-sum-exp, the stable way")):
        assert set(plain) <= set(table)
