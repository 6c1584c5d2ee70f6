"""A delayed scale is that of a simulation by hand: the largest amax of the steps before, with a margin."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanhunt.recipes.catalogue import lookup
from nanhunt.recipes.emulator import Emulator
from nanhunt.recipes.recipe import Products
from tests.recipes.emulated import CPU, assert_near, emulator_of, seeded

FORMATS = {"input": ml_dtypes.float8_e4m3fn, "weight": ml_dtypes.float8_e4m3fn, "gradient": ml_dtypes.float8_e5m2}
ENDS = {"input": 448.0, "weight": 448.0, "gradient": 57344.0}


def delayed(**settings: int) -> Products:
    products = lookup("fp8-delayed").products
    assert products is not None
    assert products.delayed
    assert products.amax_history == 1024
    return replace(products, **settings)  # type: ignore[arg-type]


class Simulation:
    """TransformerEngine's rule: scale = end / (largest amax of the last steps · 2^margin), kept where there is none."""

    def __init__(self, length: int, margin: int) -> None:
        self.length, self.margin = length, margin
        self.histories: dict[str, list[float]] = defaultdict(list)
        self.step: dict[str, float] = {}
        self.scaled_for: dict[str, float] = {}

    def cast(self, role: str, x: np.ndarray) -> np.ndarray:
        amax = float(np.abs(x).max())
        amax = amax if math.isfinite(amax) else 0.0
        self.step[role] = max(self.step.get(role, 0.0), amax)
        scale = np.float32(1)
        if largest := self.scaled_for.get(role) or amax:
            scale = np.float32(ENDS[role]) / (np.float32(largest) * np.float32(2.0**self.margin))
        with np.errstate(invalid="ignore"):
            held = np.clip(x * scale, -ENDS[role], ENDS[role]).astype(FORMATS[role]).astype(np.float32)
        return np.where(np.isfinite(x), held, np.nan) * (np.float32(1) / scale)

    def step_ended(self) -> None:
        for role, amax in self.step.items():
            self.histories[role] = [*self.histories[role], amax][-self.length :]
            if largest := max(self.histories[role]):
                self.scaled_for[role] = largest
        self.step.clear()


def simulated(data: Sequence[Sequence[tuple[Tensor, Tensor]]], w: Tensor, length: int, margin: int) -> list[np.ndarray]:
    twin, found = Simulation(length, margin), []
    for micros in data:
        for x, dy in micros:
            q = {"input": twin.cast("input", x.numpy()), "weight": twin.cast("weight", w.numpy())}
            q["gradient"] = twin.cast("gradient", dy.numpy())
            a, b, g = (q[role].astype(np.float64) for role in ("input", "weight", "gradient"))
            with np.errstate(invalid="ignore"):
                found += [a @ b.T, g @ b, g.T @ a]
        twin.step_ended()
    return found


def emulated(data: Sequence[Sequence[tuple[Tensor, Tensor]]], w: Tensor, emulator: Emulator) -> list[Tensor]:
    found = []
    for micros in data:
        with emulator.active({"a.w": w}, ()):
            for x, dy in micros:
                x, w.grad = x.clone().requires_grad_(), None
                out = F.linear(x, w)
                out.backward(dy)
                found += [out.detach(), x.grad, w.grad]
    return found  # type: ignore[return-value]


