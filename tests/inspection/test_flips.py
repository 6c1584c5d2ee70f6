"""A flipped exponent bit is named with its element, its bit and the value before; heavy tails are not flips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanhunt.inspection.facts import FAULT_BINADES
from nanhunt.inspection.flips import flips_of, gap_log10_chance
from nanhunt.stats.torch_kernel import columns_of, measure
from tests.inspection.trained import inspected, kinds, saved, trained_gpt

#: dtype -> (integer view, highest exponent bit)
HIGHEST = {torch.float32: (torch.int32, 30), torch.bfloat16: (torch.int16, 14), torch.float16: (torch.int16, 14)}


def found_in(tensor, *, squares=False):
    flat = tensor.reshape(-1)
    stats = columns_of(measure(flat, histogram=True, exact=True).numpy()[None])[0]
    return flips_of(flat, tuple(tensor.shape), stats, squares=squares)


@pytest.mark.parametrize("dtype", HIGHEST, ids=str)
@given(seed=st.integers(0, 2**32 - 1), row=st.integers(0, 63), column=st.integers(0, 255))
@settings(max_examples=25, deadline=None)
def test_the_highest_exponent_bit_is_found_and_put_back(dtype, seed, row, column):
    integer, bit = HIGHEST[dtype]
    tensor = (torch.randn(64, 256, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)
    tensor[row, column] = 0.0137
    before = tensor[row, column].item()
    tensor.view(integer)[row, column] ^= 1 << bit
    (flip,) = found_in(tensor)
    assert (flip.index, flip.bit, flip.restored) == ((row, column), bit, before)
    assert flip.value == tensor[row, column].item()
    assert flip.log10_chance < -12


def test_an_inspection_names_it_as_a_fault(tmp_path):
    model, optimizer = trained_gpt(3)
    with torch.no_grad():
        model.h[1].fc.weight.view(torch.int32)[5, 7] ^= 1 << 30
        optimizer.state[model.h[1].out.weight]["exp_avg_sq"].view(torch.int32)[2, 9] ^= 1 << 30
    inspection = inspected(saved(model, optimizer), tmp_path)
    places = {f.claim.split(" is ")[0] for f in inspection.faults if f.kind == "flipped-bit"}
    assert places == {"h.1.fc.weight[5, 7]", "exp_avg_sq of h.1.out.weight[2, 9]"}


@pytest.mark.parametrize(("dtype", "number"), [(torch.float32, 1.234), (torch.bfloat16, 1.234), (torch.float16, 1.234)])
def test_a_nan_with_a_payload_was_a_number(dtype, number, tmp_path):
    integer, bit = HIGHEST[dtype]
    gains = torch.ones(64, dtype=dtype)
    gains[9] = number
    before = gains[9].item()
    gains.view(integer)[9] ^= 1 << bit
    assert gains[9].isnan()
    inspection = inspected({"ln.weight": gains, "w": torch.randn(64, 64)}, tmp_path)
    assert kinds(inspection) == {"flipped-bit"}
    assert f"{before:.6g}" in inspection.findings[0].claim
    assert inspection.origin is not None
    assert "a bit flipped" in inspection.origin.claim


def test_the_nan_of_arithmetic_is_no_flip(tmp_path):
    gains = torch.ones(64)
    gains[9] = torch.tensor(0.0) / 0.0
    assert kinds(inspected({"ln.weight": gains, "w": torch.randn(64, 64)}, tmp_path)) == {"non-finite"}


def student(freedom):
    return lambda n: torch.distributions.StudentT(freedom).sample((n,))


#: The maker draws from torch's own generator.
TAILS = {
    "normal": torch.randn,
    "laplace": torch.distributions.Laplace(0.0, 1.0).sample,
    "student 3": student(3.0),
    "student 1.5": student(1.5),
    "cauchy": student(1.0),
    "lognormal 2": lambda n: torch.randn(n).mul(2).exp(),
    "lognormal 4": lambda n: torch.randn(n).mul(4).exp(),
    "pareto 1": torch.distributions.Pareto(1.0, 1.0).sample,
    "pareto 0.5": torch.distributions.Pareto(1.0, 0.5).sample,
    "one at 100 rms": lambda n: torch.cat([torch.randn(n - 1), torch.tensor([100.0])]),
    "gains with one at 60": lambda n: torch.cat([1 + 0.1 * torch.randn(n - 1), torch.tensor([60.0])]),
    "30 decades": lambda n: 10 ** (-30 * torch.rand(n)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("squares", [False, True])
def test_heavy_tails_are_no_flips(tail, squares):
    torch.manual_seed(0)
    for size in (256, 768, 4096, 16384) * 5:
        draw = TAILS[tail]((size,)) if tail in ("laplace", "pareto 1", "pareto 0.5") else TAILS[tail](size)
        tensor = draw.square() if squares else draw
        assert found_in(tensor.view(-1, 64) if size > 1000 else tensor, squares=squares) == ()


def test_the_chance_of_a_gap_is_renyis():
    # spacings of a Pareto tail are exponential with one mean, so the chance is uniform over draws
    generator = torch.Generator().manual_seed(0)
    chances = []
    for _ in range(2000):
        uniform = torch.rand(65, generator=generator, dtype=torch.float64)
        magnitudes = uniform.pow(-1 / 1.3).sort(descending=True).values.tolist()
        chances.append(10 ** gap_log10_chance(magnitudes, 1))
    for level in (0.01, 0.1, 0.5):
        share = sum(c <= level for c in chances) / len(chances)
        assert abs(share - level) < 4 * math.sqrt(level / len(chances))


def test_a_lone_outlier_between_the_two_thresholds_is_a_notice(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(128, 128) * 0.02
    weight[3, 5] = weight.abs().max() * 2 ** (FAULT_BINADES[1] - 2)
    inspection = inspected({"w": weight, "u": torch.randn(128, 128)}, tmp_path)
    assert kinds(inspection) <= {"flipped-bit"}
    assert inspection.outcome == "healthy"
