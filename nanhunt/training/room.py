"""How much host memory, and how much of a folder's disk, there is to take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "disk_room"]

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: Bytes of a disk that are left alone: a trace is being written, and others write too.
_SPARED = 1 << 30


def available_memory() -> int:
    """Return the bytes of host memory that can be taken without swapping, within the limits of the process's groups.

    The kernel's own estimate (MemAvailable), and what every control group of version 1 or 2 above the process leaves;
    file caches that a group can drop are not counted as taken. Where the kernel tells neither: all pages there are.
    """
    return max(0, min([_of_the_machine(), *_left_by_groups()]))


def disk_room(folder: Path) -> int:
    """Return the bytes that may be taken of the disk under `folder`; 0 of a file system that is memory itself."""
    try:
        return 0 if _is_memory(folder) else max(0, shutil.disk_usage(folder).free - _SPARED)
    except OSError:
        return 0


def _of_the_machine() -> int:
    fields = dict(line.split(":", 1) for line in _lines(_PROC / "meminfo") if ":" in line)
    if "MemAvailable" in fields:
        return int(fields["MemAvailable"].split()[0]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_groups() -> Iterator[int]:
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left_above(_CGROUPS, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left_above(_CGROUPS / "memory", path, names)


def _left_above(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Yield what a group and those around it leave; inside of a container its own group is the root."""
    group = root / path.lstrip("/")
    for folder in (group, *(p for p in group.parents if p.is_relative_to(root))):
        limit, used = (_number(folder / name) for name in names[:2])
        if limit is not None and used is not None:
            dropped = [line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith(f"{names[2]} ")]
            yield limit - used + sum(map(int, dropped))


def _is_memory(folder: Path) -> bool:
    device = os.stat(folder).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.split() for line in _lines(_PROC / "self" / "mountinfo"))
    return any(m[2] == numbers and m[m.index("-") + 1] in ("tmpfs", "ramfs") for m in mounts)


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no file, or it says `max`."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
