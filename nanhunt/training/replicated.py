"""A bundle's model, wrapped again as the recorded loop had it: DistributedDataParallel, whose ranks average gradients.

What is kept is what changes the average: which gradients are in it, how they are cut into messages (of three ranks and more
the order of a sum depends on that), and torch's own hooks that send them in 16 bits. What is not kept is told (`unkept`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["BYPASSED", "OWN_WRAPPER", "Replication", "is_replication", "replicated", "replication_of", "unkept"]

Replication = dict[str, bool | float | str]

#: The loop calls the module inside of the wrapper: no gradient is averaged. The model's own code makes its wrapper.
BYPASSED: Replication = {"bypassed": True}
OWN_WRAPPER: Replication = {"own_wrapper": True}

#: What changes which gradients are averaged, and when, with torch's defaults.
_OPTIONS = {"find_unused_parameters": False, "broadcast_buffers": True, "static_graph": False}
#: torch's own communication hooks without a state.
_HOOKS = ("allreduce_hook", "fp16_compress_hook", "bf16_compress_hook")
_MB = 1024 * 1024


def wrapper_of(model: nn.Module, live: Iterable[nn.Module] = ()) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that a model is, also below torch.compile, or of `live` modules one around it."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    if isinstance(model, DistributedDataParallel):
        return model
    around = (m for m in live if isinstance(m, DistributedDataParallel))
    return next((m for m in around if getattr(m.module, "_orig_mod", m.module) is model), None)


def replication_of(model: nn.Module, live: Iterable[nn.Module] = ()) -> Replication | None:
    """Return how a model, or one of the `live` modules around it, averages gradients; None where nothing is seen to."""
    wrapper = wrapper_of(model, live)
    if wrapper is None:
        return OWN_WRAPPER if any(isinstance(m, DistributedDataParallel) for m in model.modules()) else None
    found: Replication = {name: bool(getattr(wrapper, name, default)) for name, default in _OPTIONS.items()}
    if not getattr(wrapper, "bucket_bytes_cap_default", True):
        found["bucket_cap_mb"] = wrapper.bucket_bytes_cap / _MB
    hooks = [name for name in map(_known_hook, *_hooks(wrapper)) if name]
    return found | ({"comm_hook": hooks[0]} if hooks else {})


def is_replication(value: Any) -> bool:
    """Whether a bundle's entry is what `replication_of` returns."""
    kinds = {
        **dict.fromkeys(_OPTIONS, bool),
        "bypassed": bool,
        "own_wrapper": bool,
        "bucket_cap_mb": float,
        "comm_hook": str,
    }
    if not isinstance(value, dict) or not all(isinstance(v, kinds.get(k, type(None))) for k, v in value.items()):
        return False
    return value.get("comm_hook", _HOOKS[0]) in _HOOKS and value.get("bucket_cap_mb", 1.0) > 0.0


def unkept(model: nn.Module, live: Iterable[nn.Module] = ()) -> Iterator[str]:
    """Yield, in sentences, what a wrapper does that a replay does not."""
    wrapper = wrapper_of(model, live)
    if wrapper is None:
        return
    for hook, state in zip(*_hooks(wrapper), strict=True):
        if not _known_hook(hook, state):
            name = getattr(hook, "__qualname__", type(hook).__name__)
            yield f"DistributedDataParallel had the communication hook {name}: a replay averages gradients as they are"
    if getattr(wrapper, "mixed_precision", None) is not None:
        yield "DistributedDataParallel had a mixed precision of its own: a replay runs in the parameters' dtype"
    size, every = dist.get_world_size(wrapper.process_group), dist.get_world_size()
    if size != every:
        yield f"DistributedDataParallel averaged over {size} of {every} ranks: a replay averages over all of them"


def replicated(model: nn.Module, options: Mapping[str, Any], assumptions: list[str]) -> nn.Module:
    """Return the model in such a wrapper: all ranks call it. What this device does not have is told.

    A default is left out: torch 2.13 warns of `broadcast_buffers`, which has another name there.
    """
    if "bypassed" in options or any(isinstance(m, DistributedDataParallel) for m in model.modules()):
        return model
    given = {name: options[name] for name, usual in _OPTIONS.items() if options.get(name, usual) != usual}
    if "bucket_cap_mb" in options:
        given["bucket_cap_mb"] = options["bucket_cap_mb"]
    wrapper = DistributedDataParallel(model, **given)
    if "comm_hook" in options:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        name = options["comm_hook"]
        try:
            wrapper.register_comm_hook(None, getattr(default_hooks, name))
        except TypeError:  # bf16 is NCCL's
            assumptions.append(f"gradients are averaged as they are: the run's {name} is not to be had here")
    return wrapper


def _hooks(wrapper: DistributedDataParallel) -> tuple[list[Any], list[Any]]:
    held = getattr(wrapper, "_comm_hooks", [])
    return [hook for hook, _ in held], [state for _, state in held]


def _known_hook(hook: Any, state: Any) -> str:
    """Return the name of one of torch's own hooks that average over all ranks; '' of any other."""
    name = getattr(hook, "__name__", "")
    is_torchs = getattr(hook, "__module__", "") == "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"
    return name if is_torchs and name in _HOOKS and (state is None or state is dist.group.WORLD) else ""
