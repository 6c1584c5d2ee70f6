"""What is written to a file of batches is what is read from it, and what is no such file is refused in a sentence."""

from __future__ import annotations

import os
import random
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanhunt.errors import ConfigError
from nanhunt.training.batch_file import read_batches, write_batches
from nanhunt.training.rng import RngState, restore_saved
from nanhunt.training.tree import tensors_of

BATCH = {"input_ids": torch.arange(6).reshape(2, 3), "images": (torch.rand(2, 3), torch.rand(2)), "mask": torch.ones(2)}


def equal(one: Any, other: Any) -> bool:
    ours, theirs = dict(tensors_of(one)), dict(tensors_of(other))
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
@pytest.mark.parametrize(
    "batch", [BATCH, torch.rand(3), (torch.rand(2), torch.arange(3))], ids=["dict", "tensor", "tuple"]
)
def test_batches_come_back_as_they_were_written(tmp_path: Path, name: str, batch: Any) -> None:
    write_batches(tmp_path / name, [batch, batch], first_step=40, accumulate=2)
    found = read_batches(tmp_path / name)
    assert (found.first_step, found.accumulate, len(found.batches)) == (40, 2, 2)
    assert all(type(b) is type(batch) and equal(b, batch) for b in found.batches)
    assert [equal(b, batch) for b in found.starting_at(1)] == [True]


def test_more_than_ten_batches_of_safetensors_keep_their_order(tmp_path: Path) -> None:
    batches = [tuple(torch.tensor(100 * i + k) for k in range(12)) for i in range(12)]
    write_batches(tmp_path / "b.safetensors", batches)
    found = read_batches(tmp_path / "b.safetensors")
    assert [[t.item() for t in b] for b in found.batches[3:5]] == [[t.item() for t in b] for b in batches[3:5]]


def test_a_torch_file_keeps_numbers_texts_and_what_else_is_plain(tmp_path: Path) -> None:
    batch = {"x": torch.ones(1), "lengths": [3, 4], "name": "a", "weights": np.arange(3), "none": None}
    write_batches(tmp_path / "b.pt", [UserDict(batch)])
    found = read_batches(tmp_path / "b.pt").batches[0]
    assert type(found) is dict
    assert (found["lengths"], found["name"], found["weights"].tolist()) == ([3, 4], "a", [0, 1, 2])


def test_files_of_torch_save_itself_are_read(tmp_path: Path) -> None:
    batch = {"x": torch.ones(2)}
    for content in ([batch], (batch,), {"batches": [batch], "first_step": 7}):
        torch.save(content, tmp_path / "b.pt")
        assert equal(read_batches(tmp_path / "b.pt").batches[0], batch)
    assert read_batches(tmp_path / "b.pt").first_step == 7


def test_a_slice_of_a_large_array_is_not_saved_with_all_of_it(tmp_path: Path) -> None:
    data = torch.zeros(1_000_000)
    write_batches(tmp_path / "b.pt", [data[:10], data[10:20]])
    assert (tmp_path / "b.pt").stat().st_size < 10_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux")
@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
def test_to_open_a_file_takes_no_memory_for_its_tensors(tmp_path: Path, name: str) -> None:
    write_batches(tmp_path / name, [torch.zeros(5_000_000) for _ in range(5)])
    before = own_memory()
    found = read_batches(tmp_path / name)
    assert own_memory() - before < 20e6
    assert len(found.batches) == 5


