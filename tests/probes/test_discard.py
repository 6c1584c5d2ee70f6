"""A select is named only where it throws away the very elements that the gradient breaks at.

Each function takes the root of a sample that is 0 in its first element: where a select drops that element is worked out by
hand. The neighbours 1, 4 and 9 give 1, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanhunt.probes.closer import Closer
from nanhunt.probes.discard import discard_of, ways_to_selects
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import replay_step
from tests.probes.test_births import found_in, of_function, ordinary, with_sample

Function = Callable[[Tensor], Tensor]
ZERO = with_sample(1, [0.0, 1.0, 4.0, 9.0])
FIRST = torch.tensor([True, False, False, False])


def of(value: float) -> Tensor:
    return torch.tensor(value)


def put(x: Tensor) -> Tensor:
    y = x.sqrt() + 0.0
    y[x == 0] = 0.5
    return y


def huber(x: Tensor, root: Tensor) -> Tensor:
    return torch.where(x < 4, root**2, 2 * root - 1)


def halves(x: Tensor, root: Tensor) -> Tensor:
    return (x < 4).float() * root**2 + (x >= 4).float() * root


DROPS: dict[str, tuple[str, Function]] = {
    "where": ("where", lambda x: torch.where(x > 0, x.sqrt(), of(0.0))),
    "where, the other branch": ("where", lambda x: torch.where(x == 0, of(0.0), x.sqrt())),
    "masked_fill": ("masked_fill", lambda x: x.sqrt().masked_fill(x == 0, 0.5)),
    "a write by mask": ("index_put_", put),
    "a filter": ("index", lambda x: x.sqrt()[x > 0]),
    "masked_select": ("masked_select", lambda x: x.sqrt().masked_select(x > 0)),
    "a floor": ("clamp", lambda x: x.sqrt().clamp(min=0.1)),
    "a ceiling": ("clamp", lambda x: (-x.sqrt()).clamp(max=-0.1)),
    "hardtanh": ("hardtanh", lambda x: F.hardtanh(x.sqrt(), 0.1, 9.0)),
    "relu below zero": ("relu", lambda x: F.relu(x.sqrt() - 0.1)),
    "maximum": ("maximum", lambda x: torch.maximum(x.sqrt(), of(0.1))),
    "minimum": ("minimum", lambda x: torch.minimum(5 - x.sqrt(), of(4.5))),
    "the largest of a row": ("amax", lambda x: x.sqrt().amax(-1)),
    "topk": ("topk", lambda x: x.sqrt().topk(2).values),
    "a triangle": ("triu", lambda x: x.sqrt().view(-1, 2, 2).triu(1)),
    "a mask of the model's": ("mul", lambda x: x.sqrt() * (x > 0).float()),
    "one minus a mask": ("mul", lambda x: x.sqrt() * (1 - (x == 0).float())),
    "a mask that was given": ("mul", lambda x: x.sqrt() * torch.tensor([0.0, 1.0, 1.0, 1.0])),
    "seen transposed": ("masked_fill", lambda x: x.sqrt().t().masked_fill(FIRST[:, None], 0.5)),
    "seen from behind": ("masked_fill", lambda x: x.sqrt().flip(-1).masked_fill(FIRST.flip(-1), 0.5)),
    "three ops later": ("where", lambda x: torch.where(x > 0, x.sqrt().mul(2).add(1).tanh(), of(0.0))),
    "after a mean": ("index", lambda x: x.sqrt().mean(-1)[(x > 0).all(-1)]),
    "two of them": ("where", lambda x: torch.where(x > 4, torch.where(x > 0, x.sqrt(), of(0.0)), of(1.0))),
    "in one branch": ("where", lambda x: torch.where(x > 0, x.sqrt() / x.sqrt().detach().amax(), of(0.0))),
}

KEEPS: dict[str, Function] = {
    # the gradient that comes in is zero, and no select has a part in it
    "a sign of zero": lambda x: x.sqrt().clamp(-0.5, 9.0) * torch.sign(x),
    "a factor of the model's": lambda x: x.sqrt().clamp(0.0, 9.0) * F.relu(x),
    "a ratio of zero": lambda x: (x / (x.sqrt() + 1e-6)).clamp(-0.5, 9.0),
    "a where that takes it": lambda x: torch.where(x < 100, x.sqrt(), of(0.0)) * torch.tanh(x),
    "a where that drops others": lambda x: torch.where(x < 4, x.sqrt(), of(0.0)) * torch.tanh(x),
    "a fill of others": lambda x: x.sqrt().masked_fill(x == 1, 0.0) * torch.tanh(x),
    "seen transposed, the others": lambda x: x.sqrt().t().masked_fill(~FIRST[:, None], 0.5).t() * torch.tanh(x),
    "the smaller one": lambda x: torch.minimum(x.sqrt(), of(5.0)) * torch.tanh(x),
    "relu at zero": lambda x: F.relu(x.sqrt()),
    "the smallest of a row": lambda x: x.sqrt().amin(-1) * torch.tanh(x).amin(-1),
    "a mask elsewhere": lambda x: x.sqrt() * torch.tensor([1.0, 1.0, 0.0, 0.0]) * torch.tanh(x),
    "the half of a Huber loss": lambda x: huber(x, x.sqrt()),
    "a half by its mask": lambda x: halves(x, x.sqrt()),
    "picked by number": lambda x: x.sqrt()[:, torch.tensor([1, 2])],
    "weights that are not a mask": lambda x: x.sqrt() * torch.tensor([0.0, 0.3, 1.0, 0.7]),
    # and here it is not zero
    "a clamp that lets it pass": lambda x: x.sqrt().clamp(-1.0, 100.0),
    "a where beside it": lambda x: x.sqrt() + torch.where(x > 0, x, of(0.0)),
}


@pytest.mark.parametrize("name", DROPS)
def test_a_select_is_named_where_it_drops_the_element(name: str) -> None:
    op, function = DROPS[name]
    facts = found_in(of_function(function, ZERO)).root.facts
    assert facts["discarded_by"].removeprefix("aten.").partition(".")[0] == op
    assert (facts["discarded"], facts["discard_checked"]) == ("all", True)
    assert facts["discarded_at"].startswith("test_discard.py:")


@pytest.mark.parametrize("name", KEEPS)
def test_a_select_is_not_named_where_it_lets_the_element_pass(name: str) -> None:
    assert "discarded_by" not in found_in(of_function(KEEPS[name], ZERO)).root.facts


def test_of_two_bad_elements_a_select_that_drops_one_drops_a_part() -> None:
    def function(x: Tensor) -> Tensor:
        return x.sqrt().masked_fill(FIRST, 0.5)

    facts = found_in(of_function(function, with_sample(1, [0.0, 0.0, 4.0, 9.0]))).root.facts
    assert (facts["discarded_by"], facts["discarded"]) == ("aten.masked_fill.Scalar", "part")


def test_a_forward_value_that_is_dropped_is_followed_as_well() -> None:
    root = found_in(of_function(lambda x: torch.where(x > 0, 1 / x, of(0.0)), ZERO)).root
    assert (root.phase, root.facts["discarded_by"]) == ("forward", "aten.where.self")


def test_a_factor_of_zero_that_is_no_mask_is_told_as_what_it_is() -> None:
    facts = found_in(of_function(KEEPS["a sign of zero"], ZERO)).root.facts
    assert "discarded_by" not in facts
    assert "zero_factor" not in facts  # it stands behind the clamp
    facts = found_in(of_function(lambda x: x.sqrt() * torch.sign(x), ZERO)).root.facts
    assert (facts["zero_factor"], "discarded_by" in facts) == ("aten.mul.Tensor", False)


def test_an_answer_without_the_operands_says_that_nobody_looked() -> None:
    run = of_function(DROPS["where"][1], ZERO)
    probe = OpProbe(run, RowBuffer())
    replay_step(run, 0, RowBuffer(), recorded=False, zoom=probe)
    root = next(e.index for e in probe.events if e.op == "aten.sqrt")
    found = discard_of(root, None, probe.events, Closer())
    assert found is not None
    assert (found.event.op, found.checked) == ("aten.where.self", False)


def test_nothing_is_kept_where_no_select_stands_behind() -> None:
    run = of_function(lambda x: x.sqrt().tanh(), ordinary())
    probe = OpProbe(run, RowBuffer())
    replay_step(run, 0, RowBuffer(), recorded=False, zoom=probe)
    root = next(e.index for e in probe.events if e.op == "aten.sqrt")
    assert ways_to_selects(root, probe.events) == []


def test_operands_on_the_way_are_kept_up_to_a_limit_and_the_births_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanhunt.probes.closer.SPARE_BYTES", 8)
    root = found_in(of_function(DROPS["where"][1], ZERO)).root
    assert root.slope == "non-finite"
    assert root.facts["discard_checked"] is False
