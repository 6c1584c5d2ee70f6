"""The culprit's call as a file that `torch.load(weights_only=True)` reads: operands, other arguments, nothing of nanhunt.

Tensors, numbers, strings and lists stay what they are; a dtype is `{"torch": "float16"}`, a device `{"device": "cuda:0"}`.
The note beside it says what a reader without torch must know: the op, what to check, the flags under which it ran.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanhunt.culprit import Culprit, called, failing
from nanhunt.cut import cut_down
from nanhunt.probes.certificate import draws, tensor_arguments
from nanhunt.probes.closer import bytes_of
from nanhunt.probes.event import Capture
from nanhunt.trace.schema import BACKEND_FLAGS

__all__ = ["MOST", "save_call"]

#: Bytes of operands that a file holds.
MOST = 64 << 20


class _CannotSaveError(Exception):
    """An argument that no file of plain values holds."""


def save_call(culprit: Culprit, path: Path) -> dict[str, Any]:
    """Write the call to `path` and return the body of its note; with a reason, and no file, where it cannot be kept."""
    capture, op = culprit.capture, str(culprit.capture.func)
    if not isinstance(capture.func, torch._ops.OpOverload) or capture.func.namespace != "aten":
        return {"reason": f"{op} is no op of torch's own"}
    found = _small_enough(culprit)
    if found is None:
        size = bytes_of([capture.args, capture.kwargs]) / (1 << 20)
        return {"reason": f"the operands of {op} take {size:.0f} MiB, and no part of them fails by itself"}
    culprit, cut = found
    try:
        document = _call(culprit.capture) | _forward(culprit)
        _write(document, path)
    except _CannotSaveError as error:
        return {"reason": f"{op} {error}"}
    except (OSError, RuntimeError) as error:
        return {"reason": f"{path.name} could not be written: {' '.join(str(error).split())[:200]}"}
    return _note(culprit, path, cut, has_forward="forward" in document)


def _small_enough(culprit: Culprit) -> tuple[Culprit, str] | None:
    """Return the culprit as it is kept, and what was kept of a large one."""
    capture, check = culprit.capture, culprit.check
    if bytes_of([capture.args, capture.kwargs]) <= MOST:
        return culprit, ""
    made = dict(capture.outputs).get(check.output)
    mask = failing(check, capture, made) if made is not None else None
    if mask is None or draws(capture):
        return None

    def shows(part: Capture) -> bool:
        there = failing(check, part, called(part)[check.output])
        return there is not None and bool(there.any())

    cut = cut_down(capture, mask, shows, MOST)
    # the forward op's operands are not cut along
    return None if cut is None else (replace(culprit, capture=cut[0], forward=None, incoming=()), cut[1])


def _call(capture: Capture) -> dict[str, Any]:
    return {
        "op": str(capture.func),
        "args": [_plain(value) for value in capture.args],
        "kwargs": {name: _plain(value) for name, value in capture.kwargs.items()},
    }


def _forward(culprit: Culprit) -> dict[str, Any]:
    """Return the forward op of a backward culprit with the gradients that came to it, where there is room for them."""
    forward = culprit.forward
    if forward is None or not str(forward.func).startswith("aten.") or draws(forward):
        return {}
    if bytes_of([culprit.capture.args, forward.args, forward.kwargs, culprit.incoming]) > MOST:
        return {}
    try:
        return {"forward": _call(forward) | {"incoming": [_plain(g) for g in culprit.incoming]}}
    except _CannotSaveError:
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        # compact, so that no larger storage is written with it
        return value.detach().clone()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise _CannotSaveError(f"takes an argument of the class {type(value).__name__}")


def _write(document: dict[str, Any], path: Path) -> None:
    """Write the file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        torch.save(document, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _note(culprit: Culprit, path: Path, cut: str, *, has_forward: bool) -> dict[str, Any]:
    capture, check = culprit.capture, culprit.check
    tensors = tensor_arguments(capture)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "call": str(capture.func),
        "check": check.kind,
        "output": check.output,
        "end": check.end,
        "error": check.error,
        "operands": {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors},
        "arguments": {n: repr(v) for n, v in capture.kwargs.items() if not isinstance(v, (Tensor, list, tuple))},
        "cut": cut,
        "draws": draws(capture),
        "forward": str(culprit.forward.func) if has_forward and culprit.forward is not None else "",
        "flags": _flags(),
        "torch": torch.__version__,
        "device": next((t.device.type for _, t in tensors if t.device.type != "cpu"), "cpu"),
        "reason": "",
    }


def _flags() -> dict[str, bool | str]:
    flags: dict[str, bool | str] = {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    for name in BACKEND_FLAGS if torch.cuda.is_available() else ():
        value: Any = torch.backends
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, bool):
            flags[name] = value
    return flags
