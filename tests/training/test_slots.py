"""A slot gives back the bits and strides that it was given, is used again, and leaves no file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nanhunt.errors import RoomError
from nanhunt.training import slots
from nanhunt.training.slots import Place, SlotPool, padded
from tests.training.small_net import bits

TENSORS = {
    "matrix": torch.randn(3, 5),
    "transposed": torch.randn(3, 5).t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": torch.randn(8, 6)[::2, ::3],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "bool": torch.tensor([True, False, True]),
    "bf16 specials": torch.tensor([math.nan, -math.inf, -0.0], dtype=torch.bfloat16),
    "complex": torch.randn(3, dtype=torch.complex64).conj(),
    "fp8": torch.randn(5).to(torch.float8_e4m3fn),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_copies_have_the_bits_and_strides_of_what_was_kept(place: Place, tmp_path: Path) -> None:
    pool = SlotPool()
    pool.folders = [tmp_path]
    slot = pool.lend(sum(padded(t.numel() * t.element_size()) for t in TENSORS.values()), place=place)
    for _ in range(2):
        slot.begin([])
        copies = {name: slot.keep(tensor) for name, tensor in TENSORS.items()}
        slot.end([])
        for name, copy in copies.items():
            tensor = TENSORS[name]
            assert copy.dtype == tensor.dtype, name
            if tensor.layout is torch.strided:
                assert copy.stride() == torch.empty_like(tensor).stride(), name
                assert bits(copy) == bits(tensor.resolve_conj()), name
            else:
                assert torch.equal(copy.to_dense(), tensor.to_dense())
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_what_does_not_fit_any_more_is_copied_all_the_same() -> None:
    slot = SlotPool().lend(64, place="memory")
    slot.begin([])
    first, second = torch.randn(16), torch.randn(16)
    kept = slot.keep(first), slot.keep(second)
    assert torch.equal(kept[0], first)
    assert torch.equal(kept[1], second)


def test_a_slot_is_lent_again_and_one_that_is_too_small_makes_way() -> None:
    pool = SlotPool()
    first, second = pool.lend(1000), pool.lend(500)
    pool.take_back(first)
    pool.take_back(second)
    assert pool.lend(400) is second
    assert pool.lend(400) is first
    pool.take_back(first)
    pool.take_back(second)
    assert pool.lend(2000) not in (first, second)
    assert pool._free == []


def test_the_first_folder_with_room_has_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool, full = SlotPool(), tmp_path / "full"
    pool.folders = [full, tmp_path]
    monkeypatch.setattr(slots, "available_memory", lambda: 0)
    monkeypatch.setattr(slots, "disk_room", lambda folder: 0 if folder == full else 1000)
    assert pool.place_for(400, 2) == "disk"
    assert pool.lend(400).place == "disk"
    assert pool.place_for(600, 2) is None
    with pytest.raises(RoomError, match="no room"):
        pool.lend(2000)
