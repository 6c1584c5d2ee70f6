"""What is computed from a moving threshold answers as shipped, and knows under which other values it would not."""

from __future__ import annotations

import torch

from tests.corpus.moving import Moving


def moving(shipped: float, hangs_on: set[str], name: str = "half") -> Moving:
    return Moving(shipped, {name: 0.5 * shipped}, hangs_on)


def test_a_comparison_that_comes_out_the_same_hangs_on_nothing() -> None:
    hangs_on: set[str] = set()
    limit = moving(10.0, hangs_on)
    assert limit > 3.0
    assert limit < 12.0
    assert 12.0 - limit * 0.5 > 0
    assert hangs_on == set()


def test_a_comparison_that_comes_out_otherwise_answers_as_shipped_and_is_noted() -> None:
    hangs_on: set[str] = set()
    assert moving(10.0, hangs_on) > 7.0
    assert hangs_on == {"half"}


def test_two_thresholds_in_one_comparison_are_told_apart() -> None:
    hangs_on: set[str] = set()
    one, other = moving(4.0, hangs_on, "one"), moving(3.0, hangs_on, "other")
    assert not one * other < 11.0  # 6 when either is halved
    assert max(one, 1.0) > 2.0
    assert hangs_on == {"one", "other"}


def test_a_maximum_that_another_value_decides_otherwise_is_noted() -> None:
    hangs_on: set[str] = set()
    assert max(moving(4.0, hangs_on), 3.0) > 3.5
    assert hangs_on == {"half"}


def test_tensors_are_compared_element_by_element() -> None:
    values = torch.tensor([0.1, 0.7, 2.0])
    hangs_on: set[str] = set()
    assert torch.equal(values > moving(0.3, hangs_on), torch.tensor([False, True, True]))
    assert hangs_on == set()
    assert torch.equal(values.abs() <= moving(0.5, hangs_on) * values.max(), torch.tensor([True, True, False]))
    assert hangs_on == {"half"}  # 0.7 lies between 0.5 and 1.0


def test_what_leaves_as_a_plain_number_is_noted() -> None:
    hangs_on: set[str] = set()
    limit = Moving(2, {"half": 1}, hangs_on)
    assert [1, 2, 3][-limit:] == [2, 3]
    assert hangs_on == {"half"}
