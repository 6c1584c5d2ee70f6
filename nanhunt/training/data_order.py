"""What is not known of the order in which a loader gives its samples, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from nanhunt.training.epochs import first_sampler, samplers_of

__all__ = ["holds_order", "order_told"]

_DRAWING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def holds_order(state: object) -> bool:
    """Whether a loader's state holds how its sampler stood: torchdata keeps the bare place of one that has no state.

    The state of a class of the user's own is taken to be whole.
    """
    found = list(_sampler_states(state))
    return not found or any(inner is not None for inner in found)


def _sampler_states(state: object, depth: int = 4) -> Iterator[object]:
    if not isinstance(state, Mapping) or not depth:
        return
    for key, value in state.items():
        if key == "_sampler_iter_state":
            yield value
        else:
            yield from _sampler_states(value, depth - 1)


def order_told(data: object, *, is_ordered: bool, epoch: int) -> Iterator[str]:
    """Yield what was taken for granted of a DataLoader's order; nothing of other data, whose order is its code's.

    `is_ordered` says that a loader's state was loaded that holds the order; `epoch` counts epochs that were skipped.
    """
    if not isinstance(data, DataLoader) and first_sampler(data) is None:
        return
    if not is_ordered:
        yield from _of_the_sampler(data, epoch)
        if isinstance(getattr(data, "dataset", None), IterableDataset):
            yield "an IterableDataset orders itself: it was taken to give the run's samples when it is begun anew"
    ranks = getattr(first_sampler(data, "num_replicas", "rank"), "num_replicas", 1)
    if ranks != 1:
        yield f"its sampler gives one of {ranks} ranks' shards: the other ranks' samples take no part in the replay"
    workers = getattr(data, "num_workers", 0)
    if workers:
        yield (
            f"what its {workers} worker processes draw at random (crops, flips, noise) is seeded when an epoch begins, "
            "which no checkpoint tells"
        )


def _of_the_sampler(data: object, epoch: int) -> Iterator[str]:
    sampler = next((s for s in samplers_of(data) if _draws(s)), None)
    if sampler is None:
        return
    seed = _seed_of(sampler)
    if seed is not None:
        yield f"shuffled by seed {seed} and epoch {getattr(sampler, 'epoch', epoch)}: the run's order if it had these"
    elif getattr(sampler, "generator", None) is not None:
        yield "shuffled by a generator of its own: the run's order if it was seeded the same"
    else:
        yield (
            "shuffled by torch's global generator, and no checkpoint tells how that stood when the epoch began: the "
            "batches of these steps may be others than the run's"
        )


def _draws(sampler: Any) -> bool:
    return isinstance(sampler, _DRAWING) or (_seed_of(sampler) is not None and getattr(sampler, "shuffle", True))


def _seed_of(sampler: Any) -> int | None:
    """Return the seed of a sampler that reseeds itself each epoch: torch's DistributedSampler, accelerate's."""
    seed = getattr(sampler, "initial_seed", getattr(sampler, "seed", None))
    return seed if isinstance(seed, int) and hasattr(sampler, "set_epoch") else None
