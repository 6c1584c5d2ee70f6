"""The module probe: every module's outputs in forward, and the gradients of those outputs in backward.

Gradients are caught by `output.register_hook` inside a forward hook. `register_full_backward_hook` would wrap the
outputs in a view and break in-place activations. Both hooks return None: any other value would replace what the user's
model computes.

A gradient is recorded as it is, with the loss scale in it: that is what its format had to hold.

Not covered: modules whose parameters are used without calling them (`nn.MultiheadAttention` does so with `out_proj`),
and recomputed forwards under activation checkpointing, which would be seen twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nanhunt.probes.probe import RowBuffer, in_backward, is_hookable, modules_below
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.tree import tensors_of

__all__ = ["watch_modules"]


@contextmanager
def watch_modules(
    roots: Mapping[str, nn.Module], rows: RowBuffer, guard: Callable[[Any], Any] = lambda hook: hook
) -> Iterator[None]:
    """Record outputs and their gradients of every module below `roots` into `rows` inside the body.

    Each hook is passed through `guard` first.
    """
    # an output may outlive the step: a module that returns its own parameter would keep the hook
    on_tensors: list[RemovableHandle] = []
    on_modules = [
        module.register_forward_hook(guard(_forward_hook(name, rows, on_tensors, guard)))
        for name, module in modules_below(roots)
        if is_hookable(module)
    ]
    try:
        yield
    finally:
        for handle in (*on_modules, *on_tensors):
            handle.remove()


def _forward_hook(
    module_name: str, rows: RowBuffer, on_tensors: list[RemovableHandle], guard: Callable[[Any], Any]
) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not rows.recording or in_backward():
            return
        with torch._C.DisableTorchFunction():  # attributes too go by way of a mode that listens: microseconds each
            for path, tensor in [("", output)] if isinstance(output, Tensor) else tensors_of(output):
                rows.tensor(tensor, phase=Phase.FORWARD, role=Role.OUTPUT, module=module_name, name=path)
                if tensor.requires_grad:
                    handle = tensor.register_hook(guard(_gradient_hook(module_name, path, rows)))  # type: ignore[no-untyped-call]
                    on_tensors.append(handle)

    return hook


def _gradient_hook(module_name: str, path: str, rows: RowBuffer) -> Any:
    def hook(grad: Tensor | None) -> None:
        if grad is None:  # cuDNN's recurrent backward has none for an output that nobody used
            return
        rows.tensor(grad, phase=Phase.BACKWARD, role=Role.GRAD_OUTPUT, module=module_name, name=path)

    return hook
