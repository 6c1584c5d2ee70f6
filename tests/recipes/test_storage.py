"""What an update writes: fp32 and then rounded, to the bit; 8-bit moments are those of a naive loop; lots are fair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.errors import UsageError
from nanhunt.recipes.catalogue import lookup
from nanhunt.recipes.dynamic_codes import BLOCK, SMALLEST, codes, in_eight_bits
from nanhunt.recipes.emulator import Emulator
from tests.recipes.emulated import CPU, run_under, seeded

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd-plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}
SHAPES = ((65, 70), (5,), (2, 3))
STEPS = 4


def values(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [seeded(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]


def grads_of(step: int) -> list[Tensor]:
    return [seeded(*shape, seed=100 * step + i) * 10.0 ** (-step) for i, shape in enumerate(SHAPES)]


def trained(recipe: str, make: Make, dtype: torch.dtype) -> tuple[list[Tensor], torch.optim.Optimizer]:
    parameters: list[Tensor] = [nn.Parameter(v) for v in values(dtype)]
    optimizer, emulator = make(parameters), Emulator(lookup(recipe), CPU)
    memory = [p.data_ptr() for p in parameters]
    for step in range(1, STEPS + 1):
        with emulator.active({}, [optimizer]):
            grads = [g.to(dtype) for g in grads_of(step)]
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g
            optimizer.step()
        assert all(p.grad is g for p, g in zip(parameters, grads, strict=True))
        assert [p.data_ptr() for p in parameters] == memory
        assert {p.dtype for p in parameters} == {dtype}
    return parameters, optimizer


def states(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        (key, t) for s in optimizer.state.values() for key, t in s.items() if isinstance(t, Tensor) and key != "step"
    ]


def assert_same_states(got: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    for (key, one), (_, other) in zip(states(got), states(expected), strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other), key


def plain(make: Make, rounding: Callable[[Tensor], Tensor], moment: Callable[[str, Tensor], Tensor]) -> tuple[
    list[Tensor], torch.optim.Optimizer
]:  # fmt: skip
    """Train in fp32; after each update round the weights and what the optimizer keeps of them."""
    parameters: list[Tensor] = [nn.Parameter(rounding(v)) for v in values()]
    optimizer = make(parameters)
    for step in range(1, STEPS + 1):
        for p, g in zip(parameters, grads_of(step), strict=True):
            p.grad = rounding(g)
        optimizer.step()
        for p in parameters:
            p.data.copy_(rounding(p.data))
        for key, tensor in states(optimizer):
            if tensor.dim():
                tensor.copy_(moment(key, tensor))
    return parameters, optimizer


def as_bf16(tensor: Tensor) -> Tensor:
    return torch.from_numpy(tensor.detach().numpy().astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_master_copy_an_update_is_the_one_of_fp32_rounded(name: str) -> None:
    got, optimizer = trained("bf16-no-master", OPTIMIZERS[name], torch.bfloat16)
    expected, twin = plain(OPTIMIZERS[name], as_bf16, lambda _, t: t)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.detach().float(), other.detach())
    assert_same_states(optimizer, twin)
    assert {t.dtype for _, t in states(optimizer)} <= {torch.float32}  # Adagrad's are made in bf16, by its constructor


def test_without_a_master_copy_small_updates_are_lost() -> None:
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    with Emulator(lookup("bf16-no-master"), CPU).active({}, [optimizer]):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(8, dtype=torch.bfloat16))  # half an ulp of 1 is 2^-8


@pytest.mark.parametrize(("recipe", "dtype", "ulp"), [
    ("bf16-no-master+stochastic", torch.bfloat16, 2.0**-8), ("pure-fp16+stochastic", torch.float16, 2.0**-11),
])  # fmt: skip
def test_small_updates_by_lot_are_right_in_the_mean(recipe: str, dtype: torch.dtype, ulp: float) -> None:
    count = 200_000
    weight = nn.Parameter(torch.ones(count, dtype=dtype))
    optimizer, emulator = torch.optim.SGD([weight], lr=0.25 * ulp), Emulator(lookup(recipe), CPU)
    for step in (1, 2, 3):
        with emulator.active({}, [optimizer]):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        error = float(weight.detach().double().mean()) - (1 - 0.25 * ulp * step)
        assert abs(error) < 6 * ulp * (step / count) ** 0.5 / 2
    assert weight.detach().double().unique().tolist() == [1 - k * ulp for k in (3, 2, 1, 0)]


def test_moments_in_bf16_by_lot_are_right_in_the_mean_and_no_weight_moves_otherwise() -> None:
    weight = nn.Parameter(torch.zeros(200_000))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.5)
    with Emulator(lookup("states-bf16+stochastic"), CPU).active({}, [optimizer]):
        weight.grad = torch.full_like(weight, 1 + 2.0**-9)
        optimizer.step()
    held = optimizer.state[weight]["momentum_buffer"]
    assert held.unique().tolist() == [1.0, 1 + 2.0**-7]
    assert abs(float(held.double().mean()) - 1 - 2.0**-9) < 6 * 2.0**-7 / 200_000**0.5
    assert torch.equal(weight.detach(), torch.full_like(weight, -1 - 2.0**-9))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_in_bf16_are_rounded_behind_each_update(name: str) -> None:
    got, optimizer = trained("states-bf16", OPTIMIZERS[name], torch.float32)
    expected, twin = plain(OPTIMIZERS[name], lambda t: t, lambda _, t: as_bf16(t))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert_same_states(optimizer, twin)


# --- 8 bits -----------------------------------------------------------------------------------------------------------


def dynamic_map(signed: bool) -> np.ndarray:
    """The codes as bitsandbytes' `create_dynamic_map` makes them, of a sign, seven exponent bits and the rest."""
    data: list[float] = []
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1 if signed else 2 ** (i + 1) + 1)
        means = (edges[:-1] + edges[1:]) / 2
        data += (10.0 ** (-6 + i) * means).tolist()
        data += (-(10.0 ** (-6 + i)) * means).tolist() if signed else []
    return np.array(sorted([*data, 0.0, 1.0]), dtype=np.float32)


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_are_those_of_8_bit_optimizers(signed: bool) -> None:
    table = codes(signed)
    assert len(table) == len(table.unique()) == 256
    np.testing.assert_allclose(table.numpy(), dynamic_map(signed), rtol=1e-6)
    assert float(table[-1]) == 1.0
    smallest = float(table[table > 0].min())
    assert smallest == pytest.approx(5.5e-7 if signed else 3.25e-7, rel=1e-6)


