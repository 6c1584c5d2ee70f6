"""The random generators of a step: Python, NumPy, torch on the CPU and on every CUDA device."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RngState", "restore_saved", "seed_everything"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RngState:
    """The states of all generators at one moment."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch_cpu: Tensor
    cuda: tuple[Tensor, ...] = ()

    @classmethod
    def capture(cls) -> RngState:
        """Return the present states; draws nothing."""
        used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        numpy_state: Any = np.random.get_state()
        return cls(
            python=random.getstate(),
            numpy=numpy_state,
            torch_cpu=torch.get_rng_state(),
            cuda=tuple(torch.cuda.get_rng_state_all()) if used else (),
        )

    def saved(self) -> dict[str, Any]:
        """Return the states as `restore_saved` takes them: tensors and plain data, which need no pickle to be loaded."""
        kind, keys, *rest = self.numpy
        states: dict[str, Any] = {"torch": self.torch_cpu, "python": self.python, "numpy": (kind, keys.tolist(), *rest)}
        return states | ({"cuda": list(self.cuda)} if self.cuda else {})

    def restore(self) -> None:
        """Put all generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_saved(saved: dict[str, Any]) -> list[str]:
    """Restore the generators that a checkpoint holds ("torch", "cuda", "numpy", "python"); return their names.

    Raises what the generators raise for a state that is none of theirs.
    """
    restored = []
    if isinstance(saved.get("torch"), Tensor):
        torch.set_rng_state(saved["torch"].cpu().to(torch.uint8))
        restored.append("torch")
    cuda = saved.get("cuda")
    if cuda is not None and torch.cuda.is_available():
        states = [cuda] if isinstance(cuda, Tensor) else list(cuda)
        torch.cuda.set_rng_state_all([s.cpu().to(torch.uint8) for s in states[: torch.cuda.device_count()]])
        restored.append("cuda")
    if saved.get("numpy") is not None:
        np.random.set_state(saved["numpy"])
        restored.append("numpy")
    python = saved.get("python")
    if python is not None:
        version, internal, gauss = python
        random.setstate((version, tuple(internal), gauss))
        restored.append("python")
    return restored
