"""Random generators by name: a device's, or one that a module keeps for itself; and their states as text."""

from __future__ import annotations

import base64

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["generators_in", "spelled_state", "state_of_text", "states_of_devices"]


def generators_in(module: nn.Module) -> dict[str, torch.Generator]:
    """Return the generators that a module and those inside of it hold as attributes, by dotted name."""
    return {
        f"{path}.{name}" if path else name: value
        for path, inner in module.named_modules()
        for name, value in vars(inner).items()
        if isinstance(value, torch.Generator)
    }


def states_of_devices() -> dict[str, Tensor]:
    """Return the states of torch's own generators by device; draws nothing, and waits for no device."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {"cpu": torch.get_rng_state()} | (
        {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())} if used else {}
    )


def spelled_state(state: Tensor) -> str:
    """Return a generator's state as text."""
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def state_of_text(text: str) -> Tensor:
    """Return the state that a text spells. Raises ValueError where it spells none."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
