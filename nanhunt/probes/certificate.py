"""The certificate: an op again in fp64 from its recorded inputs, and the slope of its forward op likewise.

Finite in fp64 and larger than the output's format holds: range. Finite and within the format: rounding, an overflow
inside a fused kernel, or a wrong kernel. Non-finite in fp64 too: the operation itself is undefined there. The re-run
needs no trust in the tool: inputs, output and the fp64 value of up to eight elements stand in the trace.

A backward op is judged twice: by itself, from what it was given, and by the whole vector-Jacobian product of the forward
op that it differentiates. Where the op is beyond its format and the product is not, an intermediate overflowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.event import Capture, Slope
from nanhunt.stats.torch_kernel import plain_values
from nanhunt.training.tree import map_tensors, tensors_of

__all__ = ["Wide", "bad_mask", "draws", "in_fp64", "slope_in_fp64", "tensor_arguments", "verdict_of", "worst_output"]

_WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wide:
    """fp64 outputs by name; empty, with the reason, where there are none."""

    outputs: dict[str, Tensor]
    trouble: str = ""


def in_fp64(capture: Capture) -> Wide:
    """Run the op on its recorded inputs in fp64."""
    if draws(capture):
        return Wide(outputs={}, trouble="the op draws random numbers: another run is not this run")
    args, kwargs = _wide_arguments(capture)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            result = capture.func(*args, **kwargs)
    except Exception as error:  # a kernel without fp64: the certificate is not to be had, the birth stands
        return Wide(outputs={}, trouble=f"no fp64 kernel: {_first_line(error)}")
    outputs = dict(tensors_of(result, "output"))
    names = [a.name for a in capture.func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        for path, tensor in tensors_of(value, name):
            outputs.setdefault(path, tensor)
    return Wide(outputs=outputs)


def slope_in_fp64(capture: Capture, slope: Slope) -> Wide:
    """Return the vector-Jacobian product of a forward op in fp64: the gradients of its inputs, `grad.0`, `grad.1` …

    Inputs are those that were recorded of the forward op, the incoming gradients those that its autograd node got. The
    gradients come in the order of the node's own, None of inputs that need none.
    """
    if draws(capture):
        return Wide(outputs={}, trouble="the forward op drew random numbers")
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1].clone()  # an op in place must not meet a leaf

    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            args, kwargs = map_tensors(leaf, _wide_arguments(capture))
            made = [t for _, t in tensors_of(capture.func(*args, **kwargs)) if t.grad_fn is not None]
            pairs = [(o, _wide(g)) for o, g in zip(made, slope.incoming, strict=False) if g is not None]
            found = torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    except Exception as error:  # no fp64 kernel, or a node whose gradients are not the op's outputs
        return Wide(outputs={}, trouble=f"no fp64 slope: {_first_line(error)}")
    shapes = [None if g is None else g.shape for g in slope.outgoing]
    outputs: dict[str, Tensor] = {}
    for index, shape in enumerate(shapes):
        twin = next((g for g in found if g is not None and g.shape == shape), None)
        if twin is not None:
            outputs[f"grad.{index}"] = twin
            found = tuple(g for g in found if g is not twin)
    return Wide(outputs=outputs, trouble="" if outputs else "the node's gradients are not those of the op's inputs")


def _wide_arguments(capture: Capture) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = tuple(_widened(v) for v in capture.args), {k: _widened(v) for k, v in capture.kwargs.items()}
    if capture.func._schema.name.endswith("softmax") and len(args) == 3 and isinstance(args[2], bool):
        args = (*args[:2], False)  # half_to_float is for half inputs only
    return args, kwargs


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def draws(capture: Capture) -> bool:
    """Whether the op draws random numbers; attention with a dropout of zero is of that sort by name only."""
    names = [a.name for a in capture.func._schema.arguments]
    given = {**dict(zip(names, capture.args, strict=False)), **capture.kwargs}
    seeded = torch.Tag.nondeterministic_seeded in capture.func.tags
    return seeded and not ("scaled_dot_product" in capture.func._schema.name and given.get("dropout_p", 0.0) == 0.0)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else _WIDE.get(value, value)
    return map_tensors(_wide, value)


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.double()
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor.clone()


def worst_output(capture: Capture) -> tuple[str, Tensor]:
    """Return the first output that has non-finite elements."""
    for name, tensor in capture.outputs:
        if tensor.numel() and bool(bad_mask(tensor).any()):
            return name, tensor
    return capture.outputs[0]


def bad_mask(tensor: Tensor) -> Tensor:
    """Return where the tensor is not finite, in its own shape (of a sparse one, of its values)."""
    values = plain_values(tensor)
    if not values.is_floating_point():
        return torch.zeros_like(values, dtype=torch.bool)
    bad = ~torch.isfinite(values.float() if values.element_size() == 1 else values)
    return bad.any(dim=-1) if tensor.is_complex() else bad


def verdict_of(output: Tensor, twin: Tensor | None) -> tuple[str, float | None]:
    """Hold the fp64 values at the bad elements against the output's format."""
    if twin is None or twin.shape != output.shape or not (output.is_floating_point() or output.is_complex()):
        return "unavailable", None
    mask = bad_mask(output)
    if plain_values(twin).shape[: mask.dim()] != mask.shape or not bool(mask.any()):
        return "unavailable", None
    values = plain_values(twin)[mask].double()
    if not bool(torch.isfinite(values).all()):
        return "non-finite", None
    amax = float(values.abs().max())
    # half an ulp above max still rounds to max; beyond the format is what rounds to inf
    limit = torch.finfo(output.dtype).max
    return ("beyond-range" if amax > limit else "in-range"), amax


def tensor_arguments(capture: Capture) -> list[tuple[str, Tensor]]:
    """Return the op's tensor arguments by name, those of a list as `name.0`, `name.1` …"""
    names = [a.name for a in capture.func._schema.arguments]
    pairs = [*zip(names, capture.args, strict=False), *capture.kwargs.items()]
    return [pair for name, value in pairs for pair in tensors_of(value, name)]
