"""Batches that can be asked for again: the same batch, and the same random state after it, every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanhunt.errors import ConfigError
from nanhunt.training.rng import RngState
from nanhunt.training.tree import map_tensors, tensors_of
from nanhunt.training.user_code import call_user

__all__ = ["BatchSource", "DataEndedError", "batches_in"]


class DataEndedError(Exception):
    """The user's data has no batch for this step: the replay ends here."""


class BatchSource:
    """The user's batches by (step, micro-batch), read lazily and kept while a rewind may need them.

    A batch is copied when it is read, so that a model that writes into its input does not change the repetition.
    Reading draws from the random generators just as in the user's loop; a repetition restores the state that reading
    left behind, so that dropout sees the same numbers.
    """

    def __init__(
        self,
        data: object,
        *,
        first_step: int,
        accumulate: int,
        device: torch.device,
        floats: torch.dtype | None = None,
    ) -> None:
        self._iterator: Iterator[Any] = iter(batches_in(data))
        self._next = first_step * accumulate
        self._accumulate = accumulate
        self._device = device
        #: what fp32 tensors become, where a recipe casts the model
        self._floats = floats
        self._kept: dict[int, tuple[Any, RngState]] = {}
        #: bytes of the tensors of all batches that are kept
        self.kept_bytes = 0
        #: what a trial makes of a batch before the step sees it: (step, micro, batch) -> batch
        self.transform: Callable[[int, int, Any], Any] | None = None

    def get(self, step: int, micro: int) -> Any:
        """Return the batch of a micro-step on the run's device, leaving the random state as a first reading does.

        Raises DataEndedError where the data has run out, KeyError where the batch was dropped by `forget_before`.
        """
        index = step * self._accumulate + micro
        while index >= self._next:
            self._kept[self._next] = self._read()
            self.kept_bytes += _bytes_of(self._kept[self._next][0])
            self._next += 1
        batch, rng = self._kept[index]
        rng.restore()
        placed = map_tensors(self._placed, batch)
        return placed if self.transform is None else self.transform(step, micro, placed)

    def _placed(self, tensor: Tensor) -> Tensor:
        dtype = self._floats if self._floats is not None and tensor.dtype is torch.float32 else tensor.dtype
        return tensor.to(self._device, dtype, copy=True)

    def peek(self, step: int, micro: int) -> Any:
        """Return a batch that was read before, as the user's data gave it; nothing else changes.

        Raises KeyError where it is not kept.
        """
        return self._kept[step * self._accumulate + micro][0]

    def again(self, step: int, micro: int) -> Any:
        """Return a copy of a batch that was read before, on the device and in the dtypes that its step got it in.

        Raises KeyError where it is not kept.
        """
        return map_tensors(self._placed, self.peek(step, micro))

    def forget_before(self, step: int) -> None:
        """Drop batches that no rewind reaches any more."""
        for index in [i for i in self._kept if i < step * self._accumulate]:
            self.kept_bytes -= _bytes_of(self._kept.pop(index)[0])

    def _read(self) -> tuple[Any, RngState]:
        with call_user("data"):
            try:
                batch = next(self._iterator)
            except StopIteration:
                raise DataEndedError from None
        kept = map_tensors(lambda t: t.detach().clone(), batch)
        return kept, RngState.capture()


def batches_in(data: object) -> Iterable[Any]:
    """Return the data; raises ConfigError where it cannot be iterated."""
    if not isinstance(data, Iterable):
        raise ConfigError(
            f"data: expected an iterable of batches, got {type(data).__name__}",
            hint="return a DataLoader, a list or a generator from the callable that data: names",
        )
    return data


def _bytes_of(batch: Any) -> int:
    return sum(t.numel() * t.element_size() for _, t in tensors_of(batch))
