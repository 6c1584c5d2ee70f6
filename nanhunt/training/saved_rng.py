"""Random states under the names that loops save them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanhunt.training.launch import rank_and_size

__all__ = ["RNG_KEYS", "RNG_NAMES", "rng_states"]

#: dicts that hold random states
RNG_KEYS = ("rng", "rng_state", "rng_states", "random_states")

#: one generator's state under the names that loops give it
RNG_NAMES = {
    "torch": ("torch", "cpu", "torch_rng_state", "torch_rng", "cpu_rng_state", "torch_manual_seed", "rng_state"),
    "cuda": ("cuda", "cuda_rng_state", "cuda_rng_state_all", "cuda_rng", "torch_cuda_manual_seed"),
    "numpy": ("numpy", "np", "numpy_rng_state", "np_rng_state", "np_random_state", "numpy_random_seed"),
    "python": ("python", "random", "python_rng_state", "random_rng_state", "py_rng_state", "random_state"),
}


def rng_states(content: object) -> dict[str, Any] | None:
    """Return random states by generator (`torch`, `cuda`, `numpy`, `python`), None where there is none.

    A list is taken for one entry a rank: this rank's counts, the first where there are fewer. A bare tensor is torch's
    own state.
    """
    if isinstance(content, (list, tuple)) and content and isinstance(content[0], Mapping):
        rank = rank_and_size()[0]
        content = content[rank if rank < len(content) else 0]
    if isinstance(content, Tensor):
        return {"torch": content} if content.dtype == torch.uint8 else None
    if not isinstance(content, Mapping):
        return None
    found: dict[str, Any] = {}
    for generator, names in RNG_NAMES.items():
        states = (content[name] for name in names if _is_rng_state(generator, content.get(name)))
        state = next(states, None)
        if state is not None:
            found[generator] = state
    return found or None


def _is_rng_state(generator: str, value: object) -> bool:
    """Whether a value can be that generator's state; `random_state: 42` is a seed, and no state."""
    if generator == "torch":
        return isinstance(value, Tensor)
    if generator == "cuda":
        return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and len(value) > 0)
    return isinstance(value, (tuple, list, Mapping) if generator == "numpy" else (tuple, list)) and len(value) > 1
