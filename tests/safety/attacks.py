"""Files that run code when they are opened without a guard: each one writes a marker, so that a test can tell."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["PAYLOADS", "WRITERS", "Payload"]


class Payload:
    """An object that calls a function of somebody's choice when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _writing(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


#: By name: a payload that writes the marker.
PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    "os.system": lambda marker: Payload(os.system, f"touch {marker}"),
    "exec": lambda marker: Payload(builtins.exec, _writing(marker)),
    "eval": lambda marker: Payload(builtins.eval, _writing(marker)),
    "open": lambda marker: Payload(builtins.open, str(marker), "w"),
    "subprocess": lambda marker: Payload(subprocess.check_call, ["touch", str(marker)]),
    "pathlib": lambda marker: Payload(Path.touch, Payload(Path, str(marker))),
    # two calls, of which none is on a list of bad names: a module's attribute, and what it gives
    "torch-inside": lambda marker: Payload(torch.serialization.os.system, f"touch {marker}"),
    "python": lambda marker: Payload(subprocess.run, [sys.executable, "-c", _writing(marker)]),
}


def _saved(content: object, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def _zip_with(payload: Payload, member: str) -> bytes:
    """Return a sound checkpoint with one more member, which is a pickle."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved({"model": {"w": torch.zeros(2)}}))) as source,
        zipfile.ZipFile(out, "w") as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr(member, pickle.dumps(payload))
    return out.getvalue()


def _torchscript(payload: Payload) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(payload, 2))
        archive.writestr("m/constants.pkl", pickle.dumps(payload, 2))
        archive.writestr("m/code/__torch__.py", "raise SystemExit")
        archive.writestr("m/version", "3\n")
    return out.getvalue()


def _tar(payload: Payload) -> bytes:
    """Return a file of the layout that torch wrote in 2016."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in (
            ("storages", pickle.dumps(0)),
            ("tensors", pickle.dumps(0)),
            ("pickle", pickle.dumps(payload, 2)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _safetensors_behind_a_pickle(payload: Payload) -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return pickle.dumps(payload) + struct.pack("<Q", len(header)) + header + bytes(4)


#: By name: the bytes of a file that holds a payload, and the suffix that it hides behind.
WRITERS: dict[str, tuple[Callable[[Payload], bytes], str]] = {
    "plain-pickle": (lambda p: pickle.dumps(p), ".pt"),
    "zip": (lambda p: _saved({"model": {"w": torch.zeros(2)}, "extra": p}), ".pt"),
    "zip-alone": (lambda p: _saved(p), ".ckpt"),
    "zip-among-weights": (lambda p: _saved({"model": {"w": torch.zeros(2), "v": [p]}}), ".pth"),
    "zip-as-a-key": (lambda p: _saved({"model": {"w": torch.zeros(2)}, ("k", p): 1}), ".pt"),
    "legacy": (
        lambda p: _saved({"model": {"w": torch.zeros(2)}, "extra": p}, _use_new_zipfile_serialization=False),
        ".bin",
    ),
    "safetensors-by-name": (lambda p: _saved({"w": p}), ".safetensors"),
    "pickle-as-safetensors": (_safetensors_behind_a_pickle, ".safetensors"),
    "torchscript": (_torchscript, ".pt"),
    "tar": (_tar, ".pt"),
    "zip-with-a-second-pickle": (lambda p: _zip_with(p, "archive/extra.pkl"), ".pt"),
    "zip-with-a-path": (lambda p: _zip_with(p, "../../escaped.pkl"), ".pt"),
}
