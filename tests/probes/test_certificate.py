"""The slope in fp64 tells range, rounding and the undefined apart; elements know their sample and position.

Slopes are held against numbers worked out by hand, or against autograd in fp64 on the same function.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.probes.elements import Layout, layout_of, positions_of, samples_of
from tests.conftest import tiny_run
from tests.probes.test_births import Net, Of, found_in, mean_loss, of_function, ordinary, with_sample


def test_a_root_at_zero_has_a_slope_that_fp64_does_not_have_either() -> None:
    root = found_in(of_function(torch.sqrt, with_sample(1, [0.0, 1.0, 4.0, 9.0]))).root
    assert (root.phase, root.slope, root.fp64) == ("backward", "non-finite", "non-finite")
    element = root.slope_elements[0]
    assert (element.coordinate, element.inputs, element.output) == ([1, 0], [0.0, 1 / 16], math.inf)
    assert element.fp64 == math.inf
    assert element.sample == 1


def test_an_intermediate_beyond_fp16_has_a_slope_within_it() -> None:
    def ratio(x: Tensor) -> Tensor:
        return (x.half().rsqrt() * 1e-4).float()

    # rsqrt's backward cubes the result: 64³ is beyond fp16, times a gradient of 1e-4/16 it is not
    root = found_in(of_function(ratio, with_sample(0, [2.0**-12, 1.0, 1.0, 1.0]))).root
    assert (root.phase, root.fp64, root.slope) == ("backward", "beyond-range", "in-range")
    assert root.slope_amax == pytest.approx(0.5 * 64**3 * 1e-4 / 16, rel=1e-2)


def test_a_gradient_that_is_itself_beyond_fp16_has_a_slope_beyond_it() -> None:
    def steep(x: Tensor) -> Tensor:
        return (x.half() * 200.0).float() * 1e4

    root = found_in(of_function(steep, ordinary())).root
    assert (root.phase, root.slope) == ("backward", "beyond-range")
    assert root.slope_amax == pytest.approx(200 * 1e4 / 16, rel=1e-2)


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad / torch.zeros_like(grad)


def test_a_users_own_backward_has_no_slope_to_be_held_against() -> None:
    root = found_in(of_function(Steep.apply, ordinary())).root  # type: ignore[arg-type]
    assert (root.phase, root.slope) == ("backward", "unavailable")


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_slope_is_judged_where_its_forward_op_has_a_node(reentrant: bool) -> None:
    class Again(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(torch.sqrt, x, use_reentrant=reentrant)

    root = found_in(tiny_run(Net(Again()), mean_loss, [with_sample(1, [0.0, 1.0, 4.0, 9.0])])).root
    assert root.fp64 == "non-finite"
    assert root.slope in (("non-finite",) if not reentrant else ("unavailable", "non-finite"))


def test_an_output_that_is_changed_in_place_keeps_the_node_of_the_op_that_made_it() -> None:
    def function(x: Tensor) -> Tensor:
        return x.acos().mul_(2.0)

    assert found_in(of_function(function, with_sample(1, [0.1, 1.0, 0.2, 0.3]))).root.slope == "non-finite"


def test_a_matrix_product_tells_the_row_and_the_column_that_meet() -> None:
    model = Net(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model.block.weight, 100.0)
    batch = with_sample(1, [200.0, 100.0, 300.0, 200.0])
    root = found_in(tiny_run(model, mean_loss, [batch], autocast="fp16")).root
    assert root.elements[0].reach == {"row": 300.0, "column": 100.0}
    assert (root.elements[0].sample, root.elements[0].fp64) == (1, 80_000.0)


class Tokens(nn.Module):
    """A language model's shape: (samples, tokens) in, logits out; `exp` overflows at one token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 4)
        self.embed.weight.data[7] = 1e3
        self.head = Of(torch.exp)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_the_position_of_a_bad_token_is_told_with_its_sample() -> None:
    ids = torch.ones(3, 6, dtype=torch.int64)
    ids[2, 4] = 7
    found = found_in(tiny_run(Tokens(), mean_loss, [ids]))
    assert {(e.sample, e.position) for e in found.root.elements} == {(2, 4)}
    assert found.onset.samples == [2]


@pytest.mark.parametrize(
    ("shape", "at", "place"),
    [
        ((3, 6, 5), (2, 4, 0), (2, 4)),
        ((18, 5), (16, 3), (2, 4)),
        ((18,), (16,), (2, 4)),
        ((3, 2, 6, 6), (2, 1, 4, 0), (2, 4)),
        ((6, 6, 6), (5, 4, 0), (2, 4)),  # samples times two heads
        ((6, 3, 5), (4, 2, 0), (2, 4)),  # the sequence first
        ((3, 7), (2, 1), (2, None)),
        ((), (), (None, None)),
        ((5, 5), (1, 1), (None, None)),
        ((15,), (13,), (2, 3)),  # labels without their first token
        ((24,), (16,), (None, None)),  # features as well as samples
        ((24, 5), (16, 3), (None, None)),
    ],
)
def test_the_place_of_an_element_is_read_off_the_tensors_shape(
    shape: tuple[int, ...], at: tuple[int, ...], place: tuple[int | None, int | None]
) -> None:
    assert Layout(size=3, length=6).place(shape, at) == place


def test_the_layout_is_that_of_the_batchs_tensors() -> None:
    assert layout_of(3, [(3, 6), (3,)]) == Layout(size=3, length=6)
    assert layout_of(3, [(3, 1, 28, 28), (3,)]) == Layout(size=3)


def test_positions_are_told_of_the_whole_tensor_and_not_where_all_of_them_are_bad() -> None:
    mask = torch.zeros(3, 2, 6, 6, dtype=torch.bool)
    mask[1, :, 4:] = True
    mask[2] = True
    assert positions_of(mask, Layout(size=3, length=6)) == {"1": [4, 5], "2": []}
    assert positions_of(mask.flatten(1), Layout(size=3)) == {}
    heads = torch.zeros(6, 6, 6, dtype=torch.bool)
    heads[3, 2] = True  # the second sample's second head
    assert positions_of(heads, Layout(size=3, length=6)) == {"1": [2]}
    behind = torch.zeros(6, 3, 5, dtype=torch.bool)
    behind[4, 2] = True
    assert positions_of(behind, Layout(size=3, length=6)) == {"2": [4]}
    flat = torch.zeros(18, 5, dtype=torch.bool)
    flat[16] = True
    assert positions_of(flat, Layout(size=3, length=6)) == {"2": [4]}


def test_bad_elements_in_every_sample_belong_to_none() -> None:
    layout = Layout(size=3, length=6)
    mask = torch.zeros(3, 6, 5, dtype=torch.bool)
    assert samples_of(mask.index_fill(0, torch.tensor([1, 2]), True), layout) == [1, 2]
    assert samples_of(~mask, layout) == []
    assert samples_of(torch.ones(4, 4, dtype=torch.bool), layout) == []


def test_the_lineage_is_whole_however_long_it_is() -> None:
    def deep(x: Tensor) -> Tensor:
        x = torch.log(x)
        for _ in range(60):
            x = x * 1.0
        return x

    found = found_in(of_function(deep, with_sample(1, [0.0, 1.0, 4.0, 9.0])))
    assert [h.op for h in found.hops].count("aten.mul.Tensor") == 60
    assert (found.hops[0].op, found.hops[0].does, found.hops[-1].op) == ("aten.log", "birth", "aten.mean")
    assert all(h.module == "block" and h.source for h in found.hops[:-1])
