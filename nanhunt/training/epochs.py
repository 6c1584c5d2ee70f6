"""Read data as a training loop does: moved on to a position, and begun anew as the next epoch where it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.data import dataloader

from nanhunt.errors import ConfigError

__all__ = ["Epochs", "Track", "first_sampler", "is_endless", "length_of", "samplers_of", "set_epoch", "untracked"]

#: Shows how far a loop of so many rounds is: what it gives is called once a round.
Track = Callable[[int], AbstractContextManager[Callable[[], object]]]


def untracked(count: int) -> AbstractContextManager[Callable[[], object]]:
    """Show nothing."""
    return nullcontext(lambda: None)


def is_endless(data: object, *, is_skipped: bool = False) -> bool:
    """Whether a loop would read the data again where it ends: a loader's epoch ends, a generator is over.

    A list is over as well, unless more of it is skipped than it may have: then the run looped over it.
    """
    if isinstance(data, (Iterator, Tensor)):
        return False
    return is_skipped or not isinstance(data, (list, tuple))


class Epochs:
    """The batches of `data` one after the other, over the ends of its epochs where it is `endless`.

    An epoch begins as in a loop: `set_epoch` is called where data, sampler or dataset have it, then `iter`. `on_anew`
    is told, of every new epoch, how many batches were read in all.
    """

    def __init__(self, data: Iterable[Any], *, endless: bool) -> None:
        self._data = data
        self._endless = endless
        #: epochs that were begun after the first
        self.epoch = 0
        #: batches read so far, those that were skipped included
        self.read = 0
        #: batches read of the present epoch
        self.within = 0
        self.on_anew: Callable[[int], None] = lambda read: None
        self._first_epoch = _epoch_of(data)
        self._iterator = iter(data)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._step(lambda: next(self._iterator))

    @property
    def length(self) -> int | None:
        """Batches of an epoch, where the data tells."""
        return length_of(self._data)

    def skip(self, count: int, track: Track, *, name: str) -> None:
        """Read `count` batches and drop them; of a map-style DataLoader without workers only the order is drawn.

        Raises ConfigError where the data has fewer.
        """
        with track(count) as advance:
            for done in range(count):
                try:
                    self._step(self._pass_one)
                except StopIteration:
                    raise ConfigError(
                        f"data: {name} ended after {done} of the {count} batches to skip",
                        hint="`skip: N` under data: skips N batches; without it the first one is the checkpoint's next",
                    ) from None
                advance()

    def _step(self, take: Callable[[], Any]) -> Any:
        try:
            batch = take()
        except StopIteration:
            if not self._endless:
                raise
            batch = self._first_of_next_epoch(take)
        self.read += 1
        self.within += 1
        return batch

    def _first_of_next_epoch(self, take: Callable[[], Any]) -> Any:
        self.epoch += 1
        self.within = 0
        set_epoch(self._data, self._first_epoch + self.epoch)
        self._iterator = iter(self._data)
        batch = take()  # a StopIteration here is of data without a batch: it would be begun anew for ever
        self.on_anew(self.read)
        return batch

    def _pass_one(self) -> Any:
        """Move on by one batch."""
        iterator: Any = self._iterator
        if type(iterator) is dataloader._SingleProcessDataLoaderIter and iterator._dataset_kind == _MAP_STYLE:
            draw: Callable[[], Any] = iterator._next_index  # the samples themselves take no part in the order
            return draw()
        return next(iterator)


_MAP_STYLE = dataloader._DatasetKind.Map


def length_of(data: object) -> int | None:
    """Return the batches of an epoch; None where the data does not tell, as of a stream."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


def samplers_of(data: object) -> Iterator[Any]:
    """Yield a loader's batch sampler and samplers, from the outside in: accelerate wraps them."""
    seen: set[int] = set()
    below = [getattr(data, name, None) for name in ("batch_sampler", "sampler")]
    while below:
        sampler = below.pop(0)
        if sampler is None or id(sampler) in seen:
            continue
        seen.add(id(sampler))
        yield sampler
        below += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]


def first_sampler(data: object, *attributes: str) -> Any:
    """Return the first sampler that has all of these attributes; None where none has."""
    return next((s for s in samplers_of(data) if all(hasattr(s, name) for name in attributes)), None)


def _epoch_of(data: object) -> int:
    """Return the epoch that the data stands at; 0 where it does not count them."""
    epoch = getattr(first_sampler(data, "epoch", "set_epoch"), "epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def set_epoch(data: object, epoch: int) -> None:
    """Call `set_epoch` of the loader, its samplers and its dataset, as loops do at the start of an epoch."""
    for owner in (data, *samplers_of(data), getattr(data, "dataset", None)):
        tell = getattr(owner, "set_epoch", None)
        if callable(tell) and not isinstance(owner, nn.Module):
            tell(epoch)
