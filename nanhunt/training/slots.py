"""Slots: stretches of host memory or of a file that hold a snapshot's tensors, and then the next one's.

How it works. A slot is one mapping of as many bytes as a snapshot needs; tensors are laid into it one behind the other.
A snapshot that is let go gives its slot back, and the next one writes over it: memory that was touched before takes a
copy at three times the speed, and is pinned once.

Memory or disk. What takes more than half of the host memory that is available goes into a file, in the first folder
with room. The file has no name: the kernel deletes it with the process, however that ends. Its blocks are set aside
when it is made, since a mapping that runs out of disk later ends the process.

On a GPU. Memory is pinned, and copies are queued on the stream on which the run itself works. So a copy reads what the
run's kernels before it wrote, and whatever comes behind it, in place or not, writes after it has read: a forward pass
that moves a BatchNorm's averages or clamps a weight is as safe as the update. A stream of its own would let the copy
run beside the next forward pass, and every write in it would have to be known and held back. The device does wait for
the bus (16 GB at 50 GB/s are a third of a second); the host does not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from nanhunt.errors import RoomError
from nanhunt.training.room import available_memory, disk_room

__all__ = ["MEMORY_SHARE", "Place", "Slot", "SlotPool", "padded"]

Place = Literal["memory", "disk"]
#: Share of the available host memory that may be taken.
MEMORY_SHARE = 0.5
#: A tensor begins at a multiple of this many bytes: a cache line, and any dtype's alignment.
_ALIGN = 64


#: Every slot there is; and what a forked process must not let go of.
_SLOTS: weakref.WeakSet[Slot] = weakref.WeakSet()
_HELD: list[object] = []


def _hold_in_child() -> None:
    """Keep the events of a process that forked: to destroy one without its context aborts."""
    _HELD.extend((slot._began, slot._ended, slot._last) for slot in _SLOTS)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_in_child)


class Slot:
    """One stretch of bytes, filled from its start by `keep`; `wait` before the host reads what came from a GPU."""

    def __init__(self, memory: mmap.mmap, place: Place, *, pinned: bool = False) -> None:
        self.place = place
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._used = 0
        self.is_pinned = pinned and _pin(memory, self._bytes)
        if self.is_pinned:
            weakref.finalize(self, _unpin, self._bytes, os.getpid())
        #: around the copies of each GPU, and behind whatever else was queued on the slot
        self._began: list[torch.cuda.Event] = []
        self._ended: list[torch.cuda.Event] = []
        self._last: list[torch.cuda.Event] = []
        _SLOTS.add(self)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self._bytes.numel()

    def begin(self, devices: Iterable[torch.device]) -> None:
        """Start anew, over what it held; the host waits where the copies of before are still on their way."""
        self.wait()
        self._used = 0
        self._began = _events(devices)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a copy in the slot, bits and strides alike; from a GPU it is queued, and the host goes on.

        A sparse tensor or one of a class of its own is copied as its own `to` does, outside of the slot.
        """
        size = tensor.numel() * tensor.element_size()
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if not is_plain or self._used + size > self.size:
            return tensor.detach().to("cpu", copy=True)
        stretch = self._bytes[self._used : self._used + size].view(tensor.dtype)
        self._used += padded(size)
        copy = stretch.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())
        return copy.copy_(tensor.detach(), non_blocking=True)

    def end(self, devices: Iterable[torch.device]) -> None:
        """Note that all has been copied or queued."""
        self._last = self._ended = _events(devices)

    def was_read(self, devices: Iterable[torch.device]) -> None:
        """Note that copies out of the slot have been queued."""
        self._last = _events(devices)

    def wait(self) -> None:
        """Wait until no GPU reads or writes the slot."""
        for event in self._last:
            event.synchronize()

    def device_seconds(self) -> float:
        """Return how long the slowest GPU was kept by the copies; 0 where none took part."""
        self.wait()
        return max((a.elapsed_time(b) / 1e3 for a, b in zip(self._began, self._ended, strict=False)), default=0.0)


