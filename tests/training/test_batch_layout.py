"""Samples are found where they lie, taken out of any nesting, or replaced; where no number names one, it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.training.batch_layout import batch_size, cast_batch, replace_samples, take_samples, why_no_samples


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Box:
    x: Tensor
    weights: Tensor
    name: str


X = torch.arange(12.0).reshape(4, 3)
Y = torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (X, 4),
        ((X, Y), 4),
        ({"x": X, "y": Y, "step": torch.tensor(3)}, 4),
        ({"ids": X, "mask": X, "positions": torch.arange(3)}, 4),
        (Pair(X, Y), 4),
        (torch.tensor(1.0), None),
        ("text", None),
        ((X, torch.ones(3)), None),
        ((X, torch.arange(3)), 4),
        ((X, torch.ones(12)), 4),
        ((X, torch.ones(11)), None),
        ((torch.zeros(2, 3, 8, 8), torch.ones(6)), None),
        ({"ids": X, "labels": torch.ones(12), "weights": torch.ones(4)}, 4),
    ],
)
def test_the_number_of_samples_is_what_most_tensors_lead_with(batch: Any, size: int | None) -> None:
    assert batch_size(batch) == size


def test_samples_are_taken_in_the_order_asked_for_with_their_labels() -> None:
    x, y = take_samples((X, Y), [3, 1])
    assert x.tolist() == [X[3].tolist(), X[1].tolist()]
    assert y.tolist() == [3, 1]


def test_flattened_labels_go_with_their_samples() -> None:
    labels = torch.arange(100, 112)
    assert [t.tolist() for t in take_samples((X, labels), [2, 0])] == [
        X[[2, 0]].tolist(),
        [106, 107, 108, 100, 101, 102],
    ]
    ids, replaced = replace_samples((X, labels), (X + 50, labels + 50), [1])
    assert ids[:, 0].tolist() == [0, 53, 6, 9]
    assert replaced.tolist() == [100, 101, 102, 153, 154, 155, 106, 107, 108, 109, 110, 111]
    assert replace_samples((X, labels), (X[:, :2], labels), [1]) is None


def test_lines_of_both_lengths_go_with_their_samples() -> None:
    batch = {"ids": X, "labels": torch.arange(100, 112), "weights": torch.arange(4.0)}
    taken = take_samples(batch, [3])
    assert (taken["labels"].tolist(), taken["weights"].tolist()) == ([109, 110, 111], [3.0])


def test_a_recurrent_module_takes_the_sequence_first_beside_flattened_labels_too() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 5)})
    assert "rnn (LSTM)" in why_no_samples((TB, torch.ones(28)), model, {"rnn": (7, 4, 5)})


def test_what_is_not_per_sample_stays_whole() -> None:
    batch = {"x": X, "y": Y, "positions": torch.arange(3), "scale": torch.tensor(2.0), "names": ["a", "b"], "n": 4}
    taken = take_samples(batch, [0])
    assert taken["x"].shape == (1, 3)
    assert taken["positions"].tolist() == [0, 1, 2]
    assert (taken["scale"].item(), taken["names"], taken["n"]) == (2.0, ["a", "b"], 4)


@pytest.mark.parametrize("batch", [Pair(X, Y), Box(X, torch.ones(4), "kept"), [X, {"y": Y}], {"a": {"b": X}, "y": Y}])
def test_any_nesting_keeps_its_type_and_other_leaves(batch: Any) -> None:
    taken = take_samples(batch, [2])
    assert type(taken) is type(batch)
    assert batch_size(taken) == 1
    if isinstance(taken, Box):
        assert taken.name == "kept"


def test_taking_samples_copies_them() -> None:
    taken = take_samples(X, [0, 1, 2, 3])
    taken.zero_()
    assert X.sum() > 0


def test_a_cast_touches_one_dtype_only() -> None:
    batch = {"x": X, "h": X.half(), "y": Y}
    cast = cast_batch(batch, torch.float32, torch.float64)
    assert [t.dtype for t in cast.values()] == [torch.float64, torch.float16, torch.int64]


# --- leaves that are no tensors ---------------------------------------------------------------------------------------


class Graphs:
    """A batch of the user's own class."""

    def __init__(self) -> None:
        self.x, self.names, self.sizes, self.width = X.clone(), ["a", "b", "c", "d"], np.arange(4), 3


