"""Updates and Adam's health of all parameters at once, on a CUDA device, by three launches.

Parameter by parameter this took some forty launches each: 300 of 650 ms of a recorded step (135 M parameters, H100). Here
one launch keeps the tiles that are looked at of all weights, one those of all second moments, and after the update a third
one reads them again and leaves sums of each tile; what these say of a parameter is ten operations on a small table. The
numbers are those of `probes.adam`, which is asked where the kernel cannot be (`fits`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor, nn

from nanhunt.probes.adam import HEALTH, correction
from nanhunt.probes.update_code import keep, measure
from nanhunt.stats.sampling import TILE, every_of, tiles_of
from nanhunt.stats.triton_kernel import on, sent

__all__ = ["SUMS", "KeptTiles", "fits"]

#: What `measure` leaves of a tile.
SUMS = ("g2", "ratio", "v_hat", "v_zero", "below", "stuck", "live", "v_before", "moved", "still", "update2")
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_PLAIN = (Tensor, nn.Parameter)


def fits(*tensors: Any) -> bool:
    """Whether the kernel reads these: plain CUDA tensors of one shape without gaps, of the common formats."""
    shape = tensors[0].shape
    for t in tensors:
        if type(t) not in _PLAIN or t.dtype not in _TYPES or not t.is_cuda or not t.is_contiguous() or t.shape != shape:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """Parameters of one format on one device, by place in what was handed over."""

    device: torch.device
    sizes: tuple[int, ...]
    #: of each, its first tile among all, the elements that its tiles have room for, and those that are looked at
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    seen: tuple[int, ...]
    #: (parameter, tile) of each program, how many of each parameter; elements seen, and 1 where that is a part
    programs: Tensor
    tiles: Tensor
    counts: Tensor

    @classmethod
    @functools.lru_cache(maxsize=32)
    def of(cls, sizes: tuple[int, ...], device: torch.device) -> _Group:
        """Share the tiles of tensors of these sizes out: the same in every step."""
        tiles = np.array([tiles_of(size) for size in sizes], np.int64)
        is_part = np.array([every_of(size) > 1 for size in sizes])
        seen = np.where(is_part, tiles * TILE, np.array(sizes, np.int64))
        starts = tiles.cumsum() - tiles
        whose = np.repeat(np.arange(len(sizes)), tiles)
        return cls(
            device=device,
            sizes=sizes,
            starts=tuple(starts.tolist()),
            lengths=tuple((tiles * TILE).tolist()),
            seen=tuple(seen.tolist()),
            programs=sent(np.stack([whose, np.arange(len(whose)) - starts[whose]], axis=1), device),
            tiles=sent(tiles, device),
            counts=sent(np.stack([seen, is_part]).astype(np.float64), device),
        )

    def facts(self, tensors: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return what the kernels are told of each parameter; of each, up to four tensors."""
        return _facts(self, tuple(tuple(t.data_ptr() for t in own) for own in tensors))

    def view(self, kept: Tensor, index: int, shape: Sequence[int]) -> Tensor:
        """Return a parameter's tiles as `sampling.looked_at` has them."""
        size, start = self.sizes[index], self.starts[index] * TILE
        if every_of(size) == 1:
            return kept[start : start + size].view(*shape)
        return kept[start : start + tiles_of(size) * TILE].view(-1, TILE)