def own_memory() -> int:
    """Bytes of this process that no file stands for."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def test_the_generators_are_put_where_the_run_had_them(tmp_path: Path) -> None:
    states, drawn = [], []
    for _ in range(3):
        states.append(RngState.capture().saved())
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    write_batches(tmp_path / "b.pt", [torch.ones(1)] * 3, random_states=states)
    again = [
        (random.random(), float(np.random.rand()), float(torch.rand(())))
        for _ in read_batches(tmp_path / "b.pt").starting_at(0)
    ]
    assert again == drawn


def test_a_saved_random_state_is_what_torch_loads_without_pickle_or_numpy(tmp_path: Path) -> None:
    torch.save(RngState.capture().saved(), tmp_path / "state.pt")
    expected = torch.rand(3)
    restore_saved(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.rand(3), expected)


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_batches(tmp_path / "b.safetensors", [torch.ones(1)])
    before = (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"0\.name: a \.safetensors holds tensors only, not a str; write a \.pt"):
        write_batches(tmp_path / "b.safetensors", [{"name": "a"}])
    assert (tmp_path / "b.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["b.safetensors"]


@pytest.mark.parametrize(
    ("name", "batches", "more", "match"),
    [
        ("b.pt", [{"x": {"y": object()}}], {}, r"batches\[0\]\['x'\]\['y'\]: a object cannot be kept"),
        ("b.pt", [torch.ones(1)], {"random_states": []}, "0 random states for 1 batches"),
        ("b.safetensors", [torch.ones(1)], {"random_states": [{}]}, "keeps no random states"),
        ("b.safetensors", [{"a.b": torch.ones(1)}], {}, "has a dot in its name"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(
    tmp_path: Path, name: str, batches: list[Any], more: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        write_batches(tmp_path / name, batches, **more)


class Own:
    """A class that a file may name and that must not be made."""


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"x": torch.ones(1)}, "holds a dict, not a list of batches"),
        (torch.ones(3), "holds a Tensor, not a list of batches"),
        ((torch.ones(3), torch.ones(3)), "a tuple of tensors may be one batch"),
        ([], "holds no batch"),
        ({"batches": [torch.ones(1)], "first_step": "7"}, "first_step: expected a number of at least 0, got '7'"),
        ({"batches": [torch.ones(1)], "first_step": True}, "first_step: expected a number"),
        ({"batches": [torch.ones(1)], "accumulate": 0}, "accumulate: expected a number of at least 1, got 0"),
        ({"batches": [torch.ones(1)], "random_states": [1]}, "random_states: expected a dict for each of its 1"),
        ([Own()], "needs pickle"),
    ],
)
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object, match: str) -> None:
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=match) as refused:
        read_batches(tmp_path / "b.pt")
    assert str(refused.value).startswith("data: ")
    assert "--trust-pickle" not in str(refused.value.hint)


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({"input_ids": 1}, {}, "the tensor 'input_ids' names no batch"),
        ({"0.x": 1, "2.x": 1}, {}, "batch 1 is missing"),
        ({"00.x": 1}, {}, "names no batch"),
        ({"9" * 5000: 1}, {}, "names no batch"),
        ({"0": 1, "0.x": 1}, {}, "lies inside another"),
        ({"0" + ".a" * 30: 1}, {}, "more than 16 deep"),
        ({"0.x": 1}, {"first_step": "soon"}, "first_step: expected a number"),
        ({"0.x": 1}, {"first_step": "9" * 5000}, "first_step: expected a number"),
    ],
)
def test_a_safetensors_file_of_something_else_is_refused(
    tmp_path: Path, tensors: dict[str, int], metadata: dict[str, str], match: str
) -> None:
    save_file({name: torch.ones(size) for name, size in tensors.items()}, tmp_path / "b.safetensors", metadata)
    with pytest.raises(ConfigError, match=match):
        read_batches(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    write_batches(tmp_path / name, [BATCH])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError):
        read_batches(tmp_path / name)


def test_a_file_that_is_not_there_is_told_with_the_way_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data: no file .*b\.pt") as refused:
        read_batches(tmp_path / "b.pt")
    assert "write_batches" in str(refused.value.hint)


def test_a_batch_that_requires_grad_is_saved_without(tmp_path: Path) -> None:
    write_batches(tmp_path / "b.pt", [torch.ones(2, requires_grad=True)])
    found: Tensor = read_batches(tmp_path / "b.pt").batches[0]
    assert not found.requires_grad


def test_a_random_state_that_is_none_is_refused_by_its_place(tmp_path):
    torch.save({"batches": [torch.ones(1)], "random_states": [{"torch": torch.tensor(3)}]}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match=r"random_states\[0\]: cannot be restored"):
        next(read_batches(tmp_path / "b.pt").starting_at(0))


def test_a_field_of_thousands_of_digits_is_a_field(tmp_path):
    save_file({f"0.{'1' * 5000}": torch.ones(1)}, tmp_path / "b.safetensors")
    assert len(read_batches(tmp_path / "b.safetensors").batches[0]) == 1