def batches(sizes: Sequence[Sequence[float]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Micro-batches of steps, by the factor of each."""
    return [
        [(seeded(9, 24, seed=10 * i + j) * f, seeded(9, 20, seed=500 + 10 * i + j) * f) for j, f in enumerate(step)]
        for i, step in enumerate(sizes)
    ]


@pytest.mark.parametrize(("length", "margin"), [(1024, 0), (1, 0), (2, 0), (3, 2), (1024, 1)])
@pytest.mark.parametrize("sizes", [
    [[1], [1], [1], [1]],
    [[1, 4], [0.5, 2], [1, 1], [8, 0.1]],  # the scale stands for the whole step, whatever its first micro-batch brings
    [[1], [3e6], [1], [1], [1], [1]],  # an outlier is cut off, and then its shadow falls on what follows
    [[1], [0], [1], [0], [0], [2]],
    [[0], [0], [1]],
    [[1], [math.inf], [2], [math.nan], [1]],
], ids=["even", "micro", "outlier", "zeros", "zeros-first", "not-finite"])  # fmt: skip
def test_every_product_is_that_of_the_simulation(sizes: list[list[float]], length: int, margin: int) -> None:
    data, w = batches(sizes), seeded(20, 24, seed=99)
    emulator = emulator_of(delayed(amax_history=length, margin=margin))
    got = emulated(data, w.clone().requires_grad_(), emulator)
    for one, other in zip(got, simulated(data, w, length, margin), strict=True):
        expected = torch.from_numpy(other)
        assert torch.equal(one.isfinite(), expected.isfinite())
        if expected.isfinite().all() and expected.any():
            assert_near(one, expected)


def test_an_outliers_shadow_is_as_long_as_the_history() -> None:
    data, w = batches([[1], [3e6], [1], [1], [1], [1]]), seeded(20, 24, seed=99).requires_grad_()
    for length in (1, 3):
        got = emulated(data, w, emulator_of(delayed(amax_history=length)))
        flushed = [not out.any() for out in got[::3]]
        assert flushed == [False, False, *[True] * length, *[False] * (4 - length)]


def test_each_weight_and_role_has_a_history_of_its_own_also_where_three_weights_share_an_input() -> None:
    weights = {f"{n}.w": (seeded(24, 24, seed=i) * 10.0**i).requires_grad_() for i, n in enumerate("qkv")}
    grads = {n: seeded(9, 24, seed=40 + i) * 1000.0**i for i, n in enumerate(weights)}
    steps = [seeded(9, 24, seed=60 + i) for i in range(3)]
    emulator = emulator_of(delayed(amax_history=2))
    found: dict[str, list[Tensor]] = {n: [] for n in weights}
    for x in steps:
        with emulator.active(weights, ()):
            leaf = x.clone().requires_grad_()
            sum((F.linear(leaf, w) * grads[n]).sum() for n, w in weights.items()).backward()  # type: ignore[union-attr]
        for name, w in weights.items():
            found[name].append(w.grad)  # type: ignore[arg-type]
            w.grad = None
    for name, w in weights.items():
        expected = simulated([[(x, grads[name])] for x in steps], w.detach(), 2, 0)[2::3]
        for got, other in zip(found[name], expected, strict=True):
            assert_near(got, torch.from_numpy(other))


def test_state_and_restore_bring_the_scales_back() -> None:
    data, w = batches([[1], [50], [1], [0.01], [1]]), seeded(20, 24, seed=99).requires_grad_()
    emulator = emulator_of(delayed(amax_history=2))
    emulated(data[:2], w, emulator)
    state = emulator.state()
    first = emulated(data[2:], w, emulator)
    emulator.restore(state)
    for one, other in zip(first, emulated(data[2:], w, emulator), strict=True):
        assert torch.equal(one, other)
    fresh = Emulator(emulator.recipe, CPU)
    assert not torch.equal(first[0], emulated(data[2:], w, fresh)[0])
    fresh.restore(state)
    assert torch.equal(first[0], emulated(data[2:], w, fresh)[0])


def test_a_step_that_raises_ends_its_step_too() -> None:
    data, w = batches([[7], [1]]), seeded(20, 24, seed=99).requires_grad_()
    emulator = emulator_of(delayed())
    with pytest.raises(ZeroDivisionError), emulator.active({"a.w": w}, ()):
        F.linear(data[0][0][0], w)
        raise ZeroDivisionError
    whole = emulator_of(delayed())
    emulated(data[:1], w, whole)
    assert torch.equal(emulated(data[1:], w, emulator)[0], emulated(data[1:], w, whole)[0])