@functools.lru_cache(maxsize=64)
def _facts(group: _Group, places: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the table of `update_code`: tensors lie where they lay a step before, mostly."""
    rows = [
        [*own, *[0] * (4 - len(own)), size, every_of(size), start]
        for own, size, start in zip(places, group.sizes, group.starts, strict=True)
    ]
    return sent(np.array(rows, np.int64), group.device)


class KeptTiles:
    """The tiles of some weights of one format and device, and of their second moments, as they were before an update."""

    def __init__(self, weights: Sequence[Tensor], moments: Sequence[Tensor] | None) -> None:
        """Copy them; `moments` are of the weights' shapes and of one format, None where there are none yet."""
        self.weights = list(weights)
        self.group = _Group.of(tuple(w.numel() for w in weights), weights[0].device)
        self.kept = self._copied(self.weights)
        self.v_kept = None if moments is None else self._copied(moments)

    def _copied(self, tensors: Sequence[Tensor]) -> Tensor:
        kept = torch.empty(len(self.group.programs) * TILE, dtype=tensors[0].dtype, device=self.group.device)
        with on(self.group.device):
            keep[(len(self.group.programs),)](
                self.group.facts([[t] for t in tensors]),
                self.group.programs,
                kept,
                dtype=_TYPES[kept.dtype],
                which=0,
                width=TILE,
            )
        return kept

    def before(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Return what is kept of a weight and of its second moment, as `sampling.looked_at` has them."""
        shape, held = self.weights[index].shape, (self.kept, self.v_kept)
        weight, v = (None if kept is None else self.group.view(kept, index, shape) for kept in held)
        assert weight is not None
        return weight, v

    def updates(self) -> list[Tensor]:
        """Return, after `health`, what each weight changed by: its tiles, flat."""
        parts = torch.split(self.kept, list(self.group.lengths))
        return [part[:size] for part, size in zip(parts, self.group.seen, strict=True)]

    def still_fit(self) -> bool:
        """Whether the weights are of the format in which they were kept, and can be read again."""
        return all(fits(w) and w.dtype == self.kept.dtype for w in self.weights)

    def sums_and_norms(self) -> Tensor:
        """Return [Σw / sqrt(n), |w|] of each weight's tiles as they are now, (parameters, 2) in fp64 on the device."""
        tiles = self._copied(self.weights).view(-1, TILE).double()  # zero beyond a weight's end
        sums = torch.stack([tiles.sum(dim=1), tiles.square_().sum(dim=1)], dim=1)
        total = torch.segment_reduce(sums, "sum", lengths=self.group.tiles, axis=0, unsafe=True)
        return torch.stack([total[:, 0] / self.group.counts[0].clamp(min=1.0).sqrt(), total[:, 1].sqrt()], dim=1)

    def health(
        self, grads: Sequence[Any], states: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]
    ) -> Tensor:
        """Turn the kept weights into updates; return `HEALTH` of each, (parameters, 8) in fp64 on the device.

        What needs a second moment of before is NaN where there was none, and what needs ε where that is zero.
        """
        device = self.group.device
        own = [(w, g, s["exp_avg"], s["exp_avg_sq"]) for w, g, s in zip(self.weights, grads, states, strict=True)]
        betas, rates, epsilons = _settings(
            tuple((float(g["betas"][1]), float(g["lr"]), float(g["eps"])) for g in groups), device
        )
        steps = _steps(states, device)
        limits = torch.stack([epsilons.square(), correction(betas, steps), correction(betas, steps - 1)], dim=1)
        sums = torch.empty(len(self.group.programs), len(SUMS), dtype=torch.float64, device=device)
        kinds = [_TYPES[t.dtype] for t in own[0]]
        with on(device):
            measure[(len(self.group.programs),)](
                self.group.facts(own), self.group.programs, limits, self.kept,
                self.kept if self.v_kept is None else self.v_kept, sums, *kinds, width=TILE,
            )  # fmt: skip
        total = torch.segment_reduce(sums, "sum", lengths=self.group.tiles, axis=0, unsafe=True)
        of = dict(zip(SUMS, total.T, strict=True))
        return _health(of, self.group.counts, rates, epsilons, self.v_kept is not None)


@functools.lru_cache(maxsize=64)
def _settings(of_each: tuple[tuple[float, float, float], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return β2, rates and ε, (parameters,) in fp64 each, on the device."""
    betas, rates, epsilons = sent(np.array(of_each, np.float64).T, device)
    return betas, rates, epsilons


def _health(of: dict[str, Tensor], counts: Tensor, rates: Tensor, eps: Tensor, has_before: bool) -> Tensor:
    """Return the columns of `HEALTH` from sums over parameters."""
    seen, is_part = counts[0].clamp(min=1.0), counts[1] > 0
    g2, eps2 = of["g2"] / seen, eps.square()
    nothing = torch.where(is_part, math.nan, 0.0)
    stale = (g2 / (of["v_before"] / seen).clamp(min=eps2)).sqrt()
    columns = {
        "frozen": torch.where(of["moved"] > 0, of["still"] / of["moved"].clamp(min=1.0), nothing),
        "update_lr": (of["update2"] / seen).sqrt() / rates,
        "rms_t": (of["ratio"] / seen).sqrt(),
        "kappa_eps": (of["v_hat"] / seen).sqrt() / eps,
        "v_zero": of["v_zero"] / seen,
        "v_below_eps2": of["below"] / seen,
        "v_stuck": of["stuck"] / of["live"].clamp(min=1.0),
        "v_stale": torch.where(g2 >= eps2, stale, math.nan),
    }
    return torch.stack([columns[name] for name in HEALTH], dim=1)


def _steps(states: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Return the parameters' step counters in fp64; a fused Adam has them on the device."""
    counters = [state.get("step", 0) for state in states]
    if all(isinstance(c, Tensor) and c.device == device for c in counters):
        return torch.stack(counters).reshape(-1).double()
    return sent(np.array([float(c) for c in counters]), device)
