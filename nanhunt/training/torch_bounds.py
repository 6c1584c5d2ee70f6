"""What a file of torch.save may not do to memory and time, `weights_only` or not.

The guarded unpickler runs nothing, and still does as it is told: it makes a bytearray of two gigabytes of a file of one
kilobyte, gives four bytes the shape of a terabyte, and puts a list into itself, or twice into one that is twice in another,
forty times over.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.errors import CheckpointError
from nanhunt.inert import printable

__all__ = ["check_members", "check_opcodes", "check_structure"]

#: How the unpickler is told to call bytearray; torch allows it, with any number.
_BYTEARRAY = re.compile(rb"c(?:__builtin__|builtins)\nbytearray\n")
#: Dicts and lists inside of one another, and the entries of all of them, counted as often as they are met.
_DEEPEST, _MOST = 64, 50_000_000
#: Bytes that a tensor may stand for without holding them: a mask that is expanded over its heads.
_EXPANDED = 1 << 28
_BLOCK = 1 << 24
_MEND = "save plain tensors in dicts and lists: torch.save({'model': model.state_dict(), …}, path)"


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError where a member is compressed, which torch.save never does, and which has no bound."""
    packed = next((m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise CheckpointError(
            f"{path}: holds the compressed member {printable(packed.filename)[:80]!r}; torch.save compresses nothing",
            hint="if you packed it yourself, unpack it; else do not use it",
        )


def check_opcodes(path: Path, archive: zipfile.ZipFile | None) -> None:
    """Raise CheckpointError where the pickle calls bytearray; without an archive the whole file is looked through."""
    if archive is not None:
        pickles = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        found = any(_BYTEARRAY.search(content) for content in pickles)
    else:
        with path.open("rb") as file:
            found, before = False, b""
            while not found and (block := file.read(_BLOCK)):
                found, before = _BYTEARRAY.search(before + block) is not None, block[-32:]
    if found:
        raise CheckpointError(
            f"{path}: makes a bytearray, which takes as much memory as the file asks for",
            hint="save tensors in its place",
        )


def check_structure(path: Path, content: Any) -> None:
    """Raise CheckpointError for tensors without data, and for dicts and lists that no walk comes to the end of."""
    if _entries(path, content, 0, {}) > _MOST:
        raise CheckpointError(f"{path}: holds lists within lists that come to more than {_MOST:,} entries", hint=_MEND)


def _entries(path: Path, value: Any, depth: int, known: dict[int, int]) -> int:
    """Return how many entries a walk through a value meets; one that is met again is not looked at again."""
    if isinstance(value, Tensor):
        _check_tensor(path, value)
        return 1
    if not isinstance(value, (Mapping, list, tuple)):
        return 1
    if id(value) not in known:
        if depth > _DEEPEST:
            raise CheckpointError(f"{path}: is nested more than {_DEEPEST} deep", hint=_MEND)
        inside = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_entries(path, item, depth + 1, known) for item in inside)
    return known[id(value)]


def _check_tensor(path: Path, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise CheckpointError(f"{path}: holds a tensor of the meta device, which has a shape and no data", hint=_MEND)
    if tensor.layout is not torch.strided:
        return
    size = tensor.numel() * tensor.element_size()
    if size > _EXPANDED and size > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: holds a tensor of shape {tuple(tensor.shape)} in {tensor.untyped_storage().nbytes():,} bytes",
            hint="it was expanded before it was saved: save `tensor.contiguous()`, or what it was expanded from",
        )
