"""Module outputs that are not finite, in each step: one reduction an output, read when it has arrived.

How it works. A forward hook takes the largest element of each output, which a NaN or an infinity in it becomes. It stays
on its device and travels to the host with the step's loss. -inf alone passes, as in a replay: it is a mask's.

What it costs. A pass over every activation and, on a GPU, a launch for each. An output that is handed on as it is (a
container's, which is its last module's) is looked at once.

Not covered. Gradients of outputs; modules of a compiled model; forwards that checkpointing repeats in backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.probes.probe import in_backward, is_hookable, modules_below
from nanhunt.training.tree import tensors_of

__all__ = ["Outputs", "watch_outputs"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Outputs:
    """Where outputs go that are looked at."""

    def __init__(self) -> None:
        #: the present step's; None between two steps
        self.peaks: list[tuple[str, Tensor]] | None = None
        self._last: Tensor | None = None

    def add(self, module: str, tensor: Tensor) -> None:
        """Look at an output."""
        if self.peaks is None or tensor is self._last or tensor.dtype not in _FLOATS:
            return
        if tensor.layout is torch.strided and not tensor.is_nested and tensor.numel():
            self._last = tensor
            self.peaks.append((module, tensor.detach().amax()))

    def pause(self) -> None:
        """Look at nothing until `peaks` is a list again."""
        self.peaks = self._last = None


@contextmanager
def watch_outputs(
    roots: Mapping[str, nn.Module], seen: Outputs, guard: Callable[[Any], Any] = lambda hook: hook
) -> Iterator[None]:
    """Look at the outputs of every module below `roots` inside the body. Each hook is passed through `guard` first."""
    handles = [
        module.register_forward_hook(guard(_hook(name, seen)))
        for name, module in modules_below(roots)
        if is_hookable(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, seen: Outputs) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if seen.peaks is None or in_backward():
            return
        with torch._C.DisableTorchFunction():
            for _, tensor in [("", output)] if isinstance(output, Tensor) else tensors_of(output):
                seen.add(name, tensor)

    return hook
