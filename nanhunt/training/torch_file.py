"""Read one file of `torch.save`, without running anything that it names.

Tensors are mapped, not copied, where the file allows it; the devices that they were saved from are recorded, because
they tell whether a run trained on CUDA. Pickle that names more than tensors and plain data is refused, and loaded only
where the user says `--trust-pickle`: there is no falling back.
"""

from __future__ import annotations

import functools
import pickle
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from nanhunt.errors import CheckpointError
from nanhunt.inert import printable
from nanhunt.training.numpy_pickle import NUMPY_GLOBALS
from nanhunt.training.torch_bounds import check_members, check_opcodes, check_structure

__all__ = ["read_torch_file"]

#: The number that torch.save wrote first, before it wrote zip files, as pickle stores it.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")

#: Modules that no checkpoint has a use for: a file that names one may be an attack.
_ATTACKS = {"os", "posix", "nt", "sys", "subprocess", "socket", "shutil", "runpy", "pty", "commands", "importlib"}
_ATTACKING_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "getattr", "setattr", "apply", "breakpoint"}


def read_torch_file(path: Path, *, trust_pickle: bool) -> tuple[Any, frozenset[str]]:
    """Return what the file holds, its tensors on the CPU, and the device tags they were saved from.

    Raises CheckpointError where the file is cut short, is no file of `torch.save`, or needs pickle.
    """
    zipped = _starts_with(path, b"PK\x03\x04", within=4)
    if zipped:
        _check_zip(path, trust_pickle=trust_pickle)
    elif not _starts_with(path, _LEGACY_MAGIC, within=32):
        raise CheckpointError(
            f"{path}: is not a file of torch.save (a plain pickle, or damaged at its start)",
            hint="write it with torch.save, not with pickle.dump",
        )
    elif not trust_pickle:
        check_opcodes(path, None)
    _warn_of_old_torch(torch.__version__)
    tags: set[str] = set()

    def on_cpu(storage: Any, tag: str) -> Any:
        tags.add(tag)
        return storage

    try:
        with torch.serialization.safe_globals(NUMPY_GLOBALS):
            # only zip files can be mapped; the layout before torch 1.6 is read into memory
            content = torch.load(path, map_location=on_cpu, weights_only=not trust_pickle, mmap=zipped)
    except Exception as error:
        # with --trust-pickle the file runs code of its own, which may raise anything
        raise _refusal(path, error, trust_pickle=trust_pickle) from error
    check_structure(path, content)
    return content, frozenset(tags)


@functools.cache
def _warn_of_old_torch(version: str) -> None:
    """Say once that before torch 2.10 a crafted file can corrupt memory, `weights_only` or not (CVE-2026-24747)."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (2, 10):
        print(
            f"warning: torch {version} can be made to corrupt memory by a crafted checkpoint (CVE-2026-24747): open files of"
            " strangers with torch 2.10 or later",
            file=sys.stderr,
        )


#: What zipfile raises on a list of contents that is damaged; ValueError is a name that is no text, or a place before 0.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OverflowError, struct.error, OSError,
)  # fmt: skip


def _starts_with(path: Path, mark: bytes, *, within: int) -> bool:
    with path.open("rb") as file:
        return mark in file.read(within)


def _ends_with(path: Path, mark: bytes, *, within: int) -> bool:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - within, 0))
        return mark in file.read()


def _check_zip(path: Path, *, trust_pickle: bool) -> None:
    """Tell a file that is cut short, and a zip of another kind, from what torch.save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            check_members(path, archive)
            if not trust_pickle:
                check_opcodes(path, archive)
    except _ZIP_ERRORS as error:
        if _ends_with(path, b"PK\x05\x06", within=1 << 16):
            raise CheckpointError(
                f"{path}: is damaged: its list of contents cannot be read",
                hint="use another copy, or an earlier checkpoint",
            ) from error
        raise _cut_short(path) from error
    if any(name.endswith("/constants.pkl") and f"{name[:-13]}code/" in "".join(names) for name in names):
        raise CheckpointError(
            f"{path}: is a TorchScript archive, which holds a program rather than a state",
            hint="save the weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')",
        )
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        kind = "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive"
        raise CheckpointError(f"{path}: is {kind}, not a file of torch.save", hint="name the checkpoint itself")


def _cut_short(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: is cut short ({path.stat().st_size:,} bytes, its end is missing)",
        hint="the run was probably killed while it saved, or the copy is incomplete: use an earlier checkpoint",
    )


def _refusal(path: Path, error: Exception, *, trust_pickle: bool) -> CheckpointError:
    if trust_pickle:
        return _unpickling_failed(path, error)
    names = _unsafe_globals(path, error)
    attacks = [n for n in names if _is_attack(n)]
    if attacks:
        return CheckpointError(
            f"{path}: names {', '.join(attacks)}, which no checkpoint has a use for; it was not run",
            hint="this file may be an attack: do not load it with anything that unpickles it",
        )
    if names:
        return CheckpointError(
            f"{path}: needs pickle: {', '.join(names)}",
            hint="if you trust this file: --trust-pickle; else save tensors, numbers and texts only",
        )
    if isinstance(error, EOFError):
        return _cut_short(path)
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{path}: cannot be read as tensors and plain data: {_reason(error)}",
            hint="if it is a checkpoint that you trust: --trust-pickle",
        )
    return CheckpointError(f"{path}: cannot be read: {_reason(error)}", hint="the file may be damaged")


def _unpickling_failed(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, ModuleNotFoundError):
        mend = f"run nanhunt where `import {error.name}` works, in the environment and the folder of the training run"
        return CheckpointError(f"{path}: needs the module {error.name!r}, which is not found", hint=mend)
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return CheckpointError(
            f"{path}: holds an object of a class that the training script itself defines: {_reason(error)}",
            hint="save plain data, such as vars(args), in place of the object",
        )
    return CheckpointError(f"{path}: unpickling failed: {_reason(error)}", hint="the file may be damaged")


def _unsafe_globals(path: Path, error: Exception) -> list[str]:
    """Return the names of the globals that were refused: all of them where torch can list them, else the first."""
    try:
        with torch.serialization.safe_globals(NUMPY_GLOBALS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        # a legacy file, or opcodes that the lister does not know; the error names the first one
        names = []
    found = re.search(r"GLOBAL (\S+)", str(error))
    return sorted(
        {printable(n.removeprefix("builtins."))[:100] for n in (*names, *([found.group(1)] if found else []))}
    )


def _is_attack(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    builtin = module == "" and attribute in _ATTACKING_BUILTINS
    return builtin or module.partition(".")[0] in _ATTACKS


def _reason(error: Exception) -> str:
    """Return the first sentence of a reason; torch adds paragraphs of advice about its own options."""
    text = str(error) or type(error).__name__
    specific = re.search(r"WeightsUnpickler error: (.+)", text)
    lines = (specific.group(1) if specific else text).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__
