"""The bounds against numpy in float64: what rounding does to statistics stays below what the formulas say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nanhunt.comparison.bounds import LAMBDA, STATISTICS, below
from nanhunt.comparison.observed import Sites, read_observed
from nanhunt.comparison.roundoff import of_sums, unit_roundoff
from nanhunt.trace.reader import Trace
from tests.comparison.rows import row, write

Floats = npt.NDArray[np.float64]
DRAWS = 200


def rounded(x: Floats, precision: int) -> Floats:
    """Return x with so many significant bits, to nearest."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(fraction, precision)), exponent - precision)


def tensors(rng: np.random.Generator) -> list[Floats]:
    n = int(rng.integers(16, 5000))
    return [rng.standard_normal(n), rng.standard_t(3, n), np.exp(2 * rng.standard_normal(n)), rng.uniform(size=n) ** 4]


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", 8), ("float16", 11)])
def test_statistics_of_a_rounded_tensor_stay_below_the_bound(dtype: str, precision: int) -> None:
    rng = np.random.default_rng(0)
    error = unit_roundoff(dtype) / np.sqrt(3)
    for _ in range(DRAWS):
        for x in tensors(rng):
            y, rms, amax = rounded(x, precision), np.sqrt(np.mean(x**2)), np.abs(x).max()
            bound = LAMBDA * error * amax / (np.sqrt(len(x)) * rms) + error**2 + STATISTICS
            assert abs(np.sqrt(np.mean(y**2)) - rms) <= bound * rms
            assert abs(y.mean() - x.mean()) <= bound * rms
            assert abs(np.abs(y).max() - amax) <= LAMBDA * error * amax


@pytest.mark.parametrize("terms", [16, 256, 2048])
def test_a_sum_in_fp32_errs_by_less_than_its_terms_say(terms: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((64, terms)), rng.standard_normal((terms, 64))
    products = a[:, :, None] * b[None]
    # one after the other, the worst order that there is
    sums = np.cumsum(products.astype(np.float32), axis=1, dtype=np.float32)[:, -1]
    exact = products.sum(axis=1)
    u = np.array([2.0**-24])
    assert of_sums(u)[0] == u[0]
    error = np.sqrt(u[0] ** 2 + terms * u[0] ** 2 / 3)
    assert np.sqrt(np.mean((sums - exact) ** 2)) <= error * np.sqrt(np.mean(exact**2))


def test_products_of_rounded_operands_err_by_a_roundoff_each() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = rng.standard_normal((64, 256)), rng.standard_normal((256, 64))
        exact = a @ b
        found = rounded(rounded(a, 8) @ rounded(b, 8), 8)
        assert np.sqrt(np.mean((found - exact) ** 2)) <= 2.0**-8 * np.sqrt(np.mean(exact**2))


def test_elements_that_cross_zero_are_among_those_that_the_histogram_counts(tmp_path) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(4000)
    observed = read_observed(Trace.open(write(tmp_path / "t.parquet", [row(relu(x))])), Sites(), by_rank=False)
    for size in (1e-4, 1e-2, 0.1):
        y = x + size * rng.uniform(-1, 1, len(x))
        few, _ = below(observed, np.array([0]), np.array([size]))
        in_y = np.count_nonzero((relu(y) > 0) & (relu(y) <= size))
        apart = abs(np.count_nonzero(relu(x) == 0) - np.count_nonzero(relu(y) == 0))
        assert apart <= few[0] + in_y


def test_signs_that_a_gradients_error_turns_are_bounded_by_its_histogram(tmp_path) -> None:
    rng = np.random.default_rng(4)
    g = rng.standard_t(3, 4000)
    observed = read_observed(Trace.open(write(tmp_path / "t.parquet", [row(g)])), Sites(), by_rank=False)
    for size in (1e-5, 1e-3, 0.1):
        # Adam's first update is the sign, or with an epsilon in the way a bend of it
        for update in (np.sign, lambda g: g / (np.abs(g) + 1e-3)):
            apart = update(g + size * rng.uniform(-1, 1, len(g))) - update(g)
            _, energy = below(observed, np.array([0]), np.array([size]))
            assert np.sqrt(np.mean(apart**2)) <= np.sqrt(energy[0] / len(g))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_unit_roundoffs_are_half_of_torchs_eps(name: str) -> None:
    assert unit_roundoff(name) == torch.finfo(getattr(torch, name)).eps / 2


def test_what_is_no_float_has_no_roundoff() -> None:
    assert [unit_roundoff(name) for name in ("int64", "bool", "", "complex64")] == [0.0] * 4


def relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0)
