"""The epsilon of norm layers, larger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import NormEpsilon
from nanhunt.probes.probe import modules_below

__all__ = ["larger_epsilon"]

_NAMES = ("eps", "epsilon", "variance_epsilon")


@contextmanager
def larger_epsilon(bench: Bench, change: NormEpsilon) -> Iterator[Made]:
    """Multiply the epsilon of every norm layer: torch's own, and what is called a norm or has an epsilon and a weight."""
    found = {
        (id(module), name): (module, name, getattr(module, name))
        for _, module in modules_below(bench.run.roots())
        for name in _NAMES
        if _is_epsilon(module, name)
    }
    if not found:
        raise NotApplicableError("the model has no norm layer with an epsilon")
    read: dict[tuple[float, float], int] = {}
    try:
        for module, name, own in found.values():
            was = _default(module) if own is None else float(own)
            setattr(module, name, was * change.factor)
            key = was, float(getattr(module, name))
            read[key] = read.get(key, 0) + 1
        if all(was == now for was, now in read):
            raise NotApplicableError("the epsilon of every norm layer is 0")
        yield Made(readback=[f"epsilon of {n} norm layer{'s' * (n > 1)} {a:g} → {b:g}" for (a, b), n in read.items()])
    finally:
        for module, name, own in found.values():
            setattr(module, name, own)


def _is_epsilon(module: nn.Module, name: str) -> bool:
    value = module.__dict__.get(name, False)
    is_norm = type(module).__name__.endswith("Norm") or isinstance(
        module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    )
    has_default = value is None and isinstance(module, nn.RMSNorm)
    return has_default or (
        isinstance(value, float) and (is_norm or isinstance(getattr(module, "weight", None), Tensor))
    )


def _default(module: nn.Module) -> float:
    """Return what an nn.RMSNorm without an epsilon of its own uses: that of its weight's format."""
    weight = getattr(module, "weight", None)
    return float(torch.finfo(weight.dtype if isinstance(weight, Tensor) else torch.get_default_dtype()).eps)
