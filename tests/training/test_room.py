"""What there is to take is the least that the machine and the control groups around the process leave."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nanhunt.training import room
from nanhunt.training.room import available_memory, disk_room

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 100 GiB, of which 60 are available."""
    monkeypatch.setattr(room, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "_CGROUPS", tmp_path / "cgroup")
    put(tmp_path / "proc" / "meminfo", f"MemTotal: {100 << 20} kB\nMemAvailable:   {60 << 20} kB\n")
    return tmp_path


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_without_groups_it_is_what_the_kernel_says(machine: Path) -> None:
    assert available_memory() == 60 * GB


def test_a_group_of_version_2_counts_with_those_above_it(machine: Path) -> None:
    put(machine / "proc" / "self" / "cgroup", "0::/job/step")
    put(machine / "cgroup" / "job" / "step" / "memory.max", "max")
    put(machine / "cgroup" / "job" / "step" / "memory.current", 5 * GB)
    put(machine / "cgroup" / "job" / "memory.max", 20 * GB)
    put(machine / "cgroup" / "job" / "memory.current", 18 * GB)
    put(machine / "cgroup" / "job" / "memory.stat", f"anon 5\ninactive_file {6 * GB}")
    assert available_memory() == 8 * GB


def test_inside_a_container_the_group_is_the_root(machine: Path) -> None:
    put(machine / "proc" / "self" / "cgroup", "0::/not/seen/from/here")
    put(machine / "cgroup" / "memory.max", 10 * GB)
    put(machine / "cgroup" / "memory.current", 4 * GB)
    assert available_memory() == 6 * GB


def test_a_group_of_version_1_is_read_as_well(machine: Path) -> None:
    put(machine / "proc" / "self" / "cgroup", "5:devices:/x\n4:cpu,memory:/x\n0::/")
    put(machine / "cgroup" / "memory" / "x" / "memory.limit_in_bytes", 8 * GB)
    put(machine / "cgroup" / "memory" / "x" / "memory.usage_in_bytes", 9 * GB)
    assert available_memory() == 0
    put(machine / "cgroup" / "memory" / "x" / "memory.stat", f"total_inactive_file {3 * GB}")
    assert available_memory() == 2 * GB


def test_where_the_kernel_tells_nothing_all_pages_count(machine: Path) -> None:
    (machine / "proc" / "meminfo").unlink()
    assert available_memory() > 0


def test_a_disk_in_memory_has_no_room_and_another_keeps_some_back(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(total=9 * GB, used=2 * GB, free=7 * GB))
    device = tmp_path.stat().st_dev
    numbers = f"{device >> 8 & 0xFFF}:{device & 0xFF}"
    put(machine / "proc" / "self" / "mountinfo", f"20 1 {numbers} / /x rw,relatime shared:1 - ext4 /dev/x rw")
    assert 0 < disk_room(tmp_path) <= 6 * GB
    put(machine / "proc" / "self" / "mountinfo", f"20 1 {numbers} / /x rw,relatime shared:1 - tmpfs tmpfs rw,size=1k")
    assert disk_room(tmp_path) == 0
    assert disk_room(tmp_path / "missing") == 0
