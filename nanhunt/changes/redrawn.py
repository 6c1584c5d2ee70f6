"""Layers drawn anew as torch draws them.

How it works. `reset_parameters` of each layer, inner layers first, as constructors run; the seed is fixed, and the
generators are put back behind it, so that dropout draws in the step what it drew before.

Not covered: an initialization that the model makes itself afterwards, and layers under torch's parametrizations, whose
weights are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.changes.moments import forget_state
from nanhunt.interventions import Redrawn
from nanhunt.training.names import clean_name
from nanhunt.training.rng import RngState, seed_everything

__all__ = ["redrawn_layers"]

_SEED = 0


@contextmanager
def redrawn_layers(bench: Bench, change: Redrawn) -> Iterator[Made]:
    """Draw the layers under a module anew, or those that are not; moments of the old weights are dropped."""
    layers = _layers(bench.run.model, clean_name(change.module), outside=change.outside)
    if not layers:
        where = f"outside of {change.module}" if change.outside else f"in {change.module or 'the model'}"
        raise NotApplicableError(f"no layer {where} knows how it is drawn (reset_parameters)")
    weights = list({id(p): p for layer in layers for p in layer.parameters()}.values())
    before = [w.detach().clone() for w in weights]
    generators = RngState.capture()
    seed_everything(_SEED)
    try:
        _draw(layers)
    finally:
        generators.restore()
    changed = sum(not torch.equal(b, w) for b, w in zip(before, weights, strict=True))
    if not changed:
        raise NotApplicableError("drawing the layers anew changes none of their weights")
    forget_state(bench.run, weights)
    yield Made(
        readback=[
            f"{len(layers)} layer{'s'[: len(layers) > 1]} drawn anew, {changed} of their tensors changed",
            f"largest weight {_peak(before):.3g} → {_peak(weights):.3g}",
        ]
    )


def _layers(model: nn.Module, module: str, *, outside: bool) -> list[nn.Module]:
    """Return the layers that can be drawn, inner ones and later ones first."""
    named = [(clean_name(name), layer) for name, layer in model.named_modules() if _drawing(layer) is not None]
    under = [layer for name, layer in named if not module or name == module or name.startswith(f"{module}.")]
    if not outside:
        return under[::-1]
    theirs = {id(p) for layer in under for p in layer.parameters()}
    chosen = {id(layer) for layer in under}
    # a weight tied to one of the module's, or a container around it, is not outside
    return [m for _, m in reversed(named) if id(m) not in chosen and not theirs & {id(p) for p in m.parameters()}]


def _drawing(layer: nn.Module) -> Callable[[], Any] | None:
    """Return the layer's own way to be drawn, not one that a wrapper hands through; attention's has another name."""
    private = isinstance(layer, nn.MultiheadAttention)
    name = "_reset_parameters" if private else "reset_parameters"
    return getattr(layer, name) if callable(getattr(type(layer), name, None)) else None


def _draw(layers: list[nn.Module]) -> None:
    drawn: set[int] = set()
    for layer in layers:
        held = dict(layer._parameters)
        own = {id(p) for p in held.values() if p is not None}
        if own and own <= drawn:  # tied: drawn by the head, and not once more by the embedding, at another size
            continue
        drawn |= own
        draw = _drawing(layer)
        assert draw is not None
        draw()
        for name, parameter in held.items():
            fresh = layer._parameters.get(name)
            if (
                parameter is not None and fresh is not None and fresh is not parameter
            ):  # the optimizer knows the old one
                with torch.no_grad():
                    parameter.copy_(fresh)
                layer._parameters[name] = parameter


def _peak(tensors: Sequence[Tensor]) -> float:
    return max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)