def test_names_arrays_and_objects_go_with_their_samples() -> None:
    taken = take_samples({"x": X, "names": ["a", "b", "c", "d"], "ids": (7, 8, 9, 6), "sizes": np.arange(4)}, [2, 0])
    assert (taken["names"], taken["ids"], taken["sizes"].tolist()) == (["c", "a"], (9, 7), [2, 0])
    graphs = Graphs()
    taken = take_samples(graphs, [1])
    assert (type(taken), taken.x.tolist(), taken.width) == (Graphs, [X[1].tolist()], 3)
    assert graphs.x.shape == (4, 3)


def test_a_list_of_samples_has_as_many_as_it_is_long() -> None:
    images = [torch.ones(3, 8, 9), torch.ones(3, 7, 5)]
    targets = [{"boxes": torch.ones(4, 4)}, {"boxes": torch.ones(1, 4)}]
    assert batch_size((images, targets)) == 2
    left, right = take_samples((images, targets), [1])
    assert (left[0].shape, right[0]["boxes"].shape) == ((3, 7, 5), (1, 4))
    assert batch_size([{"x": torch.ones(5)}, {"x": torch.ones(5)}, {"x": torch.ones(5)}]) == 3


# --- replacement ------------------------------------------------------------------------------------------------------


def test_replaced_samples_come_from_the_same_places_of_the_donor_and_the_size_stays() -> None:
    batch = {"x": X, "y": Y, "names": ["a", "b", "c", "d"], "scale": torch.tensor(2.0)}
    donor = {"x": X + 100, "y": Y + 10, "names": ["A", "B", "C", "D"], "scale": torch.tensor(9.0)}
    new = replace_samples(batch, donor, [1, 3])
    assert new is not None
    assert new["y"].tolist() == [0, 11, 2, 13]
    assert new["x"][1].tolist() == (X[1] + 100).tolist()
    assert (new["names"], new["scale"].item()) == (["a", "B", "c", "D"], 2.0)
    assert batch["y"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "donor", [X[:3], X.double(), torch.ones(4, 5), (X, Y), {"x": X}], ids=["fewer", "dtype", "shape", "more", "nesting"]
)
def test_a_donor_of_another_form_is_refused(donor: Any) -> None:
    fits = replace_samples(X, donor, [0])
    assert fits is None or isinstance(donor, dict)


# --- what cannot be told ----------------------------------------------------------------------------------------------

TB = torch.zeros(7, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"x": torch.zeros(7, 4, 5), "y": torch.tensor([2, 0, 1, 1])}, "second dimension"),
        ((TB, torch.tensor([2, 0, 1, 1])), "second dimension"),
        ({"ids": torch.zeros(1, 20), "cu_seqlens": torch.tensor([0, 8, 20])}, "packed"),
        ({"ids": torch.zeros(2, 4), "position_ids": torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])}, "packed"),
        ((X, torch.ones(3, 2)), "no first dimension"),
        (torch.tensor(1.0), "no tensor"),
        (X[:1], "one sample"),
        ((X, Y), ""),
        ([X, torch.ones(4, 1)], ""),
        ({"ids": torch.zeros(4, 7), "positions": torch.arange(7)}, ""),
    ],
)
def test_a_layout_in_which_no_number_names_a_sample_is_said_with_its_reason(batch: Any, said: str) -> None:
    reason = why_no_samples(batch, nn.Linear(1, 1))
    assert said in reason if said else reason == ""


def test_a_recurrent_module_that_takes_the_sequence_first_is_named() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 5)})
    assert "rnn (LSTM)" in why_no_samples((TB, TB), model, {"rnn": (7, 4, 5)})
    assert why_no_samples((TB, TB), model, {"rnn": (4, 7, 5)}) == ""  # the model turned it round first
    first = nn.ModuleDict({"rnn": nn.LSTM(3, 5, batch_first=True)})
    assert why_no_samples((TB, TB), first, {"rnn": (7, 4, 5)}) == ""