class SlotPool:
    """The slots of a run: lent to snapshots, taken back, lent again."""

    def __init__(self) -> None:
        #: where a file may be made: the first with room
        self.folders = [Path(tempfile.gettempdir())]
        #: memory that was asked for pinned, and could not be
        self.is_unpinned = False
        self._free: list[Slot] = []

    def place_for(self, size: int, count: int = 1) -> Place | None:
        """Return where `count` new slots of `size` bytes fit; None where they fit nowhere."""
        if count * size <= MEMORY_SHARE * available_memory():
            return "memory"
        return "disk" if self._folder_for(count * size) else None

    def has_room(self, size: int) -> bool:
        """Whether one more slot can be lent."""
        return any(slot.size >= size for slot in self._free) or self.place_for(size) is not None

    def lend(self, size: int, *, place: Place | None = None, pinned: bool = False) -> Slot:
        """Return a free slot of at least `size` bytes, else a new one, at `place` or where it fits.

        Raises RoomError where there is no room.
        """
        fitting = [s for s in self._free if s.size >= size and place in (None, s.place)]
        if fitting:
            slot = min(fitting, key=lambda s: s.size)
            self._free.remove(slot)
            return slot
        # one that is too small is in the way: what is to be kept only grows
        self._free = [s for s in self._free if s.size >= size]
        return self._made(size, place or self.place_for(size), pinned)

    def take_back(self, slot: Slot) -> None:
        """Take a slot whose snapshot is needed no more."""
        self._free.append(slot)

    def _made(self, size: int, place: Place | None, pinned: bool) -> Slot:
        if place == "memory":
            slot = Slot(_memory(size), place, pinned=pinned)
            self.is_unpinned |= pinned and not slot.is_pinned
            return slot
        folder = self._folder_for(size)
        if place is None or folder is None:
            said = f"{available_memory() / 1e9:.1f} GB of host memory are available"
            tried = ", ".join(f"{disk_room(f) / 1e9:.1f} GB in {f}" for f in self.folders)
            raise RoomError(
                f"no room for a snapshot of {size / 1e9:.1f} GB: {said}, of which half may be taken, and {tried}",
                hint="free memory, or set TMPDIR to a folder on a disk with room for three snapshots",
            )
        return Slot(_file(size, folder), place)

    def _folder_for(self, size: int) -> Path | None:
        return next((f for f in self.folders if size <= disk_room(f)), None)


def padded(size: int) -> int:
    """Return the bytes that a tensor of `size` bytes takes of a slot."""
    return -(-size // _ALIGN) * _ALIGN


def _memory(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # pages of 2 MiB are touched, and pinned, some times as fast as those of 4 KiB
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _file(size: int, folder: Path) -> mmap.mmap:
    with tempfile.TemporaryFile(dir=folder, prefix="nanhunt-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        else:
            file.truncate(max(1, size))
        return mmap.mmap(file.fileno(), max(1, size))


def _pin(memory: mmap.mmap, buffer: Tensor) -> bool:
    """Pin memory for every GPU's copies; False where the system refuses.

    `torch.empty(pin_memory=True)` would round the bytes up to a power of two: 32 GiB for a snapshot of 17.
    """
    portable = 1
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), portable)) != 0:
        # CUDA keeps the error for whoever asks next, and that would be a kernel of the run
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda").add_(1)
        return False
    if hasattr(mmap, "MADV_DONTFORK"):  # a fork (a DataLoader's worker) would move the pages from under the device
        memory.madvise(mmap.MADV_DONTFORK)
    return True


def _unpin(buffer: Tensor, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(RuntimeError):  # a device that is lost answers nothing, and holds nothing either
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())  # type: ignore[no-untyped-call]


def _events(devices: Iterable[torch.device]) -> list[torch.cuda.Event]:
    """Record an event on the stream on which each GPU works."""
    events = []
    for device in devices:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return events
