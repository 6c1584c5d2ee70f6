"""Where in the user's code an op was called: file, line and the line's text."""

from __future__ import annotations

import io
import linecache
import os
import sys
import tokenize
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch

__all__ = ["SourceLine", "caller_line", "code_of", "excerpt", "is_checkpointing", "is_user_file", "line_text", "place"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_NANHUNT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Our files that stand between the user's call and the op without being its caller.
_TRANSPARENT = tuple(
    os.path.join(_NANHUNT, *name)
    for name in (("training", "cuda_autocast.py"), ("probes", "softmax.py"), ("changes", ""))
)
#: Where autograd's engine enters Python: below it there is the user's backward, above it their `loss.backward()`.
_ENGINE = os.path.join("torch", "autograd", "graph.py")
_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")

SourceLine = tuple[str, int]


def caller_line(*, in_backward: bool = False) -> SourceLine | None:
    """Return (file, line) of the innermost frame that is neither torch's nor ours.

    With `in_backward`, None is returned for autograd's own nodes: the line that called `backward()` says nothing
    about the op; a line inside a user's own backward is returned.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _owner(frame.f_code.co_filename) == "nanhunt":
        frame = frame.f_back  # the probe itself
    while frame is not None:
        name = frame.f_code.co_filename
        owner = _owner(name)
        if in_backward and owner == "torch" and name.endswith(_ENGINE):
            return None
        if owner == "nanhunt" and not name.startswith(_TRANSPARENT):
            return None  # called by us: the clip, the optimizer's step
        if owner == "user":
            return name, frame.f_lineno
        frame = frame.f_back
    return None


def is_checkpointing() -> bool:
    """Whether what autograd runs now is a forward pass that torch's activation checkpointing runs again."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.endswith(_ENGINE):
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            return True
        frame = frame.f_back
    return False


def is_user_file(filename: str) -> bool:
    """Whether a file is neither torch's nor ours."""
    return _owner(filename) == "user"


@lru_cache(maxsize=4096)
def _owner(filename: str) -> str:
    if filename.startswith("<"):
        return "torch"
    path = os.path.abspath(filename)
    if path.startswith(_TORCH):
        return "torch"
    return "nanhunt" if path.startswith(_NANHUNT) else "user"


@lru_cache(maxsize=4096)
def place(line: SourceLine, root: Path) -> str:
    """Return `model.py:88`: relative to the project's folder, else to site-packages, else the file's name."""
    path = Path(line[0]).resolve()
    if path.is_relative_to(root.resolve()):
        return f"{path.relative_to(root.resolve()).as_posix()}:{line[1]}"
    parts = path.parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[parts.index(folder) + 1 :]) + f":{line[1]}"
    return f"{path.name}:{line[1]}"


def line_text(line: SourceLine) -> str:
    """Return the line's text without its indent; '' where the file is not to be had."""
    return linecache.getline(line[0], line[1]).strip()


def code_of(line: SourceLine) -> str:
    """Return the line's text without its comment, to be quoted in a sentence."""
    text = line_text(line)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                return text[: token.start[1]].rstrip()
    except (tokenize.TokenError, SyntaxError):  # one line of a longer statement
        pass
    return text


def excerpt(line: SourceLine, around: int = 2) -> list[tuple[int, str]]:
    """Return (number, text) of the lines around, for the report; empty where the file is not to be had."""
    numbers = range(max(1, line[1] - around), line[1] + around + 1)
    lines = [(n, linecache.getline(line[0], n).rstrip("\n")) for n in numbers]
    while lines and not lines[-1][1]:
        lines.pop()
    return lines if any(text for _, text in lines) else []
