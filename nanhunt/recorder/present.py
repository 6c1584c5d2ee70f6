"""The step that is running: what was heard of it, on its device, and the way of its numbers to the host."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanhunt.recorder.alarm import Scalars
from nanhunt.recorder.history import PastStep

__all__ = ["PresentStep"]


@dataclass(slots=True, kw_only=True)
class PresentStep:
    """Losses, scales and norms of a step; scalars on their device until `send`."""

    past: PastStep
    #: of each parameter group, as the update used it
    lr: tuple[float, ...]
    #: what else schedules move, of each parameter group
    settings: tuple[dict[str, Any], ...] = ()
    #: what each backward pass started from, and the loss scale in it
    roots: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    #: losses that the roots are shares of, and of how many shares, where that was seen
    wholes: list[Tensor] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    #: losses that the loop told itself
    told: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    #: largest elements of the modules' outputs
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    #: ids of the optimizers whose gradients were looked at since the last backward pass
    ready: set[int] = field(default_factory=set)
    #: numbers of the optimizers whose update this step waits for, where it is one of several
    awaited: set[int] = field(default_factory=set)
    updates: int = 0
    scaler_steps: int = 0
    _host: Tensor | None = None
    #: which of the numbers each place of the row holds
    _order: list[int] = field(default_factory=list)
    _event: Any = None

    @property
    def is_over(self) -> bool:
        """Whether the next batch belongs to another step."""
        return (self.updates > 0 or self.scaler_steps > 0) and not self.awaited

    def add_root(self, root: Tensor, scale: Tensor | None) -> None:
        """Keep what a backward pass starts from; copied, for a loop may write into it."""
        self.roots.append(root.detach().reshape(()).clone())
        if scale is not None:
            self.scales.append(scale.detach().reshape(()).clone())

    def add_whole(self, whole: Tensor, shares: float) -> None:
        """Keep the loss that the last root is a share of."""
        self.wholes.append(whole.detach().reshape(()).clone())
        self.shares.append(shares)

    def send(self) -> None:
        """Send the numbers to the host; nothing waits for them."""
        held = [
            *self.roots, *self.scales, *self.wholes, *self.told, *self.norms, *(peak for _, peak in self.outputs),
        ]  # fmt: skip
        if not held:
            self._host = torch.zeros(0, dtype=torch.float64)
            return
        row, self._order = _in_one_row(held)
        self.outputs = [(name, _NOTHING) for name, _ in self.outputs]
        if not row.is_cuda:
            self._host = row
            return
        self._host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True).copy_(row, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(row.device))

    def has_arrived(self) -> bool:
        """Whether the host may read the numbers without waiting."""
        return self._event is None or bool(self._event.query())

    def scalars(self) -> Scalars:
        """Return the step as the host sees it; waits for the numbers."""
        if self._event is not None:
            self._event.synchronize()
        assert self._host is not None
        numbers = iter(
            [v for _, v in sorted(zip(self._order, self._host.tolist(), strict=True), key=lambda pair: pair[0])]
        )
        roots, scales, wholes, told, norms = (
            [next(numbers) for _ in kept] for kept in (self.roots, self.scales, self.wholes, self.told, self.norms)
        )
        losses = told or self._wholes(wholes) or self._losses(roots, scales)
        mean = float(torch.tensor(losses, dtype=torch.float32).mean()) if losses else float("nan")
        return Scalars(
            step=self.past.step,
            losses=tuple(losses),
            loss=mean,
            grad_norm=float(torch.tensor(norms, dtype=torch.float64).norm()) if norms else None,
            loss_scale=scales[0] if scales else None,
            lr=self.lr,
            settings=self.settings,
            skipped=self.scaler_steps > 0 and self.updates == 0,
            outputs=tuple((name, v) for (name, _), v in zip(self.outputs, numbers, strict=True) if not v < math.inf),
        )

    def _wholes(self, wholes: list[float]) -> list[float]:
        """Return the losses whose shares the roots are, where all are shares of the micro-batches; [] elsewhere.

        The third of a loss, taken three times, is not the loss to the last bit.
        """
        micros = len(self.past.micros)
        return wholes if len(wholes) == len(self.roots) == micros and set(self.shares) == {micros} else []

    def _losses(self, roots: list[float], scales: list[float]) -> list[float]:
        """Return the losses that the roots were made of: divided by the micro-batches, multiplied by the scale.

        Powers of two leave no rounding. Several backward passes in one micro-step have no loss in common: their sum.
        """
        micros = max(1, len(self.past.micros))
        unscaled = [r / s for r, s in zip(roots, scales, strict=True)] if len(scales) == len(roots) else roots
        if len(unscaled) != micros:
            return [sum(unscaled) / micros] * micros if unscaled and len(unscaled) % micros == 0 else unscaled
        return [value * micros for value in unscaled]


_NOTHING = torch.zeros(())


def _in_one_row(held: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Return scalars of any dtype as one fp64 row, on a GPU where there is one, and the index of each place's scalar.

    One launch for each dtype and device: a model has hundreds of outputs.
    """
    device = next((t.device for t in held if t.is_cuda), held[0].device)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(held):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    parts = [torch.stack([held[i] for i in group]).to(device=device, dtype=torch.float64) for group in groups.values()]
    return torch.cat(parts), [index for group in groups.values() for index in group]
