"""Nested batches and outputs: every tensor is found once, and rebuilt values keep their own types."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from nanhunt.training.tree import map_tensors, tensors_of


class Pair(NamedTuple):
    left: Tensor
    right: Any


@dataclass(frozen=True)
class Batch:
    x: Tensor
    name: str
    derived: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", self.x + 1)


class Encoding(UserDict[str, Any]):
    """As Hugging Face's BatchEncoding: a constructor that wants something else, and `data` inside."""

    def __init__(self, *, source: dict[str, Any]) -> None:
        super().__init__(source)


class Rows(list[Any]):
    """A list of the user's own class."""


ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])
NESTINGS: list[tuple[Any, list[str]]] = [
    (ONE, [""]),
    ({"a": ONE, "b": {"c": TWO}, "d": "text"}, ["a", "b.c"]),
    ((ONE, [TWO, None, 3]), ["0", "1.0"]),
    (Pair(ONE, {"k": TWO}), ["left", "right.k"]),
    (Batch(ONE, "n"), ["x", "derived"]),
    (Encoding(source={"ids": ONE, "n": 4}), ["ids"]),
    (OrderedDict(z=ONE, a=TWO), ["z", "a"]),
    (MappingProxyType({"x": ONE}), ["x"]),
    (Rows([ONE, "text"]), ["0"]),
    ({1: ONE, (2, 3): TWO}, ["1", "(2, 3)"]),
    ("text", []),
    (None, []),
]


@pytest.mark.parametrize(("value", "paths"), NESTINGS)
def test_each_tensor_is_found_by_its_path_in_order(value: Any, paths: list[str]) -> None:
    assert [path for path, _ in tensors_of(value)] == paths


@pytest.mark.parametrize(("value", "paths"), NESTINGS)
def test_a_rebuilt_value_has_its_own_type_other_tensors_and_the_same_other_leaves(value: Any, paths: list[str]) -> None:
    before = {path: t.clone() for path, t in tensors_of(value)}
    twin = map_tensors(lambda t: t * 10, value)
    assert type(twin) is type(value) or isinstance(value, MappingProxyType)
    assert [path for path, _ in tensors_of(twin)] == paths
    for path, tensor in tensors_of(twin):
        derived = path == "derived"  # made again from what it derives of
        assert torch.equal(tensor, before["x"] * 10 + 1 if derived else before[path] * 10)
    for path, tensor in tensors_of(value):
        assert torch.equal(tensor, before[path])


def test_leaves_that_are_no_tensors_survive() -> None:
    assert map_tensors(torch.neg, {"a": [1, "b", None]}) == {"a": [1, "b", None]}
    assert map_tensors(torch.neg, Batch(ONE, "kept")).name == "kept"


def test_a_packed_sequence_stays_one() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    twin = map_tensors(lambda t: t.clone(), packed)
    assert type(twin) is type(packed)
    assert torch.equal(twin.data, packed.data)


def test_a_mapping_that_cannot_be_written_to_comes_back_as_a_dict() -> None:
    assert map_tensors(torch.neg, MappingProxyType({"x": ONE})) == {"x": -ONE}


def test_a_dataclass_type_is_no_value() -> None:
    assert list(tensors_of(Batch)) == []
    assert map_tensors(torch.neg, Batch) is Batch
