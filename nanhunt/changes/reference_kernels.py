"""Fused kernels replaced by what they stand for: attention by its formula, optimizers a tensor at a time, cuDNN off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanhunt.bench import Bench, Made
from nanhunt.interventions import ReferenceKernels

__all__ = ["reference_kernels"]

_FUSED = ("foreach", "fused")


@contextmanager
def reference_kernels(bench: Bench, change: ReferenceKernels) -> Iterator[Made]:
    """Turn fused kernels off for the window, as far as torch's own switches reach; a Triton kernel stays what it is."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False  # its `flags` would set TF32 as well
        said = [_one_at_a_time(optimizer, stack) for optimizer in bench.run.optimizers]
        cuda: Any = torch.backends.cuda  # whose getters have no types
        others = cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()
        fast, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
        yield Made(
            readback=[
                f"attention {'fused' if others else 'by its formula'}, fast path {'on' if fast else 'off'}",
                f"cuDNN {'on' if cudnn else 'off'}",
                *filter(None, said),
            ]
        )


def _one_at_a_time(optimizer: torch.optim.Optimizer, stack: ExitStack) -> str:
    """Have an optimizer update a tensor at a time; return what was read back, '' of one that knows no other way."""
    settings: list[dict[str, Any]] = [optimizer.defaults, *optimizer.param_groups]
    known = [name for name in _FUSED if any(name in s for s in settings)]
    if not known:
        return ""
    was = {name: {s.get(name) for s in optimizer.param_groups} for name in known}
    for setting in settings:
        for name in known:
            if name in setting:
                stack.callback(setting.__setitem__, name, setting[name])
                setting[name] = False
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # else GradScaler leaves the unscaling to it, and the unfused step refuses
        stack.callback(setattr, optimizer, "_step_supports_amp_scaling", True)
        vars(optimizer)["_step_supports_amp_scaling"] = False
    now = {name: {s.get(name) for s in optimizer.param_groups} for name in known}
    return f"{type(optimizer).__name__}: " + ", ".join(f"{n} {_said(was[n])} → {_said(now[n])}" for n in known)


def _said(values: set[Any]) -> str:
    words = {None: "by default", True: "on", False: "off"}
    return "/".join(sorted(words.get(v, str(v)) for v in values))