def naive(moment: Tensor, *, signed: bool) -> Tensor:
    table, flat = codes(signed).double().numpy(), moment.detach().double().reshape(-1).numpy()
    out = np.empty_like(flat)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        largest = np.abs(block).max()
        for i, value in enumerate(block):
            share = np.float32(np.float32(value) / np.float32(largest)) if largest else 0.0
            nearest = int(np.abs(table - share).argmin())
            out[start + i] = np.float32(np.float32(table[nearest]) * np.float32(largest))
    return torch.from_numpy(out).float().reshape(moment.shape)


def assert_nearest(got: Tensor, expected: Tensor, moment: Tensor) -> None:
    """Equal, or as near to the value: a share in the middle of two codes may fall on either."""
    differ = got != expected
    assert int(differ.sum()) <= 2
    x = moment.double()
    assert torch.allclose((got.double() - x).abs()[differ], (expected.double() - x).abs()[differ], rtol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_a_moment_in_8_bits_is_that_of_a_naive_loop(signed: bool) -> None:
    for i, shape in enumerate([(64, 64), (4099,), (3, 41, 37)]):
        moment = seeded(*shape, seed=i) * torch.exp2(seeded(*shape, seed=50 + i) * 8)
        moment = moment if signed else moment.abs()
        moment.view(-1)[256:512] = 0.0
        got = in_eight_bits(moment, signed=signed)
        assert got.shape == moment.shape
        assert_nearest(got, naive(moment, signed=signed), moment)


def test_small_moments_stay_and_what_is_not_finite_spoils_its_block_alone() -> None:
    small = seeded(SMALLEST - 1)
    assert in_eight_bits(small, signed=True) is small
    for bad in (torch.nan, torch.inf):
        moment = seeded(SMALLEST)
        moment[300] = bad
        spoilt = in_eight_bits(moment, signed=True).isnan()
        assert spoilt.nonzero().flatten().tolist() == list(range(256, 512))
    assert in_eight_bits(torch.zeros(SMALLEST), signed=False).eq(0).all()


def test_what_is_far_below_its_blocks_largest_becomes_zero() -> None:
    moment = torch.full((SMALLEST,), 1e-7)
    moment[0] = 1.0
    held = in_eight_bits(moment, signed=False)
    assert held[:256].count_nonzero() == 1
    assert torch.allclose(held[256:], moment[256:])


SIGNED = {"exp_avg", "momentum_buffer", "grad_avg"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_moments_are_in_8_bits_behind_each_update(name: str) -> None:
    got, optimizer = trained("states-8bit", OPTIMIZERS[name], torch.float32)

    def held(key: str, tensor: Tensor) -> Tensor:
        return in_eight_bits(tensor, signed=key in SIGNED)

    expected, twin = plain(OPTIMIZERS[name], lambda t: t, held)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert_same_states(optimizer, twin)
    if any(t.numel() >= SMALLEST for _, t in states(twin)):
        assert not all(
            torch.equal(a, b) for a, b in zip(got, plain(OPTIMIZERS[name], lambda t: t, lambda _, t: t)[0], strict=True)
        )


# --- what is put back -------------------------------------------------------------------------------------------------


class Failing(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert {p.dtype for group in self.param_groups for p in group["params"]} == {torch.float32}
        raise ZeroDivisionError


def test_an_update_that_raises_leaves_the_weights_in_their_own_memory() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    grad, memory = torch.ones_like(weight), weight.data_ptr()
    weight.grad = grad
    optimizer = Failing([weight], lr=0.1)
    with pytest.raises(ZeroDivisionError), Emulator(lookup("bf16-no-master"), CPU).active({}, [optimizer]):
        optimizer.step()
    assert weight.dtype is torch.bfloat16
    assert weight.data_ptr() == memory
    assert weight.grad is grad
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_parameters_without_a_gradient_and_those_in_fp32_are_left_alone() -> None:
    frozen, wide = nn.Parameter(torch.ones(4).bfloat16()), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([frozen, wide], lr=1e-3)
    wide.grad = torch.ones(4)
    with Emulator(lookup("bf16-no-master"), CPU).active({}, [optimizer]):
        optimizer.step()
    assert torch.equal(frozen.detach().float(), torch.ones(4))
    assert torch.equal(wide.detach(), torch.ones(4) - 1e-3)


def test_an_update_that_is_given_a_closure_is_refused_where_weights_would_be_widened() -> None:
    run = run_under("bf16-no-master", nn.Linear(4, 4), lambda m, x: m(x).sum(), [])
    assert run.emulator is not None
    for optimizer in (torch.optim.SGD(run.model.parameters(), lr=0.1), torch.optim.LBFGS(run.model.parameters())):
        with run.emulator.active(run.parameters(), [optimizer]), pytest.raises(UsageError, match="given a closure"):
            optimizer.step(lambda: 0.0)
        assert {p.dtype for p in run.model.parameters()} == {torch.bfloat16}
