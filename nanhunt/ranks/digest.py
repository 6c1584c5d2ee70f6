"""Whether what all ranks must agree on is the same on all of them, to the bit.

How it works. The bits of a tensor, as whole numbers, are added up on its device: one read of it, eight bytes to the host.
A sum sees any change of one element, and not two that cancel (signs of two elements in the upper half of eight bytes do), or an
exchange of places; it is taken anew in each recorded step. The sums of all tensors are hashed to one number below 2^20, which goes into the step's exchange: ranks agree where
the sum of squares says that all numbers are equal. Only where they do not are names exchanged.

What is compared: weights, the tensors that optimizers keep of them, and buffers. A shard of a DTensor is its rank's own. So
are the statistics of batch norms, and the buffers that DistributedDataParallel broadcasts before each forward pass. A buffer of
whole numbers counts what its rank has seen, whatever its dtype, and is taken for alike. What differs when the replay begins is a
shard that the model cuts by hand, and is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import own_part
from nanhunt.training.step import StepWatch

__all__ = [
    "LARGEST",
    "GradientDigest",
    "differing",
    "digests_of",
    "is_replicated",
    "own_by_design",
    "rng_digest",
    "state_digests",
    "whole",
]

#: `whole` is below this: squares of it are exact in fp64, added up over 8192 ranks.
LARGEST = 1 << 20
#: Bytes that are added up as one number.
_WIDE = 8


def state_digests(run: TrainingRun) -> dict[str, int]:
    """Return a digest of each replicated weight, optimizer tensor and buffer, by name (waits for the device)."""
    named = {name: p for name, p in run.parameters().items() if is_replicated(p)}
    return _read(_sums_of(named | run.state_tensors(named)) | _sums_of_buffers(_common_buffers(run)))


def _sums_of_buffers(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums, on their devices; zero of a buffer that holds whole numbers alone: it counts."""
    with torch.no_grad():
        return {name: total * ~_is_whole(buffers[name]) for name, total in _sums_of(buffers).items()}


def _is_whole(buffer: Tensor) -> Tensor:
    held = own_part(buffer.detach())
    wide = held if held.dtype == torch.float64 else held.float()  # fp8 does not round
    return (wide == wide.round()).all()


def _common_buffers(run: TrainingRun) -> dict[str, Tensor]:
    """Return the floating-point buffers that nobody but the model keeps alike."""
    own: set[int] = set()
    for root in run.roots().values():
        for module in root.modules():
            if isinstance(module, _NormBase):
                own |= {id(b) for b in module.buffers(recurse=False)}
            elif isinstance(module, DistributedDataParallel) and module.broadcast_buffers:
                own |= {id(b) for b in module.buffers()}
    floating = {name: buffer for name, buffer in run.whole_buffers().items() if buffer.is_floating_point()}
    return {name: buffer for name, buffer in floating.items() if id(buffer) not in own}


def own_by_design(run: TrainingRun) -> set[str]:
    """Return the names of what may be each rank's own although all hold the same when the replay begins.

    Under DistributedDataParallel nothing is. Elsewhere buffers may count what a rank has seen, and a bias of a layer that was cut
    by hand, or a moment, starts as zeros on every rank: tensors of one value tell nothing.
    """
    if any(isinstance(m, DistributedDataParallel) for root in run.roots().values() for m in root.modules()):
        return set()
    weights = {name: p for name, p in run.parameters().items() if is_replicated(p)}
    buffers = _common_buffers(run)
    held = weights | run.state_tensors(weights)
    return {name for name, tensor in held.items() if _is_of_one_value(tensor)} | set(buffers)


def _is_of_one_value(tensor: Tensor) -> bool:
    held = own_part(tensor.detach()).reshape(-1)
    return held.numel() == 0 or bool((held == held[0]).all())


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return a digest of each replicated tensor, by name (waits for the device once)."""
    return _read(_sums_of(tensors))


def _sums_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum of the bits of each replicated tensor, on its device."""
    with torch.no_grad():
        return {name: _bits(t.detach()) for name, t in tensors.items() if is_replicated(t)}


def _read(sums: Mapping[str, Tensor]) -> dict[str, int]:
    """Return sums on the host; waits for each device once."""
    with torch.no_grad():
        by_device: dict[torch.device, list[str]] = {}
        for name, total in sums.items():
            by_device.setdefault(total.device, []).append(name)
        found: dict[str, int] = {}
        for names in by_device.values():
            found |= dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    return {name: found[name] for name in sums}


def is_replicated(tensor: Tensor) -> bool:
    """Whether every rank is to hold the same of it."""
    if tensor.layout is not torch.strided:
        return False
    placements = getattr(tensor, "placements", None)
    return placements is None or all(placement.is_replicate() for placement in placements)


def rng_digest() -> int:
    """Return a digest of torch's random state on the CPU and of the present GPU (waits for it)."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return zlib.crc32(b"".join(state.numpy().tobytes() for state in states))


def whole(digests: Mapping[str, int], names: Iterable[str]) -> int:
    """Return one number below LARGEST for the digests of some names."""
    text = ",".join(f"{name}:{digests[name]}" for name in names if name in digests)
    return zlib.crc32(text.encode()) % LARGEST


def differing(by_rank: Sequence[Mapping[str, int]]) -> list[str]:
    """Return the names whose digests are not the same on all ranks, in the first rank's order."""
    return [name for name in by_rank[0] if len({digests.get(name) for digests in by_rank}) > 1]


class GradientDigest(StepWatch):
    """Digests of a step's gradients, reduced and not yet clipped."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._sums: dict[str, Tensor] = {}

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Take them; the step goes on."""
        self._sums |= _sums_of(self._run.gradients(parameters))

    def digests(self) -> dict[str, int]:
        """Return them by name (waits for the device)."""
        return _read(self._sums)


def _bits(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits as whole numbers, int64, modulo 2^64.

    Eight bytes are one number, as far as they go: on a CPU torch adds them at 22 GB/s, and fp32's bits one by one, widened,
    at 1.1. Where memory happens to lie does not change the sum.
    """
    to_local = getattr(tensor, "to_local", None)
    held = (tensor if to_local is None else to_local()).contiguous()
    if held.is_complex():
        held = torch.view_as_real(held.resolve_conj()).contiguous()
    if held.storage_offset() * held.element_size() % _WIDE:  # a view in the middle of another tensor
        held = held.clone()
    flat = held.reshape(-1).view(torch.uint8)
    wide = flat.numel() // _WIDE * _WIDE
    total = flat[:wide].view(torch.int64).sum()
    return total if wide == flat.numel() else total + flat[wide:].sum(dtype=torch.int64)
