"""A batch that is asked for again is the same batch, with the same random state after it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nanhunt.errors import ConfigError, UserCodeError
from nanhunt.training.batches import BatchSource, DataEndedError

CPU = torch.device("cpu")


def source(data: object, *, first_step: int = 0, accumulate: int = 1) -> BatchSource:
    return BatchSource(data, first_step=first_step, accumulate=accumulate, device=CPU)


def drawing() -> Iterator[Tensor]:
    """Batches drawn from the global generators, as augmentations are."""
    while True:
        yield torch.rand(2) + random.random() + float(np.random.rand())


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_repetition_sees_the_same_batch_and_leaves_the_same_random_state() -> None:
    batches = source(drawing())
    first = [(batches.get(step, 0), draws()) for step in range(4)]
    for step in (2, 0, 3, 1):
        batch, after = batches.get(step, 0), draws()
        assert torch.equal(batch, first[step][0])
        assert after == first[step][1]


def test_reading_draws_as_the_users_own_loop_does() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    own = []
    for _, batch in zip(range(3), drawing(), strict=False):
        own.append((batch, draws()))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    batches = source(drawing())
    for step in range(3):
        assert torch.equal(batches.get(step, 0), own[step][0])
        assert draws() == own[step][1]


def test_a_shuffling_loader_is_read_once() -> None:
    loader = DataLoader(TensorDataset(torch.arange(12.0)), batch_size=4, shuffle=True)
    batches = source(loader)
    first = [batches.get(step, 0)[0].tolist() for step in range(3)]
    assert sorted(x for batch in first for x in batch) == list(range(12))
    assert [batches.get(step, 0)[0].tolist() for step in range(3)] == first


def test_a_model_that_writes_into_its_batch_does_not_change_the_repetition() -> None:
    data = [{"x": torch.ones(3), "list": [torch.zeros(2)]}]
    batches = source(data)
    batch = batches.get(0, 0)
    batch["x"].fill_(7)
    batch["list"].clear()
    batch["new"] = 1
    del batch["x"]
    again = batches.get(0, 0)
    assert again.keys() == {"x", "list"}
    assert torch.equal(again["x"], torch.ones(3))
    assert torch.equal(again["list"][0], torch.zeros(2))


def test_data_that_reuses_its_own_buffer_does_not_change_what_was_read() -> None:
    def reusing() -> Iterator[Tensor]:
        buffer = torch.zeros(2)
        while True:
            buffer += 1
            yield buffer

    batches = source(reusing())
    assert [batches.get(step, 0)[0].item() for step in range(3)] == [1, 2, 3]
    assert batches.get(0, 0)[0].item() == 1


def test_steps_and_micro_steps_count_from_the_first_step() -> None:
    batches = source([torch.tensor(float(i)) for i in range(6)], first_step=10, accumulate=2)
    assert [batches.get(10 + i // 2, i % 2).item() for i in range(6)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(KeyError):
        batches.get(9, 0)


def test_data_that_ends_says_so_and_keeps_what_was_read() -> None:
    batches = source([torch.ones(1)])
    batches.get(0, 0)
    with pytest.raises(DataEndedError):
        batches.get(1, 0)
    assert batches.get(0, 0).item() == 1


def test_a_forgotten_batch_is_not_to_be_had_and_the_next_ones_are() -> None:
    batches = source([torch.tensor(float(i)) for i in range(8)], accumulate=2)
    for i in range(8):
        batches.get(i // 2, i % 2)
    batches.forget_before(2)
    with pytest.raises(KeyError):
        batches.get(1, 1)
    assert batches.get(2, 0).item() == 4


def test_to_peek_at_a_batch_moves_no_generator_and_reads_nothing() -> None:
    batches = source(drawing())
    first = batches.get(0, 0)
    draws()
    before = torch.get_rng_state()
    assert torch.equal(batches.peek(0, 0), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError):
        batches.peek(1, 0)


def test_a_transform_sees_a_copy_of_the_batch_and_its_place() -> None:
    batches = source([torch.ones(2), torch.ones(2)])
    batches.transform = lambda step, micro, batch: batch.mul_(10 * (step + 1) + micro)
    assert batches.get(0, 0).tolist() == [10, 10]
    assert batches.get(1, 0).tolist() == [20, 20]
    batches.transform = None
    assert batches.get(0, 0).tolist() == [1, 1]


def test_what_cannot_be_iterated_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match="data: expected an iterable") as refused:
        source(3)
    assert "DataLoader" in str(refused.value.hint)


def test_an_error_in_the_users_data_is_theirs() -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.ones(1)
        raise OSError("disk gone")

    batches = source(broken())
    batches.get(0, 0)
    with pytest.raises(UserCodeError) as caught:
        batches.get(1, 0)
    assert caught.value.key == "data"
    assert isinstance(caught.value.__cause__, OSError)
